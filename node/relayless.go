// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// relaysAfter is how long a node that has no relay servers waits for a session
	// with its gateway until it asks for some. The pause doubles up to relaysEach.
	relaysAfter = time.Second
	relaysEach  = 4 * time.Second
)

// seekRelays asks the gateway on its public address for relay servers when no
// session comes, until there is one, there are servers or ctx ends. Credentials
// are not kept over a restart: a node through whose network no UDP gets would have
// nothing to reach its gateway by until it gives the subscription up.
func (f *follower) seekRelays(ctx context.Context, gate mesh.NodeID, key mesh.WireGuardKey) {
	if !f.lacksRelays(gate) {
		return
	}
	began, told := time.Now(), false
	for wait := relaysAfter; ; wait = min(2*wait, relaysEach) {
		if pause(ctx, wait+rand.N(spread)) != nil || f.shaken(key, began) {
			return
		}
		servers, err := f.askRelays(ctx, gate)
		switch {
		case ctx.Err() != nil, err == nil && len(servers) == 0: // too late, or it has none
			return
		case err == nil:
			f.node.log.Info("no answer from the gateway over UDP yet; going by its relay servers", "gateway", string(gate), "n", len(servers))
			f.takeRelays(servers)
			return
		case !told:
			told = true
			f.node.log.Info("no answer from the gateway over UDP yet, and its public address tells no relay servers, trying again",
				"gateway", string(gate), "err", f.explain(err))
		}
	}
}

// lacksRelays reports whether the node could use relay servers of a gateway and
// has none. Only the gateway that took the node is asked: to it the question
// changes nothing.
func (f *follower) lacksRelays(gate mesh.NodeID) bool {
	if !f.cfg.Paths {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.joined.GetRelayServers()) == 0 && f.joined.GetGatewayId() == string(gate)
}

// askRelays returns the relay servers that a gateway names on its public address,
// none where it has none.
func (f *follower) askRelays(ctx context.Context, id mesh.NodeID) ([]*v1.ICEServer, error) {
	client, err := f.inPublic(id)
	if client == nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	r, err := client.Adopt(ctx, string(f.node.cfg.ID))
	return r.GetRelayServers(), err
}

// takeRelays makes servers those of the node. All else that it knows of the mesh
// stays as it is.
func (f *follower) takeRelays(servers []*v1.ICEServer) {
	f.mu.Lock()
	r := proto.CloneOf(f.joined)
	r.RelayServers = servers
	f.joined = r
	f.mu.Unlock()
	if pairs := f.node.pairs; pairs != nil {
		pairs.Offer(f.relayServers(servers))
	}
}
