package l7

// targetIn tells how many of the first bytes may stand in a target.
func targetIn(p []byte) int {
	for i, c := range p {
		if c <= ' ' || c == 0x7f {
			return i
		}
	}
	return len(p)
}

// tokenIn tells how many of the first bytes may stand in a token.
func tokenIn(p []byte) int {
	for i, c := range p {
		if !tokens[c] {
			return i
		}
	}
	return len(p)
}

// invalidValue finds a byte that a header's value must not have.
func invalidValue(p []byte) int {
	for i, c := range p {
		if c < ' ' && c != '\t' || c == 0x7f {
			return i
		}
	}
	return -1
}

func hexDigit(c byte) (uint64, bool) {
	switch {
	case '0' <= c && c <= '9':
		return uint64(c - '0'), true
	case 'a' <= c && c <= 'f':
		return uint64(c-'a') + 10, true
	case 'A' <= c && c <= 'F':
		return uint64(c-'A') + 10, true
	}
	return 0, false
}

// isToken tells whether a byte may stand in a method or a header's name (RFC 9110,
// section 5.6.2).
func isToken(c byte) bool { return tokens[c] }

// isHostText tells whether all bytes may stand in the name or the address of a host, or its port.
func isHostText(s string) bool {
	for i := range len(s) {
		if !inHosts[s[i]] {
			return false
		}
	}
	return true
}

// inHosts are the bytes that a host may have (RFC 3986, section 3.2.2), but for the comma: some
// take it for the end of one host and the beginning of another.
var inHosts = alphanumericAnd("-._~!$&'()*+;=:%[]")

// inPaths are the bytes that may stand in the path of a URL as it is written (RFC 3986, section
// 3.3), and brackets, which net/url lets be there.
var inPaths = alphanumericAnd("-._~!$&'()*+,;=:@%/[]")

// tokens are the bytes that isToken is true for.
var tokens = alphanumericAnd("!#$%&'*+-.^_`|~")

// alphanumericAnd are letters, digits and others.
func alphanumericAnd(others string) (all [256]bool) {
	for c := range all {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			all[c] = true
		}
	}
	for _, c := range []byte(others) {
		all[c] = true
	}
	return all
}
