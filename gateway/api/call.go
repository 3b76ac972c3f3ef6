// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
)

// Caller is who makes a call, as the gateway found out before the handler ran.
type Caller struct {
	// ID is the authenticated identity: a user's name or a node's id. Empty
	// for a stranger, who reaches public procedures only.
	ID string
	// Addr is where the call came from, as the gateway saw it.
	Addr netip.AddrPort
	// Node is set for a call that came over the mesh: WireGuard has shown
	// that it comes from this node. ID is then the node's id.
	Node *mesh.Node
	// Keyed is true when the node with this ID has shown its key elsewhere.
	Keyed bool
	// Local is true for the operator of this node's host, who has no ID of the mesh.
	Local bool
	// Allowed is set for streaming calls, and for a user who asks for TURN
	// credentials. It says whether the caller may keep what the call made, after
	// the call too; its error is for the caller to read.
	Allowed func() error
}

// IsNode reports whether the caller is the node with an id and has shown its
// key. A token that bears the node's name is not the node.
func (c Caller) IsNode(id string) bool { return c.ID == id && (c.Node != nil || c.Keyed) }

type callerKey struct{}

// WithCaller returns a context for calls of c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns the caller that WithCaller put into ctx; the zero Caller,
// a stranger, when there is none.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
