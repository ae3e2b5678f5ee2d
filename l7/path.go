package l7

import (
	"net/url"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// normalize makes of a decoded path the one that locations are compared with, as
// nginx does: "." and ".." are resolved, and slashes that follow each other are one.
// False: it leads out of the root, or can be no path.
func normalize(path string) (string, bool) {
	if path == "" || path[0] != '/' || strings.IndexByte(path, 0) >= 0 {
		return "", false
	}
	if !strings.Contains(path, "//") && !strings.Contains(path, "/.") {
		return path, true
	}
	out := make([]string, 0, 16)
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case "":
			if last {
				out = append(out, "")
			}
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) == 0 {
				return "", false
			}
			out = out[:len(out)-1]
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/"), true
}

// target is what a server is asked for: in, or another URL where the location changes
// it; false: the change has made a way out of where it leads. Path is the normalized one.
// What no location changes goes on as it came, but for bytes that may not stand in a URL,
// which are encoded.
func target(l *lb.Location, in *url.URL, path string) (*url.URL, bool) {
	changed, query := false, in.RawQuery
	if l.StripPrefix {
		path, changed = "/"+strings.TrimLeft(strings.TrimPrefix(path, l.Path), "/"), true
	}
	for _, r := range l.Rewrites {
		m := r.Regex.FindStringSubmatchIndex(path)
		if m == nil {
			continue
		}
		path, query = rewrite(r, path, query, m)
		changed = true
		break
	}
	if !changed {
		return faithful(in), true
	}
	out := *in
	out.Path, out.RawPath, out.RawQuery, out.ForceQuery = path, "", query, false
	return &out, !strings.Contains(path+"/", "/../") && !strings.Contains(path+"/", "/./")
}

// faithful is a URL whose path is written as it came. Where that has a byte which may not stand
// there, such as ^ or one of UTF-8, net/url would write all of the path anew: with a slash for %2F.
func faithful(in *url.URL) *url.URL {
	if in.RawPath == "" || in.EscapedPath() == in.RawPath {
		return in
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(in.RawPath) {
		if c := in.RawPath[i]; inPaths[c] {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	out := *in
	out.RawPath = b.String()
	return &out
}

// rewrite changes a path and a query as nginx does: what To says behind a question mark goes
// before the query that there is, or in its place where To ends with one. Match is where
// the groups are in path.
func rewrite(r lb.Rewrite, path, query string, match []int) (newPath, newQuery string) {
	to, alone := strings.CutSuffix(r.To, "?")
	toPath, toQuery, _ := strings.Cut(to, "?")
	newPath = path[:match[0]] + string(r.Regex.ExpandString(nil, toPath, path, match)) + path[match[1]:]
	newPath = "/" + strings.TrimLeft(newPath, "/")
	if alone {
		query = ""
	}
	groups, at := escapedGroups(path, match)
	newQuery = string(r.Regex.ExpandString(nil, toQuery, groups, at))
	if newQuery != "" && query != "" {
		newQuery += "&"
	}
	return newPath, newQuery + query
}

// escapedGroups are the groups of a match as they may stand in a query, and where each is:
// none can end a parameter and begin another one.
func escapedGroups(path string, match []int) (groups string, at []int) {
	for i := 0; i < len(match); i += 2 {
		if match[i] < 0 { // it took no part
			at = append(at, -1, -1)
			continue
		}
		begin := len(groups)
		groups += strings.ReplaceAll(url.QueryEscape(path[match[i]:match[i+1]]), "+", "%20")
		at = append(at, begin, len(groups))
	}
	return groups, at
}
