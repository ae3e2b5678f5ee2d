package main

// A configuration is VRRP as the programs are set up for it.
type configuration struct {
	name       string
	sluice     string   // keys of sluice's instance
	key        bool     // sluice's nodes need a key of their own
	keepalived *dialect // nil: keepalived has no such thing
}

// A dialect is the same in keepalived's words.
type dialect struct {
	global   string // lines of global_defs
	instance string // lines of vrrp_instance
}

// configurations are measured in this order.
var configurations = []configuration{
	// What the classic pair of nginx and keepalived has.
	{name: "seed", sluice: `version: 2, advertisement_interval: 1s, authentication: {type: pass, password: "1111"}`,
		keepalived: &dialect{"", "advert_int 1\n    authentication {\n        auth_type PASS\n        auth_pass 1111\n    }"}},
	{name: "v3_100ms", sluice: `version: 3, advertisement_interval: 100ms`, keepalived: &dialect{"vrrp_version 3", "advert_int 0.1"}},
	{name: "v3_10ms", sluice: `version: 3, advertisement_interval: 10ms`, keepalived: &dialect{"vrrp_version 3", "advert_int 0.01"}},
	// Heartbeats beside VRRP.
	{name: "fast", sluice: `version: 3, advertisement_interval: 100ms, heartbeat: {interval: 5ms}`, key: true},
}
