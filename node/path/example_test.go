// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
)

// Two agents, joined by a wire in place of the internet. A node does the same
// with sockets, signals and the clock.
func Example() {
	now := time.Unix(1_800_000_000, 0)
	at := map[mesh.NodeID]netip.AddrPort{
		"alice": netip.MustParseAddrPort("192.168.1.10:51820"),
		"bob":   netip.MustParseAddrPort("192.168.1.11:51820"),
	}
	agents := map[mesh.NodeID]*path.Agent{}
	keys := map[mesh.NodeID]path.Credentials{"alice": path.NewCredentials(), "bob": path.NewCredentials()}
	other := map[mesh.NodeID]mesh.NodeID{"alice": "bob", "bob": "alice"}
	for self, peer := range other {
		agent, err := path.New(path.Config{Self: self, Peer: peer, Local: keys[self]})
		if err != nil {
			fmt.Println(err)
			return
		}
		agents[self] = agent
		// What the signals of the peer say.
		if err := agent.SetRemote(now, keys[peer], 1); err != nil {
			fmt.Println(err)
		}
		if err := agent.AddRemote(now, path.Candidate{Kind: path.Host, Addr: at[peer]}); err != nil {
			fmt.Println(err)
		}
		// What this node knows of its own sockets.
		if err := agent.SetLocal(now, path.Native, []path.Candidate{{Kind: path.Host, Addr: at[self]}}); err != nil {
			fmt.Println(err)
		}
	}
	for range 20 {
		now = now.Add(5 * time.Millisecond)
		for self, agent := range agents {
			agent.Tick(now) // returns when to call it again at the latest
			for _, p := range agent.Outgoing() {
				agents[other[self]].Packet(now, path.Native, at[self], p.Bytes)
			}
		}
	}
	for _, self := range []mesh.NodeID{"alice", "bob"} {
		route, ok := agents[self].Selected()
		fmt.Println(self, "sends to", route.To, ok, "direct:", agents[self].State().Direct)
	}
	// Output:
	// alice sends to 192.168.1.11:51820 true direct: true
	// bob sends to 192.168.1.10:51820 true direct: true
}
