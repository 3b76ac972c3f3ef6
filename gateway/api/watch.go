// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

const (
	// linkInterval is how often a watcher's links are compared. WireGuard tells
	// of no change by itself, so this one thing is polled; the mesh is not.
	linkInterval = time.Second
	// counterInterval is the least time between two messages that differ in
	// byte counters and handshake times only.
	counterInterval = 5 * time.Second
	// electionPatience is how long there is no leader before watchers are told:
	// an election takes a second or two.
	electionPatience = 5 * time.Second
)

// watchService serves meshgate.v1.Watch.
type watchService struct {
	state State
	links *links
	// presences knows which nodes are up.
	presences *presences
	// replicas is nil on a node that keeps no state.
	replicas Replicas
	early    bool
}

var _ meshgatev1connect.WatchHandler = (*watchService)(nil)

// WatchMesh sends the mesh at once and after each change, until the client
// goes. While the client does not read, nothing is queued: it gets the latest
// state when it reads again.
func (w *watchService) WatchMesh(ctx context.Context, _ *connect.Request[meshgatev1.WatchMeshRequest], stream *connect.ServerStream[meshgatev1.WatchMeshResponse]) error {
	s, err := snapshot(w.state)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	next, rolls := w.follow(ctx, s.Version), w.attend(ctx)
	defer func() {
		cancel()
		for range next { // wait for follow to end
		}
		for range rolls {
		}
	}()
	roll := rolls      // nil once there are no more
	presence := <-roll // whoever asks once wants it
	ticker := time.NewTicker(linkInterval)
	defer ticker.Stop()
	var sent *meshgatev1.WatchMeshResponse
	var sentAt time.Time
	var barred barring
	var led time.Time
	if !w.early { // one that is has waited before somebody watched
		led = time.Now()
	}
	for {
		links, err := w.linksOf(ctx, s)
		if err != nil {
			return err
		}
		now := time.Now()
		excuse(links, presence, now)
		if w.replicas == nil || w.replicas.Leads() {
			led = now
		}
		leaderless := now.Sub(led) >= electionPatience
		if sent == nil || sent.GetVersion() != s.Version || sent.GetLeaderless() != leaderless || changed(sent, links, presence, now.Sub(sentAt) >= counterInterval) {
			sent, sentAt = w.message(s, links), now
			sent.Barred = barred.of(s, w.state.Self())
			sent.Presence = presence
			sent.Leaderless = leaderless
			if err := stream.Send(sent); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case newer, ok := <-next:
			if !ok {
				return fmt.Errorf("follow the mesh: %w", context.Cause(ctx))
			}
			s = newer
		case list, ok := <-roll:
			if !ok {
				roll = nil
			} else {
				presence = list
			}
		case <-ticker.C:
		}
	}
}

// follow delivers the latest snapshot after version whenever the receiver is
// ready; those in between are skipped. The channel closes when ctx ends or the
// node stops.
func (w *watchService) follow(ctx context.Context, version uint64) <-chan *mesh.Snapshot {
	out := make(chan *mesh.Snapshot)
	go func() {
		defer close(out)
		for {
			s, err := w.state.Wait(ctx, version)
			if err != nil {
				return
			}
			version = s.Version
			select {
			case out <- s:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// attend delivers which nodes are up at once, nil where nobody knows, and again
// presenceAge later whenever the receiver is ready. The channel closes when ctx ends.
func (w *watchService) attend(ctx context.Context) <-chan []*meshgatev1.NodePresence {
	out := make(chan []*meshgatev1.NodePresence)
	go func() {
		defer close(out)
		tick := time.NewTicker(presenceAge)
		defer tick.Stop()
		for {
			var list []*meshgatev1.NodePresence
			if !w.early {
				list, _ = w.presences.all(ctx) // who watches the mesh wants it without, too
			}
			select {
			case out <- list:
			case <-ctx.Done():
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (w *watchService) linksOf(ctx context.Context, s *mesh.Snapshot) ([]*meshgatev1.Link, error) {
	stats, ways, err := w.links.all(ctx)
	if err != nil {
		return nil, fmt.Errorf("read interface statistics: %w", err)
	}
	return linksToProto(s, stats, ways, time.Now()), nil
}

func (w *watchService) message(s *mesh.Snapshot, links []*meshgatev1.Link) *meshgatev1.WatchMeshResponse {
	return &meshgatev1.WatchMeshResponse{
		Version:    s.Version,
		GatewayId:  string(w.state.Self()),
		MeshDomain: strings.TrimSuffix(s.Domain, "."),
		Nodes:      nodesToProto(s),
		Edges:      edgesToProto(s),
		Links:      links,
	}
}

// excuse says of links that rest that this is all: without a packet there is no
// handshake, and the node is up.
func excuse(links []*meshgatev1.Link, presence []*meshgatev1.NodePresence, now time.Time) {
	up := make(map[string]bool, len(presence))
	for _, m := range presence {
		up[m.GetNodeId()] = m.GetState() == meshgatev1.PresenceState_PRESENCE_STATE_UP
	}
	for _, l := range links {
		if !up[l.GetNodeId()] || l.GetPath().GetKind() != meshgatev1.PathKind_PATH_KIND_NONE {
			continue
		}
		switch at := l.GetLastHandshake(); {
		case l.GetOnline():
			l.Path = nil // what was known of it is older than the handshake
		case at != nil:
			l.Path.Kind = meshgatev1.PathKind_PATH_KIND_UNSPECIFIED
			l.Path.Reason = "nothing was sent for " + strings.TrimSuffix(now.Sub(at.AsTime()).Truncate(time.Minute).String(), "0s")
		case l.GetTransmitBytes() == 0:
			l.Path.Kind, l.Path.Reason = meshgatev1.PathKind_PATH_KIND_UNSPECIFIED, "nothing was sent yet"
		}
	}
}

// changed reports whether links or presence are other than what was sent, counters
// and times included or not.
func changed(sent *meshgatev1.WatchMeshResponse, links []*meshgatev1.Link, presence []*meshgatev1.NodePresence, counters bool) bool {
	return linksChanged(sent.GetLinks(), links, counters) || presenceChanged(sent.GetPresence(), presence, counters)
}

// presenceChanged is linksChanged for presence.
func presenceChanged(a, b []*meshgatev1.NodePresence, counters bool) bool {
	return !slices.EqualFunc(a, b, func(x, y *meshgatev1.NodePresence) bool {
		if counters {
			return proto.Equal(x, y)
		}
		return x.GetNodeId() == y.GetNodeId() && x.GetState() == y.GetState() && x.GetStopped() == y.GetStopped() && x.GetGatewayId() == y.GetGatewayId()
	})
}

// linksChanged compares two lists sorted by node. Without counters it looks at
// what people act on only: which peers there are, online or not, and by what way.
func linksChanged(a, b []*meshgatev1.Link, counters bool) bool {
	return !slices.EqualFunc(a, b, func(x, y *meshgatev1.Link) bool {
		if counters {
			return proto.Equal(x, y)
		}
		return x.GetNodeId() == y.GetNodeId() && x.GetOnline() == y.GetOnline() && x.GetEndpoint() == y.GetEndpoint() &&
			samePath(x.GetPath(), y.GetPath())
	})
}

// samePath reports whether two paths are the same to people; both may be nil.
func samePath(x, y *meshgatev1.Path) bool {
	return x.GetKind() == y.GetKind() && x.GetVia() == y.GetVia() && x.GetTransport() == y.GetTransport() && x.GetAddress() == y.GetAddress()
}
