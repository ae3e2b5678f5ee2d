package config

import (
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A webProbe is what probes and checks over HTTP have in common.
type webProbe struct {
	path   string // "/" where none is set
	host   string // Host header; "": none is set
	status []lb.StatusRange
	body   *regexp.Regexp
}

// webSettings decodes path, host, status and body.
func (d *decoder) webSettings(f fields) webProbe {
	w := webProbe{path: "/", status: []lb.StatusRange{{First: 200, Last: 399}}}
	if n := f.get("path"); n != nil {
		if s, ok := d.requestPath(n, "path"); ok {
			w.path = s
		}
	}
	if n := f.get("host"); n != nil {
		s, ok := d.text(n, "host")
		switch {
		case !ok:
		case strings.ContainsAny(s, "/ @"):
			d.errorf(n, "host must be a host name with an optional port, not %q", s)
		default:
			w.host = s
		}
	}
	if n := f.get("status"); n != nil {
		if r, ok := d.statusRanges(n); ok {
			w.status = r
		}
	}
	if n := f.get("body"); n != nil {
		w.body = d.expression(n, "body")
	}
	return w
}

func (d *decoder) requestPath(n *node, what string) (path string, ok bool) {
	s, ok := d.text(n, what)
	switch {
	case !ok:
	case s[0] != '/':
		d.errorf(n, "%s must start with /, not %q", what, s)
	case strings.Contains(s, " "):
		d.errorf(n, "%s must have no space in it (write %%20)", what)
	default:
		return s, true
	}
	return "", false
}

// expression decodes a regular expression.
func (d *decoder) expression(n *node, what string) *regexp.Regexp {
	s, ok := d.text(n, what)
	if !ok {
		return nil
	}
	re, err := regexp.Compile(s)
	if err != nil {
		d.errorf(n, "%s is not a regular expression: %s", what, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return re
}

// pages decodes what a probe of type t asks a server for: urls, or a path; t is "" in
// defaults that leave it open. Urls that are set win over a path that is a default,
// and the other way round.
func (d *decoder) pages(f fields, w webProbe, t lb.ProbeType) []lb.Page {
	urls := f.own["urls"]
	switch {
	case urls != nil && f.own["path"] != nil:
		d.errorf(f.keys["path"], "path goes with no urls: write it as one of them")
		return nil
	case urls == nil && f.own["path"] == nil:
		urls = f.get("urls")
	}
	if urls == nil {
		return []lb.Page{{Host: w.host, Path: w.path}}
	}
	items, ok := d.list(urls, "urls")
	if ok && len(items) == 0 {
		d.errorf(urls, "urls is empty: name at least one")
	}
	var all []lb.Page
	for _, item := range items {
		if page, ok := d.page(item, t); ok {
			if page.Host == "" {
				page.Host = w.host
			}
			all = append(all, page)
		}
	}
	return all
}

// page decodes a path, or a URL whose host is the Host header: where the connection
// goes to is the server's address.
func (d *decoder) page(n *node, t lb.ProbeType) (page lb.Page, ok bool) {
	s, ok := d.text(n, "url")
	if !ok {
		return page, false
	}
	if s[0] == '/' {
		page.Path, ok = d.requestPath(n, "url")
		return page, ok
	}
	parsed, err := url.Parse(s)
	switch {
	case err != nil || parsed.Host == "" || parsed.Opaque != "" || parsed.Scheme != "http" && parsed.Scheme != "https":
		d.errorf(n, "url must be a path such as /healthz, or like http://www.example.com/healthz for a Host header of its own, not %q", s)
		return page, false
	case t != "" && parsed.Scheme != string(t):
		d.errorf(n, "url must start with %s://, as the type of the probe is %s", t, t)
		return page, false
	case parsed.User != nil || parsed.Fragment != "":
		d.errorf(n, "url must have no user and no fragment")
		return page, false
	case strings.Contains(parsed.Host, " "):
		d.errorf(n, "url must have no space in its host")
		return page, false
	}
	return lb.Page{Host: parsed.Host, Path: parsed.RequestURI()}, true
}

// statusRanges decodes [200, 300-399], or one such item without a list.
func (d *decoder) statusRanges(n *node) ([]lb.StatusRange, bool) {
	items := []*node{n}
	if n.kind != scalar {
		var ok bool
		if items, ok = d.list(n, "status"); !ok {
			return nil, false
		}
		if len(items) == 0 {
			d.errorf(n, "status is empty: no answer would do")
			return nil, false
		}
	}
	var ranges []lb.StatusRange
	good := true
	for _, item := range items {
		s, ok := d.text(item, "status")
		if !ok {
			good = false
			continue
		}
		first, last, two := strings.Cut(s, "-")
		if !two {
			last = first
		}
		a, errA := strconv.Atoi(first)
		b, errB := strconv.Atoi(last)
		if errA != nil || errB != nil || a < 100 || b > 599 || a > b {
			d.errorf(item, "status must be a code or a range of codes from 100 to 599, such as 200-399, not %q", s)
			good = false
			continue
		}
		ranges = append(ranges, lb.StatusRange{First: a, Last: b})
	}
	return ranges, good
}
