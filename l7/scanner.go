package l7

import (
	"bytes"
	"strings"
)

// A place is where in a request the next byte belongs.
type place uint8

const (
	beforeRequest place = iota // an empty line may be there, which old clients send behind a body
	emptyLine                  // its LF
	requestLine
	lineStart   // of a header
	headerName  // up to the colon
	headerValue // up to the line's end
	lineEnd     // the LF of a CRLF in a head
	headEnd     // the LF of the empty line
	body        // of a known length
	chunkSize
	chunkExtension
	chunkSizeEnd // its LF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerName
	trailerValue
	trailerLineEnd
	trailerEnd
)

// Bounds of the names and values that are kept. No name that matters is as long, and
// a value that matters and is longer is refused.
const (
	mostName  = 32
	mostValue = 300
)

// maxChunkLine bounds a chunk's size with its extensions, and maxTrailers all
// trailers, in bytes.
const (
	maxChunkLine = 1024
	maxTrailers  = 8192
)

// A scanner follows the framing of HTTP/1 requests byte by byte.
type scanner struct {
	maxHead int
	at      place
	left    uint64 // bytes of the body, or of the chunk
	count   int    // bytes of the head, the chunk's line or the trailers

	name    []byte // of the header
	value   []byte // of a header that matters
	matters bool   // the header does

	emptied        bool    // there was an empty line before the request
	spaces         int     // in the request line
	version        [8]byte // as it is written there
	digits         int     // of the version, or of a chunk's size
	hosts, lengths int     // headers of these names
	length         uint64
	chunked        bool
	tooLong        bool // the head is: net/http says so
}

// inBody tells where the scanner has found something wrong.
func (s *scanner) inBody() bool { return s.at >= body }

// scan follows p and returns how many of its bytes are right, and whether the next
// one is wrong.
func (s *scanner) scan(p []byte) (good int, wrong bool) {
	for i := 0; i < len(p); i++ {
		if s.tooLong {
			return len(p), false
		}
		switch s.at {
		case body:
			n := min(s.left, uint64(len(p)-i))
			s.left -= n
			i += int(n) - 1
			if s.left == 0 {
				s.next()
			}
			continue
		case chunkData:
			n := min(s.left, uint64(len(p)-i))
			s.left -= n
			i += int(n) - 1
			if s.left == 0 {
				s.at = chunkDataCR
			}
			continue
		case requestLine:
			// The target: what may stand in it is skipped at once.
			if n := targetIn(p[i:]); s.spaces == 1 && n > 0 {
				s.more(n)
				i += n - 1
				continue
			}
		case headerName:
			if n := tokenIn(p[i:]); n > 0 {
				s.name = append(s.name, p[i:i+min(n, mostName-len(s.name))]...)
				s.more(n)
				i += n - 1
				continue
			}
		case headerValue:
			// Most bytes are here: what does not matter is skipped at once.
			if !s.matters {
				end := bytes.IndexByte(p[i:], '\r')
				if end < 0 {
					end = len(p) - i
				}
				if bad := invalidValue(p[i : i+end]); bad >= 0 {
					return i + bad, true
				}
				i += end
				if s.more(end) || i == len(p) {
					i--
					continue
				}
			}
		}
		if !s.step(p[i]) {
			return i, true
		}
	}
	return len(p), false
}

// more counts n bytes of a head; true: there are too many.
func (s *scanner) more(n int) bool {
	s.count += n
	s.tooLong = s.count > s.maxHead
	return s.tooLong
}

// next begins a request.
func (s *scanner) next() {
	*s = scanner{maxHead: s.maxHead, name: s.name[:0], value: s.value[:0]}
}

// step takes one byte; false: it is wrong.
func (s *scanner) step(c byte) bool {
	if s.at < body && s.more(1) {
		return true
	}
	switch s.at {
	case beforeRequest:
		if c == '\r' && !s.emptied {
			s.at = emptyLine // net/http lets it be there only where it may be
			return true
		}
		s.at = requestLine
		return s.requestLine(c)
	case emptyLine:
		s.at, s.emptied, s.count = beforeRequest, true, 0
		return c == '\n'
	case requestLine:
		return s.requestLine(c)
	case lineStart:
		return s.lineStart(c)
	case headerName:
		return s.headerName(c)
	case headerValue:
		return s.headerValue(c)
	case lineEnd:
		s.at = lineStart
		return c == '\n'
	case headEnd:
		return c == '\n' && s.headDone()
	default:
		return s.chunkStep(c)
	}
}

// requestLine takes a byte of "METHOD target HTTP/1.x".
func (s *scanner) requestLine(c byte) bool {
	switch {
	case c == ' ':
		s.spaces++
		s.digits = 0
		return s.spaces <= 2 && s.count > 1
	case c == '\r':
		v := string(s.version[:])
		s.at = lineEnd
		return s.spaces == 2 && s.digits == len(s.version) && (v == "HTTP/1.1" || v == "HTTP/1.0")
	case c < ' ' || c == 0x7f:
		return false
	case s.spaces == 0:
		return isToken(c)
	case s.spaces == 2:
		if s.digits == len(s.version) {
			return false
		}
		s.version[s.digits] = c
		s.digits++
	}
	return true
}

func (s *scanner) lineStart(c byte) bool {
	switch {
	case c == '\r':
		s.at = headEnd
		return true
	case !isToken(c): // a folded line begins with a space
		return false
	}
	s.at, s.name = headerName, append(s.name[:0], c)
	return true
}

func (s *scanner) headerName(c byte) bool {
	switch {
	case c == ':':
		s.at, s.value = headerValue, s.value[:0]
		s.matters = decides(s.name)
		return true
	case !isToken(c):
		return false
	}
	if len(s.name) < mostName {
		s.name = append(s.name, c)
	}
	return true
}

// decides tells whether a header decides where a request ends, or whom it is for.
func decides(name []byte) bool {
	switch len(name) {
	case len("host"):
		return strings.EqualFold(string(name), "host")
	case len("content-length"):
		return strings.EqualFold(string(name), "content-length")
	case len("transfer-encoding"):
		return strings.EqualFold(string(name), "transfer-encoding")
	}
	return false
}

func (s *scanner) headerValue(c byte) bool {
	switch {
	case c == '\r':
		s.at = lineEnd
		return !s.matters || s.decisive(strings.Trim(string(s.value), " \t"))
	case c < ' ' && c != '\t' || c == 0x7f:
		return false
	case s.matters:
		s.value = append(s.value, c)
		return len(s.value) <= mostValue
	}
	return true
}

// decisive takes a header that decides: which one it is its name's length tells.
func (s *scanner) decisive(value string) bool {
	switch len(s.name) {
	case len("host"):
		s.hosts++
		return s.hosts == 1 && isHostText(value)
	case len("content-length"):
		s.lengths++
		if s.lengths > 1 || value == "" || len(value) > 18 {
			return false
		}
		for _, c := range []byte(value) {
			if c < '0' || c > '9' {
				return false
			}
			s.length = 10*s.length + uint64(c-'0')
		}
		return true
	default:
		if s.chunked || !strings.EqualFold(value, "chunked") {
			return false
		}
		s.chunked = true
		return true
	}
}

// headDone decides where the request ends.
func (s *scanner) headDone() bool {
	switch {
	case s.chunked && (s.lengths > 0 || s.version[7] == '0'):
		return false
	case s.hosts == 0 && s.version[7] == '1':
		return false
	case s.chunked:
		s.at, s.count, s.digits, s.left = chunkSize, 0, 0, 0
	case s.length > 0:
		s.at, s.left = body, s.length
	default:
		s.next()
	}
	return true
}

// chunkStep takes a byte of a chunked body that is no data (RFC 9112, section 7.1).
func (s *scanner) chunkStep(c byte) bool {
	switch s.at {
	case chunkSize, chunkExtension:
		return s.chunkLine(c)
	case chunkSizeEnd:
		if c != '\n' {
			return false
		}
		s.at, s.digits, s.count = chunkData, 0, 0
		if s.left == 0 {
			s.at = trailerStart
		}
		return true
	case chunkDataCR:
		s.at = chunkDataLF
		return c == '\r'
	case chunkDataLF:
		s.at = chunkSize
		return c == '\n'
	default:
		s.count++
		return s.count <= maxTrailers && s.trailer(c)
	}
}

// chunkLine takes a byte of a chunk's size and extensions.
func (s *scanner) chunkLine(c byte) bool {
	if s.count++; s.count > maxChunkLine {
		return false
	}
	switch digit, ok := hexDigit(c); {
	case c == '\r':
		s.at = chunkSizeEnd
		return s.digits > 0
	case s.at == chunkExtension:
		return c == '\t' || c >= ' ' && c != 0x7f
	case ok:
		s.left = s.left<<4 | digit
		s.digits++
		return s.digits <= 15
	case c == ';':
		s.at = chunkExtension
		return s.digits > 0
	}
	return false
}

// trailer takes a byte behind the last chunk.
func (s *scanner) trailer(c byte) bool {
	switch s.at {
	case trailerStart:
		if c == '\r' {
			s.at = trailerEnd
			return true
		}
		s.at = trailerName
		return isToken(c)
	case trailerName:
		if c == ':' {
			s.at = trailerValue
			return true
		}
		return isToken(c)
	case trailerValue:
		if c == '\r' {
			s.at = trailerLineEnd
			return true
		}
		return c == '\t' || c >= ' ' && c != 0x7f
	case trailerLineEnd:
		s.at = trailerStart
		return c == '\n'
	default: // trailerEnd
		if c != '\n' {
			return false
		}
		s.next()
		return true
	}
}
