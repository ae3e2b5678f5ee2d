// Package l7 is the HTTP proxy: it listens, finds the server and the location that
// a request is for, and sends it to a server of an upstream, or answers by itself.
//
// net/http reads requests and writes answers. What it lets pass and a server might
// read in another way is refused before: see framedConn.
package l7
