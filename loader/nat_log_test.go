package loader

import (
	"cmp"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A logRig is a data plane that reports its translations.
type logRig struct {
	*testing.T
	d   *Datapath
	log *Translations
}

func newLogRig(t *testing.T, share lb.PortRange, services ...lb.ServiceState) *logRig {
	t.Helper()
	if len(services) == 0 {
		services = []lb.ServiceState{service("web", lb.NAT, 80, backends(1, 8080))}
	}
	d := newDatapathWith(t, Options{MaxFlows: 1, Ports: share, LogTranslations: true}, natTimeouts, services...)
	return &logRig{t, d, openTranslations(t, d)}
}

func openTranslations(t *testing.T, d *Datapath) *Translations {
	t.Helper()
	log, err := d.OpenTranslations()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	})
	return log
}

// read returns what has been reported since it was last called.
func (r *logRig) read() []Translation {
	r.Helper()
	var all []Translation
	for {
		n := len(all)
		var err error
		if all, err = r.log.Read(all, time.Now()); err != nil {
			r.Fatal(err)
		}
		if len(all) == n {
			return all
		}
	}
}

// tell says what a test wants of a translation.
func tell(event TranslationEvent, c *conn) string {
	return fmt.Sprintf("%s %v of %v to %v is %v", event, c.client, c.service, c.backend, c.source)
}

// tell says what has been reported as tell does.
func (t Translation) tell() string {
	return fmt.Sprintf("%s %v of %v to %v is %v", t.Event, t.Client, t.VIP, t.Backend, t.Source)
}

// want compares what has been reported; the order counts.
func (r *logRig) want(want ...string) {
	r.Helper()
	var got []string
	for _, t := range r.read() {
		got = append(got, t.tell())
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		r.Errorf("reported (-want +got):\n%s", diff)
	}
}

// A record is all there is to know, whatever the family and protocol.
func TestTranslationsOfFamilies(t *testing.T) {
	var all []lb.ServiceState
	for _, c := range natCases {
		all = append(all, c.service(8080))
	}
	r := newLogRig(t, allPorts, all...)
	for _, c := range natCases {
		t.Run(c.String(), func(t *testing.T) {
			before := time.Now()
			in := c.fromClient()
			out := try(t, r.d, in.Bytes())
			got := r.read()
			if len(got) != 1 {
				t.Fatalf("%d records, want 1", len(got))
			}
			if at := got[0].Time; at.Before(before.Add(-5*time.Millisecond)) || at.After(time.Now().Add(5*time.Millisecond)) {
				t.Errorf("the time is %v, it is %v", at, time.Now())
			}
			got[0].Time = time.Time{}
			want := Translation{
				Event: TranslationBegin, Protocol: c.protocol, Client: in.Src, VIP: in.Dst,
				Source: out.Frame.Src, Backend: out.Frame.Dst,
			}
			if diff := gocmp.Diff(want, got[0], equateAddrs); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTranslations(t *testing.T) {
	one, two, three := clientAddr(1), clientAddr(2), clientAddr(3)
	for _, tc := range []struct {
		name  string
		ports int
		run   func(*logRig)
	}{
		{"one is reported once, and a close is no end", 100, func(r *logRig) {
			c := openConn(r, r.d, one)
			r.want(tell(TranslationBegin, c))
			c.mustForward(r, testenv.SYN, "")
			c.mustForward(r, testenv.ACK, "data")
			c.close(r)
			r.want()
		}},
		{"a client that uses its port again", 100, func(r *logRig) {
			c := openConn(r, r.d, one)
			c.close(r)
			first := *c
			r.want(tell(TranslationBegin, c))
			c.open(r)
			r.want(tell(TranslationEnd, &first), tell(TranslationBegin, c))
		}},
		{"a closed one whose port's turn has come", 2, func(r *logRig) {
			a, b := openConn(r, r.d, one), openConn(r, r.d, two)
			a.close(r)
			r.want(tell(TranslationBegin, a), tell(TranslationBegin, b))
			c := openConn(r, r.d, three)
			if c.source != a.source {
				r.Errorf("the port of %v is %v, want %v", c.client, c.source, a.source)
			}
			r.want(tell(TranslationEnd, a), tell(TranslationBegin, c))
		}},
		{"a failed backend", 100, func(r *logRig) {
			c := openConn(r, r.d, one)
			r.want(tell(TranslationBegin, c))
			bs := backends(1, 8080)
			bs[0].Failed = true
			apply(r, r.d, service("web", lb.NAT, 80, bs))
			r.want()
			if got := c.forward(r, testenv.ACK, "data"); got.Outcome != "no_flow" {
				r.Errorf("its next packet: %s", got.Outcome)
			}
			r.want(tell(TranslationEnd, c))
		}},
		{"an idle one that a search finds", 100, func(r *logRig) {
			view := viewPair(r, r.d, 1)
			c := openConn(r, r.d, one)
			r.want(tell(TranslationBegin, c))
			view.age(c.source.Port(), 125*time.Minute)
			view.words().Hand = uint32(c.source.Port())
			other := openConn(r, r.d, two)
			r.want(tell(TranslationEnd, c), tell(TranslationBegin, other))
		}},
		{"many idle ones that one packet finds", 100, func(r *logRig) {
			view := viewPair(r, r.d, 1)
			var want []string
			for i := range 100 {
				c := openConn(r, r.d, clientAddr(10+i))
				want = append(want, tell(TranslationEnd, c))
			}
			r.read()
			view.ageAll(125 * time.Minute)
			view.words().Hand, view.words().ShareHand = 0, 0
			c := newConn(r.d, one)
			c.mustForward(r, testenv.SYN, "")
			got := r.read()
			ends := 0
			for _, t := range got[:len(got)-1] {
				if !slices.Contains(want, t.tell()) {
					r.Errorf("reported: %s", t.tell())
				}
				ends++
			}
			if ends != 64 || got[len(got)-1].Event != TranslationBegin {
				r.Errorf("%d have ended for one, want 64: %+v", ends, got)
			}
		}},
		{"a handshake that gives way for its port", 2, func(r *logRig) {
			a, b, c := newConn(r.d, one), newConn(r.d, two), newConn(r.d, three)
			b.open(r)
			a.mustForward(r, testenv.SYN, "")
			r.want(tell(TranslationBegin, b), tell(TranslationBegin, a))
			c.mustForward(r, testenv.SYN, "")
			r.want(tell(TranslationEnd, a), tell(TranslationBegin, c))
		}},
		{"a handshake that is not remembered any more", 4, func(r *logRig) {
			a, b, c := newConn(r.d, one), newConn(r.d, two), newConn(r.d, three)
			for _, c := range []*conn{a, b, c} {
				c.mustForward(r, testenv.SYN, "")
			}
			r.want(tell(TranslationBegin, a), tell(TranslationBegin, b), tell(TranslationBegin, c), tell(TranslationEnd, a))
		}},
		{"a SYN that finds no port", 1, func(r *logRig) {
			c := openConn(r, r.d, one)
			if newConn(r.d, two).tryOpen(r) {
				r.Error("it was forwarded")
			}
			r.want(tell(TranslationBegin, c))
		}},
		{"a pair that the daemon takes away", 100, func(r *logRig) {
			a, b := openConn(r, r.d, one), openConn(r, r.d, two)
			r.read()
			apply(r, r.d)
			want := []string{tell(TranslationEnd, a), tell(TranslationEnd, b)}
			if a.source.Port() > b.source.Port() {
				slices.Reverse(want)
			}
			r.want(want...)
		}},
		{"a flow table without room", 40000, func(r *logRig) {
			conns := fill(r.T, r.d, 0)
			if got := r.read(); len(got) != len(conns) {
				r.Errorf("%d records for %d connections", len(got), len(conns))
			}
			view := viewPair(r, r.d, 1)
			view.ageAll(125 * time.Minute)
			view.words().Hand = uint32(r.d.share.Last) // away from all of them
			c := newConn(r.d, clientAddr(len(conns)))
			c.mustForward(r, testenv.SYN, "")
			// What is over ends where the sweep comes by, and where room is made.
			got := r.read()
			last := len(got) - 1
			if last < 1 || last > 3 || got[last].Event != TranslationBegin || got[last].Client != c.client {
				r.Fatalf("reported: %+v", got)
			}
			for _, end := range got[:last] {
				if !slices.ContainsFunc(conns, func(c *conn) bool { return tell(TranslationEnd, c) == end.tell() }) {
					r.Errorf("reported: %s", end.tell())
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(newLogRig(t, freeShare(t, tc.ports))) })
	}
}

// What is held is what a reader that comes later has to be told.
func TestTranslationsHeld(t *testing.T) {
	r := newLogRig(t, freeShare(t, 100))
	a, b := openConn(r, r.d, clientAddr(1)), openConn(r, r.d, clientAddr(2))
	want := map[string]bool{tell(TranslationHeld, a): true, tell(TranslationHeld, b): true}
	got := map[string]bool{}
	for h, err := range r.log.Held() {
		if err != nil {
			t.Fatal(err)
		}
		got[h.tell()] = true
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	apply(t, r.d)
	for h, err := range r.log.Held() {
		t.Errorf("with all gone: %+v, %v", h, err)
	}
}

// What nobody reads in time is counted, to one.
func TestTranslationsLost(t *testing.T) {
	d := newDatapathWith(t, Options{MaxFlows: 100000, Ports: allPorts, LogTranslations: true}, patientTimeouts(),
		service("web", lb.NAT, 80, backends(1, 8080)))
	r := &logRig{t, d, openTranslations(t, d)}
	lost := func() uint64 {
		n, err := r.log.Lost()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// Of one CPU, so that its buffer is full.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
	}()
	const count = 25000
	frame := newConn(r.d, clientPort).fromClient(testenv.SYN, "")
	for i := range count {
		frame.Src = clientAddr(i)
		sendEarnest(t, r.d, frame.Bytes())
	}
	counted := losses(t, r.d)
	got := r.read()
	if lost() == 0 || len(got) == 0 {
		t.Fatalf("%d records were lost, %d were read", lost(), len(got))
	}
	// One for each beginning, one for each handshake that has given way.
	if all := uint64(len(got)) + lost(); all != count-counted.FlowsFull+counted.Evicted {
		t.Errorf("%d records were read and %d lost, want %d in all, %+v", len(got), lost(), count, counted)
	}

	// Of the time without a reader the next one says nothing.
	if err := r.log.Close(); err != nil {
		t.Fatal(err)
	}
	openConn(t, r.d, clientAddr(1000000))
	r.log = openTranslations(t, r.d)
	if n := lost(); n != 0 {
		t.Errorf("%d are lost to a reader that has just come", n)
	}
	c := openConn(t, r.d, clientAddr(1000001))
	if got := r.read(); len(got) == 0 || !slices.ContainsFunc(got, func(g Translation) bool {
		return g.Event == TranslationBegin && g.Client == c.client
	}) {
		t.Errorf("the next reader has %+v", got)
	}
}

// Where the log is off, nothing is reported.
func TestTranslationsOff(t *testing.T) {
	d := newDatapath(t, service("web", lb.NAT, 80, backends(1, 8080)))
	r := &logRig{t, d, openTranslations(t, d)}
	openConn(t, d, clientAddr(1)).close(t)
	r.want()
}

// A dry run of a program that reports does not, neither at once nor later.
func TestTranslationsOfDryRuns(t *testing.T) {
	r := newLogRig(t, freeShare(t, 1))
	c := openConn(t, r.d, clientAddr(1))
	c.close(t)
	r.want(tell(TranslationBegin, c))
	other := newConn(r.d, clientAddr(2))
	if dry := runDry(t, r.d, other.fromClient(testenv.SYN, "").Bytes()); dry.verdict != xdpTX {
		t.Fatalf("dry: %v", dry)
	}
	r.want()
	if n, err := r.log.Lost(); n != 0 || err != nil {
		t.Errorf("%d lost, %v", n, err)
	}
	c.mustForward(t, testenv.ACK, "")
	r.want()
}

// However many CPUs take ports from each other: by its times, each port is had by one
// client after the other.
func TestTranslationsConcurrent(t *testing.T) {
	r := newLogRig(t, freeShare(t, 64))
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			frame := newConn(r.d, clientPort).fromClient(testenv.SYN, "")
			for i := range 1000 {
				frame.Src = clientAddr(w*100000 + i%200)
				sendEarnest(t, r.d, frame.Bytes())
			}
		})
	}
	workers.Wait()
	if n, err := r.log.Lost(); n != 0 || err != nil {
		t.Fatalf("%d lost, %v", n, err)
	}
	all := r.read()
	slices.SortStableFunc(all, func(a, b Translation) int { return cmp.Compare(a.Time.UnixNano(), b.Time.UnixNano()) })
	holder := map[netip.AddrPort]netip.AddrPort{}
	for _, e := range all {
		had, held := holder[e.Source]
		switch {
		case e.Event == TranslationBegin && held:
			t.Fatalf("%v begins for %v while %v has it", e.Source, e.Client, had)
		case e.Event == TranslationEnd && had != e.Client:
			t.Fatalf("%v ends for %v while %v has it", e.Source, e.Client, had)
		case e.Event == TranslationBegin:
			holder[e.Source] = e.Client
		default:
			delete(holder, e.Source)
		}
	}
	held := map[netip.AddrPort]netip.AddrPort{}
	for h, err := range r.log.Held() {
		if err != nil {
			t.Fatal(err)
		}
		held[h.Source] = h.Client
	}
	if diff := gocmp.Diff(held, holder, equateAddrs); diff != "" {
		t.Errorf("who has ports in the end (-tables +log):\n%s", diff)
	}
	if len(all) < 1000 {
		t.Errorf("%d records", len(all))
	}
}
