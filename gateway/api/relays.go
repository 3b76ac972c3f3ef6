// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// relaysPatience is how long another gateway may take for the next part of its
	// list, or to end what it was told to.
	relaysPatience = 2 * time.Second
	// relaysPart bounds the allocations of one message: some 64 KiB.
	relaysPart = 256
)

// Relays is the TURN server of this gateway.
type Relays interface {
	// Allocations lists what all clients hold.
	Allocations() []Allocation
	// CloseAllocation ends the allocation with an id at once; false: there is none.
	CloseAllocation(id string) bool
	// CloseUser ends those of a user at once, and returns how many there were.
	CloseUser(user string) int
}

// RemoteRelays asks other gateways over the mesh for theirs.
type RemoteRelays interface {
	// RemoteAllocations is Turn.ListAllocations of gateway id, for its own ones of
	// user, or all for "". each gets the parts; its error ends the call and is
	// returned.
	RemoteAllocations(ctx context.Context, id mesh.NodeID, user string, each func([]*meshgatev1.Allocation) error) error
	// RemoteClose is Turn.CloseAllocations of gateway id, for its own: the one named
	// allocation, or those of user.
	RemoteClose(ctx context.Context, id mesh.NodeID, allocation, user string) (closed int, err error)
}

// Allocation is what a TURN server holds for one client.
type Allocation struct {
	// ID names it at its server, without a slash.
	ID string
	// User is whom it counts for.
	User string
	// Client is where its client is, and Transport how that reaches the server:
	// "UDP", "TCP" or "TLS".
	Client    netip.AddrPort
	Transport string
	// Relayed are where peers reach it, over TCP (RFC 6062) or else UDP.
	Relayed []netip.AddrPort
	TCP     bool
	// Since is when it was made, and Expires when it ends unless it is refreshed;
	// zero where that is not known.
	Since, Expires time.Time
	// Permissions, Channels and Connections are how many it holds.
	Permissions, Channels, Connections int
	// Sent went to peers, Received came from them: payload alone.
	SentPackets, SentBytes, ReceivedPackets, ReceivedBytes uint64
}

// turnService serves meshgate.v1.Turn.
type turnService struct {
	state  State
	relays Relays       // nil where no TURN is served
	remote RemoteRelays // nil where nobody can be asked
}

var _ meshgatev1connect.TurnHandler = (*turnService)(nil)

// ListAllocations lists the allocations of this gateway and of others.
func (t *turnService) ListAllocations(ctx context.Context, req *connect.Request[meshgatev1.ListAllocationsRequest], stream *connect.ServerStream[meshgatev1.ListAllocationsResponse]) error {
	return t.list(ctx, req.Msg, stream.Send)
}

// list sends the parts of a list, one at a time.
func (t *turnService) list(ctx context.Context, r *meshgatev1.ListAllocationsRequest, to func(*meshgatev1.ListAllocationsResponse) error) error {
	s, err := held(t.state)
	if err != nil {
		return err
	}
	var mu sync.Mutex // held while a part is sent
	send := func(list []*meshgatev1.Allocation) error {
		mu.Lock()
		defer mu.Unlock()
		if err := to(&meshgatev1.ListAllocationsResponse{Allocations: list}); err != nil {
			return callerError{err}
		}
		return nil
	}
	if r.GetOwn() {
		return t.sendOwn(r.GetUser(), send)
	}
	asked, err := t.gateways(s, "gateway_id", r.GetGatewayId())
	if err != nil {
		return err
	}
	silent, err := t.ask(ctx, asked, func(ctx context.Context, gate mesh.NodeID, heard func(waits bool)) error {
		if gate == t.state.Self() {
			return t.sendOwn(r.GetUser(), send)
		}
		return t.remote.RemoteAllocations(ctx, gate, r.GetUser(), func(list []*meshgatev1.Allocation) error {
			heard(false) // it is the caller that is waited for now
			defer heard(true)
			return send(list)
		})
	})
	switch {
	case err != nil || len(silent) == 0:
		return err
	case r.GetGatewayId() != "":
		return silentError(silent)
	default:
		return to(&meshgatev1.ListAllocationsResponse{Silent: silent})
	}
}

// CloseAllocations ends allocations of this gateway and of others.
func (t *turnService) CloseAllocations(ctx context.Context, req *connect.Request[meshgatev1.CloseAllocationsRequest]) (*connect.Response[meshgatev1.CloseAllocationsResponse], error) {
	s, err := held(t.state)
	if err != nil {
		return nil, err
	}
	id, user := req.Msg.GetId(), req.Msg.GetUser()
	field, gateway := "gateway_id", req.Msg.GetGatewayId()
	switch {
	case (id == "") == (user == ""):
		return nil, fmt.Errorf("%w: give either id or user", mesh.ErrInvalid)
	case id != "":
		at, rest, ok := strings.Cut(id, "/")
		if !ok || at == "" || rest == "" || gateway != "" && gateway != at {
			return nil, fmt.Errorf("%w: id %q is none of an allocation: meshgate turn list (Turn.ListAllocations) shows them, with their gateways in front", mesh.ErrInvalid, id)
		}
		field, gateway = "id", at
	}
	asked := []mesh.NodeID{t.state.Self()}
	if !req.Msg.GetOwn() {
		if asked, err = t.gateways(s, field, gateway); err != nil {
			return nil, err
		}
	}
	answer, err := t.close(ctx, asked, id, user)
	if err != nil {
		return nil, err
	}
	alone := len(asked) == 1 && gateway != ""
	switch {
	case len(answer.GetSilent()) > 0 && (alone || answer.GetClosed() == 0):
		return nil, silentError(answer.GetSilent())
	case answer.GetClosed() == 0 && id != "":
		return nil, fmt.Errorf("%w: no allocation %q; it may have ended", mesh.ErrNotFound, id)
	case answer.GetClosed() == 0:
		return nil, fmt.Errorf("%w: no allocation of user %q", mesh.ErrNotFound, user)
	}
	return connect.NewResponse(answer), nil
}

// close ends one allocation, or those of user, at the gateways of asked.
func (t *turnService) close(ctx context.Context, asked []mesh.NodeID, id, user string) (*meshgatev1.CloseAllocationsResponse, error) {
	answer := &meshgatev1.CloseAllocationsResponse{}
	var mu sync.Mutex // guards answer.Closed
	silent, err := t.ask(ctx, asked, func(ctx context.Context, gate mesh.NodeID, _ func(bool)) (err error) {
		var n int
		if gate == t.state.Self() {
			n = t.closeOwn(id, user)
		} else {
			n, err = t.remote.RemoteClose(ctx, gate, id, user)
		}
		mu.Lock()
		defer mu.Unlock()
		answer.Closed += uint32(n)
		return err
	})
	answer.Silent = silent
	return answer, err
}

// closeOwn does so at this gateway, and returns how many there were.
func (t *turnService) closeOwn(id, user string) int {
	if t.relays == nil {
		return 0
	}
	if id == "" {
		return t.relays.CloseUser(user)
	}
	at, rest, _ := strings.Cut(id, "/")
	if at == string(t.state.Self()) && t.relays.CloseAllocation(rest) {
		return 1
	}
	return 0
}

// sendOwn sends the allocations of this gateway, of user, or all for "".
func (t *turnService) sendOwn(user string, send func([]*meshgatev1.Allocation) error) error {
	if t.relays == nil {
		return nil
	}
	list := t.relays.Allocations()
	if user != "" {
		list = slices.DeleteFunc(list, func(a Allocation) bool { return a.User != user })
	}
	slices.SortFunc(list, func(a, b Allocation) int { return strings.Compare(a.ID, b.ID) })
	for part := range slices.Chunk(list, relaysPart) {
		out := make([]*meshgatev1.Allocation, 0, len(part))
		for i := range part {
			out = append(out, allocationToProto(t.state.Self(), &part[i]))
		}
		if err := send(out); err != nil {
			return err
		}
	}
	return nil
}

// gateways are those to ask: the one that field names, or all that serve TURN.
func (t *turnService) gateways(s *mesh.Snapshot, field, name string) ([]mesh.NodeID, error) {
	serves := func(n *mesh.Node) bool {
		if n.ID == t.state.Self() {
			return t.relays != nil
		}
		return n.HoldsState() && n.HasFeature(v1.Feature_TURN_SERVER) && t.remote != nil
	}
	if name == "" {
		var list []mesh.NodeID
		for _, n := range s.Nodes.All() {
			if serves(n) && len(list) < maxServers {
				list = append(list, n.ID)
			}
		}
		return list, nil
	}
	id, err := mesh.ParseNodeID(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	n, ok := s.Nodes.Get(id)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: %w", field, unknownNode(id))
	case !n.HoldsState():
		return nil, fmt.Errorf("%w: %s: node %q is no gateway, and relays for nobody", mesh.ErrPrecondition, field, id)
	case !serves(n):
		return nil, fmt.Errorf("%w: %s: gateway %q serves no TURN; it is started with an empty --turn.listen", mesh.ErrPrecondition, field, id)
	}
	return []mesh.NodeID{id}, nil
}

// callerError is an error of sending to who called, not of a gateway.
type callerError struct{ error }

func (e callerError) Unwrap() error { return e.error }

// errSilent is the cause of a context whose gateway has said nothing for relaysPatience.
var errSilent = fmt.Errorf("%w: no answer within %s", mesh.ErrUnavailable, relaysPatience)

// ask has do ask each of the gateways, all at once. heard says whether the gateway
// is waited for from now on, for relaysPatience anew. It returns those that did not
// answer, by their ids; an error is that of who called.
func (t *turnService) ask(ctx context.Context, gateways []mesh.NodeID, do func(ctx context.Context, gate mesh.NodeID, heard func(waits bool)) error) ([]*meshgatev1.SilentGateway, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var mu sync.Mutex // guards silent
	var silent []*meshgatev1.SilentGateway
	var asking sync.WaitGroup
	for _, gate := range gateways {
		asking.Go(func() {
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			patience := time.AfterFunc(relaysPatience, func() { cancel(errSilent) })
			defer patience.Stop()
			err := do(ctx, gate, func(waits bool) {
				patience.Stop()
				if waits {
					patience.Reset(relaysPatience)
				}
			})
			var gone callerError
			switch {
			case err == nil:
				return
			case errors.As(err, &gone):
				end(gone.error)
				return
			case errors.Is(context.Cause(ctx), errSilent):
				err = errSilent
			}
			mu.Lock()
			defer mu.Unlock()
			silent = append(silent, &meshgatev1.SilentGateway{GatewayId: string(gate), Reason: strings.TrimPrefix(publicText(err), mesh.ErrUnavailable.Error()+": ")})
		})
	}
	asking.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortFunc(silent, func(a, b *meshgatev1.SilentGateway) int { return strings.Compare(a.GetGatewayId(), b.GetGatewayId()) })
	return silent, nil
}

// silentError is the answer where those that are silent leave nothing to tell.
func silentError(silent []*meshgatev1.SilentGateway) error {
	var texts []string
	for _, g := range silent {
		texts = append(texts, fmt.Sprintf("gateway %s: %s", g.GetGatewayId(), g.GetReason()))
	}
	return fmt.Errorf("%w: %s", mesh.ErrUnavailable, strings.Join(texts, "; "))
}

// allocationToProto is an allocation at gateway gate as the API shows it.
func allocationToProto(gate mesh.NodeID, a *Allocation) *meshgatev1.Allocation {
	m := &meshgatev1.Allocation{
		Id: string(gate) + "/" + a.ID, GatewayId: string(gate), User: strings.ToValidUTF8(a.User, "\uFFFD"),
		ClientAddress: a.Client.String(), Transport: a.Transport, RelayTransport: "UDP",
		Permissions: uint32(a.Permissions), Channels: uint32(a.Channels), Connections: uint32(a.Connections),
		SentPackets: a.SentPackets, SentBytes: a.SentBytes, ReceivedPackets: a.ReceivedPackets, ReceivedBytes: a.ReceivedBytes,
	}
	if a.TCP {
		m.RelayTransport = "TCP"
	}
	for _, at := range a.Relayed {
		m.RelayedAddresses = append(m.RelayedAddresses, at.String())
	}
	if !a.Since.IsZero() {
		m.Since = timestamppb.New(a.Since)
	}
	if !a.Expires.IsZero() {
		m.ExpiresAt = timestamppb.New(a.Expires)
	}
	return m
}
