package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/control"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// A crowd of services and servers makes garbage in both daemons, as a busy
// installation does, and nothing in the program is there for that: servers are probed
// ten times a second, one weight after the other changes, by reloads, and each changes
// the tables of all services; and somebody asks for the status and the metrics all the
// time.
const (
	crowdFile     = "crowd.yaml" // included in the nodes' configuration
	crowdServers  = 8
	crowdServices = 8
	// reloadEvery is from the end of one reload to the next.
	reloadEvery = 500 * time.Millisecond
	// askEvery is from one answer to the next question.
	askEvery = 20 * time.Millisecond
	// askers are how many ask each daemon at a time, for the status and for metrics.
	askers = 2
)

// crowdServer is the address of one of the servers, all on the backend's host.
func crowdServer(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(21 + i)}) }

// writeCrowd writes the services and servers as they are after so many reloads.
func writeCrowd(dir string, reloads int) error {
	var b strings.Builder
	b.WriteString("pools:\n  - name: crowd\n    health: {type: tcp, interval: 100ms, timeout: 100ms, fall: 10}\n    servers:\n")
	for i := range crowdServers {
		fmt.Fprintf(&b, "      - {address: \"%v:%d\", weight: %d}\n", crowdServer(i), echoPort, 1+(i+reloads)%crowdServers)
	}
	b.WriteString("services:\n")
	for i := range crowdServices {
		fmt.Fprintf(&b, "  - {name: crowd%d, address: \"%v:%d\", protocol: udp, forward: nat, pool: crowd}\n", i, natVIP, 8000+i)
	}
	// As a whole: a daemon that reads it may be at any point.
	path := filepath.Join(dir, crowdFile)
	if err := os.WriteFile(path+".new", []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write the crowd: %w", err)
	}
	return os.Rename(path+".new", path)
}

// churn keeps both daemons at making garbage for so long, and longer where the machine is
// so busy that they have not come to the end of one reload. It returns how many reloads
// there were, how long a status or metrics took at most, and what has gone wrong.
func churn(ctx context.Context, lab *testenv.Lab, length time.Duration) (reloads int, slowest time.Duration, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	reloaded := make(chan struct{}) // or there will be no reload
	tell := sync.OnceFunc(func() { close(reloaded) })
	var all sync.WaitGroup
	all.Go(func() {
		defer stop()
		pause(ctx, length)
		select {
		case <-ctx.Done():
		case <-reloaded:
		}
	})
	var mu sync.Mutex
	failed := func(e error) {
		if ctx.Err() == nil {
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, e)
		}
	}
	timed := func(ask func() error) func() error {
		return func() error {
			began := time.Now()
			err := ask()
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, time.Since(began))
			return err
		}
	}
	for _, node := range []string{first, second} {
		h := lab.Host(node)
		for range askers {
			all.Go(func() {
				repeat(ctx, askEvery, timed(func() error {
					_, err := control.Ask(ctx, adminSocket(h))
					return err
				}), failed)
			})
			all.Go(func() { repeat(ctx, askEvery, timed(func() error { return scrape(ctx, h) }), failed) })
		}
	}
	all.Go(func() {
		defer tell()
		repeat(ctx, reloadEvery, func() error {
			if err := writeCrowd(lab.Dir(), reloads+1); err != nil {
				return err
			}
			for _, node := range []string{first, second} {
				if _, err := control.SendReload(ctx, adminSocket(lab.Host(node)), false); err != nil {
					return fmt.Errorf("reload %s: %w", node, err)
				}
			}
			reloads++
			tell()
			return nil
		}, failed)
	})
	all.Wait()
	return reloads, slowest, err
}

// repeat does something again and again until ctx ends, or it fails.
func repeat(ctx context.Context, every time.Duration, do func() error, failed func(error)) {
	for ctx.Err() == nil {
		if err := do(); err != nil {
			failed(err)
			return
		}
		pause(ctx, every)
	}
}

// pause returns when a time has passed, or ctx has ended.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
