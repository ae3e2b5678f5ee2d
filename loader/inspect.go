package loader

import (
	"fmt"
	"net"
	"time"
)

// An Inspection is what a daemon that is gone has left in the kernel.
type Inspection struct {
	Attachments []Attachment // where it forwards; Warning says what is wrong
	Stats       Stats        // services have no names: those are the configuration's
	Alive       time.Time    // when the daemon was last; zero: not known
	Fences      []FenceState // of its VRRP instances
}

// Inspect reads what is pinned in dir, without changing anything. Where nothing
// is, the error is fs.ErrNotExist.
func Inspect(dir string) (Inspection, error) {
	var in Inspection
	names, err := pinnedLinks(dir)
	if err != nil {
		return in, err
	}
	for _, name := range names {
		a := Attachment{Interface: name}
		nic, err := net.InterfaceByName(name)
		if err == nil {
			a.Index = nic.Index
			a.Mode, err = attachedMode(nic)
		}
		if err != nil {
			a.Warning = fmt.Sprintf("%s: not forwarding: %v", name, err)
		}
		in.Attachments = append(in.Attachments, a)
	}

	p, err := OpenPinned(dir)
	if err != nil {
		return in, err
	}
	defer p.Close() // nothing was written
	if in.Alive, in.Fences, err = readFences(p.tables); err != nil {
		return in, err
	}
	in.Stats, err = readStats(p.tables, p.state, nil, nil, nil)
	in.Stats.Tables = p.tables.flowTables(p.state, nil, nil)
	return in, err
}
