package loader

import (
	"net/netip"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A fragmentName is what the fragments of a packet have in common.
type fragmentName struct {
	src, dst netip.Addr
	id       uint32
	protocol lb.Protocol
}

// After how many ticks the fragments of a packet are forgotten.
const modelFragmentTicks = 224

func (p *modelPacket) fragmentName() fragmentName {
	return fragmentName{p.src, p.dst, p.fragment.id, p.protocol}
}

// rememberFragment notes where the first fragment of a packet goes; backend 0: to
// the kernel.
func (m *model) rememberFragment(p *modelPacket, number, spread uint32) {
	name, e := p.fragmentName(), m.pin(number, spread)
	m.later(func() { m.fragments[name] = e })
}

// followFragment sends a later fragment where the first one went.
func (m *model) followFragment(p *modelPacket) string {
	if p.protocol == lb.TCP && p.fragment.offset == 8 {
		return "fragment" // RFC 1858, section 3
	}
	e, ok := m.fragments[p.fragmentName()]
	switch {
	case !ok || int32(m.now.tick-e.seen) > modelFragmentTicks:
		return "early_fragment"
	case e.backend == 0:
		return "later_fragment"
	case !m.stands(e):
		return "early_fragment"
	}
	p.hash = uint64(e.sequence) << 32
	m.reach("a fragment that follows")
	return m.sendTo(p, e.backend, m.state.Services[m.state.Backends[e.backend].Service].Forward)
}
