package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// check finds what a flood can't be made of.
func (cfg FloodConfig) check() error {
	width := cfg.Target.Addr().BitLen()
	if !cfg.Target.IsValid() || cfg.Sources.Addr().BitLen() != width || cfg.Sources.Bits() < width-8 || cfg.Rate <= 0 {
		return fmt.Errorf("want a target, 256 sources at most of its family and a rate, got %+v", cfg)
	}
	return nil
}

// frame is what all packets of a flood have in common: the rest is zero in it.
func (cfg FloodConfig) frame(to net.HardwareAddr) []byte {
	f := Frame{
		DstMAC: to, SrcMAC: cfg.SrcMAC, TOS: FloodMark, Window: 1024,
		Src: netip.AddrPortFrom(cfg.Sources.Masked().Addr(), 0), Dst: cfg.Target,
	}
	if f.SrcMAC == nil {
		f.SrcMAC = bridgeAddr(0)
	}
	if cfg.UDP {
		f.Protocol, f.Payload = ProtocolUDP, make([]byte, 4)
	}
	// It is written in words.
	f.PadTo = max(60, (len(f.Bytes())+3)&^3)
	return f.Bytes()
}

// A floodLayout says where in a frame is what differs from packet to packet. 0: not
// in this one.
type floodLayout struct {
	ipChecksum, lastByte, sourcePort, sequence, flags, checksum int16
}

func (cfg FloodConfig) layout() floodLayout {
	const srcIPv4, srcIPv6 = etherHeaderLen + 12, etherHeaderLen + 8
	l := floodLayout{ipChecksum: etherHeaderLen + 10, lastByte: srcIPv4 + 3}
	l4 := int16(etherHeaderLen + ipHeaderLen)
	if cfg.Target.Addr().Is6() {
		l, l4 = floodLayout{lastByte: srcIPv6 + 15}, etherHeaderLen+40
	}
	l.sourcePort = l4
	if cfg.UDP {
		l.sequence, l.checksum = l4+udpHeaderLen, l4+6
	} else {
		l.sequence, l.flags, l.checksum = l4+4, l4+13, l4+16
	}
	return l
}

// load loads a program that writes the frame, with another source, sequence number (of
// a datagram: payload) and flag each time, and sends it by an interface. All is written
// each time: live frames come back as the last receiver has left them.
func (cfg FloodConfig) load(frame []byte, ifindex int) (*ebpf.Program, error) {
	const data, random, sequence = asm.R7, asm.R8, asm.R9
	at := cfg.layout()
	flags := cfg.Flags
	if flags == [2]TCPFlags{} {
		flags = [2]TCPFlags{SYN, ACK}
	}
	free := cfg.Target.Addr().BitLen() - cfg.Sources.Bits()
	ins := asm.Instructions{
		asm.LoadMem(data, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R2, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R3, data),
		asm.Add.Imm(asm.R3, int32(len(frame))),
		asm.JGT.Reg(asm.R3, asm.R2, "short"),
	}
	for i := 0; i < len(frame); i += 4 {
		ins = append(ins, asm.StoreImm(data, int16(i), int64(int32(binary.NativeEndian.Uint32(frame[i:]))), asm.Word))
	}
	ins = append(ins,
		asm.FnGetPrandomU32.Call(),
		asm.Mov.Reg(random, asm.R0),
		asm.FnGetPrandomU32.Call(),
		asm.Mov.Reg(sequence, asm.R0),
		// R1: the port, 1024 or more; R2: the last byte of the address; R3: the flags.
		asm.Mov.Reg(asm.R1, random),
		asm.And.Imm(asm.R1, 0xffff),
		asm.Or.Imm(asm.R1, 0x400),
		asm.Mov.Reg(asm.R2, random),
		asm.RSh.Imm(asm.R2, 16),
		asm.And.Imm(asm.R2, int32(1)<<free-1),
		asm.Mov.Reg(asm.R3, random),
		asm.RSh.Imm(asm.R3, 24),
		asm.And.Imm(asm.R3, 1),
		asm.Mul.Imm(asm.R3, int32(flags[1])-int32(flags[0])),
		asm.Add.Imm(asm.R3, int32(flags[0])),
		// What the sums have of the last byte already, they must not get again.
		asm.LoadMem(asm.R4, data, at.lastByte, asm.Byte),
		asm.Or.Reg(asm.R4, asm.R2),
		asm.StoreMem(data, at.lastByte, asm.R4, asm.Byte),
	)
	// What was zero in the frame adds to the sums that it has.
	if at.ipChecksum > 0 {
		ins = append(ins, sumOf(frame, at.ipChecksum), asm.Add.Reg(asm.R4, asm.R2))
		ins = append(ins, foldInto(data, at.ipChecksum)...)
	}
	ins = append(ins,
		sumOf(frame, at.checksum),
		asm.Add.Reg(asm.R4, asm.R2),
		asm.Add.Reg(asm.R4, asm.R1),
		asm.Mov.Reg(asm.R5, sequence),
		asm.RSh.Imm(asm.R5, 16),
		asm.Add.Reg(asm.R4, asm.R5),
		asm.Mov.Reg(asm.R5, sequence),
		asm.And.Imm(asm.R5, 0xffff),
		asm.Add.Reg(asm.R4, asm.R5))
	if at.flags > 0 {
		ins = append(ins, asm.Add.Reg(asm.R4, asm.R3), asm.StoreMem(data, at.flags, asm.R3, asm.Byte))
	}
	ins = append(ins, foldInto(data, at.checksum)...)
	ins = append(ins,
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(data, at.sourcePort, asm.R1, asm.Half),
		asm.HostTo(asm.BE, sequence, asm.Word),
		asm.StoreMem(data, at.sequence, sequence, asm.Word),
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

// sumOf puts the sum that a checksum of the frame is of into R4.
func sumOf(frame []byte, at int16) asm.Instruction {
	return asm.Mov.Imm(asm.R4, int32(^binary.BigEndian.Uint16(frame[at:])))
}

// foldInto writes the checksum of the sum in R4. It uses R5. A checksum of 0 is
// written as the other zero, which says the same, and is none in UDP alone.
func foldInto(data asm.Register, at int16) asm.Instructions {
	var ins asm.Instructions
	for range 2 {
		ins = append(ins,
			asm.Mov.Reg(asm.R5, asm.R4),
			asm.RSh.Imm(asm.R5, 16),
			asm.And.Imm(asm.R4, 0xffff),
			asm.Add.Reg(asm.R4, asm.R5))
	}
	written := fmt.Sprintf("checksum %d", at)
	return append(ins,
		asm.Xor.Imm(asm.R4, 0xffff),
		asm.JNE.Imm(asm.R4, 0, written),
		asm.Mov.Imm(asm.R4, 0xffff),
		asm.HostTo(asm.BE, asm.R4, asm.Half).WithSymbol(written),
		asm.StoreMem(data, at, asm.R4, asm.Half))
}

// loadFloodDrop loads a program that drops packets of either family with FloodMark,
// counts them, and passes everything else.
func loadFloodDrop() (*ebpf.Map, *ebpf.Program, error) {
	const (
		xdpDrop, xdpPass = 1, 2
		atEtherType      = 12
		// Version, header length and type of service; of IPv6 the second word
		// has the traffic class in its midst.
		atHeader   = etherHeaderLen
		tosMask    = 0x00ff
		tos        = FloodMark
		classMask  = 0x0ff0
		class      = FloodMark << 4
		inspected  = atHeader + 2
		countsSlot = -4
	)
	count, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "lab_flood", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("create map of a flood: %w", err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_flood_drop", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, inspected),
			asm.JGT.Reg(asm.R4, asm.R3, "pass"),
			asm.LoadMem(asm.R5, asm.R2, atEtherType, asm.Half),
			asm.HostTo(asm.BE, asm.R5, asm.Half),
			asm.LoadMem(asm.R6, asm.R2, atHeader, asm.Half),
			asm.HostTo(asm.BE, asm.R6, asm.Half),
			asm.JEq.Imm(asm.R5, EtherTypeIPv6, "ipv6"),
			asm.JNE.Imm(asm.R5, EtherTypeIPv4, "pass"),
			asm.And.Imm(asm.R6, tosMask),
			asm.JNE.Imm(asm.R6, tos, "pass"),
			asm.Ja.Label("count"),
			asm.And.Imm(asm.R6, classMask).WithSymbol("ipv6"),
			asm.JNE.Imm(asm.R6, class, "pass"),
			asm.StoreImm(asm.RFP, countsSlot, 0, asm.Word).WithSymbol("count"),
			asm.LoadMapPtr(asm.R1, count.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, countsSlot),
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
