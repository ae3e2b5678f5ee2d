package config

import (
	"fmt"
	"regexp"
	"strconv"
)

var sizePattern = regexp.MustCompile(`^(0|[1-9][0-9]{0,11})([kKmMgG]?)$`)

// size returns a number of bytes as nginx writes it, 512, 64k or 1m, from lo to hi.
func (d *decoder) size(n *node, what string, lo, hi int64) (int64, bool) {
	const want = "a size in bytes such as 512, 64k or 1m"
	if n.kind != scalar {
		d.mismatch(n, what, want)
		return 0, false
	}
	m := sizePattern.FindStringSubmatch(n.text)
	if m == nil {
		d.mismatch(n, what, want)
		return 0, false
	}
	v, _ := strconv.ParseInt(m[1], 10, 64) // the pattern bounds it
	switch m[2] {
	case "k", "K":
		v <<= 10
	case "m", "M":
		v <<= 20
	case "g", "G":
		v <<= 30
	}
	if v < lo || v > hi {
		d.errorf(n, "%s must be from %s to %s, not %s", what, sizeText(lo), sizeText(hi), n.text)
		return 0, false
	}
	return v, true
}

// sizeText writes a size as a person does.
func sizeText(v int64) string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{30, "g"}, {20, "m"}, {10, "k"}} {
		if v > 0 && v&(1<<u.shift-1) == 0 {
			return fmt.Sprintf("%d%s", v>>u.shift, u.name)
		}
	}
	return strconv.FormatInt(v, 10)
}
