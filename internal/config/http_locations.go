package config

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

var locationSchema = schema{
	what: "a location",
	keys: append([]string{
		"path", "exact", "regex", "ignore_case", "no_regex", "upstream", "return", "redirect", "strip_prefix", "rewrite",
	}, inheritedKeys...),
	hints: withNginxHints(map[string]string{
		"prefix":     "a prefix is called \"path\"",
		"location":   "write path, exact or regex",
		"proxy_pass": "nginx's proxy_pass is \"upstream\", with the name of one",
		"access_log": "it stands in http: write log: false for no line",
	}),
}

var (
	returnSchema   = schema{what: "return", keys: []string{"status", "body", "content_type"}}
	redirectSchema = schema{what: "redirect", keys: []string{"to", "upstream", "status"}}
	rewriteSchema  = schema{what: "rewrite", keys: []string{"regex", "to"}}
)

// locations decodes the list of a server.
func (d *decoder) locations(n *node, base inherited, files fileSystem, upstream func(*node) *lb.Upstream) (all []lb.Location) {
	items, ok := d.mappings(n, "locations")
	if !ok {
		return nil
	}
	if len(items) == 0 {
		d.errorf(n, "locations is empty: a server needs one at least, such as {path: /, upstream: NAME}")
	}
	seen := map[string]*node{}
	for _, item := range items {
		f, ok := d.fields(item, &locationSchema)
		if !ok {
			continue
		}
		l, at := d.location(f, upstream)
		settings := d.inherited(f, base, files)
		settings.into(&l)
		if at == nil {
			continue
		}
		if first := seen[l.String()]; first != nil {
			d.errorf(at, "location %q is there twice: %s", l.String(), first.elsewhere(at))
			continue
		}
		seen[l.String()] = at
		all = append(all, l)
	}
	return all
}

// location decodes what is a location's own. At is where it says which paths it is
// for; nil: that cannot be read.
func (d *decoder) location(f fields, upstream func(*node) *lb.Upstream) (l lb.Location, at *node) {
	at = d.locationPaths(f, &l)
	var actions []string
	for _, key := range []string{"upstream", "return", "redirect"} {
		if f.own[key] != nil {
			actions = append(actions, key)
		}
	}
	switch len(actions) {
	case 0:
		d.errorf(f.n, "missing key \"upstream\": a location needs it, or \"return\", or \"redirect\"")
	case 1:
	default:
		d.errorf(f.keys[actions[1]], "%s are both set: a location does one thing", strings.Join(actions[:2], " and "))
	}
	if n := f.own["upstream"]; n != nil {
		l.Upstream = upstream(n).Name
	}
	if n := f.own["return"]; n != nil {
		l.Return = d.returns(n)
	}
	if n := f.own["redirect"]; n != nil {
		l.Redirect = d.redirect(n, upstream)
	}
	if n := f.own["strip_prefix"]; n != nil {
		l.StripPrefix, _ = d.boolean(n, "strip_prefix")
		if l.StripPrefix && l.Kind != lb.LocationPrefix && at != nil {
			d.errorf(f.keys["strip_prefix"], "strip_prefix is for a location with path; with %s write rewrite", l.Kind)
		}
	}
	if n := f.own["rewrite"]; n != nil {
		l.Rewrites = d.rewrites(n)
	}
	return l, at
}

// locationPaths decodes which paths a location is for.
func (d *decoder) locationPaths(f fields, l *lb.Location) (at *node) {
	for _, kind := range []lb.LocationKind{lb.LocationPrefix, lb.LocationExact, lb.LocationRegex} {
		n := f.own[string(kind)]
		switch {
		case n == nil:
			continue
		case at != nil:
			d.errorf(f.keys[string(kind)], "%s and %s are both set: a location is for one of them", l.Kind, kind)
			return nil
		}
		at, l.Kind = n, kind
	}
	if at == nil {
		d.errorf(f.n, "missing key \"path\": a location needs it, or \"exact\", or \"regex\"")
		return nil
	}
	for _, only := range []struct {
		key  string
		kind lb.LocationKind
	}{{"ignore_case", lb.LocationRegex}, {"no_regex", lb.LocationPrefix}} {
		if k := f.keys[only.key]; k != nil && l.Kind != only.kind {
			d.errorf(k, "%s is for a location with %s, this one has %s", only.key, only.kind, l.Kind)
		}
	}
	if n := f.own["no_regex"]; n != nil {
		l.NoRegex, _ = d.boolean(n, "no_regex")
	}
	if l.Kind == lb.LocationRegex {
		ignore := false
		if n := f.own["ignore_case"]; n != nil {
			ignore, _ = d.boolean(n, "ignore_case")
		}
		if l.Regex = d.regex(at, "regex", ignore); l.Regex == nil {
			return nil
		}
		return at
	}
	s, ok := d.text(at, string(l.Kind))
	switch {
	case !ok:
		return nil
	case s[0] != '/':
		d.errorf(at, "%s must start with /, not %q", l.Kind, s)
		return nil
	case strings.Contains(s, "//") || strings.Contains(s+"/", "/./") || strings.Contains(s+"/", "/../"):
		d.errorf(at, "%s %q can match nothing: paths are compared without // and . and ..", l.Kind, s)
		return nil
	case strings.Contains(s, "?"):
		d.errorf(at, "%s %q is not what clients mean by it: paths are compared without the query (a question mark in a path needs regex)", l.Kind, s)
		return nil
	case encoded.MatchString(s):
		d.errorf(at, "%s %q is not what clients mean by it: paths are compared decoded, so write the character itself", l.Kind, s)
		return nil
	}
	l.Path = s
	return at
}

// encoded matches a byte of a path as it stands in a URL.
var encoded = regexp.MustCompile(`%[0-9a-fA-F]{2}`)

func (d *decoder) regex(n *node, what string, ignoreCase bool) *regexp.Regexp {
	s, ok := d.text(n, what)
	if !ok {
		return nil
	}
	if ignoreCase {
		s = "(?i)" + s
	}
	re, err := regexp.Compile(s)
	if err != nil {
		d.errorf(n, "%s is not a regular expression: %s", what, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return nil
	}
	return re
}

func (d *decoder) returns(n *node) *lb.Return {
	r := &lb.Return{Status: http.StatusOK, ContentType: "text/plain; charset=utf-8"}
	f, ok := d.fields(n, &returnSchema)
	if !ok {
		return r
	}
	if n := f.need("status"); n != nil {
		if i, ok := d.answerStatus(n, "status", 200, 599); ok {
			r.Status = i
		}
		if slices.Contains(redirects, r.Status) {
			d.errorf(n, "status %d sends the client elsewhere: write redirect: {to: URL, status: %d}", r.Status, r.Status)
		}
	}
	if n := f.own["body"]; n != nil {
		r.Body, _ = d.answerText(n, "body")
	}
	if n := f.own["content_type"]; n != nil {
		r.ContentType, _ = d.text(n, "content_type")
	}
	return r
}

// answerText is variables for a text that may have several lines.
func (d *decoder) answerText(n *node, what string) (string, bool) {
	if n.kind != scalar || n.text == "" {
		return d.variables(n, what)
	}
	for line := range strings.Lines(n.text) {
		one := *n
		if one.text = strings.TrimRight(line, "\n"); one.text == "" {
			continue
		}
		if _, ok := d.variables(&one, what); !ok {
			return "", false
		}
	}
	return n.text, true
}

// leadsSomewhere matches what a client can be sent to: a URL, a path, a query, or a variable
// that may be one; hostAndPort what looks like a URL and is none.
var (
	leadsSomewhere = regexp.MustCompile(`^([a-zA-Z][a-zA-Z0-9+.-]*:|/|\?|\$)`)
	hostAndPort    = regexp.MustCompile(`^[^/:?]+:[0-9]`)
)

// redirects are the statuses that send a client elsewhere.
var redirects = []int{301, 302, 303, 307, 308}

func (d *decoder) redirect(n *node, upstream func(*node) *lb.Upstream) *lb.Redirect {
	r := &lb.Redirect{Status: http.StatusFound}
	f, ok := d.fields(n, &redirectSchema)
	if !ok {
		return r
	}
	if n := f.own["status"]; n != nil {
		i, ok := d.integer(n, "status", 300, 399)
		switch {
		case ok && !slices.Contains(redirects, i):
			d.errorf(n, "status of a redirect must be one of 301, 302, 303, 307, 308, not %d", i)
		case ok:
			r.Status = i
		}
	}
	to, u := f.own["to"], f.own["upstream"]
	switch {
	case to != nil && u != nil:
		d.errorf(f.keys["upstream"], "to and upstream are both set: a redirect leads to one of them")
	case to != nil:
		var ok bool
		if r.To, ok = d.variables(to, "to"); ok && (!leadsSomewhere.MatchString(r.To) || hostAndPort.MatchString(r.To)) {
			d.errorf(to, "to must be a URL, such as https://www.example.com$request_uri, or a path that starts with /, not %q", r.To)
		}
	case u != nil:
		of := upstream(u)
		r.Upstream = of.Name
		if i := slices.IndexFunc(of.Pool.Servers, func(s lb.Server) bool { return s.Address.IsLoopback() }); i >= 0 {
			d.errorf(u, "upstream %q has server %v, where no client can be sent", of.Name, of.Pool.Servers[i].Address)
		}
	default:
		d.errorf(n, "missing key \"to\": redirect needs it, or \"upstream\"")
	}
	return r
}

// rewrites decodes one rewrite, or a list.
func (d *decoder) rewrites(n *node) (all []lb.Rewrite) {
	items := []*node{n}
	if n.kind == list {
		items = n.items
	}
	for _, item := range items {
		f, ok := d.fields(item, &rewriteSchema)
		if !ok {
			continue
		}
		regexAt, toAt := f.need("regex"), f.need("to")
		if regexAt == nil || toAt == nil {
			continue
		}
		r := lb.Rewrite{Regex: d.regex(regexAt, "regex", false)}
		to, ok := d.text(toAt, "to")
		if !ok || r.Regex == nil {
			continue
		}
		if problem := rewriteProblem(r.Regex, to); problem != "" {
			d.errorf(toAt, "to: %s", problem)
			continue
		}
		r.To = to
		all = append(all, r)
	}
	return all
}

var groupReference = regexp.MustCompile(`\$(\{[^}]*\}|\w+|\$)?`)

// rewriteProblem finds references to groups that an expression has not, and what cannot stand in
// a query.
func rewriteProblem(re *regexp.Regexp, to string) string {
	_, query, _ := strings.Cut(to, "?")
	for _, c := range query {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune(`"<>#`, c) {
			return fmt.Sprintf("the query must be written as in a URL, with %s for %q", url.PathEscape(string(c)), c)
		}
	}
	for _, ref := range groupReference.FindAllString(to, -1) {
		name := strings.Trim(ref[1:], "{}")
		var number int
		switch _, err := fmt.Sscanf(name, "%d", &number); {
		case name == "$":
		case name == "":
			return "a dollar sign must be written $$"
		case err == nil && fmt.Sprint(number) == name:
			if number > re.NumSubexp() {
				return fmt.Sprintf("regex has no group %d", number)
			}
		case re.SubexpIndex(name) < 0:
			return fmt.Sprintf("regex has no group %q (write ${1} where a letter follows)", name)
		}
	}
	return ""
}
