package config

import "testing"

func TestVirtualMAC(t *testing.T) {
	const web = "datapath: {interfaces: [e]}\nservices: [{name: s, address: \"192.0.2.100:80\", backends: [{address: 192.0.2.11}]}]\n"
	for _, tt := range []struct {
		name, key string
		want      bool
	}{
		{"not set", "preempt: true", false},
		{"off", "virtual_mac: false", false},
		{"on", "virtual_mac: true", true},
		{"version 2", "version: 2, virtual_mac: true", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustLoad(t, web+instance("addresses: [192.0.2.100], "+tt.key)).VRRP[0].VirtualMAC; got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	for _, tt := range []mistakeCase{
		{"not a boolean", web + instance("virtual_mac: yes please, addresses: [192.0.2.100]"), []string{"4:62: virtual_mac must be true or false, not \"yes please\""}},
		{"the owner", web + instance("virtual_mac: true, priority: 255, addresses: [192.0.2.100]"), []string{
			"4:62: virtual_mac is not for the owner of the addresses (priority 255): its kernel has them for ever, at its own MAC address",
		}},
		{"no service", instance("virtual_mac: true, addresses: [192.0.2.100]"), []string{
			"2:62: virtual_mac needs the XDP program, which is there with services only: add one, or leave it out",
		}},
		{"keepalived's word", web + instance("use_vmac: true, addresses: [192.0.2.100]"), []string{"4:49: unknown key \"use_vmac\" in a VRRP instance; write virtual_mac: true"}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
	before, after := mustLoad(t, web+instance("addresses: [192.0.2.100]")), mustLoad(t, web+instance("addresses: [192.0.2.100], virtual_mac: true"))
	want := "vrrp v: virtual_mac: begins anew, its VIPs stay or are handed over"
	if d := Compare(before, after); len(d.Changes) != 1 || d.Changes[0] != want || len(d.Refused) > 0 {
		t.Errorf("a reload does %+v, want %q", d, want)
	}
}

func TestAccept(t *testing.T) {
	const web = "datapath: {interfaces: [e]}\nservices: [{name: s, address: \"192.0.2.100:80\", backends: [{address: 192.0.2.11}]}]\n"
	for _, tt := range []struct {
		name, key string
		want      bool
	}{
		{"not set", "preempt: true", true},
		{"on", "accept: true", true},
		{"off", "accept: false", false},
		{"off in version 2", "version: 2, accept: false", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustLoad(t, web+instance("addresses: [192.0.2.100], "+tt.key)).VRRP[0].Accept; got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	for _, tt := range []mistakeCase{
		{"not a boolean", web + instance("accept: 1, addresses: [192.0.2.100]"), []string{"4:57: accept must be true or false, not \"1\""}},
		{"the owner", web + instance("accept: false, priority: 255, addresses: [192.0.2.100]"), []string{
			"4:57: accept: false is not for the owner of the addresses (priority 255): they are its own (RFC 9568)",
		}},
		{"no service", instance("accept: false, addresses: [192.0.2.100]"), []string{
			"2:57: accept: false needs the XDP program, which is there with services only: add one, or leave it out",
		}},
		{"keepalived's word", web + instance("no_accept: true, addresses: [192.0.2.100]"), []string{"4:49: unknown key \"no_accept\" in a VRRP instance; write accept: false"}},
	} {
		t.Run(tt.name, func(t *testing.T) { wantMistakes(t, tt.yaml, tt.want) })
	}
	before, after := mustLoad(t, web+instance("addresses: [192.0.2.100]")), mustLoad(t, web+instance("addresses: [192.0.2.100], accept: false"))
	want := "vrrp v: accept: begins anew, its VIPs stay or are handed over"
	if d := Compare(before, after); len(d.Changes) != 1 || d.Changes[0] != want || len(d.Refused) > 0 {
		t.Errorf("a reload does %+v, want %q", d, want)
	}
}
