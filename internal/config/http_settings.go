package config

import (
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sluice-lb/sluice/internal/lb"
)

// inheritedKeys may stand in http, in a server and in a location: the inner one takes
// the place of the outer one, as in nginx.
var inheritedKeys = []string{
	"allow", "deny", "client_max_body_size", "client_body_buffer_size", "request_buffering", "request_headers", "response_headers",
	"rate_limit", "error_pages", "intercept_errors", "gzip", "log",
}

var (
	headersSchema = schema{
		what:  "changes of headers",
		keys:  []string{"remove", "set", "add"},
		hints: map[string]string{"hide": "write remove: [...]"},
	}
	rateLimitSchema = schema{what: "rate_limit", keys: []string{"key", "rate", "burst", "status"}}
	errorPageSchema = schema{what: "an error page", keys: []string{"status", "as", "file", "body", "content_type"}}
	gzipSchema      = schema{what: "gzip", keys: []string{"level", "min_length", "types"}}
)

// Bounds and defaults of these settings.
const (
	defaultMaxBody   = 1 << 20
	defaultBuffer    = 64 << 10
	maxBuffer        = 16 << 20
	maxPage          = 1 << 20
	defaultGzipLevel = 5
	defaultGzipMin   = 1 << 10
)

// gzipTypes are what is compressed where the configuration does not say.
var gzipTypes = []string{"text/*", "application/json", "application/javascript", "application/xml", "application/wasm", "image/svg+xml"}

// Inherited is what an inner section takes over from an outer one.
type inherited struct {
	rules                           []lb.Rule
	allowOnly                       bool
	maxBody, buffer                 int64
	buffering                       bool
	requestHeaders, responseHeaders lb.HeaderChanges
	rateLimit                       *lb.RateLimit
	errorPages                      []lb.ErrorPage
	interceptErrors                 bool
	gzip                            *lb.Gzip
	log                             bool
}

func defaultInherited() inherited {
	return inherited{maxBody: defaultMaxBody, buffer: defaultBuffer, buffering: true, log: true}
}

func (i *inherited) into(l *lb.Location) {
	l.Rules, l.AllowOnly, l.MaxBody, l.RequestBuffer, l.RequestBuffering = i.rules, i.allowOnly, i.maxBody, int(i.buffer), i.buffering
	l.RequestHeaders, l.ResponseHeaders, l.RateLimit = i.requestHeaders, i.responseHeaders, i.rateLimit
	l.ErrorPages, l.InterceptErrors, l.Gzip, l.NoLog = i.errorPages, i.interceptErrors, i.gzip, !i.log
}

// inherited decodes what a section sets of these keys; the rest is the outer one's.
func (d *decoder) inherited(f fields, outer inherited, files fileSystem) inherited {
	i := outer
	if f.own["allow"] != nil || f.own["deny"] != nil {
		var s lb.Service
		d.access(fields{d: d, n: f.n, what: f.what, keys: f.keys, own: map[string]*node{"allow": f.own["allow"], "deny": f.own["deny"]}}, &s)
		i.rules, i.allowOnly = s.Rules, s.AllowOnly
	}
	if n := f.own["client_max_body_size"]; n != nil {
		if v, ok := d.size(n, "client_max_body_size", 0, 1<<50); ok {
			i.maxBody = v
		}
	}
	if n := f.own["client_body_buffer_size"]; n != nil {
		if v, ok := d.size(n, "client_body_buffer_size", 1<<10, maxBuffer); ok {
			i.buffer = v
		}
	}
	for _, each := range []struct {
		key  string
		into *bool
	}{{"request_buffering", &i.buffering}, {"intercept_errors", &i.interceptErrors}, {"log", &i.log}} {
		if n := f.own[each.key]; n != nil {
			*each.into, _ = d.boolean(n, each.key)
		}
	}
	if n := f.own["request_headers"]; n != nil {
		i.requestHeaders = d.headerChanges(n, "request_headers")
	}
	if n := f.own["response_headers"]; n != nil {
		i.responseHeaders = d.headerChanges(n, "response_headers")
	}
	if n := f.own["rate_limit"]; n != nil {
		i.rateLimit = d.rateLimit(n)
	}
	if n := f.own["error_pages"]; n != nil {
		i.errorPages = d.errorPages(n, files)
	}
	if n := f.own["gzip"]; n != nil {
		i.gzip = d.gzip(n)
	}
	return i
}

// ownHeaders are headers that are the proxy's own business.
var ownHeaders = map[string]string{
	"Connection": "", "Transfer-Encoding": "", "Content-Length": "", "Upgrade": "", "Te": "", "Trailer": "", "Keep-Alive": "",
	"Host": "; write host: in the upstream", "Expect": "", "Proxy-Connection": "",
}

// headerChanges decodes remove, set and add.
func (d *decoder) headerChanges(n *node, what string) (c lb.HeaderChanges) {
	f, ok := d.fields(n, &headersSchema)
	if !ok {
		return c
	}
	name := func(n *node) (string, bool) {
		s, ok := d.headerName(n, what)
		if hint, own := ownHeaders[s]; ok && own {
			d.errorf(n, "%s: header %s is set by the proxy itself%s", what, s, hint)
			return "", false
		}
		return s, ok
	}
	if n := f.own["remove"]; n != nil {
		items, _ := d.list(n, "remove")
		for _, item := range items {
			if s, ok := name(item); ok {
				c.Remove = append(c.Remove, s)
			}
		}
	}
	for _, each := range []struct {
		key  string
		into *[]lb.Header
	}{{"set", &c.Set}, {"add", &c.Add}} {
		n := f.own[each.key]
		if n == nil {
			continue
		}
		if n.kind != mapping {
			d.mismatch(n, each.key, "a mapping of names to values")
			continue
		}
		for _, e := range n.entries {
			s, ok := name(e.key)
			v, ok2 := d.variables(e.value, e.key.text)
			if ok && ok2 {
				*each.into = append(*each.into, lb.Header{Name: s, Value: v})
			}
		}
	}
	return c
}

func (d *decoder) rateLimit(n *node) *lb.RateLimit {
	f, ok := d.fields(n, &rateLimitSchema)
	if !ok {
		return nil
	}
	l := &lb.RateLimit{Key: lb.RequestKey{Kind: lb.KeyClient}, Status: http.StatusTooManyRequests}
	if n := f.own["key"]; n != nil {
		l.Key = d.requestKey(n, "key")
	}
	if n := f.need("rate"); n != nil {
		if l.Rate, ok = d.rate(n); !ok {
			return nil
		}
	} else {
		return nil
	}
	if n := f.own["burst"]; n != nil {
		l.Burst, _ = d.integer(n, "burst", 0, maxRate)
	}
	if n := f.own["status"]; n != nil {
		if i, ok := d.answerStatus(n, "status", 400, 599); ok {
			l.Status = i
		}
	}
	return l
}

var rateText = regexp.MustCompile(`^([1-9][0-9]{0,6})r/([sm])$`)

// rate decodes requests a second, as a number or in nginx's words: 10r/s, or 5r/m for those of
// a minute.
func (d *decoder) rate(n *node) (float64, bool) {
	if m := rateText.FindStringSubmatch(n.text); n.kind == scalar && m != nil {
		i, err := strconv.Atoi(m[1])
		switch {
		case err != nil || i > maxRate:
		case m[2] == "m":
			return float64(i) / 60, true
		default:
			return float64(i), true
		}
	}
	if n.kind == scalar && strings.Contains(n.text, "/") {
		d.errorf(n, "rate must be requests a second, such as 10 or 10r/s, or 5r/m for those of a minute, not %q", n.text)
		return 0, false
	}
	i, ok := d.integer(n, "rate", 1, maxRate)
	return float64(i), ok
}

func (d *decoder) errorPages(n *node, files fileSystem) (all []lb.ErrorPage) {
	items, ok := d.mappings(n, "error_pages")
	if !ok {
		return nil
	}
	for _, item := range items {
		f, ok := d.fields(item, &errorPageSchema)
		if !ok {
			continue
		}
		p := lb.ErrorPage{ContentType: "text/html; charset=utf-8"}
		if n := f.need("status"); n != nil {
			ranges, ok := d.statusRanges(n)
			if ok && slices.ContainsFunc(ranges, func(r lb.StatusRange) bool { return r.First < 300 }) {
				d.errorf(n, "status: an error page is for codes from 300 on")
			}
			p.Status = ranges
		}
		if n := f.own["as"]; n != nil {
			p.As, _ = d.answerStatus(n, "as", 200, 599)
		}
		file, body := f.own["file"], f.own["body"]
		switch {
		case file != nil && body != nil:
			d.errorf(f.keys["body"], "file and body are both set: an error page is one of them")
		case file != nil:
			p.Body, _ = d.file(file, "file", files)
			if len(p.Body) > maxPage {
				d.errorf(file, "file: an error page is at most %s long", sizeText(maxPage))
			}
			p.ContentType = contentTypeOf(file.text, p.Body)
		case body != nil && body.kind == scalar:
			p.Body = []byte(body.text)
		case body != nil:
			d.mismatch(body, "body", "a text")
		default:
			d.errorf(item, "missing key \"file\": an error page needs it, or \"body\"")
		}
		if n := f.own["content_type"]; n != nil {
			p.ContentType, _ = d.text(n, "content_type")
		}
		all = append(all, p)
	}
	return all
}

// contentTypeOf tells what a page is, by its name, and by its content where that says
// nothing.
func contentTypeOf(name string, content []byte) string {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".html", ".htm":
		return "text/html; charset=utf-8"
	case ".json":
		return "application/json"
	case ".txt":
		return "text/plain; charset=utf-8"
	}
	if !utf8.Valid(content) {
		return "application/octet-stream"
	}
	return http.DetectContentType(content)
}

// gzip decodes true, false or settings.
func (d *decoder) gzip(n *node) *lb.Gzip {
	g := &lb.Gzip{Level: defaultGzipLevel, MinLength: defaultGzipMin, Types: gzipTypes}
	if n.kind == scalar {
		if on, ok := d.boolean(n, "gzip"); !ok || !on {
			return nil
		}
		return g
	}
	f, ok := d.fields(n, &gzipSchema)
	if !ok {
		return nil
	}
	if n := f.own["level"]; n != nil {
		if i, ok := d.integer(n, "level", 1, 9); ok {
			g.Level = i
		}
	}
	if n := f.own["min_length"]; n != nil {
		if v, ok := d.size(n, "min_length", 0, 1<<30); ok {
			g.MinLength = int(v)
		}
	}
	if n := f.own["types"]; n != nil {
		items, _ := d.list(n, "types")
		g.Types = nil
		for _, item := range items {
			s, ok := d.text(item, "type")
			if ok && s != "*" && strings.Count(s, "/") != 1 {
				d.errorf(item, "type must be a media type such as text/html or text/*, not %q", s)
				continue
			}
			g.Types = append(g.Types, strings.ToLower(s))
		}
	}
	return g
}
