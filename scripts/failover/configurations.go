package main

// A configuration is VRRP as the programs are set up for it.
type configuration struct {
	name       string
	sluice     string   // keys of sluice's instance
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
	{"seed", `version: 2, advertisement_interval: 1s, authentication: {type: pass, password: "1111"}`,
		&dialect{"", "advert_int 1\n    authentication {\n        auth_type PASS\n        auth_pass 1111\n    }"}},
	{"v3_100ms", `version: 3, advertisement_interval: 100ms`, &dialect{"vrrp_version 3", "advert_int 0.1"}},
	{"v3_10ms", `version: 3, advertisement_interval: 10ms`, &dialect{"vrrp_version 3", "advert_int 0.01"}},
}
