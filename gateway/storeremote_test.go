// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"testing"

	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/remote"
	"github.com/meshgate/meshgate/node/store/storetest"
)

// remoteStore is a store over gateways at their public addresses, as a user.
func remoteStore(t testing.TB, who string, gateways ...*served) *remote.Store {
	t.Helper()
	var cfg remote.Config
	for i, g := range gateways {
		p, err := peer.NewPublic("http://"+g.public, tokenOf(who), peer.TLSOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		cfg.Gateways = append(cfg.Gateways, remote.Gateway{Name: fmt.Sprint("gateway ", i+1), Client: p.Store()})
	}
	s, err := remote.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// The contract holds through all that a gateway has around its services.
func TestStore_KeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t testing.TB) store.Store { return remoteStore(t, "admin", serveStore(t)) })
}

// A gateway that shuts down in order sends its watches to the next one.
func TestStore_GatewayShutsDown(t *testing.T) {
	first := serveStore(t)
	second := serve(t, func(c *Config) { c.Store = first.node.keys })
	s := remoteStore(t, "admin", first, second)
	got := make(chan string)
	go func() {
		defer close(got)
		for c, err := range s.Watch(testContext(t), "", 0) {
			if err != nil {
				got <- err.Error()
				return
			}
			got <- fmt.Sprint(c.Events[0].Key, " at ", c.Version)
			if c.Events[0].Key == "c" {
				return
			}
		}
	}()
	want := func(version int, key string) {
		t.Helper()
		if line := <-got; line != fmt.Sprint(key, " at ", version) {
			t.Fatalf("got %q, want %s at %d", line, key, version)
		}
	}
	first.node.write(t, "a", "1")
	want(1, "a")
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	first.node.write(t, "b", "1")
	want(2, "b")
	if _, err := s.Apply(testContext(t), store.Batch{Ops: []store.Op{{Key: "c"}}}); err != nil {
		t.Fatal(err)
	}
	want(3, "c")
}
