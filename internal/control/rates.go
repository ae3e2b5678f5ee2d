package control

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/loader"
)

const (
	// rateOver is how long rates look back.
	rateOver = 10 * time.Second
	// rateEvery is how often what there is to look back at is read.
	rateEvery = 2 * time.Second
)

// A Rate is what was counted in a second, on average over the time that it tells: ten seconds,
// less after a start, 0 where there is nothing to compare with yet.
type Rate struct {
	Over         time.Duration `json:"over_ns"`
	Connections  float64       `json:"connections_per_second"`
	Packets      float64       `json:"packets_per_second"`
	Bytes        float64       `json:"bytes_per_second"`
	ReplyPackets float64       `json:"reply_packets_per_second"`
	ReplyBytes   float64       `json:"reply_bytes_per_second"`
}

// rates are the counters of a short while ago, the oldest first.
type rates struct {
	mu      sync.Mutex
	samples []rateSample
}

type rateSample struct {
	at      time.Time
	counted map[loader.ServiceBackend]loader.Traffic
}

// count reads the counters when it is time to.
func (l *Loop) count(now time.Time) error {
	if !l.rates.due(now) {
		return nil
	}
	counted, err := l.tables.Traffic()
	if err != nil {
		return err
	}
	l.rates.note(rateSample{now, counted})
	return nil
}

func (r *rates) due(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.samples)
	return n == 0 || now.Sub(r.samples[n-1].at) >= rateEvery
}

// note keeps what rates look back at, and nothing that is older.
func (r *rates) note(s rateSample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.samples) > 1 && s.at.Sub(r.samples[1].at) >= rateOver {
		r.samples = r.samples[1:]
	}
	r.samples = append(r.samples, s)
}

// before returns what was counted when rates look back from now, and since then, the
// oldest first.
func (r *rates) before(now time.Time) []rateSample {
	r.mu.Lock()
	defer r.mu.Unlock()
	from, to := 0, 0
	for i, s := range r.samples {
		age := now.Sub(s.at)
		if age >= rateOver {
			from = i
		}
		if age >= time.Second { // less tells nothing
			to = i + 1
		}
	}
	return slices.Clone(r.samples[from:max(from, to)])
}

// add tells the rates of services, whose counters are those of now.
func (r *rates) add(services []ServiceStatus, now time.Time) {
	before := r.before(now)
	for i := range services {
		s := &services[i]
		s.Rate = &Rate{}
		for j := range s.Backends {
			b := &s.Backends[j]
			b.Rate = rateOf(b, s.Name, before, now)
			s.Rate.sum(b.Rate)
		}
	}
}

// rateOf compares a backend's counters with the oldest of before that are there.
func rateOf(b *BackendStatus, service string, before []rateSample, now time.Time) *Rate {
	for _, then := range before {
		was, ok := then.counted[loader.ServiceBackend{Service: service, Address: b.Address}]
		if !ok || b.Packets < was.Packets { // it has come since, perhaps once more
			continue
		}
		over := now.Sub(then.at)
		per := func(now, then uint64) float64 { return float64(now-min(now, then)) / over.Seconds() }
		return &Rate{
			Over: over, Connections: per(b.Flows, was.Flows), Packets: per(b.Packets, was.Packets), Bytes: per(b.Bytes, was.Bytes),
			ReplyPackets: per(b.ReplyPackets, was.ReplyPackets), ReplyBytes: per(b.ReplyBytes, was.ReplyBytes),
		}
	}
	return &Rate{}
}

func (r *Rate) sum(other *Rate) {
	r.Over = max(r.Over, other.Over)
	r.Connections += other.Connections
	r.Packets += other.Packets
	r.Bytes += other.Bytes
	r.ReplyPackets += other.ReplyPackets
	r.ReplyBytes += other.ReplyBytes
}

// String is for people; bits are those of IP packets.
func (r *Rate) String() string {
	if r.Over == 0 {
		return "not known yet"
	}
	text := fmt.Sprintf("%s connections/s, %s packets/s, %s", perSecond(r.Connections), perSecond(r.Packets), bitsPerSecond(r.Bytes))
	if r.ReplyPackets > 0 {
		text += fmt.Sprintf("; replies: %s packets/s, %s", perSecond(r.ReplyPackets), bitsPerSecond(r.ReplyBytes))
	}
	return text
}

// perSecond has a digit behind the point where that matters.
func perSecond(n float64) string {
	if n == 0 || n >= 99.95 {
		return fmt.Sprintf("%.0f", n)
	}
	return fmt.Sprintf("%.1f", n)
}

func bitsPerSecond(bytes float64) string {
	n, unit := 8*bytes, 0
	for n >= 999.95 && unit < 4 {
		n, unit = n/1000, unit+1
	}
	return perSecond(n) + " " + [...]string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"}[unit]
}
