package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FloodMark is the type of service of a flood's packets. It outlives what a
// balancer rewrites, tunnels included (RFC 2983), and nothing else in a lab has it.
const FloodMark = 0x28

// A FloodConfig says what a Flood is made of.
type FloodConfig struct {
	Target  netip.AddrPort // IPv4
	Sources netip.Prefix   // an IPv4 /24: each packet has any address and any port of it
	Rate    int            // packets a second that it tries to reach
}

// A Flood is TCP segments from spoofed sources, half of them SYNs and half ACKs of
// no connection, all valid. The kernel makes them of live frames, so that one CPU
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
	if !cfg.Target.Addr().Is4() || !cfg.Sources.Addr().Is4() || cfg.Sources.Bits() != 24 || cfg.Rate <= 0 {
		return nil, fmt.Errorf("start flood of %s: want an IPv4 target, a /24 of sources and a rate, got %+v", h.Name, cfg)
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
	f.frame = Frame{
		DstMAC: h.MAC(iface), SrcMAC: bridgeAddr(0), TOS: FloodMark, Window: 1024, PadTo: 60,
		Src: netip.AddrPortFrom(cfg.Sources.Masked().Addr(), 0), Dst: cfg.Target,
	}.Bytes()
	if f.made, err = loadFlood(f.frame, f.port.Attrs().Index); err != nil {
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

// Offsets in a frame of the flood.
const (
	atEtherType  = 12
	atTOS        = 15
	atIPChecksum = 24
	atLastByte   = 29 // of the source address
	atSourcePort = 34
	atSequence   = 38
	atFlags      = 47
	atChecksum   = 50
)

// loadFlood loads a program that writes the frame, with another source, sequence
// number and flag each time, and sends it by an interface. All is written each
// time: live frames come back as the last receiver has left them.
func loadFlood(frame []byte, ifindex int) (*ebpf.Program, error) {
	const data, random, sequence = asm.R7, asm.R8, asm.R9
	ins := asm.Instructions{
		asm.LoadMem(data, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R2, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R3, data),
		asm.Add.Imm(asm.R3, int32(len(frame))),
		asm.JGT.Reg(asm.R3, asm.R2, "short"),
	}
	for at := 0; at < len(frame); at += 4 {
		ins = append(ins, asm.StoreImm(data, int16(at), int64(int32(binary.NativeEndian.Uint32(frame[at:]))), asm.Word))
	}
	ins = append(ins,
		asm.FnGetPrandomU32.Call(),
		asm.Mov.Reg(random, asm.R0),
		asm.FnGetPrandomU32.Call(),
		asm.Mov.Reg(sequence, asm.R0),
		// R1: the port, 1024 or more; R2: the last byte of the address; R3: SYN or ACK.
		asm.Mov.Reg(asm.R1, random),
		asm.And.Imm(asm.R1, 0xffff),
		asm.Or.Imm(asm.R1, 0x400),
		asm.Mov.Reg(asm.R2, random),
		asm.RSh.Imm(asm.R2, 16),
		asm.And.Imm(asm.R2, 0xff),
		asm.Mov.Reg(asm.R3, random),
		asm.RSh.Imm(asm.R3, 24),
		asm.And.Imm(asm.R3, 1),
		asm.Mul.Imm(asm.R3, int32(ACK-SYN)),
		asm.Add.Imm(asm.R3, int32(SYN)),
		asm.StoreMem(data, atLastByte, asm.R2, asm.Byte),
		asm.StoreMem(data, atFlags, asm.R3, asm.Byte),
	)
	// What was zero in the frame adds to the sums that it has.
	ins = append(ins,
		asm.Mov.Imm(asm.R4, int32(^binary.BigEndian.Uint16(frame[atIPChecksum:]))),
		asm.Add.Reg(asm.R4, asm.R2))
	ins = append(ins, foldInto(data, atIPChecksum)...)
	ins = append(ins,
		asm.Mov.Imm(asm.R4, int32(^binary.BigEndian.Uint16(frame[atChecksum:]))),
		asm.Add.Reg(asm.R4, asm.R2),
		asm.Add.Reg(asm.R4, asm.R1),
		asm.Add.Reg(asm.R4, asm.R3),
		asm.Mov.Reg(asm.R5, sequence),
		asm.RSh.Imm(asm.R5, 16),
		asm.Add.Reg(asm.R4, asm.R5),
		asm.Mov.Reg(asm.R5, sequence),
		asm.And.Imm(asm.R5, 0xffff),
		asm.Add.Reg(asm.R4, asm.R5))
	ins = append(ins, foldInto(data, atChecksum)...)
	ins = append(ins,
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(data, atSourcePort, asm.R1, asm.Half),
		asm.HostTo(asm.BE, sequence, asm.Word),
		asm.StoreMem(data, atSequence, sequence, asm.Word),
		asm.Mov.Imm(asm.R1, int32(ifindex)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("short"), // XDP_ABORTED
		asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_flood", Type: ebpf.XDP, Instructions: ins, License: "Dual BSD/GPL",
	})
	if err != nil {
		return nil, fmt.Errorf("load xdp program that floods: %w", err)
	}
	return prog, nil
}

// foldInto writes the checksum of the sum in R4. It uses R5.
func foldInto(data asm.Register, at int16) asm.Instructions {
	var ins asm.Instructions
	for range 2 {
		ins = append(ins,
			asm.Mov.Reg(asm.R5, asm.R4),
			asm.RSh.Imm(asm.R5, 16),
			asm.And.Imm(asm.R4, 0xffff),
			asm.Add.Reg(asm.R4, asm.R5))
	}
	return append(ins,
		asm.Xor.Imm(asm.R4, 0xffff),
		asm.HostTo(asm.BE, asm.R4, asm.Half),
		asm.StoreMem(data, at, asm.R4, asm.Half))
}

// loadFloodDrop loads a program that drops IPv4 packets with FloodMark, counts
// them, and passes everything else.
func loadFloodDrop() (*ebpf.Map, *ebpf.Program, error) {
	const xdpDrop, xdpPass = 1, 2
	count, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "lab_flood", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("create map of a flood: %w", err)
	}
	ipv4 := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, EtherTypeIPv4))
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_flood_drop", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, atTOS+1),
			asm.JGT.Reg(asm.R4, asm.R3, "pass"),
			asm.LoadMem(asm.R5, asm.R2, atEtherType, asm.Half),
			asm.JNE.Imm(asm.R5, int32(ipv4), "pass"),
			asm.LoadMem(asm.R5, asm.R2, atTOS, asm.Byte),
			asm.JNE.Imm(asm.R5, FloodMark, "pass"),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, count.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "drop"),
			asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
			asm.Add.Imm(asm.R1, 1),
			asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"),
			asm.Return(),
			asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("load xdp program that drops a flood: %w", err), count.Close())
	}
	return count, prog, nil
}
