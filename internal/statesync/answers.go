// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// A sent is a message that has not been acknowledged.
type sent struct {
	sequence uint64
	bytes    int
	records  int
	since    time.Time // when the first of its records came up; zero: it has none
	waiters  []chan<- error
	refused  *TableError // of a table
	snapshot bool        // it ends one
}

// flight is what has been sent and not acknowledged.
type flight struct {
	all     []sent
	bytes   int
	records int
}

func (f *flight) add(s sent) {
	f.all = append(f.all, s)
	f.bytes += s.bytes
	f.records += s.records
}

// landed removes what is acknowledged.
func (f *flight) landed(sequence uint64) []sent {
	n := 0
	for n < len(f.all) && f.all[n].sequence <= sequence {
		f.bytes -= f.all[n].bytes
		f.records -= f.all[n].records
		n++
	}
	gone := f.all[:n]
	f.all = f.all[n:]
	return gone
}

// listen reads what the peer says until the connection ends.
func (o *outgoing) listen(ctx context.Context) error {
	var parts assembler
	for ctx.Err() == nil {
		k, body, err := o.reader.read()
		if err != nil {
			return ending(err)
		}
		switch k {
		case kindAck:
			err = o.acknowledged(body)
		case kindRefused:
			err = o.complained(body)
		case kindWant:
			err = o.asked(body)
		case kindServices:
			err = o.heardServices(&parts, body)
		case kindBye:
			err = byeError(body)
		case kindHello, kindPing, kindFlows, kindSnapshotBegin, kindSnapshotEnd, kindTable, kindOverrides, kindDigests, kindMendBegin, kindMendEnd:
			err = fmt.Errorf("%w: %v is not a listener's", errMalformed, k)
		default:
			o.peer.out.unknown.Add(1)
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// ending says in other words why nothing more can be read.
func ending(err error) error {
	switch {
	case isTimeout(err):
		return errSilent
	case errors.Is(err, io.EOF):
		return errors.New("the other end has closed it")
	}
	return err
}

func (o *outgoing) acknowledged(body []byte) error {
	a, err := readAck(body)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if a.sequence > o.said {
		return fmt.Errorf("%w: ack of %d, behind %d", errMalformed, a.sequence, o.said)
	}
	for _, s := range o.flight.landed(a.sequence) {
		if s.refused != nil {
			tell(s.waiters, s.refused)
		} else {
			tell(s.waiters, nil)
		}
		if s.snapshot && !o.wanted && !o.snapshot {
			o.synced = true
		}
	}
	o.peer.out.refused.Add(a.refused - min(o.refused, a.refused))
	o.refused, o.refusing = a.refused, a.refusing
	o.poke()
	return nil
}

// complained notes what the peer could not apply, for whoever waits for it.
func (o *outgoing) complained(body []byte) error {
	c, err := readComplaint(body)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	i, found := slices.BinarySearchFunc(o.flight.all, c.sequence, func(s sent, q uint64) int { return cmp.Compare(s.sequence, q) })
	if found {
		o.flight.all[i].refused = &TableError{Why: c.text, Held: c.held, Later: c.later}
	}
	return nil
}
