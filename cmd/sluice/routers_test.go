package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/vrrp"
)

// Each word of checksum is a form that an instance sends.
func TestChecksumForms(t *testing.T) {
	for word, want := range map[string]vrrp.ChecksumForm{
		"auto": vrrp.ChecksumAuto, "plain": vrrp.ChecksumPlain, "pseudo_header": vrrp.ChecksumPseudo,
	} {
		file := filepath.Join(t.TempDir(), "sluice.yaml")
		text := "vrrp:\n  - {name: VI_1, interface: eth0, virtual_router_id: 51, addresses: [192.0.2.100], checksum: " + word + "}\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(file, config.Options{Hostname: "lb1"})
		if err != nil {
			t.Fatal(err)
		}
		n := &node{cfg: cfg}
		if got := n.routerConfig(cfg.VRRP[0]).Checksum; got != want {
			t.Errorf("%s: got form %v, want %v", word, got, want)
		}
	}
}
