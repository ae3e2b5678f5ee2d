package natlog

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/sluice-lb/sluice/loader"
)

// timeFormat is RFC 3339 with microseconds, always as many: lines can be sorted as
// text.
const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

// appendLine appends the line of a translation. Service may be "".
func appendLine(b []byte, t loader.Translation, service string) []byte {
	b = t.Time.UTC().AppendFormat(b, timeFormat)
	b = append(b, ' ')
	b = append(b, t.Event...)
	b = append(b, " proto="...)
	b = append(b, t.Protocol.String()...)
	b = appendAddress(b, " client=", t.Client)
	b = appendAddress(b, " vip=", t.VIP)
	b = appendAddress(b, " source=", t.Source)
	b = appendAddress(b, " backend=", t.Backend)
	b = append(b, " service="...)
	if service == "" {
		service = "-"
	}
	b = append(b, service...)
	return append(b, '\n')
}

func appendAddress(b []byte, key string, a netip.AddrPort) []byte {
	b = append(b, key...)
	if !a.IsValid() {
		return append(b, '-')
	}
	return a.AppendTo(b)
}

// appendLost appends the line that tells of a gap.
func appendLost(b []byte, at time.Time, n uint64) []byte {
	b = at.UTC().AppendFormat(b, timeFormat)
	b = append(b, " lost lines="...)
	b = strconv.AppendUint(b, n, 10)
	return append(b, '\n')
}
