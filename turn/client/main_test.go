// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/turn"
)

const (
	// serverEnv makes this test binary a TURN server at an address.
	serverEnv = "MESHGATE_TURN_CLIENT_TEST_SERVER"
	// alonePort is where that listens, and firstRelay and lastRelay are all ports that
	// it has for relays.
	alonePort             = 3478
	firstRelay, lastRelay = 49152, 49153
)

func TestMain(m *testing.M) {
	if at := os.Getenv(serverEnv); at != "" { // started by a test of this package
		if err := serveAlone(at); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// serveAlone serves at an address until standard input ends.
func serveAlone(host string) error {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return err
	}
	secrets, err := turn.NewSecrets([]byte(testSecret), nil)
	if err != nil {
		return err
	}
	at := []netip.AddrPort{netip.AddrPortFrom(addr, alonePort)}
	s, err := turn.New(turn.Config{
		UDP: at, TCP: at, Relay: turn.Relay{Public: addr, Bind: addr, MinPort: firstRelay, MaxPort: lastRelay}, Secrets: secrets,
		AllowPeer: func(_ string, peer netip.AddrPort) bool { return peer.Addr().IsLoopback() },
		Limits:    turn.Limits{AnswersPerSecond: 1000},
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return s.Close()
}
