package l7

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"

	"github.com/sluice-lb/sluice/internal/lb"
)

// A sticky is how cookies name the servers of an upstream. It is never changed. A token
// is of a key, the upstream's name and the server's address: it is the same after a
// restart and on all nodes, and is known again as long as the server is there.
type sticky struct {
	config  *lb.Sticky
	tokens  map[*server]string // that are given
	servers map[string]*server // by all tokens that count
}

// newSticky names servers; nil: the upstream does not want that.
func newSticky(u *lb.Upstream, servers []*server) *sticky {
	if u.Sticky == nil {
		return nil
	}
	keys := u.Sticky.Keys
	if len(keys) == 0 {
		keys = [][]byte{nil}
	}
	s := &sticky{u.Sticky, map[*server]string{}, map[string]*server{}}
	for i, key := range keys {
		for _, of := range servers {
			t := token(key, u.Name, of.text)
			s.servers[t] = of
			if i == 0 {
				s.tokens[of] = t
			}
		}
	}
	return s
}

func token(key []byte, upstream, server string) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("sluice sticky\x00" + upstream + "\x00" + server))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:12])
}

// server returns whom a request's cookie names; nil: nobody that is there.
func (s *sticky) server(r *http.Request) *server {
	if s == nil {
		return nil
	}
	for _, c := range r.CookiesNamed(s.config.Cookie) { // of several paths, perhaps
		if found := s.servers[c.Value]; found != nil {
			return found
		}
	}
	return nil
}

// choice is what of a request counts for an upstream's policy.
func (x *exchange) choice(g *generation) choice {
	c := choice{client: x.client.Addr(), bound: g.sticky.server(x.request)}
	if g.config.Policy == lb.Hash {
		c.key = x.key(g.config.Key)
	}
	return c
}

// bind has the client stay with the server that has answered: its cookie says so, unless
// it does already. With a TTL each answer makes it young again.
func (u *upstream) bind(g *generation, x *exchange, bound, s *server, answer http.Header) {
	if g.sticky == nil {
		return
	}
	if bound != nil && bound != s {
		u.moved.Add(1)
	}
	c := g.sticky.config
	if bound == s && c.TTL == 0 {
		return
	}
	cookie := http.Cookie{
		Name: c.Cookie, Value: g.sticky.tokens[s], Path: c.Path, Domain: c.Domain, MaxAge: int(c.TTL.Seconds()), HttpOnly: true, SameSite: sameSites[c.SameSite],
		// Browsers take some cookies with Secure alone.
		Secure: x.secure() || c.SameSite == lb.SameSiteNone || strings.HasPrefix(c.Cookie, "__"),
	}
	answer["Set-Cookie"] = append(answer["Set-Cookie"], cookie.String())
}

var sameSites = map[lb.SameSite]http.SameSite{
	lb.SameSiteLax: http.SameSiteLaxMode, lb.SameSiteStrict: http.SameSiteStrictMode, lb.SameSiteNone: http.SameSiteNoneMode,
}

// secure tells whether the client speaks TLS, with this proxy or with one that is trusted.
func (x *exchange) secure() bool {
	return x.conn.tls || x.trusted && strings.EqualFold(x.request.Header.Get("X-Forwarded-Proto"), "https")
}
