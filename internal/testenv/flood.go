package testenv

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FloodMark is the type of service of a flood's packets. It outlives what a
// balancer rewrites, tunnels included (RFC 2983), and nothing else in a lab has it.
const FloodMark = 0x28

// A FloodConfig says what a Flood is made of.
type FloodConfig struct {
	Target  netip.AddrPort
	Sources netip.Prefix // 256 addresses or fewer: each packet has any of them, and any port
	Rate    int          // packets a second that it tries to reach
	// Either of these flags is in each segment; none: SYN or ACK.
	Flags [2]TCPFlags
	UDP   bool // datagrams in place of segments
	// Whose frames they seem to be; nil: the switch's.
	SrcMAC net.HardwareAddr
}

// A Flood is packets from spoofed sources, half of them with one kind of flags and
// half with the other, all valid. The kernel makes them of live frames, so that one CPU
// makes hundreds of thousands a second. They enter the host by its first interface
// as if its switch had sent them. Where the host sends them on, its switch drops
// them: whoever they are for would be busy with nothing else.
type Flood struct {
	cfg   FloodConfig
	host  *Host
	port  netlink.Link // of the switch
	frame []byte
	made  *ebpf.Program
	drop  *ebpf.Program
	count *ebpf.Map

	quit     chan struct{}
	done     chan struct{}
	stopOnce sync.Once

	start   time.Time
	arrived uint64 // at the host before the start

	mu     sync.Mutex // guards what follows
	err    error
	sent   uint64
	result FloodResult // once it is over
	over   bool
}

// A FloodResult is what a flood has come to. Arrived counts packets that the host
// has received, all of them; Sent is what the kernel was asked for, of which a
// full queue may lose some; Passed are those that the host has sent on.
type FloodResult struct {
	Sent, Arrived, Passed uint64
	Length                time.Duration
}

// Rate is how many packets a second arrived.
func (r FloodResult) Rate() float64 { return float64(r.Arrived) / r.Length.Seconds() }

// StartFlood floods the host. Its first interface must have an XDP program. The
// lab ends it at Close.
func (h *Host) StartFlood(cfg FloodConfig) (_ *Flood, err error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("start flood of %s: %w", h.Name, err)
	}
	f := &Flood{cfg: cfg, host: h, quit: make(chan struct{}), done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start flood of %s: %w", h.Name, err), f.unload())
		}
	}()
	iface := h.spec.Interfaces[0].Name
	if f.port, err = h.lab.sw.nl.LinkByName(portName(h.Name, iface)); err != nil {
		return nil, err
	}
	f.frame = cfg.frame(h.MAC(iface))
	if f.made, err = cfg.load(f.frame, f.port.Attrs().Index); err != nil {
		return nil, err
	}
	if f.count, f.drop, err = loadFloodDrop(); err != nil {
		return nil, err
	}
	if err := h.lab.sw.do(func() error { return netlink.LinkSetXdpFd(f.port, f.drop.FD()) }); err != nil {
		return nil, fmt.Errorf("attach xdp program to %s: %w", f.port.Attrs().Name, err)
	}
	if f.arrived, err = h.received(iface); err != nil {
		return nil, err
	}
	f.start = time.Now()
	go func() {
		defer close(f.done)
		// A redirect finds its interface in the namespace of who runs the program.
		err := h.lab.sw.do(func() error { return hurried(f.run) })
		f.mu.Lock()
		f.err = err
		f.mu.Unlock()
	}()
	h.lab.adopt(f)
	return f, nil
}

// run makes packets, some milliseconds' worth at a time, until the flood ends. The
// kernel takes some 30 ms to end a run.
func (f *Flood) run() error {
	const pause, longest = 2 * time.Millisecond, 100 * time.Millisecond
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-f.quit:
			return nil
		case <-ticker.C:
		}
		// What a busy machine has missed is not made up for: a flood that tries
		// to would leave it no time at all.
		n := int(float64(f.cfg.Rate) * min(time.Since(last), longest).Seconds())
		last = time.Now()
		if n == 0 {
			continue
		}
		if _, err := f.made.Run(&ebpf.RunOptions{
			Data: f.frame, Repeat: uint32(n), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		}); err != nil {
			return fmt.Errorf("send %d live frames: %w", n, err)
		}
		f.mu.Lock()
		f.sent += uint64(n)
		f.mu.Unlock()
	}
}

// hurried runs f before what else this machine has to do: what a flood is for must
// not slow it down. Where that is not allowed, f runs as everybody does.
func hurried(f func() error) error {
	const self, hurry = 0, -15
	// Of the thread alone, which goes back to others.
	if unix.Setpriority(unix.PRIO_PROCESS, self, hurry) != nil {
		return f()
	}
	return errors.Join(f(), unix.Setpriority(unix.PRIO_PROCESS, self, 0))
}

// Result returns what the flood has come to until now, and what went wrong.
func (f *Flood) Result() (FloodResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return f.result, f.err
	}
	r := FloodResult{Sent: f.sent, Length: time.Since(f.start)}
	arrived, err := f.host.received(f.host.spec.Interfaces[0].Name)
	if err != nil {
		return r, errors.Join(f.err, err)
	}
	r.Arrived = arrived - f.arrived
	var perCPU []uint64
	if err := f.count.Lookup(uint32(0), &perCPU); err != nil {
		return r, errors.Join(f.err, fmt.Errorf("count the flood: %w", err))
	}
	for _, n := range perCPU {
		r.Passed += n
	}
	return r, f.err
}

// Stop ends the flood and returns what it has come to.
func (f *Flood) Stop() (FloodResult, error) {
	f.stopOnce.Do(func() {
		close(f.quit)
		<-f.done
		r, err := f.Result()
		pass, passErr := loadPass()
		if passErr == nil {
			passErr = f.host.lab.sw.do(func() error { return netlink.LinkSetXdpFd(f.port, pass.FD()) })
			passErr = errors.Join(passErr, pass.Close())
		}
		err = errors.Join(err, passErr, f.unload())
		f.mu.Lock()
		defer f.mu.Unlock()
		f.result, f.err, f.over = r, err, true
	})
	return f.Result()
}

func (f *Flood) stop() error {
	_, err := f.Stop()
	return err
}

func (f *Flood) unload() error {
	var errs []error
	for _, p := range []*ebpf.Program{f.made, f.drop} {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, f.count.Close())...)
}

// received is how many packets an interface has received.
func (h *Host) received(iface string) (uint64, error) {
	link, err := h.ns.nl.LinkByName(iface)
	if err != nil {
		return 0, fmt.Errorf("find %s of %s: %w", iface, h.Name, err)
	}
	return link.Attrs().Statistics.RxPackets, nil
}
