package web

import (
	_ "embed"
	"fmt"
	"html/template"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/loader"
)

//go:embed page.html
var pageText string

// pageTemplate shows a control.Status.
var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"ago":      func(now, then time.Time) string { return now.Sub(then).Round(time.Second).String() },
	"words":    func(s any) string { return strings.ReplaceAll(fmt.Sprint(s), "_", " ") },
	"prefixes": func(all []netip.Prefix) string { return join(all) },
	"ports":    func(all []lb.Frontend) string { return join(all) },
	"percent":  func(part float64) string { return fmt.Sprintf("%.1f %%", 100*part) },
	"why":      why,
	"class":    class,
	"dropped": func(all []loader.Outcome) []loader.Outcome {
		return slices.DeleteFunc(slices.Clone(all), func(o loader.Outcome) bool { return !o.Dropped || o.Packets == 0 })
	},
	"bytes": bytesText,
	"host": func(a netip.AddrPort) string {
		return net.JoinHostPort(a.Addr().String(), fmt.Sprint(a.Port()))
	},
}).Parse(pageText))

func join[T fmt.Stringer](all []T) string {
	if len(all) == 0 {
		return "none"
	}
	var texts []string
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

// why says what there is to say of a backend beside its numbers.
func why(now time.Time, b control.BackendStatus) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if b.Why != "" {
		add("%s", b.Why)
	}
	if b.Override != "" {
		add("operator: %s", b.Override)
	}
	if b.Slots == 0 && b.Pinned > 0 {
		add("%d connections left", b.Pinned)
	}
	if s := b.SlowStart; s != nil {
		add("slow start, %d %%, %v left", s.Percent, max(0, s.Ends.Sub(now)).Round(time.Second))
	}
	if u := b.Source(); u.AtLeast(loader.HighPorts) {
		add("%d of %d source ports in use", u.Used, u.Ports)
	}
	return strings.Join(parts, "; ")
}

// class is the colour of a state.
func class(state any) string {
	switch fmt.Sprint(state) {
	case "active", "up", "passing", "running":
		return "good"
	case "down", "fault", "failing", "no_route":
		return "bad"
	case "below_quorum", "drained", "disabled", "unknown", "initialize":
		return "fair"
	}
	return "plain"
}

// bytesText is a number of bytes for people.
func bytesText(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 999.5 && unit < 6 {
		value, unit = value/1000, unit+1
	}
	return fmt.Sprintf("%.3g %cB", value, " kMGTPE"[unit])
}
