// SPDX-License-Identifier: Apache-2.0

package core_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// one is an Authenticator that knows one username.
type one struct{ name, password string }

func (o one) Authenticate(_ time.Time, username []byte) (core.Account, bool) {
	if string(username) != o.name {
		return core.Account{}, false
	}
	return core.Account{User: o.name, Keys: []core.Key{core.NewKey(o.name, "example", o.password)}}, true
}

// A server reads datagrams, hands them to its core and does what that says.
func ExampleCore() {
	now := time.Now()
	c, err := core.New(now, core.Config{
		Realm:         "example",
		Listeners:     []core.Listener{{Addr: netip.MustParseAddrPort("203.0.113.1:3478")}},
		Offers:        core.Offers{IPv4: true},
		Authenticator: one{name: "alice", password: "wonder"},
		Permit:        func(_ string, p core.Peer) bool { return !p.Embedded() && p.Canonical.Addr().IsGlobalUnicast() },
		Quota:         core.NewLedger(core.Counts{Relays: 10}, core.Counts{Relays: 1000}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	binding := []byte("\x00\x01\x00\x00\x21\x12\xa4\x42transaction.") // what a client has sent
	from := core.Flow{Client: netip.MustParseAddrPort("192.0.2.1:54321")}

	var out core.Output
	c.FromClient(now, from, binding, &out)
	for _, a := range out.Actions {
		switch a.Kind {
		case core.SendClient:
			fmt.Printf("%d bytes to %v\n", len(a.Data), a.Flow.Client)
		case core.OpenRelay:
			// Open a socket, then tell by RelayOpened or RelayFailed.
		}
	}
	out.Reset()
	// Output: 32 bytes to 192.0.2.1:54321
}
