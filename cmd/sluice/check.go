package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sluice-lb/sluice/internal/config"
	"github.com/sluice-lb/sluice/loader"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "validate the configuration and print every error with its place",
		Flags: configFlags(),
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			parts := []string{count(len(cfg.Services), "service"), count(len(cfg.Pools), "pool"), count(len(cfg.VRRP), "VRRP instance")}
			if n := len(cfg.HTTP.Servers); n > 0 {
				parts = append(parts, count(n, "HTTP server"), count(len(cfg.HTTP.Upstreams), "upstream"))
			}
			if len(cfg.DNS.Listen) > 0 {
				parts = append(parts, count(len(cfg.DNS.Zones), "DNS zone"), count(len(cfg.DNS.Records), "DNS record"))
			}
			fmt.Fprintf(c.App.Writer, "%s: ok: %s\n", c.String("config"), strings.Join(parts, ", "))
			return nil
		},
	}
}

// loadConfig reads the configuration that the flags name, and prints its errors.
func loadConfig(c *cli.Context) (*config.Config, error) {
	cfg, err := readConfig(c)
	var mistakes config.Errors
	if errors.As(err, &mistakes) {
		fmt.Fprintln(c.App.ErrWriter, err)
		fmt.Fprintf(c.App.ErrWriter, "sluice: %s: %s\n", c.String("config"), count(len(mistakes), "error"))
		return nil, errReported
	}
	return cfg, err
}

// readConfig reads the configuration that the flags name.
func readConfig(c *cli.Context) (*config.Config, error) {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	return config.Load(c.String("config"), config.Options{Node: c.String("node"), Hostname: host, Fits: loader.Fits})
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
