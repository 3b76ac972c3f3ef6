// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Status asks the node at addr how it is, or, if id is not empty, to ask node id. A node that does not answer is
// mesh.ErrUnavailable.
func (p *Peers) Status(ctx context.Context, addr netip.AddrPort, id string) (*v1.Status, error) {
	answer, err := p.Node(addr).GetStatus(ctx, connect.NewRequest(&v1.GetStatusRequest{Id: id}))
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	}
	return answer.Msg, nil
}
