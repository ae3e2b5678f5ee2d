package control

import (
	"fmt"

	"github.com/sluice-lb/sluice/internal/dns"
)

// dnsProblems tells what is wrong with what DNS answers.
func dnsProblems(s *dns.Status) (all []string) {
	for _, p := range s.Pools {
		given := 0
		for _, k := range p.Servers {
			if k.Given {
				given++
			}
		}
		switch {
		case given == 0:
			all = append(all, fmt.Sprintf("dns pool %s: all servers are drained, disabled or of weight 0: its names have no address", p.Name))
		case !p.Healthy:
			who := "all"
			if given < len(p.Servers) {
				who = "all that nobody has taken out"
			}
			all = append(all, fmt.Sprintf("dns pool %s: no server is healthy (%d configured): %s are given", p.Name, len(p.Servers), who))
		}
	}
	return all
}
