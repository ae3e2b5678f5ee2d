package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/events"
	"github.com/sluice-lb/sluice/internal/health"
	"github.com/sluice-lb/sluice/internal/natlog"
	"github.com/sluice-lb/sluice/internal/pace"
	"github.com/sluice-lb/sluice/internal/statesync"
	"github.com/sluice-lb/sluice/internal/track"
	"github.com/sluice-lb/sluice/internal/web"
	"github.com/sluice-lb/sluice/loader"
	"github.com/sluice-lb/sluice/vrrp"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run the daemon in the foreground",
		Description: "SIGTERM and SIGINT hand the VIPs over and stop; where no peer takes them they stay. " +
			"The data plane goes on forwarding until `sluice detach`.",
		Flags: append(configFlags(),
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "debug, info, warn or error"}),
		Action: func(c *cli.Context) error {
			var level slog.Level
			if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
				return &usageError{"run ", fmt.Errorf("--log-level %q: want debug, info, warn or error", c.String("log-level"))}
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			log := newLogWriter(c.App.ErrWriter)
			defer log.Close()
			d := &node{
				cfg: cfg, load: func() (*config.Config, error) { return readConfig(c) }, runDir: c.String("run-dir"), pinDir: c.String("pin-dir"), stateDir: c.String("state-dir"), started: time.Now(),
				log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level})),
			}
			return d.run(c.Context)
		},
	}
}

// A node is the daemon: everything that runs, put together.
type node struct {
	cfg            *config.Config // guarded by mu, as soon as a reload may change it
	load           func() (*config.Config, error)
	runDir, pinDir string
	stateDir       string
	started        time.Time
	log            *slog.Logger

	tables   *tables // nil where there is no service
	fresh    bool    // nothing was pinned before tables was made
	failed   bool    // the start has: see undo
	loop     *control.Loop
	tracker  *track.Tracker
	natLog   *natlog.Log // nil where none is configured
	fast     fastMode
	port     *statesync.Port // of TCP, for what nodes tell each other; nil: not asked for
	sharing  *sharing        // nil where no state is shared
	activity activity
	unshared string // what a planned stop has broken; "": nothing
	events   *events.Log
	alarms   control.AlarmBook
	ready    <-chan struct{} // closed when the tables were written first
	web      *web.Server     // nil where monitoring is not wanted
	checker  *health.Checker
	// Operators' changes to servers.
	overrides *control.Overrides
	http      httpFront
	dns       dnsFront

	transitions transitions

	// What a reload works with.
	hops       *loader.Resolver
	probes     *loader.Probes
	host       *vrrp.Host
	addresses  *vrrp.Addresses
	routes     *vrrp.Routes
	macs       *vrrp.MACFilters
	fences     *loader.Fences // nil with tables
	fenced     map[*vrrp.Router]fence
	settings   *vrrp.ARPSettings
	notifiers  map[string]*track.Notifier // by instance
	until      context.Context            // ends when the daemon is to stop
	inside     context.Context            // ends after its handover
	goroutines *sync.WaitGroup
	endWeb     context.CancelFunc

	reloading sync.Mutex // held while the configuration changes
	begun     bool       // guarded by reloading: all is started
	stopped   bool       // the same: it changes no more
	mu        sync.RWMutex
	routers   []*vrrp.Router
	moves     *control.Handovers // guarded by mu
	holds     *control.Holds
	closers   []func() error // what to close, in the order of opening
}

// socket is the configured admin socket; one in the default run directory moves
// with --run-dir.
func socket(cfg *config.Config, runDir string) string {
	if cfg == nil || cfg.Admin.Socket == config.DefaultSocket {
		return filepath.Join(runDir, filepath.Base(config.DefaultSocket))
	}
	return cfg.Admin.Socket
}

// run runs until ctx ends, then hands the VIPs over.
func (n *node) run(ctx context.Context) (err error) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	// Whoever reads the log may go (a restart of journald, the end of a pipe);
	// the daemon must not go with it. Nobody reads the channel: an ignored signal
	// would stay ignored in the programs that checks and hooks run.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	held, err := lock(n.runDir)
	if errors.Is(err, errLocked) {
		return fmt.Errorf("%w: stop it first, or give another --run-dir and --pin-dir", err)
	}
	if err != nil {
		return err
	}
	defer held.Close()
	if err := pace.RaiseSession(); err != nil {
		n.log.Info("the daemon has no greater share of the CPUs than others", "why", err)
	}
	n.openEvents()
	n.openWeb(n.cfg)

	inside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var goroutines sync.WaitGroup
	n.until, n.inside, n.goroutines = ctx, inside, &goroutines
	defer func() {
		stop()
		goroutines.Wait()
		if n.failed && n.fresh {
			_, detachErr := loader.Detach(n.pinDir)
			err = errors.Join(err, detachErr)
		}
		n.recordStop(err)
		if n.web != nil {
			err = errors.Join(err, n.web.Close())
		}
		for _, c := range slices.Backward(n.closers) {
			if e := c(); e != nil {
				err = errors.Join(err, e)
			}
		}
	}()

	ready := make(chan struct{})
	n.ready = ready
	if err := n.openOverrides(); err != nil {
		return err
	}
	// Before the data plane, which keeps nat off the ports that the node listens on.
	if err := n.openHTTP(); err != nil {
		return err
	}
	if err := n.openDNS(); err != nil {
		return err
	}
	if len(n.cfg.Services) > 0 {
		if err := n.startDatapath(inside, &goroutines); err != nil {
			return n.undo(err)
		}
		goroutines.Go(func() {
			select {
			case <-n.loop.Applied():
				close(ready)
			case <-inside.Done():
			}
		})
	} else {
		if err := n.dropDatapath(); err != nil {
			return err
		}
		n.makeChecker(nil)
		close(ready)
	}
	if err := n.makeRouters(inside, &goroutines); err != nil {
		return n.undo(err)
	}
	n.probeHTTP(inside, &goroutines)
	n.probeDNS(inside, &goroutines)
	if n.sharing != nil {
		goroutines.Go(func() { n.tellSynced(inside) })
	}
	if n.loop != nil {
		goroutines.Go(func() { n.loop.Run(inside, patience(n.cfg)) })
	}
	admin, err := control.Listen(socket(n.cfg, n.runDir), daemonOf{n, inside}, n.log)
	if err != nil {
		return n.undo(err)
	}
	n.closers = append(n.closers, admin.Close)

	goroutines.Go(func() { n.tracker.Run(inside) })
	goroutines.Go(func() { n.watchAlarms(inside) })
	n.serveWeb()
	for i := range n.routers {
		n.startRouter(i)
	}
	goroutines.Go(func() {
		for {
			select {
			case <-hangup:
				n.hangUp()
			case <-inside.Done():
				return
			}
		}
	})
	n.beginReloads()
	select {
	case <-ready:
	case <-ctx.Done():
	}
	notify(n.log, daemon.SdNotifyReady)
	cfg := n.config()
	n.recordReady(cfg)
	n.log.Info("running", "node", cfg.Node, "services", len(cfg.Services), "vrrp", len(cfg.VRRP))
	<-ctx.Done()

	notify(n.log, stopping(n.stopWait()))
	n.endReloads()
	n.leaveSpread()
	n.release(inside)
	n.finishSpread()
	return nil
}

// daemonOf is a node as the admin socket knows it.
type daemonOf struct {
	*node
	ctx context.Context // ends with the daemon
}

func (d daemonOf) Status() control.Status { return d.status() }

func (d daemonOf) HandOver(o control.HandoverOrder) ([]control.HandoverResult, error) {
	moves := d.handoversNow()
	results, err := moves.Do(d.ctx, o)
	if now := d.handoversNow(); now != moves { // a reload has come between
		now.Settle()
	}
	return results, err
}

// handoversNow are those of the instances in force.
func (n *node) handoversNow() *control.Handovers {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.moves
}

// undo has the data plane taken away that a start has made before it failed, with
// err, as soon as nobody is there who would put it back. One that was there before
// goes on forwarding.
func (n *node) undo(err error) error {
	n.failed = true
	return err
}

// startDatapath loads and attaches the data plane and makes the loop.
func (n *node) startDatapath(ctx context.Context, goroutines *sync.WaitGroup) error {
	slots := 0
	for _, s := range n.cfg.Services {
		slots += s.TableSize
	}
	d := n.cfg.Datapath
	pins, err := os.ReadDir(n.pinDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for a data plane: %w", err)
	}
	// The root of a BPF file system has files of the kernel's own, with a dot.
	n.fresh = !slices.ContainsFunc(pins, func(e fs.DirEntry) bool { return !strings.Contains(e.Name(), ".") })
	if !n.fresh {
		if err := n.lockPins(); err != nil {
			return err
		}
	}
	datapath, err := loader.Open(loader.Options{
		PinDir: n.pinDir, MaxFlows: d.MaxFlows, Slots: slots, Log: n.log,
		Ports: n.cfg.PortShare, TunnelSource4: d.TunnelSource4, TunnelSource6: d.TunnelSource6,
		ProbeAddresses4: d.ProbeAddresses4, ProbeAddresses6: d.ProbeAddresses6, LogTranslations: d.NATLog != "", TellFlows: shares(n.cfg),
	})
	if err != nil {
		return err
	}
	n.closers = append(n.closers, datapath.Close)
	if n.fresh { // there is a directory to lock only now
		if err := n.lockPins(); err != nil {
			n.fresh = false // it is the other daemon's
			return err
		}
	}
	n.warnIfHidden()
	if datapath.Fresh() { // also where a first start was cut short
		if err := datapath.Apply(control.Unserved(n.cfg.Services)); err != nil {
			return err
		}
	}
	n.tables = &tables{datapath: datapath, interfaces: d.Interfaces, mode: loader.Mode(d.Mode)}
	logTranslations, err := n.openNATLog(datapath)
	if err != nil {
		return err
	}
	if err := n.tables.attach(); err != nil {
		return err
	}
	n.recordDatapath()
	// What the program before has begun, and not told of, is there by now.
	goroutines.Go(func() { logTranslations(ctx) })
	// The resolver may find something before the loop is there to be told.
	dirty := make(chan struct{}, 1)
	n.hops, err = loader.NewResolver(d.Interfaces, n.log, func() {
		select {
		case dirty <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	n.closers = append(n.closers, func() error { n.hops.Close(); return nil })
	n.probes, err = datapath.OpenProbes(n.hops, vips(n.cfg))
	if err != nil {
		return err
	}
	n.closers = append(n.closers, n.probes.Close)
	n.makeChecker(n.probes)
	n.loop = control.NewLoop(n.cfg.Services, n.tables, n.checker.Share(), n.hops, n.probes, n.overrides, n.log)
	n.loop.Record(n.events.Record)
	if err := n.openSharing(ctx, goroutines, datapath); err != nil {
		return err
	}
	goroutines.Go(func() {
		for {
			select {
			case <-dirty:
				n.loop.Dirty()
			case <-ctx.Done():
				return
			}
		}
	})
	return nil
}

// openOverrides reads what operators have changed.
func (n *node) openOverrides() (err error) {
	n.overrides, err = control.OpenOverrides(filepath.Join(n.stateDir, "overrides.json"), n.cfg.Node)
	if err != nil {
		return err
	}
	if alarm := n.overrides.Alarm(); alarm != "" {
		n.log.Error(alarm)
	}
	return nil
}

// makeChecker makes who probes servers.
func (n *node) makeChecker(paths health.Paths) {
	n.checker = health.NewChecker(n.log, paths)
	n.closers = append(n.closers, func() error { n.checker.Close(); return nil })
}

// vips are the addresses that move between nodes.
func vips(cfg *config.Config) []netip.Addr {
	var all []netip.Addr
	for _, s := range cfg.Services {
		for _, f := range s.Addresses {
			all = append(all, f.VIP)
		}
		all = append(all, s.SourceAddresses...)
	}
	for _, i := range cfg.VRRP {
		for _, p := range i.Addresses {
			all = append(all, p.Addr())
		}
	}
	return all
}

// lockPins keeps another daemon, and `sluice detach`, off the pins.
func (n *node) lockPins() error {
	held, err := lockPins(n.pinDir)
	if errors.Is(err, errLocked) {
		return fmt.Errorf("%w: stop it first, or give another --pin-dir", err)
	}
	if held != nil {
		n.closers = append(n.closers, held.Close)
	}
	return err
}

// dropDatapath ends the forwarding of an earlier configuration, where this one
// has no service.
func (n *node) dropDatapath() error {
	if err := n.lockPins(); err != nil {
		return err
	}
	freed, err := loader.Detach(n.pinDir)
	if err != nil {
		return fmt.Errorf("remove the data plane, since no service is configured: %w", err)
	}
	if len(freed) > 0 {
		n.log.Info("no service is configured: the data plane of an earlier configuration is removed", "interfaces", freed)
	}
	return nil
}

// patience is how long the first verdicts may take: as long as every instance
// is willing to wait for them.
func patience(cfg *config.Config) time.Duration {
	const alone = 10 * time.Second
	if len(cfg.VRRP) == 0 {
		return alone
	}
	shortest := cfg.VRRP[0].StartTimeout
	for _, i := range cfg.VRRP[1:] {
		shortest = min(shortest, i.StartTimeout)
	}
	return shortest
}

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("tell systemd", "state", state, "error", err)
	}
}
