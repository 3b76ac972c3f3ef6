// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// Member is the Membership service as a node that follows a gateway uses it.
type Member struct {
	membership v1connect.MembershipClient
	enrolment  meshgatev1connect.EnrolmentClient
	// presence is told that the node stops; nil: nobody is, as off the mesh.
	presence meshgatev1connect.PresenceClient
}

// NewMember wraps clients of one gateway.
func NewMember(membership v1connect.MembershipClient, enrolment meshgatev1connect.EnrolmentClient) *Member {
	return &Member{membership: membership, enrolment: enrolment}
}

// Join asks for membership, and proves to the gateway that the node holds key.
// It changes r.
func (m *Member) Join(ctx context.Context, r *v1.JoinRequest, key mesh.PrivateKey) (*v1.JoinResponse, error) {
	challenge, err := m.enrolment.GetChallenge(ctx, connect.NewRequest(&meshgatev1.GetChallengeRequest{Id: r.GetId()}))
	switch {
	case err == nil:
		mesh.ProveJoin(r, key, challenge.Msg.GetMesh(), challenge.Msg.GetTime().AsTime())
	case connect.CodeOf(err) != connect.CodeUnimplemented: // a v1 node wants no proof
		return nil, err
	}
	answer, err := m.membership.Join(ctx, connect.NewRequest(r))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}

// Adopt asks the gateway to take over node id, which is a member.
func (m *Member) Adopt(ctx context.Context, id string) (*v1.JoinResponse, error) {
	answer, err := m.enrolment.Adopt(ctx, connect.NewRequest(&meshgatev1.AdoptRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}

// Leave ends the membership of node id.
func (m *Member) Leave(ctx context.Context, id string) error {
	_, err := m.membership.Leave(ctx, connect.NewRequest(&v1.LeaveRequest{Id: id}))
	return err
}

// Stop says that the node ends and stays a member. A gateway that does not know the
// call need not be told.
func (m *Member) Stop(ctx context.Context) error {
	if m.presence == nil {
		return nil
	}
	_, err := m.presence.Stop(ctx, connect.NewRequest(&meshgatev1.StopRequest{}))
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return nil
	}
	return err
}

// SubscribePeers calls each for every configuration of node id until each
// returns an error, the stream breaks or ctx ends. The first is not older than
// the revision after. It never returns nil.
func (m *Member) SubscribePeers(ctx context.Context, id string, after uint64, each func(*v1.PeerConfigurations) error) error {
	stream, err := m.membership.SubscribePeers(ctx, connect.NewRequest(&v1.SubscribePeersRequest{Id: id, After: after}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // the reason is in Err already
	for stream.Receive() {
		if err := each(stream.Msg()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return connect.NewError(connect.CodeUnavailable, errStreamEnded)
}

// Refused reports whether err is a gateway's final word on who the caller is
// or what it asked for, so that the same call again gives the same answer.
func Refused(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeInvalidArgument,
		connect.CodeAlreadyExists, connect.CodeUnimplemented, connect.CodeNotFound:
		return true
	default:
		return false
	}
}

// Removed reports whether err, of a join as a member or of Adopt, says that the
// mesh has removed the node: in so many words, by a detail. A NotFound without it
// is about something else that the call named, or of something on the way. So it
// is from a v1 gateway, which does not ask whether the node was a member and lets
// it join anew: the node tries again, and at other gateways.
func Removed(err error) bool {
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != connect.CodeNotFound {
		return false
	}
	for _, d := range e.Details() {
		m, err := d.Value()
		if err != nil {
			continue // a detail of a later version
		}
		if _, ok := m.(*meshgatev1.Removed); ok {
			return true
		}
	}
	return false
}

var errStreamEnded = errors.New("the gateway ended the stream")
