// SPDX-License-Identifier: Apache-2.0

package storetest_test

import (
	"errors"
	"testing"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(t testing.TB) store.Store {
		m := storetest.New()
		t.Cleanup(m.Close)
		return m
	})
}

func TestMemory_CloseEndsEverything(t *testing.T) {
	m, ctx := storetest.New(), t.Context()
	done := make(chan error, 1)
	go func() {
		for _, err := range m.Watch(ctx, "", 0) {
			done <- err
		}
	}()
	m.Close()
	m.Close()
	if err := <-done; !errors.Is(err, store.ErrClosed) {
		t.Errorf("watch ended with %v, want ErrClosed", err)
	}
	_, get := m.Get(ctx, "a")
	_, _, list := m.List(ctx, "")
	_, apply := m.Apply(ctx, store.Batch{Ops: []store.Op{{Key: "a"}}})
	for name, err := range map[string]error{"get": get, "list": list, "apply": apply, "sync": m.Sync(ctx)} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s: got %v, want ErrClosed", name, err)
		}
	}
}
