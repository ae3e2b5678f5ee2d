package l7

import (
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// A stamp is a second as logs write it.
type stamp struct {
	second int64
	text   string
}

// lastStamp is the one that was written last: of many requests in a second it is worked
// out once.
var lastStamp atomic.Pointer[stamp]

// stampOf is a time as nginx's format "combined" has it.
func stampOf(now time.Time) string {
	s := lastStamp.Load()
	if s == nil || s.second != now.Unix() {
		s = &stamp{now.Unix(), now.Format("02/Jan/2006:15:04:05 -0700")}
		lastStamp.Store(s)
	}
	return s.text
}

// appendCombined writes a request as nginx's format "combined" does.
func appendCombined(b []byte, x *exchange, status int, now time.Time) []byte {
	r := x.request
	b = x.client.Addr().AppendTo(b)
	b = append(b, " - "...)
	user, _, _ := r.BasicAuth()
	b = appendEscaped(b, user)
	b = append(b, " ["...)
	b = append(b, stampOf(now)...)
	b = append(b, `] "`...)
	b = appendEscaped(b, r.Method)
	b = append(b, ' ')
	b = appendEscaped(b, x.uri)
	b = append(b, ' ')
	b = append(b, r.Proto...)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, x.writer.bytes, 10)
	b = append(b, ` "`...)
	b = appendEscaped(b, r.Header.Get("Referer"))
	b = append(b, `" "`...)
	b = appendEscaped(b, r.Header.Get("User-Agent"))
	return append(b, "\"\n"...)
}

// appendEscaped writes what a client has said as nginx does: nothing as "-", and what
// could end a field, or a line, as \xXX.
func appendEscaped(b []byte, s string) []byte {
	if s == "" {
		return append(b, '-')
	}
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// appendJSON writes a request as an object on one line.
func appendJSON(b []byte, x *exchange, status int, took time.Duration, now time.Time) []byte {
	r := x.request
	b = append(b, `{"time":"`...)
	b = now.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","client":"`...)
	b = x.client.Addr().AppendTo(b)
	b = append(b, `","peer":"`...)
	b = x.peer.AppendTo(b)
	b = append(b, '"')
	b = appendField(b, "server", x.host.config.Name())
	b = appendField(b, "scheme", x.scheme())
	b = appendField(b, "host", r.Host)
	b = appendField(b, "method", r.Method)
	b = appendField(b, "uri", x.uri)
	b = appendField(b, "protocol", r.Proto)
	b = appendNumber(b, "status", int64(status))
	b = appendNumber(b, "request_bytes", x.incoming.received())
	b = appendNumber(b, "bytes", x.writer.bytes)
	b = appendNumber(b, "duration_us", took.Microseconds())
	if n := len(x.attempts); n > 0 {
		b = append(b, `,"attempts":[`...)
		for i, a := range x.attempts {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, `{"upstream":`...)
			b = appendQuoted(b, a.upstream.name)
			b = appendField(b, "server", a.server.text)
			b = appendNumber(b, "status", int64(a.status))
			b = appendNumber(b, "duration_us", a.took.Microseconds())
			if a.err != nil {
				b = appendField(b, "error", a.err.Error())
			}
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	if x.err != nil {
		b = appendField(b, "error", x.err.Error())
	}
	if x.id != "" {
		b = appendField(b, "request_id", x.id)
	}
	b = appendField(b, "referer", r.Header.Get("Referer"))
	b = appendField(b, "user_agent", r.Header.Get("User-Agent"))
	return append(b, "}\n"...)
}

func appendNumber(b []byte, name string, n int64) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `":`...)
	return strconv.AppendInt(b, n, 10)
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `":`...)
	return appendQuoted(b, value)
}

// appendQuoted writes a JSON string. Bytes that are no UTF-8 become U+FFFD.
func appendQuoted(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ' || r == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
