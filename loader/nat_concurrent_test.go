package loader

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/sluice-lb/sluice/internal/lb"
	"github.com/sluice-lb/sluice/internal/testenv"
)

// CPUs that meet at the same few ports, and a daemon that changes the share
// meanwhile, lose no port and double none, and no two open connections ever have
// the same one.
func TestNATConcurrent(t *testing.T) {
	all := freeShare(t, 48)
	d, view := newNAT(t, all)
	const workers = 4
	var wg sync.WaitGroup
	failures := make([]error, workers)
	done := make(chan struct{})
	for w := range workers {
		wg.Go(func() { failures[w] = hammer(d, w) })
	}
	go func() { wg.Wait(); close(done) }()
	for changing := true; changing; {
		for _, share := range []lb.PortRange{{First: all.First, Last: all.First + 29}, {First: all.First + 20, Last: all.Last}, all} {
			reshare(t, d, share)
		}
		select {
		case <-done:
			changing = false
		default:
		}
	}
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
	checkRing(t, view, all)
	got := outcomes(t, d)
	if got["internal"] != 0 {
		t.Errorf("outcomes %v", got)
	}
}

// A ring is mended while the program uses it: what is on its way is not taken for
// lost.
func TestNATMendedWhileInUse(t *testing.T) {
	all := freeShare(t, 48)
	d, view := newNAT(t, all)
	const workers = 2
	var wg sync.WaitGroup
	failures := make([]error, workers)
	done := make(chan struct{})
	for w := range workers {
		wg.Go(func() { failures[w] = hammer(d, w) })
	}
	go func() { wg.Wait(); close(done) }()
	for mending := true; mending; {
		view.mend()
		select {
		case <-done:
			mending = false
		default:
		}
	}
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
	checkRing(t, view, all)
}

// hammer opens and ends connections of clients of its own, at random. A
// connection that was opened must be translated both ways until it ends.
func hammer(d *Datapath, worker int) error {
	r := rand.New(rand.NewPCG(uint64(worker), 9))
	run := func(f testenv.Frame) (uint32, testenv.Frame, error) {
		opts := ebpf.RunOptions{Data: f.Bytes(), DataOut: make([]byte, 256)}
		verdict, err := d.program.Run(&opts)
		if err != nil || verdict != xdpTX {
			return verdict, testenv.Frame{}, err
		}
		out, err := testenv.ParseFrame(opts.DataOut)
		return verdict, out, err
	}
	for i := range 4000 {
		c := newConn(d, clientAddr(worker*100000+i))
		verdict, out, err := run(c.fromClient(testenv.SYN, ""))
		if err != nil {
			return err
		}
		if verdict != xdpTX {
			continue // no port is free just now
		}
		c.source, c.backend = out.Src, out.Dst
		lost := false
		for _, f := range []testenv.Frame{
			c.fromBackend(testenv.SYN|testenv.ACK, ""), c.fromClient(testenv.ACK, ""),
			c.fromBackend(testenv.ACK, "data"), c.fromClient(testenv.ACK, "data"),
		} {
			verdict, out, err := run(f)
			if err != nil {
				return err
			}
			ours := verdict == xdpTX && (out.Src == c.service && out.Dst == c.client || out.Src == c.source && out.Dst == c.backend)
			if ours {
				continue
			}
			// A handshake may have to make way for a newer one.
			if lost = len(f.Payload) == 0; lost {
				break
			}
			return fmt.Errorf("worker %d: a packet of the open connection %d from %v has verdict %d and went from %v to %v",
				worker, i, c.source, verdict, out.Src, out.Dst)
		}
		if lost {
			continue
		}
		switch r.IntN(4) {
		case 0:
			_, _, err = run(c.fromClient(testenv.RST, ""))
		case 1, 2:
			_, _, err = run(c.fromBackend(testenv.FIN|testenv.ACK, ""))
			if err == nil {
				_, _, err = run(c.fromClient(testenv.FIN|testenv.ACK, ""))
			}
		case 3: // a client that has forgotten: what is left of it expires
			_, _, err = run(c.fromBackend(testenv.RST|testenv.ACK, ""))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
