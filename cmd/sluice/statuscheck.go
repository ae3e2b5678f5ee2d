package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/sluice-lb/sluice/internal/control"
)

// printVerdict prints a status in one line, as monitoring wants it, which reads nothing
// but standard output and the exit code: also where there is no status.
func printVerdict(w io.Writer, s control.Status, err error) error {
	word, text := "ok", strings.Join(inShort(s), "; ")
	switch {
	case err != nil:
		word, text = "problem", err.Error()
	case len(s.Problems) > 0:
		word, text = "problem", strings.Join(s.Problems, "; ")
	}
	if s.Node != "" {
		text = s.Node + ": " + text
	}
	if _, err := fmt.Fprintf(w, "%s: %s\n", word, oneLine(text)); err != nil {
		return err
	}
	if word != "ok" {
		return errReported
	}
	return nil
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
	if len(s.Services) > 0 {
		all = append(all, fmt.Sprintf("%d of %d servers of %d services are healthy", able, servers, len(s.Services)))
	}
	return append(all, "up "+age(s.Time, *cmp.Or(s.Started, &s.Time)))
}

// oneLine is a text without line breaks, which joined errors have.
func oneLine(text string) string { return strings.Join(strings.FieldsFunc(text, isBreak), "; ") }

func isBreak(r rune) bool { return r == '\n' || r == '\r' }
