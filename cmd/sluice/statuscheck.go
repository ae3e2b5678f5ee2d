package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/vrrp"
)

// monitoringPatience is how long a daemon may take to answer monitoring, which itself gives
// up after ten seconds, often.
const monitoringPatience = 5 * time.Second

// getForMonitoring is getStatus for who does not wait.
func getForMonitoring(c *cli.Context) (control.Status, error) {
	ctx, cancel := context.WithTimeout(c.Context, monitoringPatience)
	defer cancel()
	c.Context = ctx
	return getStatus(c)
}

// printVerdict prints a status in one line, as monitoring wants it, which reads nothing
// but standard output and the exit code: also where there is no status.
func printVerdict(w io.Writer, s control.Status, err error) error {
	problems := slices.Concat(s.Problems, starting(s))
	if err != nil {
		problems = []string{inBrief(err)}
	}
	word, all := "ok", inShort(s)
	if len(problems) > 0 {
		word, all = "problem", problems
	}
	text := strings.ReplaceAll(strings.Join(all, "; "), "\n", "; ")
	if s.Node != "" {
		text = s.Node + ": " + text
	}
	if _, err := fmt.Fprintf(w, "%s: %s\n", word, text); err != nil {
		return err
	}
	if len(problems) > 0 {
		return errReported
	}
	return nil
}

// starting names instances of VRRP that take no part in the election yet.
func starting(s control.Status) (all []string) {
	for _, i := range s.VRRP {
		if i.State == vrrp.Initialize.String() {
			all = append(all, fmt.Sprintf("vrrp instance %s has not begun: %s", i.Name, i.Reason))
		}
	}
	return all
}

// inShort tells what a node without problems does.
func inShort(s control.Status) (all []string) {
	var instances []string
	for _, i := range s.VRRP {
		instances = append(instances, i.Name+" "+i.State)
	}
	if len(instances) > 0 {
		all = append(all, "vrrp "+strings.Join(instances, ", "))
	}
	able, servers := 0, 0
	for _, v := range s.Services {
		able, servers = able+v.Healthy, servers+len(v.Backends)
	}
	if n := len(s.Services); n > 0 {
		all = append(all, fmt.Sprintf("%d of %s healthy in %s", able, count(servers, "server"), count(n, "service")))
	}
	if s.HTTP != nil {
		all = append(all, count(len(s.HTTP.Servers), "HTTP server"))
	}
	if s.DNS != nil {
		all = append(all, count(len(s.DNS.Records), "DNS record"))
	}
	return append(all, "up "+age(s.Time, *cmp.Or(s.Started, &s.Time)))
}
