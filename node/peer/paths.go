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
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// Paths is the client of the Paths service.
func (p *Public) Paths() meshgatev1connect.PathsClient {
	return meshgatev1connect.NewPathsClient(p.client, p.base, clientOptions(p.token)...)
}

func (p *Peers) paths(addr netip.AddrPort) meshgatev1connect.PathsClient {
	return meshgatev1connect.NewPathsClient(p.client, "http://"+addr.String(), clientOptions(nil)...)
}

// Record asks the gateway at addr what the mesh knows of a node. mesh.ErrNotFound
// is one that it does not know, everything else mesh.ErrUnavailable.
func (p *Peers) Record(ctx context.Context, addr netip.AddrPort, id string) (*v1.MeshNode, error) {
	client := v1connect.NewMeshClient(p.client, "http://"+addr.String(), clientOptions(nil)...)
	answer, err := client.GetNode(ctx, connect.NewRequest(&v1.GetNodeRequest{Id: id}))
	switch {
	case connect.CodeOf(err) == connect.CodeNotFound:
		return nil, fmt.Errorf("%w: %w", mesh.ErrNotFound, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	}
	return answer.Msg, nil
}

// ListPaths asks the node at addr how its packets get to others. A node that does
// not answer is mesh.ErrUnavailable.
func (p *Peers) ListPaths(ctx context.Context, addr netip.AddrPort) (*meshgatev1.ListPathsResponse, error) {
	answer, err := p.paths(addr).ListPaths(ctx, connect.NewRequest(&meshgatev1.ListPathsRequest{}))
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	}
	return answer.Msg, nil
}

// ListServers asks the gateway at addr for its STUN and TURN servers, likewise.
func (p *Peers) ListServers(ctx context.Context, addr netip.AddrPort) (*meshgatev1.ListServersResponse, error) {
	answer, err := p.paths(addr).ListServers(ctx, connect.NewRequest(&meshgatev1.ListServersRequest{}))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	}
	return answer.Msg, nil
}

// Ping has the node at addr ask another one for signs of life. each gets what it
// answers; its error ends the call and is returned.
func (p *Peers) Ping(ctx context.Context, addr netip.AddrPort, r *meshgatev1.PingRequest, each func(*meshgatev1.PingResponse) error) error {
	ctx, cancel := context.WithCancel(ctx) // ends the call when each does not want more
	defer cancel()
	stream, err := p.paths(addr).Ping(ctx, connect.NewRequest(r))
	if err != nil {
		return pingError(ctx, err)
	}
	defer func() { _ = stream.Close() }() // nothing more is wanted
	for stream.Receive() {
		if err := each(stream.Msg()); err != nil {
			return err
		}
	}
	return pingError(ctx, stream.Err())
}

// pingError keeps what the other node says of the node that was to be asked.
func pingError(ctx context.Context, err error) error {
	switch code := connect.CodeOf(err); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case code == connect.CodeNotFound:
		return fmt.Errorf("%w: %w", mesh.ErrNotFound, err)
	case code == connect.CodeInvalidArgument:
		return fmt.Errorf("%w: %w", mesh.ErrInvalid, err)
	case code == connect.CodeResourceExhausted:
		return fmt.Errorf("%w: %w", mesh.ErrExhausted, err)
	}
	return fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
}
