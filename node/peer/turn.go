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

// Turn is the client of the Turn service.
func (p *Public) Turn() meshgatev1connect.TurnClient {
	return meshgatev1connect.NewTurnClient(p.client, p.base, clientOptions(p.token)...)
}

func (p *Peers) turn(addr netip.AddrPort) meshgatev1connect.TurnClient {
	return meshgatev1connect.NewTurnClient(p.client, "http://"+addr.String(), clientOptions(nil)...)
}

// ListAllocations asks the gateway at addr what its own TURN server holds for user,
// or for all users if that is empty. each gets the parts of the list; its error ends
// the call and is returned.
func (p *Peers) ListAllocations(ctx context.Context, addr netip.AddrPort, user string, each func([]*meshgatev1.Allocation) error) error {
	ctx, cancel := context.WithCancel(ctx) // ends the call when each does not want more
	defer cancel()
	stream, err := p.turn(addr).ListAllocations(ctx, connect.NewRequest(&meshgatev1.ListAllocationsRequest{User: user, Own: true}))
	if err != nil {
		return turnError(ctx, err)
	}
	defer func() { _ = stream.Close() }() // nothing more is wanted
	for stream.Receive() {
		if err := each(stream.Msg().GetAllocations()); err != nil {
			return err
		}
	}
	return turnError(ctx, stream.Err())
}

// CloseAllocations has the gateway at addr end one allocation of its own, or those of
// user, and returns how many there were.
func (p *Peers) CloseAllocations(ctx context.Context, addr netip.AddrPort, id, user string) (int, error) {
	answer, err := p.turn(addr).CloseAllocations(ctx, connect.NewRequest(&meshgatev1.CloseAllocationsRequest{Id: id, User: user, Own: true}))
	if connect.CodeOf(err) == connect.CodeNotFound {
		return 0, nil
	}
	if err != nil {
		return 0, turnError(ctx, err)
	}
	return int(answer.Msg.GetClosed()), nil
}

// turnError says of an error of a gateway what it means to who asked another one.
func turnError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case connect.CodeOf(err) == connect.CodeUnimplemented:
		return fmt.Errorf("%w: it runs a version of Meshgate that does not tell what its TURN server holds: upgrade it", mesh.ErrUnavailable)
	default:
		return fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	}
}
