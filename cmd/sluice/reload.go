package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/vrrp"
)

// config is the configuration in force.
func (n *node) config() *config.Config {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.cfg
}

// instances are the VRRP instances in force.
func (n *node) instances() []*vrrp.Router {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.routers
}

// hangUp is what SIGHUP asks for.
func (n *node) hangUp() {
	if n.natLog != nil {
		n.natLog.Reopen()
	}
	// The result is in the log.
	_, _ = n.reload(false)
}

// beginReloads lets the configuration change from now on.
func (n *node) beginReloads() {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	n.begun = true
}

// endReloads waits for a reload that is under way, and lets no other begin.
func (n *node) endReloads() {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	n.stopped = true
}

func (d daemonOf) Reload(dry bool) ([]string, error) { return d.reload(dry) }

// reload applies the file, or with dry only finds out what that would change. It
// returns the changes. After an error the configuration is the one of before.
func (n *node) reload(dry bool) ([]string, error) {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	changes, err := n.tryReload(dry)
	if dry {
		return changes, err
	}
	e := events.Event{Type: events.DaemonReload, To: "applied", Text: "nothing has changed"}
	switch {
	case err != nil:
		e.To, e.Text = "refused", inBrief(err)
		n.log.Error("the configuration stays as it is", "error", e.Text)
	case len(changes) > 0:
		e.Text = strings.Join(changes, "; ")
		n.log.Info("another configuration is in force", "changes", changes)
	default:
		n.log.Info("the configuration has not changed")
	}
	n.events.Record(e)
	return changes, err
}

// inBrief is an error in one line, without the lines of the file: those may hold a
// password, and this is kept.
func inBrief(err error) string {
	var mistakes config.Errors
	if !errors.As(err, &mistakes) {
		return strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	var all []string
	for _, m := range mistakes {
		all = append(all, m.Summary())
	}
	return strings.Join(all, "; ")
}

// tryReload does so for who holds n.reloading.
func (n *node) tryReload(dry bool) ([]string, error) {
	ready := false
	select {
	case <-n.ready:
		ready = n.begun
	default:
	}
	if !ready {
		return nil, errors.New("the daemon is still starting: try again when it is ready")
	}
	if n.stopped || n.until.Err() != nil {
		return nil, errors.New("the daemon is stopping")
	}
	next, err := n.load()
	if err != nil {
		return nil, err
	}
	before := n.config()
	diff := config.Compare(before, next)
	breaks, err := n.possible(before, next, diff)
	diff.Changes = append(diff.Changes, breaks...)
	if err != nil || dry || len(diff.Changes) == 0 {
		return diff.Changes, err
	}
	routers, err := n.nextRouters(next, diff)
	if err != nil {
		n.forget(before)
		return diff.Changes, err
	}
	if err := n.reloadHTTP(before, next); err != nil {
		n.forget(before)
		return diff.Changes, err
	}
	if err := n.reloadDNS(before, next); err != nil {
		n.forget(before)
		return diff.Changes, errors.Join(err, n.reloadHTTP(next, before))
	}
	if n.loop != nil {
		// New services may be as healthy as a new check; it is run before they serve.
		n.tracker.Set(checksOfBoth(before, next), trackedBy(before, n.routers))
		if err := n.reloadServices(before, next); err != nil {
			n.forget(before)
			n.tracker.Set(before.Checks, trackedBy(before, n.routers))
			return diff.Changes, errors.Join(err, n.reloadHTTP(next, before), n.reloadDNS(next, before))
		}
	}
	n.reloadVRRP(next, routers)
	if before.Admin.Listen != next.Admin.Listen {
		n.endWeb()
		n.openWeb(next)
		n.serveWeb()
	}
	return diff.Changes, nil
}

// possible tells what keeps a configuration from being applied, and what connections
// break by it that would not have to.
func (n *node) possible(before, next *config.Config, diff config.Difference) (breaks []string, err error) {
	var errs []error
	for _, text := range diff.Refused {
		errs = append(errs, errors.New(text))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	for _, name := range next.Datapath.Interfaces {
		if slices.Contains(before.Datapath.Interfaces, name) {
			continue
		}
		if _, err := net.InterfaceByName(name); err != nil {
			errs = append(errs, fmt.Errorf("attach to %s: %w: ip link shows what there is", name, err))
		}
	}
	if n.tables != nil {
		if breaks, err = n.tables.datapath.Check(control.Everything(next.Services)); err != nil {
			errs = append(errs, fmt.Errorf("too much for the data plane as it is: %w", err))
		}
	}
	return breaks, errors.Join(errs...)
}

// reloadServices has the loop serve other services, on other interfaces. While old
// and new ones are there, the program is on the interfaces of both.
func (n *node) reloadServices(before, next *config.Config) error {
	both := slices.Clone(before.Datapath.Interfaces)
	for _, name := range next.Datapath.Interfaces {
		if !slices.Contains(both, name) {
			both = append(both, name)
		}
	}
	use := func(interfaces []string, of ...*config.Config) error {
		var addresses []netip.Addr
		for _, cfg := range of {
			addresses = append(addresses, vips(cfg)...)
		}
		n.tables.interfaces = interfaces
		n.hops.SetInterfaces(interfaces)
		n.probes.SetVIPs(addresses)
		return n.tables.attach()
	}
	return n.loop.Reload(n.until, control.Reload{
		Services: next.Services, Patience: patience(next),
		Prepare: func() error { return use(both, before, next) },
		Finish: func() error {
			if err := use(next.Datapath.Interfaces, next); err != nil {
				// The services are there, and the loop tries again.
				n.log.Error("interfaces are not as the new configuration wants them", "error", err)
			}
			return nil
		},
		Undo: func() {
			if err := use(before.Datapath.Interfaces, before); err != nil {
				n.log.Error("interfaces are not as before", "error", err)
			}
		},
	})
}

// forget gives back what instances have got that will never be, since the configuration
// stays as it is.
func (n *node) forget(cfg *config.Config) {
	n.freeFences(cfg, n.routers)
	n.fast.leave(n.routers)
}

// nextRouters returns the instances of a configuration: those that may go on, and
// new ones, which are not run yet.
func (n *node) nextRouters(next *config.Config, diff config.Difference) ([]*vrrp.Router, error) {
	var routers []*vrrp.Router
	groups := map[string]*vrrp.Group{}
	for _, i := range next.VRRP {
		k := slices.IndexFunc(n.cfg.VRRP, func(o config.Instance) bool { return o.Name == i.Name })
		if k >= 0 && !slices.Contains(diff.Anew, i.Name) {
			routers = append(routers, n.routers[k])
			continue
		}
		r, err := n.newRouter(i, groups)
		if err != nil {
			return nil, err
		}
		routers = append(routers, r)
	}
	return routers, nil
}

// reloadVRRP makes these the instances, and the configuration that in force.
// Instances that go, or begin anew, give their VIPs away as when the daemon stops;
// where no peer takes them they stay until the new instance has them, or go with
// the configuration that had them.
func (n *node) reloadVRRP(next *config.Config, routers []*vrrp.Router) {
	old := n.routers
	goes := slices.DeleteFunc(slices.Clone(old), func(r *vrrp.Router) bool { return slices.Contains(routers, r) })
	if slices.ContainsFunc(goes, func(r *vrrp.Router) bool { return r.Status().State == vrrp.Active }) {
		if why := n.lacks(n.inside, handoverPatience); why != "" {
			n.log.Warn("other nodes have not all of this node's connections: those break where one takes over", "lacking", why)
		}
	}
	var all sync.WaitGroup
	for _, r := range goes {
		all.Go(func() {
			n.giveUp(n.inside, r)
			// The next one of its name works with the same fence and heartbeats.
			<-r.Ended()
		})
	}
	all.Wait()

	n.mu.Lock()
	before := n.cfg
	n.cfg, n.routers, n.moves = next, routers, n.handovers(next, routers)
	n.tracker.Set(next.Checks, trackedBy(next, routers))
	n.mu.Unlock()
	n.activity.follow(next.VRRP)
	if n.sharing != nil {
		if err := n.sharing.stream.Reconfigure(digests(next), next.Sync.Keys); err != nil {
			n.log.Error("peers are told of the services of before", "error", err)
		}
	}
	for _, i := range next.VRRP {
		n.hooks(i).Set(hooksOf(i))
	}
	if !reflect.DeepEqual(before.VRRP, next.VRRP) || !slices.Equal(spreadVIPs(before), spreadVIPs(next)) {
		if _, err := n.addresses.Forget(configured(next)); err != nil {
			n.log.Error("addresses that are not configured any more are left", "error", err)
		}
		if err := n.routes.Forget(routesOf(next)); err != nil {
			n.log.Error("routes that are not configured any more are left", "error", err)
		}
		n.applyARP()
		n.applySpread()
		n.forgetMACs(next)
		n.freeFences(next, routers)
		n.fast.leave(routers)
	}
	for i, r := range routers {
		if !slices.Contains(old, r) {
			n.startRouter(i)
		}
	}
}

// giveUp ends an instance. Its VIPs stay here where nobody has taken them.
func (n *node) giveUp(ctx context.Context, r *vrrp.Router) (stay bool) {
	name := r.Status().Name
	handover, err := r.Release(ctx)
	switch {
	case errors.Is(err, vrrp.ErrNotRunning):
	case err != nil:
		n.log.Warn("the handover was cut short", "instance", name, "error", err)
	case handover.TookOver():
		n.log.Info("a peer has taken over", "instance", name, "peer", handover.Peer)
	default:
		return handover.WasActive
	}
	return false
}

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:  "reload",
		Usage: "have the daemon apply its configuration file",
		Description: "It applies all of it, and no connection is lost, or nothing, and says why. What cannot be changed while " +
			"it runs is named: that needs a restart, which loses nothing either.",
		Flags: append(configFlags(),
			&cli.BoolFlag{Name: "dry-run", Usage: "only show what would change"}),
		Action: func(c *cli.Context) error {
			cfg, mistakes, err := socketConfig(c)
			if err != nil {
				return err
			}
			changes, err := control.SendReload(c.Context, socket(cfg, c.String("run-dir")), c.Bool("dry-run"))
			switch {
			case errors.Is(err, control.ErrNotRunning) && mistakes != nil && (c.IsSet("config") || !errors.Is(mistakes, fs.ErrNotExist)):
				return fmt.Errorf("reload: %w; the daemon may have another admin.socket, which %s does not tell as it is: %s: mend that first",
					err, c.String("config"), inBrief(mistakes))
			case errors.Is(err, control.ErrNotRunning):
				return fmt.Errorf("reload: %w: start it first", err)
			case errors.Is(err, control.ErrRefused):
				fmt.Fprintln(c.App.ErrWriter, strings.TrimSpace(err.Error()))
				fmt.Fprintln(c.App.ErrWriter, "sluice: the daemon goes on with the configuration that it has")
				return errReported
			case err != nil:
				return fmt.Errorf("reload: %w", err)
			case len(changes) == 0:
				changes = []string{"nothing changes"}
			}
			_, err = fmt.Fprintln(c.App.Writer, strings.Join(changes, "\n"))
			return err
		},
	}
}

// socketConfig reads the configuration for the socket's path alone: that it is wrong is
// for the daemon to say. Mistakes are why there is none.
func socketConfig(c *cli.Context) (cfg *config.Config, mistakes, err error) {
	cfg, err = readConfig(c)
	var all config.Errors
	switch {
	case errors.As(err, &all):
		return nil, err, nil
	case err != nil && c.IsSet("config"):
		return nil, nil, err
	}
	return cfg, nil, nil
}
