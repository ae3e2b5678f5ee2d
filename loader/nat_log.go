package loader

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A TranslationEvent says what has become of a translation.
type TranslationEvent string

// The events of translations.
const (
	TranslationBegin TranslationEvent = "begin"
	TranslationEnd   TranslationEvent = "end"
	TranslationHeld  TranslationEvent = "held" // it is there
)

// A Translation tells who has a source address and port of full nat, at a time.
type Translation struct {
	Time     time.Time
	Event    TranslationEvent
	Protocol lb.Protocol
	Client   netip.AddrPort
	VIP      netip.AddrPort // its address is the zero one where the VIP has been removed since
	Source   netip.AddrPort // what the backend sees
	Backend  netip.AddrPort
}

const (
	// recordBuffer holds, for each CPU, the records that wait for the reader: some
	// 10,000.
	recordBuffer = 1 << 20
	// recordWatermark is how much wakes the reader before its time: the program is
	// not held up by a wake-up for each connection.
	recordWatermark = recordBuffer / 8
	// maxRead is about how many translations a Read returns, maxEnded how many that
	// the daemon has ended wait for it.
	maxRead  = 4096
	maxEnded = 1 << 17
)

// Translations reads what the program reports of translations, and what the daemon
// itself ends. Read and Held are for one goroutine each.
type Translations struct {
	d      *Datapath
	reader *perf.Reader
	record perf.Record
	clock  wallClock
	before uint64 // records that an earlier daemon's time has lost

	mu    sync.Mutex
	ended []Translation // by the daemon
	lost  uint64        // of these
}

// OpenTranslations begins to collect translations; Options.LogTranslations has the
// program report them. It comes before Attach, so that nothing is missed, and its
// Close before the data plane's.
func (d *Datapath) OpenTranslations() (*Translations, error) {
	reader, err := perf.NewReaderWithOptions(d.objects.NatRecords, recordBuffer, perf.ReaderOptions{Watermark: recordWatermark})
	if err != nil {
		return nil, fmt.Errorf("read the translations of nat: %w", err)
	}
	l := &Translations{d: d, reader: reader}
	if l.before, err = l.unread(); err != nil {
		return nil, errors.Join(err, reader.Close())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tables.ends = l.endAll
	return l, nil
}

// Close ends the collecting.
func (l *Translations) Close() error {
	l.d.mu.Lock()
	l.d.tables.ends = nil
	l.d.mu.Unlock()
	return l.reader.Close()
}

// Read collects until a time, or until it has many, and appends what there is to
// into. Translations of different CPUs are not in order.
func (l *Translations) Read(into []Translation, until time.Time) ([]Translation, error) {
	l.reader.SetDeadline(until)
	for most := len(into) + maxRead; len(into) < most; {
		err := l.reader.ReadInto(&l.record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return into, fmt.Errorf("read the translations of nat: %w", err)
		}
		into = l.decode(into, l.record.RawSample)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	into = append(into, l.ended...)
	l.ended = nil
	return into, nil
}

// decode appends the records of a sample.
func (l *Translations) decode(into []Translation, sample []byte) []Translation {
	const size = int(unsafe.Sizeof(lbNatRecord{}))
	offset := l.clock.offset()
	// The kernel pads a sample by less than a record.
	for ; len(sample) >= size; sample = sample[size:] {
		var r lbNatRecord
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), size), sample)
		t := Translation{
			Time: time.Unix(0, int64(r.Time)+offset), Event: TranslationBegin, Protocol: lb.Protocol(r.Protocol),
			Client:  netip.AddrPortFrom(unmapped(r.Client), bigEndian16(r.ClientPort)),
			Source:  netip.AddrPortFrom(unmapped(r.Source), r.SourcePort),
			Backend: netip.AddrPortFrom(unmapped(r.Backend), bigEndian16(r.BackendPort)),
		}
		if r.Vip != [2]uint64{} {
			t.VIP = netip.AddrPortFrom(unmapped(r.Vip), bigEndian16(r.VipPort))
		}
		if r.Event == uint16(lbNatEventNAT_END) {
			t.Event = TranslationEnd
		}
		into = append(into, t)
	}
	return into
}

// Held yields every translation that there is. What comes and goes meanwhile may be
// among them or not.
func (l *Translations) Held() iter.Seq2[Translation, error] {
	return func(yield func(Translation, error) bool) {
		l.d.mu.Lock()
		pairs, vips := slices.Sorted(maps.Keys(l.d.state.Pairs)), l.d.state.vipsByIndex()
		l.d.mu.Unlock()
		for _, n := range pairs {
			q, err := l.d.tables.openQueue(n)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				continue // it has gone since
			}
			if err != nil {
				yield(Translation{}, err)
				return
			}
			for port := range int(lbLimitsNAT_PORTS) {
				t, ok := q.translation(uint16(port), vips, TranslationHeld)
				if ok && !yield(t, nil) {
					q.close()
					return
				}
			}
			q.close()
		}
	}
}

// translation reads the flow of a port; false: there is none.
func (q *portQueue) translation(port uint16, vips map[uint32]netip.Addr, event TranslationEvent) (Translation, bool) {
	if q.flow(port).State == uint32(lbNatStateNAT_FREE) {
		return Translation{}, false
	}
	now, flow := time.Now(), *q.flow(port)
	// Another flow may have taken the entry in the midst of it.
	if again := *q.flow(port); again.State == uint32(lbNatStateNAT_FREE) || again.Client != flow.Client ||
		again.ClientPort != flow.ClientPort || again.VipPort != flow.VipPort || again.Vip != flow.Vip {
		return Translation{}, false
	}
	pair := (*lbNatPair)(unsafe.Pointer(&q.pair[0]))
	t := Translation{
		Time: now, Event: event, Protocol: lb.Protocol(pair.Protocol),
		Client:  netip.AddrPortFrom(unmapped(flow.Client), bigEndian16(flow.ClientPort)),
		Source:  netip.AddrPortFrom(unmapped(pair.Source), port),
		Backend: netip.AddrPortFrom(unmapped(pair.Address), bigEndian16(pair.Port)),
	}
	if t.Backend.Port() == 0 {
		t.Backend = netip.AddrPortFrom(t.Backend.Addr(), bigEndian16(flow.VipPort))
	}
	if vip, ok := vips[uint32(flow.Vip)]; ok {
		t.VIP = netip.AddrPortFrom(vip, bigEndian16(flow.VipPort))
	}
	return t, true
}

// endAll is told of a pair that the daemon has taken from the program. The state is
// still that of before.
func (l *Translations) endAll(q *portQueue) {
	vips := l.d.state.vipsByIndex()
	l.mu.Lock()
	defer l.mu.Unlock()
	for port := range int(lbLimitsNAT_PORTS) {
		t, ok := q.translation(uint16(port), vips, TranslationEnd)
		switch {
		case !ok:
		case len(l.ended) < maxEnded:
			l.ended = append(l.ended, t)
		default:
			l.lost++
		}
	}
}

// Lost tells how many translations were reported since OpenTranslations and can't be
// read: the reader was too slow.
func (l *Translations) Lost() (uint64, error) {
	all, err := l.unread()
	l.mu.Lock()
	defer l.mu.Unlock()
	return all - l.before + l.lost, err
}

// unread is what the program has counted since it has its maps.
func (l *Translations) unread() (uint64, error) {
	var queues []lbNatQueue
	if err := l.d.objects.NatQueues.Lookup(uint32(0), &queues); err != nil {
		return 0, fmt.Errorf("read how many translations were lost: %w", err)
	}
	sum := uint64(0)
	for _, q := range queues {
		sum += q.Lost
	}
	return sum, nil
}

// A wallClock turns times of CLOCK_MONOTONIC into those of the day.
type wallClock struct{ last int64 }

// wallJitter is by how much the difference may seem to change because somebody else
// ran between two looks at the clocks.
const wallJitter = int64(time.Millisecond)

// offset is what to add, in ns. It stays the same unless the clock was set, so that
// the order of times is that of the program's.
func (c *wallClock) offset() int64 {
	for range 3 {
		first := int64(clock(unix.CLOCK_MONOTONIC))
		wall := time.Now().UnixNano()
		last := int64(clock(unix.CLOCK_MONOTONIC))
		if last-first > wallJitter {
			continue
		}
		if now := wall - first; max(now-c.last, c.last-now) > wallJitter {
			c.last = now
		}
		return c.last
	}
	if c.last == 0 {
		c.last = time.Now().UnixNano() - int64(clock(unix.CLOCK_MONOTONIC))
	}
	return c.last
}
