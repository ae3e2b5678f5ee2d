package config

import "net/netip"

var adminSchema = schema{what: "admin", keys: []string{"socket", "listen"}}

// maxSocketPath is what fits into a Unix socket's address, in bytes.
const maxSocketPath = 107

func (d *decoder) admin(n *node) Admin {
	a := Admin{Socket: DefaultSocket, Listen: DefaultListen}
	if n == nil {
		return a
	}
	f, ok := d.fields(n, &adminSchema)
	if !ok {
		return a
	}
	if n := f.own["socket"]; n != nil {
		path, ok := d.text(n, "socket")
		switch {
		case !ok:
		case path[0] != '/':
			d.errorf(n, "socket must be an absolute path, not %q", path)
		case len(path) > maxSocketPath:
			d.errorf(n, "socket is longer than the %d bytes that a Unix socket's path may have", maxSocketPath)
		default:
			a.Socket = path
		}
	}
	if n := f.own["listen"]; n != nil {
		a.Listen = d.adminListen(n)
	}
	return a
}

// adminListen decodes "ip:port", or none, which is the zero AddrPort.
func (d *decoder) adminListen(n *node) netip.AddrPort {
	s, ok := d.addressText(n, "listen", "\"127.0.0.1:9780\"")
	if !ok || s == "none" {
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" || a.Addr().IsMulticast() || a.Addr().Is4In6() {
		d.errorf(n, "listen must be an address of the node with a port, such as \"127.0.0.1:9780\" or \"[::]:9780\", or none, not %q", s)
		return netip.AddrPort{}
	}
	return a
}
