package loader

import "github.com/vishvananda/netlink"

// vethAdvice is what helps where a veth's peer takes no frames from XDP.
const vethAdvice = "an XDP program at the peer (one that passes everything will do), or `datapath: {mode: generic}`"

// checkPeers logs what interfaces lack that are ends of veth pairs: frames that native
// XDP sends by one are counted as sent, and arrive for certain only where its peer
// has a native XDP program, too. A peer in another network namespace can't be looked at.
func (d *Datapath) checkPeers(attached []Attachment) {
	for _, a := range attached {
		if a.Mode != Native {
			continue
		}
		l, err := netlink.LinkByIndex(a.Index)
		if err != nil || l.Type() != "veth" {
			continue // it may be gone again
		}
		if l.Attrs().NetNsID >= 0 {
			d.log.Info("one end of a veth pair: what native XDP sends by it arrives only if the peer has an XDP program, too",
				"interface", a.Interface, "needs", vethAdvice)
			continue
		}
		peer, err := netlink.LinkByIndex(l.Attrs().ParentIndex)
		if err != nil {
			continue
		}
		if x := peer.Attrs().Xdp; x == nil || !x.Attached || x.AttachMode == xdpAttachedGeneric {
			d.log.Warn("one end of a veth pair: what native XDP sends by it is lost, since the peer has no XDP program",
				"interface", a.Interface, "peer", peer.Attrs().Name, "needs", vethAdvice)
		}
	}
}

// checkVeth logs, once, what an end of a veth pair lacks where VIPs are at a virtual MAC
// address: its driver tells the kernel whose a frame is before native XDP has said so.
func (f *Fences) checkVeth(index int) {
	if f.vethSaid {
		return
	}
	l, err := netlink.LinkByIndex(index)
	if err != nil || l.Type() != "veth" {
		return
	}
	if x := l.Attrs().Xdp; x != nil && x.Attached && x.AttachMode != xdpAttachedGeneric {
		f.vethSaid = true
		f.log.Warn("one end of a veth pair with native XDP: services work at a virtual MAC address, and the node itself is not reached by it",
			"interface", l.Attrs().Name, "needs", "`datapath: {mode: generic}`")
	}
}
