// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"context"
	"testing"
)

// Who owns the addresses, with priority 255, is Active as soon as it starts, whoever was
// before, and the other one is while it is not there.
func TestInteropOwner(t *testing.T) {
	needKeepalived(t)
	p := v3protocol("", "", "", "192.0.2.100/24")
	t.Run("keepalived", func(t *testing.T) {
		t.Parallel()
		m := mixedPairOf(t, p, 254, true)
		m.startSluice()
		eventually(t, "sluice has the vip, which is alone", func() bool { return m.has(true, false) })
		m.startKeepalived(p, "MASTER", PriorityOwner)
		holds := func() bool { return m.has(false, true) }
		eventually(t, "the owner has the vip", holds)
		always(t, "the owner has the vip", 6*m.cfg.Interval, holds)
		m.peer.stop()
		eventually(t, "sluice has the vip again", func() bool { return m.has(true, false) })
	})
	t.Run("sluice, whose own address it is", func(t *testing.T) {
		t.Parallel()
		m := mixedPairOf(t, p, PriorityOwner, false)
		m.startKeepalived(p, "BACKUP", 254)
		eventually(t, "keepalived has the vip, which is alone", func() bool { return m.has(false, true) })
		m.sluice.addAddress("eth0", "192.0.2.100/24") // the machine has come up
		m.startSluice()
		holds := func() bool { return m.has(true, false) }
		eventually(t, "the owner has the vip", holds)
		always(t, "the owner has the vip", 6*m.cfg.Interval, holds)
		if s := m.router.Status(); s.State != Active || s.Source != addr("192.0.2.1") {
			t.Errorf("sluice is %v, and sends from %v", s.State, s.Source)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if h, err := m.router.Release(ctx); err != nil || !h.TookOver() {
			t.Errorf("got handover %+v, %v, want that keepalived took over", h, err)
		}
		eventually(t, "keepalived has the vip, too: nobody takes a node's own address away", func() bool { return m.has(true, true) })
	})
}
