package loader

// A Meaning says what an outcome means, and what to do about it; bpf/DATAPATH.md
// says the same.
type Meaning struct{ Text, Advice string }

// OutcomeMeanings are those of all outcomes, by name.
var OutcomeMeanings = map[string]Meaning{
	"who_has":        {"ARP or a neighbour solicitation for a VIP that this node has just taken: answered before the kernel can", "nothing"},
	"not_ip":         {"ARP and others, or too short for an IP header", "nothing"},
	"not_vip":        {"the node's own traffic", "nothing"},
	"probe":          {"the answer to a probe of this node's through a VIP", "nothing"},
	"here":           {"spread over nodes, and this node's proxy serves it", "nothing"},
	"from_node":      {"spread over nodes, and another node has sent it to this one, whose proxy serves it", "nothing"},
	"other_mac":      {"to a VIP, in a frame for another machine", "if it grows fast, the switch floods"},
	"protocol":       {"to a VIP, neither TCP nor UDP, nor an ICMP error about a flow: pings", "nothing"},
	"later_fragment": {"its first fragment went to the kernel", "nothing"},
	"no_service":     {"to a VIP, to a port that is no service and no reply", "nothing: ssh to a VIP is one"},
	"not_forwarding": {"dnat, a reply, while the kernel is told not to forward; answers to probes, too, are counted here then", "`sysctl -w net.ipv4.ip_forward=1`, for IPv6 `net.ipv6.conf.all.forwarding=1`"},
	"no_flow":        {"nat, neither SYN nor a known flow; the kernel answers RST. Or an ICMP error about no flow", "expected after a failover"},
	"malformed_ip":   {"lengths contradict each other, or too many IPv6 extension headers", "a broken sender, or an attack"},
	"malformed_tcp":  {"lengths contradict each other, or too many IPv6 extension headers", "a broken sender, or an attack"},
	"malformed_udp":  {"lengths contradict each other, or too many IPv6 extension headers", "a broken sender, or an attack"},
	"fragment":       {"one that would overwrite a TCP header; nat: one that holds a SYN", "nothing: no host sends such"},
	"early_fragment": {"a later fragment before the first one, or more than 30 s after it", "lower the sender's packet size"},
	"denied":         {"the service's `allow` and `deny` keep the client out", "nothing, or other rules"},
	"source_limit":   {"the client opens connections faster than the service's `source_limit`", "nothing, or a higher limit"},
	"ttl":            {"nat, dnat, tunnel, and proxy that is spread: time to live is used up", "look for a loop"},
	"no_backend":     {"no healthy backend", "`sluice status` says why"},
	"no_port":        {"nat, every port of this node's share is in use towards the backend", "more `source_addresses`"},
	"flows_full":     {"nat, no room in the flow table", "a larger `max_flows`"},
	"no_next_hop":    {"no way to the backend, or back to the client, is known", "`sluice status` says why"},
	"no_route":       {"dnat, the node's routes reject the client", "the node's routes"},
	"too_big":        {"tunnel, and replies of dnat: too long for the way, may be fragmented or was not answered: no more than 256 answers a CPU and tick, none about an ICMP error or a later fragment of IPv4", "a larger MTU on the way"},
	"headroom":       {"no room to add a VLAN tag or an outer header", "the driver reserves too little; report it"},
	"stray":          {"nat, neither a SYN nor of a connection that is known, more often than the kernel is to answer: 8192 times a CPU and tick (134 ms)", "nothing: a flood"},
	"fenced":         {"asks for a VIP that another node has taken since the daemon stood still or died: this node keeps silent", "start the daemon, or `sluice detach --force`"},
	"not_accepted":   {"to a VIP of an instance with `accept: false`, and no service takes it: pings, ssh and others", "nothing, or `accept: true`"},
	"internal":       {"an entry that should exist does not", "report it"},
}
