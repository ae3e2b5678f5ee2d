package l7

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
)

// eligible tells whether a server may be chosen.
type eligible func(*server) bool

// tooOften is how often ip_hash and hash try another server before they leave it to
// round_robin, as in nginx.
const tooOften = 20

// roundRobin is nginx's smooth weighted round robin: each server's current weight
// grows by its weight, the greatest is chosen and falls by the sum. Nil: none may be.
func roundRobin(servers []*server, ok eligible) *server {
	var best *server
	total := 0
	for _, s := range servers {
		if !ok(s) {
			continue
		}
		total += s.advance()
		if best == nil || s.current > best.current {
			best = s
		}
	}
	if best != nil {
		best.current -= total
	}
	return best
}

// leastConn chooses the server with the fewest requests for its weight, and among
// those that have equally few by roundRobin.
func leastConn(servers []*server, ok eligible) *server {
	var best *server
	for _, s := range servers {
		if ok(s) && (best == nil || s.active*best.weight < best.active*s.weight) {
			best = s
		}
	}
	if best == nil {
		return nil
	}
	least, weight := best.active, best.weight
	return roundRobin(servers, func(s *server) bool { return ok(s) && s.active*weight == least*s.weight })
}

// ipHash chooses by the client's network, as nginx: the first three octets of an IPv4
// address, all of an IPv6 address.
func ipHash(servers []*server, ok eligible, client netip.Addr) *server {
	octets := network(client)
	total := 0
	for _, s := range servers {
		total += s.weight
	}
	if total == 0 {
		return nil
	}
	hash := uint32(89)
	for range tooOften {
		for _, o := range octets {
			hash = (hash*113 + uint32(o)) % 6271
		}
		w := int(hash) % total
		for _, s := range servers {
			if w < s.weight {
				if ok(s) {
					return s
				}
				break
			}
			w -= s.weight
		}
	}
	return roundRobin(servers, ok)
}

// randomTwo draws two servers by weight and chooses the less busy one for its weight.
func randomTwo(servers []*server, ok eligible, draw func(n int) int) *server {
	first := drawOne(servers, ok, draw)
	if first == nil {
		return nil
	}
	second := drawOne(servers, func(s *server) bool { return s != first && ok(s) }, draw)
	if second != nil && second.active*first.weight < first.active*second.weight {
		return second
	}
	return first
}

func drawOne(servers []*server, ok eligible, draw func(n int) int) *server {
	total := 0
	for _, s := range servers {
		if ok(s) {
			total += s.weight
		}
	}
	if total == 0 {
		return nil
	}
	w := draw(total)
	for _, s := range servers {
		if !ok(s) {
			continue
		}
		if w < s.weight {
			return s
		}
		w -= s.weight
	}
	return nil
}

func draw(n int) int { return rand.IntN(n) }

// Points of a server on the circle of hash: for each unit of weight, as in nginx, as
// long as all together are no more than mostPoints.
const (
	pointsPerWeight = 160
	mostPoints      = 1 << 17
)

// A circle is where servers stand for consistent hashing: a key is of the server at
// the first point at or behind its own. One that comes or goes moves only the keys
// that are its own.
type circle []point

type point struct {
	hash   uint32
	server *server
}

func newCircle(servers []*server) circle {
	total := 0
	for _, s := range servers {
		total += s.weight * pointsPerWeight
	}
	var c circle
	for _, s := range servers {
		n := s.weight * pointsPerWeight
		if total > mostPoints && n > 0 {
			n = max(1, int(int64(n)*mostPoints/int64(total)))
		}
		// The same points as nginx: CRC-32 of host, a zero byte, port, and the hash before.
		base := append([]byte(s.address.Addr().String()), 0)
		base = strconv.AppendUint(base, uint64(s.address.Port()), 10)
		sum := crc32.ChecksumIEEE(base)
		var before [4]byte
		for range n {
			h := crc32.Update(sum, crc32.IEEETable, before[:])
			c = append(c, point{h, s})
			binary.LittleEndian.PutUint32(before[:], h)
		}
	}
	slices.SortStableFunc(c, func(a, b point) int { return int(int64(a.hash) - int64(b.hash)) })
	return slices.CompactFunc(c, func(a, b point) bool { return a.hash == b.hash })
}

// choose returns the server of a key, or of the next points where it may not be
// chosen.
func (c circle) choose(key string, servers []*server, ok eligible) *server {
	if len(c) == 0 {
		return nil
	}
	h := crc32.ChecksumIEEE([]byte(key))
	i, _ := slices.BinarySearchFunc(c, h, func(p point, h uint32) int { return int(int64(p.hash) - int64(h)) })
	seen := 0
	for k := 0; k < len(c) && seen < tooOften; k++ {
		p := c[(i+k)%len(c)]
		if ok(p.server) {
			return p.server
		}
		if k == 0 || p.server != c[(i+k-1)%len(c)].server {
			seen++
		}
	}
	return roundRobin(servers, ok)
}
