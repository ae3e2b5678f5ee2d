package control

import (
	"fmt"

	"github.com/sluice-lb/sluice/l7"
)

// httpProblems tells what is wrong with layer 7, beside what is an alarm.
func httpProblems(s *l7.Status) (all []string) {
	for _, u := range s.Upstreams {
		able := 0
		for _, b := range u.Servers {
			if b.Serves() {
				able++
			}
		}
		if able == 0 {
			all = append(all, fmt.Sprintf("upstream %s is down: no server can serve (%d configured), its requests are answered with 502", u.Name, len(u.Servers)))
		}
	}
	return all
}
