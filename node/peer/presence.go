// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// Presence is the client of the Presence service.
func (p *Public) Presence() meshgatev1connect.PresenceClient {
	return meshgatev1connect.NewPresenceClient(p.client, p.base, clientOptions(p.token)...)
}

func (p *Peers) presence(addr netip.AddrPort) meshgatev1connect.PresenceClient {
	return meshgatev1connect.NewPresenceClient(p.client, "http://"+addr.String(), clientOptions(nil)...)
}

// ListPresence asks the gateway at addr which nodes are up; own: by what it has heard
// itself. Errors wrap mesh.ErrUnavailable.
func (p *Peers) ListPresence(ctx context.Context, addr netip.AddrPort, own bool) ([]*meshgatev1.NodePresence, error) {
	answer, err := p.presence(addr).ListPresence(ctx, connect.NewRequest(&meshgatev1.ListPresenceRequest{Own: own}))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	}
	return answer.Msg.GetNodes(), nil
}
