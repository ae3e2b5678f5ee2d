package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
)

// preparedAtOnce is how many pairs are prepared together: the kernel waits for the
// program after each write to a table of tables, and for each batch once.
const preparedAtOnce = 128

// preparePairs makes the maps of pairs that are to be added. Nothing refers to them
// yet.
func (t *tables) preparePairs(pairs []addPair) error {
	for batch := range slices.Chunk(pairs, preparedAtOnce) {
		if err := t.prepareBatch(batch); err != nil {
			return err
		}
	}
	return nil
}

func (t *tables) prepareBatch(pairs []addPair) error {
	var made []*ebpf.Map
	defer func() {
		for _, m := range made {
			m.Close() // the table of tables holds it
		}
	}()
	var numbers, flows, rings, news []uint32
	for _, p := range pairs {
		f, r, err := t.makePair(p.Number, p.Pair)
		if err != nil {
			return err
		}
		made = append(made, f, r)
		w, err := makeNews()
		if err != nil {
			return fmt.Errorf("make the table of news towards %v: %w", p.Pair.Address, err)
		}
		made = append(made, w)
		numbers, flows, rings = append(numbers, p.Number), append(flows, uint32(f.FD())), append(rings, uint32(r.FD()))
		news = append(news, uint32(w.FD()))
	}
	for _, w := range []struct {
		to  *ebpf.Map
		fds []uint32
	}{{t.objects.NatFlows, flows}, {t.objects.NatRings, rings}, {t.objects.NatNews, news}} {
		if _, err := w.to.BatchUpdate(numbers, w.fds, nil); err != nil {
			return fmt.Errorf("write %d entries of %v: %w", len(numbers), w.to, err)
		}
	}
	return nil
}

// makePair makes the maps of a pair and hands its ports out.
func (t *tables) makePair(n uint32, p pairEntry) (flows, ring *ebpf.Map, err error) {
	specs, err := natSpecs()
	if err != nil {
		return nil, nil, fmt.Errorf("read the program: %w", err)
	}
	ports, err := t.freePorts(p.Share, p.Protocol)
	if err != nil {
		return nil, nil, err
	}
	if flows, err = ebpf.NewMap(specs.flows); err != nil {
		return nil, nil, fmt.Errorf("make the flow table towards %v: %w", p.Address, err)
	}
	if ring, err = ebpf.NewMap(specs.ring); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make the port table towards %v: %w", p.Address, err), flows.Close())
	}
	if err = fillRing(flows, ring, ports); err == nil {
		err = put(t.objects.NatPairs, n, &lbNatPair{
			Source: mapped(p.Source), Address: mapped(p.Address.Addr()), Vip: p.VIP,
			Port: bigEndian16(p.Address.Port()), Protocol: uint16(p.Protocol),
			FirstPort: p.Share.First, LastPort: p.Share.Last, Handshakes: handshakes(p.Share) - 1,
			Ports: uint32(len(ports)), Tail: uint64(len(ports)),
		})
	}
	if err != nil {
		return nil, nil, errors.Join(err, flows.Close(), ring.Close())
	}
	return flows, ring, nil
}

// fillRing queues ports in maps that nobody else has.
func fillRing(flows, ring *ebpf.Map, ports []uint16) error {
	var q portQueue
	defer q.close()
	var err error
	if q.ring, err = mapWords(ring); err != nil {
		return err
	}
	if q.flows, err = mapWords(flows); err != nil {
		return err
	}
	for ticket, port := range ports {
		*q.ring.at(ticket) = ringWord(uint64(ticket), port)
		q.flow(port).Flags = uint32(lbNatFlagsNAT_QUEUED)
	}
	return nil
}

type innerSpecs struct{ flows, ring, news *ebpf.MapSpec }

// natSpecs are what the maps of a pair are made of.
var natSpecs = sync.OnceValues(func() (innerSpecs, error) {
	spec, err := loadLb()
	if err != nil {
		return innerSpecs{}, err
	}
	return innerSpecs{spec.Maps["nat_flows"].InnerMap, spec.Maps["nat_rings"].InnerMap, spec.Maps["nat_news"].InnerMap}, nil
})

// handshakes returns how many handshakes a pair remembers, a power of two: a
// flood of them must leave ports free for those who mean it.
func handshakes(share lb.PortRange) uint32 {
	half := (uint32(share.Last) - uint32(share.First) + 1) / 2
	return 1 << (bits.Len32(max(min(half, uint32(lbLimitsNAT_EMBRYONIC)), 1)) - 1)
}

// freePorts returns the ports of a share, without those that the node itself listens
// on. Their order is random: the next one must not be guessed from outside (RFC 6056).
func (t *tables) freePorts(share lb.PortRange, protocol lb.Protocol) ([]uint16, error) {
	taken, ok := t.listening[protocol]
	if !ok {
		var err error
		if taken, err = listeners(protocol); err != nil {
			return nil, err
		}
		t.listening[protocol] = taken
	}
	ports := make([]uint16, 0, share.Count())
	for port := int(share.First); port <= int(share.Last); port++ {
		if port != 0 && !taken[uint16(port)] {
			ports = append(ports, uint16(port))
		}
	}
	rand.Shuffle(len(ports), func(i, j int) { ports[i], ports[j] = ports[j], ports[i] })
	return ports, nil
}

// listeners returns the ports that sockets of this network namespace listen on,
// whatever their address; of UDP, those that they are bound to.
func listeners(protocol lb.Protocol) (map[uint16]bool, error) {
	ports := map[uint16]bool{}
	for _, suffix := range []string{"", "6"} {
		name := "/proc/thread-self/net/" + protocol.String() + suffix
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list listening sockets: %w", err)
		}
		err = readListeners(f, protocol, ports)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("list listening sockets: read %s: %w", name, err)
		}
	}
	return ports, nil
}

// What makes a socket a listening one, of include/net/tcp_states.h: TCP_LISTEN,
// and for UDP TCP_CLOSE, which is a socket that is not connected.
var listenState = map[lb.Protocol]string{lb.TCP: "0A", lb.UDP: "07"}

func readListeners(f *os.File, protocol lb.Protocol, ports map[uint16]bool) error {
	lines := bufio.NewScanner(f)
	lines.Scan() // heading
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != listenState[protocol] {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		port, err := strconv.ParseUint(hex, 16, 16)
		if err != nil {
			return err
		}
		ports[uint16(port)] = true
	}
	return lines.Err()
}

// dropPair removes a pair's maps, and the names of its flows from the flow
// table, which would otherwise fill up with names of nothing.
func (t *tables) dropPair(n uint32) error {
	var q *portQueue
	if t.ends != nil {
		var err error
		if q, err = t.openQueue(n); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		if q != nil {
			defer q.close()
		}
	}
	if err := t.objects.NatRings.Delete(n); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove the port table of pair %d: %w", n, err)
	}
	if err := t.objects.NatFlows.Delete(n); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove the flow table of pair %d: %w", n, err)
	}
	if err := t.objects.NatNews.Delete(n); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove the table of news of pair %d: %w", n, err)
	}
	for i := range len(t.buckets.memory) / 8 {
		if w := t.buckets.load(i); uint32(w)>>16 == n && uint32(w) != 0 {
			t.buckets.swap(i, w, 0)
		}
	}
	// Its flows are out of the program's reach by now: that has told what ended before.
	if q != nil {
		t.ends(q)
	}
	if t.dropped != nil {
		t.dropped(n)
	}
	return put(t.objects.NatPairs, n, &lbNatPair{})
}
