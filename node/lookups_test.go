// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Names among the addresses of the gateways stand for what they were found at last.
func TestLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		places := []string{"10.0.0.5:7000", "gw2.example.com:7000", "[2001:db8::1]:7000", "gw2.example.com:8000", "nonsense", ":7000"}
		at := map[string][]netip.Addr{"gw2.example.com": {netip.MustParseAddr("::ffff:192.0.2.2"), netip.MustParseAddr("2001:db8::2")}}
		asked := 0
		var mu sync.Mutex // guards places, at and asked
		change := func(f func()) { mu.Lock(); defer mu.Unlock(); f() }
		list := func() []string { mu.Lock(); defer mu.Unlock(); return places }
		l := newLookups(list, func(ctx context.Context, name string) ([]netip.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("a lookup without an end")
			}
			if at[name] == nil {
				return nil, errors.New("no such host")
			}
			return at[name], nil
		}, slog.New(slog.NewTextHandler(&log, nil)))
		want := func(when string, list ...string) {
			t.Helper()
			var got []string
			for _, a := range l.addrs() {
				got = append(got, a.String())
			}
			slices.Sort(got)
			slices.Sort(list)
			if got = slices.Compact(got); !slices.Equal(got, list) {
				t.Errorf("%s: %v, want %v", when, got, list)
			}
		}
		want("before it runs", "10.0.0.5", "2001:db8::1")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.run(ctx) }()
		next := func() {
			<-time.After(lookUpEach)
			synctest.Wait()
		}
		synctest.Wait()
		want("found", "10.0.0.5", "2001:db8::1", "192.0.2.2", "2001:db8::2")
		if asked != 1 {
			t.Errorf("one name was asked for %d times", asked)
		}
		change(func() { at["gw2.example.com"] = []netip.Addr{netip.MustParseAddr("192.0.2.3")} })
		next()
		want("moved", "10.0.0.5", "2001:db8::1", "192.0.2.3")
		change(func() { delete(at, "gw2.example.com") })
		next()
		next()
		want("not found", "10.0.0.5", "2001:db8::1", "192.0.2.3")
		if n := strings.Count(log.String(), "a gateway's name is not found"); n != 1 {
			t.Errorf("said %d times:\n%s", n, &log)
		}
		change(func() {
			at["gw2.example.com"] = slices.Repeat([]netip.Addr{netip.MustParseAddr("192.0.2.9")}, maxLookedUp+1)
		})
		next()
		if n := len(l.addrs()); n != 2+2*maxLookedUp { // the name is there twice
			t.Errorf("%d addresses", n)
		}
		change(func() { places = places[:1] })
		next()
		want("gone", "10.0.0.5")
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	if none := newLookups(nil, nil, nil); len(none.addrs()) != 0 || len(none.names()) != 0 {
		t.Error("a gateway that is alone has others")
	}
}
