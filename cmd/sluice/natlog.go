package main

import (
	"context"
	"net/netip"
	"slices"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/natlog"
	"github.com/sluice-lb/sluice/loader"
)

// openNATLog begins to collect what the translation log is to have, where one is
// configured. The function that it returns writes the log until its context ends.
func (n *node) openNATLog(datapath *loader.Datapath) (run func(context.Context), err error) {
	path := n.cfg.Datapath.NATLog
	if path == "" {
		return func(context.Context) {}, nil
	}
	translations, err := datapath.OpenTranslations()
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, translations.Close)
	n.natLog = natlog.New(path, translations, n.serviceName, n.log)
	return n.natLog.Run, nil
}

// serviceName names the configured service of a VIP's port; "": there is none.
func (n *node) serviceName(protocol lb.Protocol, at netip.AddrPort) string {
	for _, s := range n.config().Services {
		if s.Protocol == protocol && slices.ContainsFunc(s.Addresses, func(f lb.Frontend) bool {
			return f.VIP == at.Addr() && f.Ports.Contains(at.Port())
		}) {
			return s.Name
		}
	}
	return ""
}
