// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Ways tells how packets of this node get to others, and tries it.
type Ways interface {
	// Ways lists the ways of this node, by the ids of their other ends.
	Ways(ctx context.Context) ([]mesh.Way, error)
	// WayTo is how packets of this node get to another one.
	WayTo(ctx context.Context, o *mesh.Node) (mesh.Way, error)
	// Locate returns what the mesh knows of a node.
	Locate(ctx context.Context, id mesh.NodeID) (*mesh.Node, error)
	// Ping asks a node for a sign of life, until ctx ends.
	Ping(ctx context.Context, o *mesh.Node) (mesh.Pong, error)
}

// RemoteWays asks other nodes over the mesh for theirs.
type RemoteWays interface {
	// RemotePaths is Paths.ListPaths of node id, which runs Meshgate.
	RemotePaths(ctx context.Context, id mesh.NodeID) (*meshgatev1.ListPathsResponse, error)
	// RemotePing is Paths.Ping of node from, which runs Meshgate. each gets its
	// answers; its error ends the call and is returned.
	RemotePing(ctx context.Context, from mesh.NodeID, r *meshgatev1.PingRequest, each func(*meshgatev1.PingResponse) error) error
}

const (
	// maxPingCount bounds the answers to one call.
	maxPingCount = 1000
	// pingEvery is the default of PingRequest.interval, and minPingEvery the least.
	pingEvery, minPingEvery = time.Second, 100 * time.Millisecond
	// maxPingTime bounds count times interval: all that may be asked for, at the
	// default interval.
	maxPingTime = maxPingCount * pingEvery
	// pingPatience is how long an answer may take.
	pingPatience = 2 * time.Second
	// untilDirect is the default of PingRequest.timeout, and maxUntilDirect the most.
	untilDirect, maxUntilDirect = 10 * time.Second, 5 * time.Minute
)

// pathsService serves meshgate.v1.Paths.
type pathsService struct {
	state   State
	ways    Ways
	remote  RemoteWays
	exits   Exits
	servers func(ctx context.Context, node string) []*v1.ICEServer
	trust   *meshgatev1.GatewayTrust
	pings   pings
}

var _ meshgatev1connect.PathsHandler = (*pathsService)(nil)

// ListPaths tells the paths of this node, or asks the node that the request names.
func (p *pathsService) ListPaths(ctx context.Context, req *connect.Request[meshgatev1.ListPathsRequest]) (*connect.Response[meshgatev1.ListPathsResponse], error) {
	id, away, err := p.other("node_id", req.Msg.GetNodeId())
	if err != nil {
		return nil, err
	}
	if away {
		list, err := p.remote.RemotePaths(ctx, id)
		if err != nil {
			return nil, err
		}
		return connect.NewResponse(list), nil
	}
	ways, err := p.ways.Ways(ctx)
	if err != nil {
		return nil, err
	}
	list := &meshgatev1.ListPathsResponse{NodeId: string(p.state.Self())}
	for _, w := range ways {
		list.Paths = append(list.Paths, wayToProto(w))
	}
	list.Exit = p.exit()
	return connect.NewResponse(list), nil
}

// other reads the name of the node that is to answer; away says that it is not
// this one, and can be asked.
func (p *pathsService) other(field, name string) (id mesh.NodeID, away bool, err error) {
	s, err := snapshot(p.state)
	if err != nil {
		return "", false, err
	}
	if name == "" || name == string(p.state.Self()) {
		return p.state.Self(), false, nil
	}
	if id, err = mesh.ParseNodeID(name); err != nil {
		return "", false, fmt.Errorf("%s: %w", field, err)
	}
	o, ok := s.Nodes.Get(id)
	if !ok {
		return "", false, fmt.Errorf("%s: %w", field, unknownNode(id))
	}
	if !o.RunsMeshgate() {
		return "", false, fmt.Errorf("%w: %s: node %q is a plain WireGuard peer, which cannot be asked", mesh.ErrPrecondition, field, id)
	}
	return id, true, nil
}

// Ping asks a node for signs of life.
func (p *pathsService) Ping(ctx context.Context, req *connect.Request[meshgatev1.PingRequest], stream *connect.ServerStream[meshgatev1.PingResponse]) error {
	plan, err := parsePing(req.Msg)
	if err != nil {
		return err
	}
	from, away, err := p.other("from_id", req.Msg.GetFromId())
	if err != nil {
		return err
	}
	leave, err := p.pings.enter(CallerFrom(ctx), p.state.Self())
	if err != nil {
		return err
	}
	defer leave()
	if away {
		asked := &meshgatev1.PingRequest{
			NodeId: req.Msg.GetNodeId(), Count: req.Msg.GetCount(), Interval: req.Msg.GetInterval(),
			UntilDirect: req.Msg.GetUntilDirect(), Timeout: req.Msg.GetTimeout(),
		}
		return p.remote.RemotePing(ctx, from, asked, stream.Send)
	}
	o, err := p.ways.Locate(ctx, plan.node)
	if err != nil {
		return err
	}
	if plan.until > 0 {
		// What ends the call is the client's wish, and no error of it.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, plan.until, errPingOver)
		defer cancel()
	}
	return p.ping(ctx, o, plan, stream.Send)
}

// errPingOver is the cause of a context whose time for a direct path is over.
var errPingOver = fmt.Errorf("%w: no direct path came in time", context.DeadlineExceeded)

// pingPlan is a PingRequest as it is understood.
type pingPlan struct {
	node  mesh.NodeID
	count uint32 // 0: as often as it takes
	every time.Duration
	until time.Duration // 0: it does not end with a direct path
}

func parsePing(m *meshgatev1.PingRequest) (pingPlan, error) {
	p := pingPlan{count: max(m.GetCount(), 1), every: pingEvery}
	if m.GetNodeId() == "" {
		return p, fmt.Errorf("%w: node_id is empty; name the node that is to answer", mesh.ErrInvalid)
	}
	p.node = mesh.NodeID(m.GetNodeId())
	if _, err := netip.ParseAddr(m.GetNodeId()); err != nil { // Locate takes addresses, too
		if _, err := mesh.ParseNodeID(m.GetNodeId()); err != nil {
			return p, fmt.Errorf("node_id: %w", err)
		}
	}
	if m.GetCount() > maxPingCount {
		return p, fmt.Errorf("%w: count %d: at most %d", mesh.ErrInvalid, m.GetCount(), maxPingCount)
	}
	if m.GetInterval() != nil {
		if p.every = m.GetInterval().AsDuration(); !m.GetInterval().IsValid() || p.every < minPingEvery || p.every > maxUntilDirect {
			return p, fmt.Errorf("%w: interval %s: between %s and %s", mesh.ErrInvalid, p.every, minPingEvery, maxUntilDirect)
		}
	}
	if took := time.Duration(p.count) * p.every; took > maxPingTime && !m.GetUntilDirect() {
		return p, fmt.Errorf("%w: interval %s: %d answers take %s, more than %s; ask for fewer", mesh.ErrInvalid, p.every, p.count, took, maxPingTime)
	}
	if m.GetUntilDirect() {
		p.count, p.until = m.GetCount(), untilDirect
		if m.GetTimeout() != nil {
			p.until = m.GetTimeout().AsDuration()
		}
		if m.GetTimeout() != nil && !m.GetTimeout().IsValid() || p.until <= 0 || p.until > maxUntilDirect {
			return p, fmt.Errorf("%w: timeout %s: more than 0, and at most %s", mesh.ErrInvalid, p.until, maxUntilDirect)
		}
	}
	return p, nil
}

// ping asks o as plan says.
func (p *pathsService) ping(ctx context.Context, o *mesh.Node, plan pingPlan, send func(*meshgatev1.PingResponse) error) error {
	ticker := time.NewTicker(plan.every)
	defer ticker.Stop()
	for n := uint32(1); ; n++ {
		m, err := p.once(ctx, o, n)
		if err != nil {
			return err
		}
		if err := send(m); err != nil {
			return err
		}
		direct := m.GetRoundTrip() != nil && m.GetPath().GetKind() == meshgatev1.PathKind_PATH_KIND_DIRECT
		if n == plan.count || n == maxPingCount || plan.until > 0 && direct {
			return nil
		}
		select {
		case <-ctx.Done():
			if context.Cause(ctx) == errPingOver { //nolint:errorlint // it is the very value
				return nil
			}
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// once asks o for one sign of life. That none came is an answer, too.
func (p *pathsService) once(ctx context.Context, o *mesh.Node, n uint32) (*meshgatev1.PingResponse, error) {
	m := &meshgatev1.PingResponse{NodeId: string(o.ID), Sequence: n}
	asked, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingPatience)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if context.Cause(ctx) != errPingOver { //nolint:errorlint // the last answer may still come
			cancel()
		}
	})()
	pong, err := p.ways.Ping(asked, o)
	if pong.Address.IsValid() {
		m.Address = pong.Address.String()
	}
	switch {
	case err == nil:
		m.RoundTrip = durationpb.New(pong.RTT)
	case !pong.Address.IsValid(), ctx.Err() != nil && asked.Err() == context.Canceled: //nolint:errorlint // of a context
		return nil, err // it cannot be asked at all, or nobody waits
	default:
		m.Reason = publicText(err)
	}
	way, err := p.ways.WayTo(context.WithoutCancel(ctx), o)
	if err != nil {
		return nil, err
	}
	m.Path = wayToProto(way)
	return m, nil
}

// publicText is an error as callers may read it.
func publicText(err error) string {
	if code(err) == connect.CodeInternal {
		return "no answer; the log of the node that asked says more"
	}
	return err.Error()
}

// ListServers names the servers with which the caller can test its network.
func (p *pathsService) ListServers(ctx context.Context, _ *connect.Request[meshgatev1.ListServersRequest]) (*connect.Response[meshgatev1.ListServersResponse], error) {
	s, err := snapshot(p.state)
	if err != nil {
		return nil, err
	}
	list, caller := &meshgatev1.ListServersResponse{}, CallerFrom(ctx)
	if caller.Local {
		list.Trust = p.trust
	}
	if p.servers != nil {
		if caller.Allowed != nil {
			if err := caller.Allowed(); err != nil {
				caller.ID, list.NoCredential = "", publicText(err)
			}
		}
		list.IceServers = p.servers(ctx, caller.ID)
	}
	for g := range s.Nodes.Gateways() {
		ports := &meshgatev1.GatewayPorts{Id: string(g.ID), ApiUrl: g.API.URL}
		if g.API.Pin != [sha256.Size]byte{} {
			ports.ApiPin = fmt.Sprintf("sha256:%x", g.API.Pin)
		}
		for _, at := range g.WireGuardEndpoints {
			ports.WireguardEndpoints = append(ports.WireguardEndpoints, at.String())
		}
		list.Gateways = append(list.Gateways, ports)
	}
	return connect.NewResponse(list), nil
}

// wayToProto is a way as the API shows it.
func wayToProto(w mesh.Way) *meshgatev1.Path {
	m := &meshgatev1.Path{NodeId: string(w.Node), Via: w.Via, Transport: w.Transport, Reason: w.Why}
	switch w.Kind {
	case mesh.DirectWay:
		m.Kind = meshgatev1.PathKind_PATH_KIND_DIRECT
	case mesh.RelayedWay:
		m.Kind = meshgatev1.PathKind_PATH_KIND_RELAYED
	case mesh.CarriedWay:
		m.Kind = meshgatev1.PathKind_PATH_KIND_CARRIED
	default:
		m.Kind = meshgatev1.PathKind_PATH_KIND_NONE
	}
	if w.Remote.IsValid() {
		m.Address = w.Remote.String()
	}
	if w.RTT > 0 {
		m.RoundTrip = durationpb.New(w.RTT)
	}
	if !w.Since.IsZero() {
		m.Since = timestamppb.New(w.Since)
	}
	return m
}
