package main

// A benchCase is a kind of request.
type benchCase struct {
	name        string
	path        string // of the backend
	connections int    // of the load
	once        bool   // a connection for each request
}

// cases are measured in this order.
var cases = []benchCase{
	{name: "1k_keepalive", path: "/1k", connections: 32},
	{name: "100k_keepalive", path: "/100k", connections: 32},
	{name: "close", path: "/1k", connections: 32, once: true},
}

// sizes are the files that the backend has.
var sizes = map[string]int64{"/1k": 1 << 10, "/100k": 100 << 10}
