// SPDX-License-Identifier: Apache-2.0

package core

import (
	"testing"
	"time"
)

// Who forges the address of a client with an allocation gets less sent there than it
// sends, and the client can still renew its nonce.
func TestAnswers_ToForgedClientsCostMoreThanTheyAreWorth(t *testing.T) {
	for name, forge := range map[string]func(*client) []byte{
		"allocate": func(c *client) []byte { return c.unsigned(methodAllocate, classRequest, udp()) },
		"binding":  func(c *client) []byte { return c.unsigned(methodBinding, classRequest) },
		"garbage": func(c *client) []byte {
			return c.unsigned(methodRefresh, classRequest, text(attrUsername, "x"), attr{attrIntegrity, make([]byte, 20)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := w.client(udp4, 1)
			c.allocate()
			const flood = 20000
			in, out := 0, 0
			for i := range flood {
				before := len(w.toClient)
				b := forge(c)
				c.exchange(b)
				in += len(b)
				for _, a := range w.toClient[before:] {
					out += len(a.data)
				}
				if i%10 == 0 {
					w.now = w.now.Add(time.Millisecond)
				}
			}
			if out >= in {
				t.Errorf("%d bytes were sent for %d", out, in)
			}
			if got, limit := w.core.Stats().Dropped[DropUnanswered], uint64(flood-(heldBurst+2*heldAnswers+1)); name != "garbage" && got < limit {
				t.Errorf("%d went unanswered, want at least %d", got, limit)
			}
			c.nonce = stale(c)
			if got := c.ask(methodRefresh); len(got) < 3 || got[:3] != "438" {
				t.Errorf("the client's own request with a stale nonce: %s", got)
			}
			w.now = w.now.Add(5 * time.Second)
			if got := c.exchange(c.unsigned(methodBinding, classRequest)); got == "none" {
				t.Error("later a binding is answered again")
			}
		})
	}
}

// Who has just got an allocation has the whole burst of answers, also when the core has
// just begun.
func TestAnswers_HaveTheirBurstFromTheBeginning(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.allocate()
	answered := 0
	for range heldBurst + 1 {
		if c.exchange(c.unsigned(methodBinding, classRequest)) != "none" {
			answered++
		}
	}
	if answered != heldBurst {
		t.Errorf("%d of %d were answered, want %d", answered, heldBurst+1, heldBurst)
	}
}

// stale is a nonce that was another client's.
func stale(c *client) string {
	other := c.world.client(udp4, 99)
	other.signed(methodRefresh)
	return other.nonce
}
