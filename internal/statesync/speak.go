// SPDX-License-Identifier: Apache-2.0

package statesync

import (
	"context"
	"crypto/tls"
	"time"
)

// speak writes acknowledgements and what else the peer is to hear. Something goes out
// every now and then, however long what was received takes to be applied.
func (c *incoming) speak(ctx context.Context) error {
	beat := time.NewTicker(c.node.tuning.ping)
	defer beat.Stop()
	w := &speaker{conn: c.conn}
	own := c.node.hello()
	if err := w.say(kindHello, own.append); err != nil {
		return err
	}
	for force := false; ; {
		if err := c.sayAll(w, force); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return c.bye(w, context.Cause(ctx))
		case <-c.wake:
			force = false
		case <-beat.C:
			force = true
		}
	}
}

// A speaker writes a listener's messages.
type speaker struct {
	conn     *tls.Conn
	sequence uint64
	buf      []byte
}

func (w *speaker) say(k kind, body func([]byte) []byte) error {
	w.sequence++
	w.buf = endMessage(body(beginMessage(w.buf[:0], k, w.sequence)), 0)
	_, err := w.conn.Write(w.buf)
	return err
}

func (c *incoming) bye(w *speaker, why error) error {
	r := farewell(why)
	_ = w.say(kindBye, r.append)
	return why
}

// sayAll writes what is to be said. A complaint goes before the ack of what it is
// about.
func (c *incoming) sayAll(w *speaker, force bool) error {
	c.mu.Lock()
	a, owes := c.ack, c.owes || force
	refusals, want := c.refusals, c.want
	list, tell := c.services.list, c.services.tell
	c.owes, c.refusals, c.want, c.services.tell = false, nil, nil, false
	c.mu.Unlock()
	for _, r := range refusals {
		if err := w.say(kindRefused, r.append); err != nil {
			return err
		}
	}
	if owes {
		if err := w.say(kindAck, a.append); err != nil {
			return err
		}
	}
	if want != nil {
		if err := w.say(kindWant, want.append); err != nil {
			return err
		}
	}
	if !tell {
		return nil
	}
	return parts(appendServices(nil, list), func(body func([]byte) []byte, _ bool) error { return w.say(kindServices, body) })
}
