package config

func (d *decoder) virtualMAC(n *node, i *instanceDef) {
	on, ok := d.boolean(n, "virtual_mac")
	if !ok || !on {
		return
	}
	i.VirtualMAC, i.virtualAt = true, n
	if i.Priority == owner {
		d.errorf(n, "virtual_mac is not for the owner of the addresses (priority 255): its kernel has them for ever, at its own MAC address")
	}
}

func (d *decoder) accept(n *node, i *instanceDef) {
	on, ok := d.boolean(n, "accept")
	if !ok {
		return
	}
	i.Accept, i.acceptAt = on, n
	if !on && i.Priority == owner {
		d.errorf(n, "accept: false is not for the owner of the addresses (priority 255): they are its own (RFC 9568)")
	}
}

// checkVirtual demands what answers for a virtual MAC address, and what drops packets
// that are not accepted. Whether the program is on the interface of an instance, or on the
// NIC below it, only a node that runs can tell.
func (d *decoder) checkVirtual(services []*serviceDef, instances []*instanceDef) {
	for _, i := range instances {
		if i.VirtualMAC && len(services) == 0 {
			d.errorf(i.virtualAt, "virtual_mac needs the XDP program, which is there with services only: add one, or leave it out")
		}
		if !i.Accept && len(services) == 0 {
			d.errorf(i.acceptAt, "accept: false needs the XDP program, which is there with services only: add one, or leave it out")
		}
	}
}
