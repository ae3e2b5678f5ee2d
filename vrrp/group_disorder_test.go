// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// A disorder is a few gateways to which all sorts of things happen.
type disorder struct {
	*rand.Rand
	t           *testing.T
	front, back *segment
	gateways    []gateway
	running     []bool
	began       time.Time
	log         []string
}

func (d *disorder) note(format string, args ...any) {
	d.log = append(d.log, fmt.Sprintf("%12v ", time.Since(d.began))+fmt.Sprintf(format, args...))
}

// start starts the daemon of a gateway, with a group of its own.
func (d *disorder) start(i int) {
	if d.running[i] {
		return
	}
	d.note("%d starts", i)
	d.running[i] = true
	group := NewGroup("pair")
	for k, n := range []*node{d.gateways[i].front, d.gateways[i].back} {
		n.cut.Store(false)
		n.group = group
		n.run(func(c *Config) { c.Priority, c.Name = uint8(100-i), []string{"front", "back"}[k] })
	}
}

// crash ends the daemon of a gateway, which leaves its VIPs.
func (d *disorder) crash(i int) {
	if !d.running[i] {
		return
	}
	d.note("%d crashes", i)
	d.running[i] = false
	d.gateways[i].front.crash()
	d.gateways[i].back.crash()
}

// mischief does one thing that may happen.
func (d *disorder) mischief() {
	i := d.IntN(len(d.gateways))
	g := d.gateways[i]
	n, side := g.front, "front"
	if d.IntN(2) == 0 {
		n, side = g.back, "back"
	}
	what := d.IntN(7)
	if what > 1 && !d.running[i] {
		return
	}
	switch what {
	case 0:
		d.crash(i)
	case 1:
		d.start(i)
	case 2:
		on := d.IntN(2) == 0
		d.note("%s of %d is not heard: %v", side, i, on)
		n.cut.Store(on)
	case 3:
		up := d.IntN(2) == 0
		d.note("%s of %d has a link: %v", side, i, up)
		n.change(func() { n.link.Up = up })
	case 4:
		d.note("%s of %d is unfit", side, i)
		n.router.Fault("x")
	case 5:
		d.note("%s of %d is fit", side, i)
		n.router.ClearFault()
	case 6:
		d.note("%d hands over", i)
		for _, n := range []*node{g.front, g.back} {
			r := n.router
			go func() { _, _ = r.HandOver(d.t.Context()) }() // whatever comes of it
		}
	}
}

// peace mends everything.
func (d *disorder) peace() {
	d.note("peace")
	for i, g := range d.gateways {
		d.start(i)
		for _, n := range []*node{g.front, g.back} {
			n.cut.Store(false)
			n.change(func() { n.link.Up = true })
			n.router.ClearFault()
		}
	}
}

// check demands that one gateway is Active on both sides, and the others on none.
func (d *disorder) check() error {
	active := -1
	for i, g := range d.gateways {
		f, b := g.front.router.Status().State, g.back.router.Status().State
		switch {
		case f != b || f != Active && f != Backup:
			return fmt.Errorf("gateway %d is %v on one side and %v on the other", i, f, b)
		case g.front.holds() != (f == Active) || g.back.holds() != (b == Active):
			return fmt.Errorf("gateway %d is %v, and holds its VIPs: %v, %v", i, f, g.front.holds(), g.back.holds())
		case f == Active && active >= 0:
			return fmt.Errorf("gateways %d and %d are both Active", active, i)
		case f == Active:
			active = i
		}
	}
	if active < 0 {
		return fmt.Errorf("no gateway is Active")
	}
	return nil
}

// Whatever happens to gateways, once it is over one of them has both sides, and
// keeps them.
func TestGroupsAfterDisorder(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			d := &disorder{Rand: rand.New(rand.NewPCG(seed, 2)), t: t, began: time.Now(), front: newSegment(), back: newSegment()}
			for i := range 2 + d.IntN(2) {
				d.gateways = append(d.gateways, gateway{newNode(t, d.front, byte(1+i)), newNode(t, d.back, byte(1+i))})
				d.running = append(d.running, false)
			}
			for range 10 + d.IntN(30) {
				d.mischief()
				sleep(time.Duration(d.Int64N(int64(4 * time.Second))))
			}
			d.peace()
			sleep(time.Minute)
			for range 5 {
				if err := d.check(); err != nil {
					for _, line := range d.log {
						t.Log(line)
					}
					t.Fatalf("seed %d: %v", seed, err)
				}
				sleep(10 * time.Second)
			}
		})
	}
}
