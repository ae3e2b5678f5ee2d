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
// it. Path is the normalized one. What no location changes goes on as it came.
func target(l *lb.Location, in *url.URL, path string) *url.URL {
	changed := false
	if l.StripPrefix {
		path, changed = "/"+strings.TrimLeft(strings.TrimPrefix(path, l.Path), "/"), true
	}
	for _, r := range l.Rewrites {
		m := r.Regex.FindStringSubmatchIndex(path)
		if m == nil {
			continue
		}
		rewritten := path[:m[0]] + string(r.Regex.ExpandString(nil, r.To, path, m)) + path[m[1]:]
		path, changed = "/"+strings.TrimLeft(rewritten, "/"), true
		break
	}
	if !changed {
		return in
	}
	out := *in
	out.Path, out.RawPath = path, ""
	return &out
}
