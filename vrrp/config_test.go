// SPDX-License-Identifier: Apache-2.0

package vrrp

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func testConfig() Config {
	return Config{Name: "VI_1", Interface: "eth0", VRID: 51, Version: V2, Priority: 100, Interval: time.Second,
		Password: "1111", Addresses: prefixes("192.0.2.100/24"), Preempt: true}
}

// v6 makes a configuration one of version 3 with these VIPs.
func v6(vips ...string) func(*Config) {
	return func(c *Config) { c.Version, c.Password, c.Addresses = V3, "", prefixes(vips...) }
}

func TestConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string // part of the error; "": none
	}{
		{"the usual", func(c *Config) {}, ""},
		{"v2 255 s", func(c *Config) { c.Interval = 255 * time.Second }, ""},
		{"v2 256 s", func(c *Config) { c.Interval = 256 * time.Second }, "whole seconds"},
		{"v2 500 ms", func(c *Config) { c.Interval = 500 * time.Millisecond }, "whole seconds"},
		{"v2 1.5 s", func(c *Config) { c.Interval = 1500 * time.Millisecond }, "whole seconds"},
		{"v2 0 s", func(c *Config) { c.Interval = 0 }, "whole seconds"},
		{"v3 10 ms", func(c *Config) { c.Version, c.Password, c.Interval = V3, "", 10*time.Millisecond }, ""},
		{"v3 40.95 s", func(c *Config) { c.Version, c.Password, c.Interval = V3, "", 40950*time.Millisecond }, ""},
		{"v3 40.96 s", func(c *Config) { c.Version, c.Password, c.Interval = V3, "", 40960*time.Millisecond }, "multiples of 10ms"},
		{"v3 15 ms", func(c *Config) { c.Version, c.Password, c.Interval = V3, "", 15*time.Millisecond }, "multiples of 10ms"},
		{"v3 with password", func(c *Config) { c.Version = V3 }, "no authentication"},
		{"version 1", func(c *Config) { c.Version = 1 }, "want 2 or 3"},
		{"password of 8 bytes", func(c *Config) { c.Password = "12345678" }, ""},
		{"password of 9 bytes", func(c *Config) { c.Password = "123456789" }, "9 bytes"},
		{"password with a zero byte", func(c *Config) { c.Password = "1\x00" }, "zero byte"},
		{"no name", func(c *Config) { c.Name = "" }, "name is missing"},
		{"no interface", func(c *Config) { c.Interface = "" }, "interface is missing"},
		{"vrid 0", func(c *Config) { c.VRID = 0 }, "router id 0"},
		{"priority 0", func(c *Config) { c.Priority = 0 }, "priority 0"},
		{"no address", func(c *Config) { c.Addresses = nil }, "0 addresses"},
		{"ipv6 in version 2", func(c *Config) { c.Addresses = prefixes("2001:db8::1/64") }, "version 2 has IPv4 only"},
		{"ipv6", v6("2001:db8::1/64", "2001:db8::2/128"), ""},
		{"ipv6 with a link-local vip", v6("fe80::1/64", "2001:db8::2/128"), ""},
		{"link-local vip behind another", v6("2001:db8::2/128", "fe80::1/64"), "a link-local VIP stands first"},
		{"two families, ipv4 first", func(c *Config) { c.Addresses = prefixes("192.0.2.100/24", "2001:db8::1/64") }, "an instance each"},
		{"two families, ipv6 first", v6("2001:db8::1/64", "192.0.2.100/24"), "an instance each"},
		{"peers", func(c *Config) { c.Peers = []netip.Addr{addr("192.0.2.2"), addr("198.51.100.2")} }, ""},
		{"peer of the other family", func(c *Config) { c.Peers = []netip.Addr{addr("2001:db8::2")} }, "not of the family"},
		{"peer that is a vip", func(c *Config) { c.Peers = []netip.Addr{addr("192.0.2.100")} }, "is a VIP"},
		{"peer that is this node", func(c *Config) {
			c.Peers, c.Source = []netip.Addr{addr("192.0.2.1")}, addr("192.0.2.1")
		}, "is this node"},
		{"peer twice", func(c *Config) { c.Peers = []netip.Addr{addr("192.0.2.2"), addr("192.0.2.2")} }, "peer 192.0.2.2 is listed twice"},
		{"peer that is a group", func(c *Config) { c.Peers = []netip.Addr{groupIPv4} }, "known everywhere"},
		{"multicast", func(c *Config) { c.Addresses = prefixes("224.0.0.18/32") }, "unicast"},
		{"twice", func(c *Config) { c.Addresses = prefixes("192.0.2.100/24", "192.0.2.100/32") }, "listed twice"},
		{"negative delay", func(c *Config) { c.PreemptDelay = -1 }, "negative"},
		{"negative wait for state", func(c *Config) { c.SyncWait = -1 }, "negative"},
		{"an owner that waits", func(c *Config) { c.Priority, c.SyncWait = PriorityOwner, time.Second }, "priority 255 preempts at once"},
		{"checksum form", func(c *Config) { c.Checksum = 9 }, "checksum form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testConfig()
			tt.change(&c)
			err := c.Validate()
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got error %v, want none", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got error %v, want one with %q", err, tt.want)
			case err != nil && c.Password != "" && strings.Contains(err.Error(), c.Password):
				t.Errorf("error %v holds the password", err)
			}
		})
	}
}
