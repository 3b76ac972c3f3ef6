// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"net"
	"net/netip"
	"testing"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// A relay that listens on all addresses does not connect to itself either, which TCP
// would allow: both ends at once.
func TestRelay_OnAllAddressesDoesNotConnectToItself(t *testing.T) {
	w := newTCPWorld(t, "tcp", func(cfg *Config) {
		cfg.OpenTCP = func(core.Action) (net.Listener, netip.AddrPort, error) {
			l, err := ListenRelay(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
			if err != nil {
				return nil, netip.AddrPort{}, err
			}
			return l, netip.AddrPortFrom(loopback, l.Addr().(*net.TCPAddr).AddrPort().Port()), nil
		}
	})
	if got := code(w.control.ask(stun.MethodConnect, peerAt(w.relayed))); got != 447 {
		t.Errorf("connect to itself: %d, want 447", got)
	}
	w.left(0)
}
