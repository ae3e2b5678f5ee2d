package lb

import "testing"

func TestHostLiteral(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"[2001:db8::1]", "[2001:db8::1]"}, {"[2001:DB8:0:0:0::0001]", "[2001:db8::1]"}, {"[::ffff:192.0.2.1]", "[::ffff:192.0.2.1]"}, {"[::]", "[::]"},
		{"2001:db8::1", ""}, {"[2001:db8::1", ""}, {"2001:db8::1]", ""}, {"[192.0.2.1]", ""}, {"[fe80::1%eth0]", ""}, {"[]", ""}, {"", ""}, {"[v1.a]", ""},
		{"[[::1]]", ""}, {"[::1]:80", ""},
	} {
		if got, ok := HostLiteral(tt.in); got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %q, %v", tt.in, got, ok)
		}
	}
}
