package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

func explainCommand() *cli.Command {
	return &cli.Command{
		Name:  "explain",
		Usage: "show which way a packet would go, and why",
		Description: "Runs the XDP program on a made-up packet, over the tables as they are now, and writes to none of " +
			"them. It works with the daemon running or dead.",
		Flags: append(configFlags(),
			&cli.StringFlag{Name: "src", Usage: "who sends it, `IP:PORT`; of icmp an IP"},
			&cli.StringFlag{Name: "dst", Usage: "what it is sent to, `IP:PORT`; of icmp an IP"},
			&cli.StringFlag{Name: "protocol", Value: "tcp", Usage: "tcp, udp, or icmp (an echo request)"},
			&cli.StringFlag{Name: "tcp-flags", Value: "syn", Usage: "`FLAGS` of syn, ack, fin, rst, psh with commas between them, or none: syn opens a connection, ack goes on with one"},
			&cli.Uint64Flag{Name: "seq", Usage: "TCP sequence number (default: what goes on with the handshake in hand)"},
			&cli.IntFlag{Name: "length", Usage: "of the IP packet in `BYTES` (default: headers alone)"},
			&cli.StringFlag{Name: "interface", Usage: "the NIC that it comes in by, `NAME` (default: the first that the program is on)"},
			&cli.StringFlag{Name: "mac", Usage: "destination of its frame (default: the address of that NIC): `ADDRESS`"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		),
		Action: func(c *cli.Context) error {
			p, err := packetOf(c)
			if err != nil {
				return &usageError{"explain ", err}
			}
			return explain(c, p)
		},
	}
}

// packetOf reads the command line. An error is one of usage.
func packetOf(c *cli.Context) (loader.Packet, error) {
	var p loader.Packet
	var ok bool
	if p.Protocol, ok = map[string]lb.Protocol{"tcp": lb.TCP, "udp": lb.UDP, "icmp": loader.ICMP}[c.String("protocol")]; !ok {
		return p, fmt.Errorf("--protocol %q: want tcp, udp or icmp", c.String("protocol"))
	}
	var err error
	if p.Source, err = endOf(c, "src", p.Protocol); err != nil {
		return p, err
	}
	if p.Destination, err = endOf(c, "dst", p.Protocol); err != nil {
		return p, err
	}
	for _, name := range []string{"tcp-flags", "seq"} {
		if p.Protocol != lb.TCP && c.IsSet(name) {
			return p, fmt.Errorf("--%s is for tcp", name)
		}
	}
	if p.Flags, err = loader.ParseTCPFlags(c.String("tcp-flags")); err != nil {
		return p, fmt.Errorf("--tcp-flags: %w", err)
	}
	if c.IsSet("seq") {
		seq := uint32(c.Uint64("seq"))
		if uint64(seq) != c.Uint64("seq") {
			return p, fmt.Errorf("--seq %d: it has 32 bits", c.Uint64("seq"))
		}
		p.Sequence = &seq
	}
	if c.IsSet("mac") {
		mac, err := net.ParseMAC(c.String("mac"))
		if err != nil || len(mac) != 6 {
			return p, fmt.Errorf("--mac %q is no Ethernet address", c.String("mac"))
		}
		p.MAC = (*[6]byte)(mac)
	}
	p.Length = c.Int("length")
	return p, p.Check()
}

// endOf reads one end of the packet.
func endOf(c *cli.Context, name string, protocol lb.Protocol) (netip.AddrPort, error) {
	text := c.String(name)
	if text == "" {
		return netip.AddrPort{}, fmt.Errorf("--%s is missing", name)
	}
	if protocol == loader.ICMP {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return netip.AddrPort{}, fmt.Errorf("--%s %q: want an IP address", name, text)
		}
		return netip.AddrPortFrom(a, 0), nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
		return a, fmt.Errorf("--%s %q: want IP:PORT, of IPv6 [IP]:PORT", name, text)
	}
	return a, nil
}

func explain(c *cli.Context, packet loader.Packet) (err error) {
	p, err := openPinned(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	e, err := p.Explainer(c.String("interface"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	x, err := e.Explain(packet)
	if err != nil {
		return err
	}
	names, err := serviceNames(c, p.Services())
	if err != nil {
		return err
	}
	if x.Service != nil {
		x.Service.Name = names[x.Service.Number]
	}
	if x.Flow != nil {
		x.Flow.Service = names[x.Flow.Number]
	}
	if c.Bool("json") {
		j := json.NewEncoder(c.App.Writer)
		j.SetIndent("", "  ")
		return j.Encode(x)
	}
	return printExplanation(c.App.Writer, x)
}

// foundTexts say how a backend was found, where the slot and the flow do not.
var foundTexts = map[loader.Found]string{
	loader.FoundHandshake:     "this SYN has come before: it goes where it went then",
	loader.FoundHandshakeDone: "it completes a handshake: it goes where the SYN went, and is pinned there",
	loader.FoundHandshakeData: "it goes on from a handshake: it goes where the SYN went",
	loader.FoundPinned:        "pinned: it stays where it is, whoever owns the slot",
	loader.FoundStraggler:     "pinned as a straggler: it is older than the slot's window, and stays where it is",
	loader.FoundUDPNew:        "known by one datagram: it stays where it is",
	loader.FoundUDP:           "known: it stays where it is",
	loader.FoundNAT:           "translated",
	loader.FoundReply:         "an answer of the backend to a translated one",
	loader.FoundDNATReply:     "none: nat without source NAT keeps none; an answer of the backend, by its address and port",
	loader.NewHandshake:       "a new connection: the slot's owner gets it, and the SYN is remembered",
	loader.NewHandshakeLost:   "a new connection, and no room to remember its SYN: it goes where its later packets will go, to the slot's previous owner",
	loader.NewStraggler:       "known nowhere, so it is older than the slot's window: the slot's previous owner keeps it",
	loader.NewUDP:             "a new one: the slot's owner gets it, which is remembered",
	loader.NewNAT:             "none: a new one is made",
}

func foundText(x loader.Explanation) string {
	switch {
	case x.Found != loader.FoundSlot:
		return foundTexts[x.Found]
	case x.Slot != nil && x.Slot.State != "clean":
		return "not known: the slot's owner gets it"
	}
	return "not looked up: the slot's owner gets it"
}

func printExplanation(w io.Writer, x loader.Explanation) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(what, format string, args ...any) { fmt.Fprintf(t, what+"\t"+format+"\n", args...) }

	flags := ""
	if x.Flags != "" {
		flags = ", " + x.Flags
	}
	line("packet", "%s%s, %d bytes, by %s to %v", headersText(x.Packet), flags, x.Packet.Length, x.Interface, x.MAC)
	switch {
	case x.VIP:
		line("vip", "yes")
	case x.Found == loader.FoundDNATReply:
		line("vip", "no: an answer to a client")
	default:
		line("vip", "no, nor a source address of nat")
	}
	if s := x.Service; s != nil {
		line("service", "%s: %s %s %s", nameOf(s.Name), s.Protocol, joinPorts(s.Addresses), s.Forward)
	}
	if r := x.Rule; r != nil {
		line("rule", "%s", ruleText(r))
	}
	printDecision(line, x)
	printWay(line, x)
	switch {
	case x.Sent != nil && x.Outcome == loader.OutcomeAnswered:
		line("verdict", "answered by an ICMP error to the client (%s)", x.XDP)
	case x.Sent != nil:
		line("verdict", "sent by %s (%s)", x.NextHop.Interface, x.XDP)
	case x.Dropped:
		line("verdict", "dropped: %s (%s)", x.Outcome, x.XDP)
	default:
		line("verdict", "passed to the kernel: %s (%s)", x.Outcome, x.XDP)
	}
	if x.Meaning != "" {
		line("meaning", "%s", x.Meaning)
		line("what to do", "%s", x.Advice)
	}
	for _, n := range x.Notes {
		line("note", "%s", n)
	}
	return t.Flush()
}

func ruleText(r *loader.ExplainedRule) string {
	verb := "keeps it out"
	if r.Allow {
		verb = "lets it in"
	}
	if !r.Prefix.IsValid() {
		return "none holds its source, which " + verb
	}
	return r.Prefix.String() + " " + verb
}

// printDecision prints how the backend was found.
func printDecision(line func(what, format string, args ...any), x loader.Explanation) {
	if s := x.Slot; s != nil {
		text := fmt.Sprintf("%d of %d, %s, owner %s", s.Number, s.Of, s.State, addressText(s.Owner))
		if s.Previous.IsValid() {
			text += ", previous owner " + addressText(s.Previous)
		}
		if s.WindowLeft > 0 {
			text += fmt.Sprintf(", its window closes in %v", s.WindowLeft)
		}
		line("slot", "%s", text)
	}
	if x.Found != "" {
		text := foundText(x)
		if f := x.Flow; f != nil {
			if f.State != "" {
				text += ", " + strings.ReplaceAll(f.State, "_", " ")
			}
			text += fmt.Sprintf(", idle %v, %v left", f.Idle, f.Left)
		}
		line("flow", "%s", text)
	}
	if b := x.Backend; b != nil {
		text := b.Address.String()
		switch {
		case b.Leaving:
			text += ", leaving: the configuration has lost it, it keeps what it has"
		case b.Slots == 0:
			text += ", drained: it gets nothing new"
		}
		line("backend", "%s", text)
	}
	if n := x.NewFlow; n != nil {
		if n.Ends {
			line("old flow", "one of the same client's port ends first: it is over, or its backend has failed")
		}
		if n.Port == 0 {
			line("source port", "none of %d-%d of %v towards %v is free", n.First, n.Last, n.Source, n.Towards)
		} else {
			line("source port", "%d would be taken, of %d-%d of %v towards %v", n.Port, n.First, n.Last, n.Source, n.Towards)
		}
	}
}

// printWay prints how the packet leaves.
func printWay(line func(what, format string, args ...any), x loader.Explanation) {
	if x.Sent == nil {
		return
	}
	switch {
	case x.Outcome == loader.OutcomeAnswered:
		line("answer", "%s, %d bytes", headersText(*x.Sent), x.Sent.Length)
	case x.Sent.Inner != nil:
		line("tunnel", "%s, %d bytes, around the packet", headersText(*x.Sent), x.Sent.Length)
	case x.Sent.Source != x.Packet.Source || x.Sent.Destination != x.Packet.Destination:
		line("rewrite", "%s > %s  to  %s > %s", x.Packet.Source, x.Packet.Destination, x.Sent.Source, x.Sent.Destination)
	case x.Service != nil && x.Service.Forward == lb.Proxy.String():
		line("rewrite", "the frame's addresses, and a hop: another node serves it")
	default:
		line("rewrite", "the frame's addresses only")
	}
	text := fmt.Sprintf("%s, to %v from %v", x.NextHop.Interface, x.NextHop.Destination, x.NextHop.Source)
	for _, id := range x.NextHop.VLANs {
		text += fmt.Sprintf(", VLAN %d", id)
	}
	line("next hop", "%s", text)
}

func headersText(h loader.Headers) string {
	return fmt.Sprintf("%s %s > %s", h.Protocol, h.Source, h.Destination)
}

func addressText(a netip.AddrPort) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}
