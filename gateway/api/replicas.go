// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

const (
	// aliveWithin is how recently a replica that is alive was heard of. The
	// leader hears from each many times a second.
	aliveWithin = 2 * time.Second
	// backupPart is the size of a part of a backup, in bytes.
	backupPart = 64 << 10
)

// Replicas changes which gateways keep the state of the mesh. Errors wrap those
// of package mesh.
type Replicas interface {
	// Replicas are the gateways that keep the state, in the order of their ids.
	Replicas(ctx context.Context) []Replica
	// Leads reports whether any of them leads, as far as this one knows. It
	// does not wait.
	Leads() bool
	// Promote gives an observer a vote.
	Promote(ctx context.Context, id mesh.NodeID) error
	// Demote takes a voter's vote.
	Demote(ctx context.Context, id mesh.NodeID) error
	// Remove takes a gateway out. The error wraps mesh.ErrNotFound, as that of
	// Promote, Demote and Transfer, when there is none of that id.
	Remove(ctx context.Context, id mesh.NodeID) error
	// Transfer makes another voter lead; the empty id: any.
	Transfer(ctx context.Context, id mesh.NodeID) error
	// Backup writes the whole state to w.
	Backup(ctx context.Context, w io.Writer) error
	// BackupStale writes what this gateway holds of the state, without a leader.
	BackupStale(w io.Writer) error
}

// Replica is a gateway that keeps the state.
type Replica struct {
	ID mesh.NodeID
	// Address is where the others reach it, "host:port".
	Address string
	// Voter is false for an observer.
	Voter, Leader bool
	// Answers is true for one that answered this one, while no leader does.
	Answers bool
	// Known is true when the leader has heard of it, LastContact ago, which is not
	// longer than it leads.
	Known       bool
	LastContact time.Duration
	// Lag is how many log entries it is not known to hold; it says nothing while
	// LagUnknown is true, since it has not answered this leader yet.
	Lag        uint64
	LagUnknown bool
	// Room is what room its disk has.
	Room meshgatev1.Room
	// Hears is whom one that Answers hears lead; empty: nobody.
	Hears string
}

// alive reports whether the replica was heard of late.
func (r *Replica) alive() bool {
	if r.Known {
		return !r.LagUnknown && r.LastContact <= aliveWithin
	}
	return r.Answers
}

// clusterService serves meshgate.v1.Cluster.
type clusterService struct {
	state    State
	replicas Replicas // nil on a node that keeps no state
}

var _ meshgatev1connect.ClusterHandler = (*clusterService)(nil)

// Status lists the gateways.
func (c *clusterService) Status(ctx context.Context, _ *connect.Request[meshgatev1.StatusRequest]) (*connect.Response[meshgatev1.StatusResponse], error) {
	if err := c.keeps(); err != nil {
		return nil, err
	}
	answer := &meshgatev1.StatusResponse{GatewayId: string(c.state.Self())}
	replicas := c.replicas.Replicas(ctx)
	answer.Trouble = trouble(c.state.Self(), replicas)
	for _, r := range replicas {
		m := &meshgatev1.Replica{Id: string(r.ID), Address: r.Address, Voter: r.Voter, Leader: r.Leader, Alive: r.alive(), Lag: r.Lag, LagUnknown: r.LagUnknown, Room: r.Room}
		if r.Known {
			m.LastContact = durationpb.New(r.LastContact)
		}
		answer.Replicas = append(answer.Replicas, m)
	}
	return connect.NewResponse(answer), nil
}

// trouble says why self, the gateway that was asked, knows no leader, or why that
// can change nothing, and what to do; it is empty while all is well.
func trouble(self mesh.NodeID, replicas []Replica) string {
	if leads := slices.IndexFunc(replicas, func(r Replica) bool { return r.Leader && r.Known }); leads >= 0 {
		return crippled(replicas[leads].ID, replicas)
	}
	if text := deaf(self, replicas); text != "" {
		return text
	}
	var voters, live int
	var away []string
	for _, r := range replicas {
		switch {
		case !r.Voter:
		case r.Answers:
			voters, live = voters+1, live+1
		default:
			voters++
			away = append(away, string(r.ID))
		}
	}
	need := voters/2 + 1
	if live >= need {
		return fmt.Sprintf("no leader yet: %d of %d voters answer, which are enough to choose one; ask again in a few seconds", live, voters)
	}
	return fmt.Sprintf("no leader: %d of %d voters answer, %d are needed, and nothing can be changed; start %s, or, once that is gone for good, "+
		"begin anew from what this gateway holds: meshgate backup FILE --stale, then stop all gateways, and meshgate restore FILE here",
		live, voters, need, strings.Join(away, " or "))
}

// crippled says that a leader is there and fewer than a majority of the voters keep
// what is changed; empty when they do.
func crippled(leader mesh.NodeID, replicas []Replica) string {
	var voters int
	var full, away []string
	for _, r := range replicas {
		switch {
		case !r.Voter:
			continue
		case !r.alive():
			away = append(away, string(r.ID))
		case r.Room == meshgatev1.Room_ROOM_NONE:
			full = append(full, string(r.ID))
		}
		voters++
	}
	keep := voters - len(full) - len(away)
	if len(full) == 0 || keep > voters/2 {
		return "" // without a majority in reach it soon leads no more
	}
	todo := "make room on the disk of " + strings.Join(full, " or ")
	if len(away) > 0 {
		todo += ", or start " + strings.Join(away, " or ")
	}
	return fmt.Sprintf("%s leads, but %d of %d voters keep what is changed, %d are needed, and changes wait; %s", leader, keep, voters, voters/2+1, todo)
}

// deaf says that others have a leader whom self does not hear; empty when they do
// not.
func deaf(self mesh.NodeID, replicas []Replica) string {
	for _, r := range replicas {
		if r.ID == self || !r.Answers || r.Hears == "" || r.Hears == string(self) {
			continue
		}
		return fmt.Sprintf("%s leads, as %s says, but %s does not hear it: if that stays so for some seconds, see that %s and %s reach each other at the addresses above; ask %s meanwhile",
			r.Hears, r.ID, self, r.Hears, self, r.ID)
	}
	return ""
}

// Promote gives an observer a vote.
func (c *clusterService) Promote(ctx context.Context, req *connect.Request[meshgatev1.PromoteRequest]) (*connect.Response[meshgatev1.PromoteResponse], error) {
	id, err := c.named(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshgatev1.PromoteResponse{}), c.orAbsent(id, c.replicas.Promote(ctx, id))
}

// Demote takes a voter's vote.
func (c *clusterService) Demote(ctx context.Context, req *connect.Request[meshgatev1.DemoteRequest]) (*connect.Response[meshgatev1.DemoteResponse], error) {
	id, err := c.named(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshgatev1.DemoteResponse{}), c.orAbsent(id, c.replicas.Demote(ctx, id))
}

// Remove takes a gateway out of the cluster.
func (c *clusterService) Remove(ctx context.Context, req *connect.Request[meshgatev1.RemoveRequest]) (*connect.Response[meshgatev1.RemoveResponse], error) {
	id, err := c.named(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	if id == c.state.Self() {
		return nil, fmt.Errorf("%w: %q is the gateway that was asked; have another gateway remove it", mesh.ErrPrecondition, id)
	}
	err = c.orAbsent(id, c.replicas.Remove(ctx, id))
	if s := c.state.Snapshot(); errors.Is(err, mesh.ErrNotFound) && s != nil && s.Node(id) != nil {
		err = fmt.Errorf("%w; to take it out of the mesh use meshgate delete nodes %s", err, id)
	}
	return connect.NewResponse(&meshgatev1.RemoveResponse{}), err
}

// TransferLeadership makes another voter lead.
func (c *clusterService) TransferLeadership(ctx context.Context, req *connect.Request[meshgatev1.TransferLeadershipRequest]) (*connect.Response[meshgatev1.TransferLeadershipResponse], error) {
	var id mesh.NodeID
	var err error
	if name := req.Msg.GetId(); name != "" {
		id, err = c.named(name)
	} else {
		err = c.keeps()
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshgatev1.TransferLeadershipResponse{}), c.orAbsent(id, c.replicas.Transfer(ctx, id))
}

// Backup sends the whole state; with HeaderStale what this gateway holds of it,
// for a mesh that has lost its majority. A client that does not read holds up nobody: the
// state was frozen, and the stream has a deadline for each part.
func (c *clusterService) Backup(ctx context.Context, req *connect.Request[meshgatev1.BackupRequest], stream *connect.ServerStream[meshgatev1.BackupResponse]) error {
	if err := c.keeps(); err != nil {
		return err
	}
	w := &partWriter{stream: stream}
	write := func() error { return c.replicas.Backup(ctx, w) }
	if Stale(req.Header()) {
		write = func() error { return c.replicas.BackupStale(w) }
	}
	if err := write(); err != nil {
		return err
	}
	return w.flush()
}

// partWriter sends what is written to it in parts.
type partWriter struct {
	stream *connect.ServerStream[meshgatev1.BackupResponse]
	part   []byte
}

// Write implements io.Writer.
func (w *partWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		room := min(backupPart-len(w.part), len(p)-n)
		w.part = append(w.part, p[n:n+room]...)
		n += room
		if len(w.part) < backupPart {
			break
		}
		if err := w.flush(); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (w *partWriter) flush() error {
	if len(w.part) == 0 {
		return nil
	}
	err := w.stream.Send(&meshgatev1.BackupResponse{Data: w.part})
	w.part = w.part[:0] // Send has encoded it
	return err
}

// keeps refuses on a node that does not keep the state.
func (c *clusterService) keeps() error {
	if c.replicas == nil {
		return fmt.Errorf("%w: this node holds no state of the mesh; ask a gateway", mesh.ErrUnsupported)
	}
	return nil
}

// orAbsent says of an error that there is no such replica what to do instead.
func (c *clusterService) orAbsent(id mesh.NodeID, err error) error {
	if !errors.Is(err, mesh.ErrNotFound) {
		return err
	}
	if s := c.state.Snapshot(); s != nil && s.Node(id) != nil {
		return fmt.Errorf("%w: node %q keeps no state of the mesh; meshgate cluster status lists the gateways that do", mesh.ErrNotFound, id)
	}
	return fmt.Errorf("%w: no gateway %q keeps the state of the mesh; meshgate cluster status lists those that do", mesh.ErrNotFound, id)
}

// named is the node that a request is about.
func (c *clusterService) named(id string) (mesh.NodeID, error) {
	if err := c.keeps(); err != nil {
		return "", err
	}
	name, err := mesh.ParseNodeID(id)
	if err != nil {
		return "", fmt.Errorf("id: %w", err)
	}
	return name, nil
}
