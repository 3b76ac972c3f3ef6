// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// TestSet_RefusesWhatANameStandsFor lets the owner of a name choose what it
// resolves to.
func TestSet_RefusesWhatANameStandsFor(t *testing.T) {
	var answer atomic.Pointer[netip.Addr]
	fakeDNS(t, func(string) (netip.Addr, bool) { return *answer.Load(), true })
	for _, tc := range []struct {
		addr       string
		oneMachine bool
		used       bool
	}{
		{"127.0.0.1", false, false},
		{"127.8.8.8", false, false},
		{"127.0.0.1", true, true},
		{"169.254.169.254", false, false},
		{"169.254.169.254", true, false},
		{"0.0.0.0", false, false},
		{"0.0.0.0", true, false},
		{"224.0.0.1", false, false},
		{"255.255.255.255", false, false},
		{"172.16.0.9", false, false}, // inside the mesh
		{"172.32.0.9", false, true},
		{"10.0.0.1", false, true},
		{"192.0.2.7", false, true},
	} {
		t.Run(tc.addr, func(t *testing.T) {
			addr := netip.MustParseAddr(tc.addr)
			answer.Store(&addr)
			var log bytes.Buffer
			n := wgtest.New(t, 1, wg.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			n.Config.Networks = []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}
			n.Config.OneMachine = tc.oneMachine
			peer := wg.Peer{Key: mesh.WireGuardKey{1}, Name: "phone", Endpoint: "home.example.com:51820"}
			for range 3 {
				n.SetPeers(peer)
			}
			want, complaints := "", 1
			if tc.used {
				want, complaints = netip.AddrPortFrom(addr, 51820).String(), 0
			}
			if got := only(t, n).Endpoint; got != want {
				t.Errorf("endpoint %q, want %q", got, want)
			}
			if got := strings.Count(log.String(), "level=WARN"); got != complaints || got > 0 && !strings.Contains(log.String(), "peer=phone") {
				t.Errorf("%d warnings, want %d:\n%s", got, complaints, &log)
			}
		})
	}
}
