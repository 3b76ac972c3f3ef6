// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"testing"
)

// elsewhere is a client whose account the Authenticator does not know itself.
func elsewhere(w *world, listener uint16, n int) *client {
	return w.client(listener, n).as("elsewhere", "secret")
}

func (c *client) answer(ok bool) string {
	c.Helper()
	asked := c.lastOf(AskAccount)
	if string(asked.Data) != "elsewhere" {
		c.Fatalf("asked for %q", asked.Data)
	}
	before := len(c.toClient)
	account := Account{User: "alice", Keys: []Key{NewKey("elsewhere", "meshgate", "secret")}}
	c.core.Verdict(c.now, asked.Ask, account, ok, &c.out)
	c.drive()
	if len(c.toClient) == before {
		return "none"
	}
	return c.said()
}

func TestPending_RequestGoesOnWithTheVerdict(t *testing.T) {
	for _, v := range []struct {
		name string
		do   func(*client) string
		want string
	}{
		{"known", func(c *client) string { return c.answer(true) }, "ok relayed=198.51.100.1:49152 lifetime=600 mapped=client"},
		{"unknown", func(c *client) string { return c.answer(false) }, "401 nonce algorithms"},
		{"twice", func(c *client) string { c.answer(true); return c.answer(true) }, "none"},
		{"too late", func(c *client) string { c.pass(openPatience); return c.answer(true) }, "none"},
		{"gone", func(c *client) string { c.core.StreamClosed(c.flow, &c.out); return c.answer(true) }, "none"},
	} {
		c := elsewhere(newWorld(t), tcp4, 1)
		if got := c.ask(methodAllocate, udp()); got != "none" {
			t.Fatalf("answered before the verdict: %s", got)
		}
		if got := v.do(c); got != v.want {
			t.Errorf("%s: got %s, want %s", v.name, got, v.want)
		}
		if s := c.core.Stats(); s.Pending != 0 || len(c.core.waiting.byKey) != 0 {
			t.Errorf("%s: %d requests are pending", v.name, s.Pending)
		}
	}
}

func TestPending_WrongKeyIsWrongAfterTheVerdict(t *testing.T) {
	c := elsewhere(newWorld(t), udp4, 1)
	c.password = "guess"
	c.ask(methodAllocate, udp())
	if got := c.answer(true); got != "401 nonce algorithms" {
		t.Error(got)
	}
}

// TestPending_IsBounded has more clients ask than may wait, one of them often.
func TestPending_IsBounded(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Limits.Pending = 3 })
	one := elsewhere(w, udp4, 1)
	b := one.signed(methodAllocate, udp())
	for range 10 {
		one.exchange(b)
	}
	if n := w.core.Stats().Pending; n != 1 {
		t.Errorf("%d requests are pending for one that was repeated", n)
	}
	for n := range 5 {
		elsewhere(w, udp4, 2+n).ask(methodAllocate, udp())
	}
	big := elsewhere(w, udp4, 9)
	big.ask(methodAllocate, udp(), text(0x8022, fmt.Sprintf("%2048d", 0)))
	if n := w.core.Stats().Pending; n != 3 {
		t.Errorf("%d requests are pending, want 3", n)
	}
	w.pass(openPatience)
	if n := w.core.Stats().Pending; n != 0 {
		t.Errorf("%d requests are pending after their time", n)
	}
}
