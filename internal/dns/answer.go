package dns

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Sizes of messages, in bytes.
const (
	headerSize = 12
	// maxQuery bounds what is read of a query: a question and its EDNS are far shorter.
	maxQuery = 4096
	// plainSize is the longest answer over UDP to a client without EDNS (RFC 1035).
	plainSize = 512
	// ednsSize is the longest one to a client with it, whatever it would take: longer
	// ones come in fragments.
	ednsSize = 1232
)

// A client is who asks.
type client struct {
	address netip.Addr // without a zone; an IPv4 address is one
	tcp     bool
}

// respond returns the answer to a message; nil: there is none.
func (r *Responder) respond(query []byte, from client) []byte {
	if len(query) < headerSize {
		r.counts.drop(dropMalformed)
		return nil
	}
	if query[2]&0x80 != 0 { // an answer to an answer would go on for ever
		r.counts.drop(dropResponse)
		return nil
	}
	w, m := r.now.Load(), &dns.Msg{}
	if rcode := refuse(query, m); rcode != dns.RcodeSuccess {
		return r.fail(w, query, rcode, from)
	}
	reply := &dns.Msg{}
	reply.SetReply(m)
	reply.Compress = true
	limit, ok := extend(m, reply, from)
	if !ok {
		return r.fail(w, query, dns.RcodeFormatError, from)
	}
	var kind answerKind
	if reply.Rcode == dns.RcodeSuccess {
		kind = w.answer(reply, from.address)
	}
	kind.rcode = reply.Rcode
	switch w.judge(from, kind) {
	case isDropped:
		r.counts.drop(dropRateLimited)
		return nil
	case slips:
		r.counts.slipped.Add(1)
		cutShort(reply)
	case passes:
		if reply.Len() > limit {
			reply.Truncate(limit)
		}
		if reply.Truncated {
			r.counts.truncated.Add(1)
		}
	}
	packet, err := reply.Pack()
	if err != nil { // a record that cannot be written
		r.log.Error("an answer cannot be written", "name", m.Question[0].Name, "error", err)
		return r.fail(w, query, dns.RcodeServerFailure, from)
	}
	r.counts.answer(reply.Rcode)
	return packet
}

// fail answers a message with an error and nothing else.
func (r *Responder) fail(w *world, query []byte, rcode int, from client) []byte {
	reply := bare(query, rcode)
	switch w.judge(from, answerKind{rcode: rcode}) {
	case isDropped:
		r.counts.drop(dropRateLimited)
		return nil
	case slips:
		r.counts.slipped.Add(1)
		reply[2] |= 0x02 // TC
	}
	r.counts.answer(rcode)
	return reply
}

// judge tells what becomes of an answer. Who has come over TCP is there, and no victim.
func (w *world) judge(to client, kind answerKind) passage {
	if w.limiter == nil || to.tcp {
		return passes
	}
	return w.limiter.judge(to.address, kind, time.Now())
}

// cutShort takes all records from an answer, and has the client come back over TCP.
func cutShort(reply *dns.Msg) {
	opt := reply.IsEdns0()
	reply.Answer, reply.Ns, reply.Extra = nil, nil, nil
	if opt != nil {
		reply.Extra = []dns.RR{opt}
	}
	reply.Truncated = true
}

// refuse looks at a message before there is a question to answer, and reads it into m.
// It returns what is wrong with it, or dns.RcodeSuccess.
func refuse(query []byte, m *dns.Msg) (rcode int) {
	opcode := int(query[2]>>3) & 0xf
	questions, answers := binary.BigEndian.Uint16(query[4:]), binary.BigEndian.Uint16(query[6:])
	switch {
	case opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case questions != 1 || answers != 0:
		return dns.RcodeFormatError
	case m.Unpack(query) != nil || len(m.Question) != 1:
		return dns.RcodeFormatError
	}
	return dns.RcodeSuccess
}

// bare is an answer that is a header alone: to a message whose question is not to be
// repeated, or cannot be.
func bare(query []byte, rcode int) []byte {
	reply := make([]byte, headerSize)
	copy(reply, query[:2])
	const opcodeAndRD = 0x79
	reply[2] = 0x80 | query[2]&opcodeAndRD
	reply[3] = byte(rcode)
	return reply
}

// extend answers the query's EDNS (RFC 6891), if it has any, and returns how long the
// answer may be. False: there is something wrong with it.
func extend(query, reply *dns.Msg, from client) (limit int, ok bool) {
	var opt *dns.OPT
	for _, rr := range query.Extra {
		if o, is := rr.(*dns.OPT); is {
			if opt != nil || o.Hdr.Name != "." {
				return 0, false
			}
			opt = o
		}
	}
	limit = plainSize
	if opt != nil {
		limit = min(max(int(opt.UDPSize()), plainSize), ednsSize)
		own := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		own.SetUDPSize(ednsSize)
		if opt.Do() {
			own.SetDo() // repeated, as RFC 3225 wants it; nothing here is signed
		}
		reply.Extra = append(reply.Extra, own)
		if opt.Version() != 0 {
			reply.Rcode = dns.RcodeBadVers
		}
	}
	if from.tcp {
		limit = dns.MaxMsgSize
	}
	return limit, true
}

// answer fills in the answer to a question, and tells what of it counts together.
func (w *world) answer(reply *dns.Msg, from netip.Addr) answerKind {
	q := reply.Question[0]
	name := strings.ToLower(q.Name)
	z := w.zones.of(name)
	if q.Qtype == dns.TypeDS && z != nil && z.config.Name == name { // it is above the cut
		if parent := w.zones.above(name); parent != nil {
			z = parent
		}
	}
	switch {
	case z == nil || q.Qclass != dns.ClassINET || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR:
		reply.Rcode = dns.RcodeRefused
		return answerKind{}
	case q.Qtype == dns.TypeOPT: // it is no type that a name has
		reply.Rcode = dns.RcodeFormatError
		return answerKind{}
	}
	reply.Authoritative = true
	apex := q.Name[len(q.Name)-len(z.config.Name):] // as the client has written it
	e := z.find(name)
	if e == nil {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = []dns.RR{z.soa(apex, z.negative(nil))}
		return answerKind{name: z.config.Name}
	}
	if e.record != nil {
		e.record.stats.queries.Add(1)
	}
	reply.Answer = z.records(e, q, from)
	switch {
	case len(reply.Answer) == 0:
		reply.Ns = []dns.RR{z.soa(apex, z.negative(e.record))}
	case q.Qtype == dns.TypeNS:
		reply.Extra = append(z.glue(), reply.Extra...)
	}
	kind := answerKind{name: z.config.Name}
	if len(reply.Answer) > 0 {
		kind.of = q.Qtype
	}
	if e.record != nil {
		kind.name = e.record.config.Name
	}
	return kind
}

// negative is how long it may be believed that something is not there. A family of a
// record that has no address may have one soon.
func (z *zone) negative(r *record) time.Duration {
	ttl := min(z.config.NegativeTTL, z.config.TTL)
	if r != nil {
		ttl = min(ttl, r.config.TTL)
	}
	return ttl
}

// records are those of a name that answer a question.
func (z *zone) records(e *entry, q dns.Question, from netip.Addr) (all []dns.RR) {
	apex := len(q.Name) == len(z.config.Name)
	ttl, addresses := z.config.TTL, e.addresses
	if e.record != nil {
		ttl = e.record.config.TTL
	}
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		v6 := q.Qtype == dns.TypeAAAA
		if e.record != nil {
			addresses = e.record.addresses(v6, from)
		}
		for _, a := range addresses {
			if a.Is6() == v6 {
				all = append(all, address(q.Name, a, ttl))
			}
		}
	case dns.TypeSOA:
		if apex {
			all = []dns.RR{z.soa(q.Name, z.config.TTL)}
		}
	case dns.TypeNS:
		if apex {
			all = z.nameServers(q.Name)
		}
	case dns.TypeANY: // one small record says that there is no more to be had (RFC 8482)
		if apex || e.record != nil || len(addresses) > 0 {
			all = []dns.RR{&dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO, ttl), Cpu: "RFC8482"}}
		}
	}
	return all
}
