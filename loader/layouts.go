package loader

// An earlierLayout is what has to be known of the maps of an earlier version to
// take them over. The types of their entries are not part of it: the kernel has
// them, and fields are found by their names. A new layout adds an entry here for
// the one before it.
type earlierLayout struct {
	// Maps that both programs may use at the same time. Nothing of them is copied,
	// so nothing that a program writes to them during the upgrade can be missed.
	shared []string
	// Maps that hold the same in memory, whatever their entries are called. Only a
	// daemon writes them.
	verbatim []string
	// Pins that this version does not have any more.
	obsolete []string
	// What outcomes were called, by number; "": not counted.
	outcomes []string
	// Fields that have another place now, by struct and name.
	moved map[string]string
	// The seed with which this version's program finds the names of nat's flows.
	seed func(uint64) uint64
}

// earlierLayouts are those that this version can take over, by their number.
var earlierLayouts = map[uint32]earlierLayout{
	1: {
		shared: []string{
			"slots", "traffic", "nat_pairs", "nat_choices", "nat_buckets", "nat_flows", "nat_rings",
		},
		verbatim: []string{"ports"}, // four service numbers a word; now an array of them
		obsolete: []string{"interfaces", "vips", "services", "backends"},
		outcomes: []string{
			"", "", "not_ip", "not_vip", "other_mac", "protocol", "later_fragment", "no_service", "no_flow",
			"malformed_ip", "malformed_tcp", "fragment", "ttl", "no_backend", "no_port", "flows_full",
			"no_next_hop", "headroom", "internal",
		},
		moved: map[string]string{"vip.tcp_ports": "ports[0]", "vip.udp_ports": "ports[1]"},
		// It hashed IPv4 addresses as a word of their own; nat_hash takes a mapped
		// one with its halves swapped.
		seed: func(s uint64) uint64 { return s - 0xffff<<48 },
	},
}

// counterMaps count, one entry for each CPU. Where they are not shared they are
// copied before the programs are replaced, and what has been added since after it.
var counterMaps = []string{"traffic", "losses", "outcomes"}
