// SPDX-License-Identifier: Apache-2.0

package turn_test

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/meshgate/meshgate/turn"
)

// A server on loopback whose relays reach one local service, and a credential for it.
func Example() {
	secrets, err := turn.NewSecrets(nil, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	service := netip.AddrPortFrom(loopback, 9000)
	server, err := turn.New(turn.Config{
		UDP:     []netip.AddrPort{netip.AddrPortFrom(loopback, 0)},
		Relay:   turn.Relay{Public: loopback},
		Secrets: secrets,
		AllowPeer: func(user string, peer netip.AddrPort) bool {
			return user == "alice" && peer == service
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	credential := secrets.Mint("alice", 10*time.Minute)
	fmt.Println(strings.HasSuffix(credential.Username, ":alice"), credential)
	// Output: true [credential]
}
