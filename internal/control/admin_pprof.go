package control

import (
	"net/http"
	"net/http/pprof"
)

// serveProfiles answers with what Go's runtime knows of the daemon: where its processor
// time goes, its memory and its goroutines, in the format of `go tool pprof`.
func serveProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // every profile by its name
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
