package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/loader"
	"github.com/sluice-lb/sluice/vrrp"
)

// aliveEvery is how often the data plane is told that the daemon runs: `sluice status`
// says since when it does not.
const aliveEvery = time.Second

// errNoDatapath is why nothing is fenced where there is no data plane.
var errNoDatapath = errors.New("there is no XDP program, since no service is configured")

// openFences prepares the data plane's part in VRRP.
func (n *node) openFences() (*loader.Fences, error) {
	if n.tables == nil {
		return nil, nil
	}
	var names []loader.FenceName
	for _, i := range n.cfg.VRRP {
		names = append(names, fenceName(i))
	}
	return n.tables.datapath.OpenFences(names)
}

// beAlive tells the data plane that the daemon runs, until ctx ends.
func beAlive(ctx context.Context, fences *loader.Fences) {
	ticker := time.NewTicker(aliveEvery)
	defer ticker.Stop()
	for {
		fences.Alive()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// fenceOf returns the fence of an instance.
func fenceOf(fences *loader.Fences, i config.Instance) vrrp.Fence {
	if fences == nil {
		return noFence{}
	}
	return fence{fences.Fence(i.VRID, i.VIPs()), fenceName(i), !i.Accept}
}

func fenceName(i config.Instance) loader.FenceName {
	return loader.FenceName{Interface: i.Interface, VRID: i.VRID, V6: i.V6()}
}

// freeFences gives up the fences of instances that have ended, but for those that the
// next instance of the same name in the table goes on with.
func (n *node) freeFences(next *config.Config, routers []*vrrp.Router) {
	for r, f := range n.fenced {
		if slices.Contains(routers, r) {
			continue
		}
		delete(n.fenced, r)
		if slices.ContainsFunc(next.VRRP, func(i config.Instance) bool { return fenceName(i) == f.name }) {
			continue
		}
		if err := f.Free(); err != nil {
			n.log.Error("the data plane goes on with an instance that is not configured any more", "interface", f.name.Interface, "virtual_router_id", f.name.VRID, "error", err)
		}
	}
}

// A fence is an entry of the data plane's table as a virtual router knows it.
type fence struct {
	*loader.Fence
	name   loader.FenceName
	closed bool // accept: false
}

func (f fence) Place(link vrrp.Link, patience time.Duration) error {
	return f.Fence.Place(loader.FencePlace{
		Interface: link.Index, MAC: link.MAC, Source: link.Source, Patience: patience, Router: link.Router, Virtual: link.Virtual != vrrp.MAC{},
		Closed: f.closed,
	})
}

// A noFence says that there is none.
type noFence struct{}

func (noFence) Place(vrrp.Link, time.Duration) error { return errNoDatapath }
func (noFence) Hold() bool                           { return false }
func (noFence) Present()                             {}
func (noFence) Left() (time.Duration, bool)          { return 0, false }
func (noFence) Adopt()                               {}
func (noFence) Drop()                                {}
func (noFence) Beat()                                {}
func (noFence) Overtaken() bool                      { return false }
