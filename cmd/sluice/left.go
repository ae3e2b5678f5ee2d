package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/loader"
	"github.com/sluice-lb/sluice/vrrp"
)

// leftStatus is what a daemon that is gone has left: the data plane, and VIPs. Where
// there is neither, the error is fs.ErrNotExist.
func leftStatus(c *cli.Context, cfg *config.Config) (control.Status, error) {
	s := control.Status{
		Version: version(), Time: time.Now(), Interfaces: []control.Interface{}, VRRP: []control.Instance{},
		Checks: control.Checks(nil), Outcomes: []loader.Outcome{}, Left: &control.Left{VIPs: []control.LeftVIP{}, Instances: []control.LeftInstance{}},
	}
	vips, err := vrrp.ReadAdded(c.String("run-dir"))
	if err != nil {
		return s, err
	}
	for _, v := range vips {
		s.Left.VIPs = append(s.Left.VIPs, control.LeftVIP(v))
	}
	in, err := loader.Inspect(c.String("pin-dir"))
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || len(vips) == 0) {
		return s, err
	}
	s.Services, s.Outcomes, s.Tables = control.Services([]control.View{}, in.Stats), append(s.Outcomes, in.Stats.Outcomes...), in.Stats.Tables
	if err == nil {
		s.Services = control.Services(nil, in.Stats)
	}
	if cfg != nil {
		nameServices(s.Services, cfg)
	}
	for _, a := range in.Attachments {
		s.Forwarding = s.Forwarding || a.Warning == ""
		s.Interfaces = append(s.Interfaces, control.Interface{Name: a.Interface, Mode: a.Mode, Warning: a.Warning})
	}
	if !in.Alive.IsZero() {
		s.Left.DeadSince = &in.Alive
	}
	for _, f := range in.Fences {
		s.Left.Instances = append(s.Left.Instances, leftInstance(f, cfg))
	}
	return s, nil
}

func leftInstance(f loader.FenceState, cfg *config.Config) control.LeftInstance {
	i := control.LeftInstance{
		Interface: f.Interface, VirtualRouterID: f.VRID, Addresses: append([]netip.Addr{}, f.Addresses...), Held: f.Held, Fenced: f.Fenced,
	}
	if f.Other != nil {
		i.Other, i.Seen = f.Other.String(), &f.Seen
	}
	if cfg == nil {
		return i
	}
	for _, named := range cfg.VRRP {
		if named.Interface == f.Interface && named.VRID == f.VRID && len(f.Addresses) > 0 && named.V6() == f.Addresses[0].Is6() {
			i.Name = named.Name
		}
	}
	return i
}

// printDead tells of a daemon that does not run: since when, and what goes on.
func printDead(w io.Writer, s control.Status) {
	state := "not forwarding"
	if s.Forwarding {
		state = "forwarding goes on"
	}
	fmt.Fprintf(w, "sluice is not running, %s\n", state)
	if s.Left == nil {
		return
	}
	if since := s.Left.DeadSince; since != nil {
		fmt.Fprintf(w, "dead since %s, %s ago\n", since.Format(time.DateTime), age(s.Time, *since))
	}
	for _, v := range s.Left.VIPs {
		fmt.Fprintf(w, "vip %v is left on %s\n", v.Address, v.Interface)
	}
	for _, i := range s.Left.Instances {
		var vips []string
		for _, a := range i.Addresses {
			vips = append(vips, a.String())
		}
		what := "held no VIP"
		switch {
		case i.Fenced:
			what = fmt.Sprintf("fenced: %s has taken over, and was last seen %s ago; this node does not answer for %s",
				i.Other, age(s.Time, *i.Seen), strings.Join(vips, ", "))
		case i.Held:
			what = "not fenced: nobody else was seen, this node answers for " + strings.Join(vips, ", ")
		}
		fmt.Fprintf(w, "vrrp %s, virtual router %d on %s: %s\n", nameOf(i.Name), i.VirtualRouterID, i.Interface, what)
	}
}
