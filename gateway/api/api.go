// SPDX-License-Identifier: Apache-2.0

// Package api serves the v1 services: it decodes a request, calls the node or
// the signaling service, and encodes the answer. Who may call what is decided
// before, by package gateway.
package api

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// State is the mesh as this node sees it.
type State interface {
	// Self is the id of this node.
	Self() mesh.NodeID
	// Snapshot is the latest state; nil before the node is in the mesh.
	Snapshot() *mesh.Snapshot
	// Sync returns a snapshot that has every change acknowledged to anyone
	// before the call. It waits for a leader, but not for long.
	Sync(ctx context.Context) (*mesh.Snapshot, error)
	// Wait blocks until there is a snapshot with a Version above after.
	Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error)
	// Plan is what the data plane of node id should be in s.
	Plan(s *mesh.Snapshot, id mesh.NodeID) (mesh.Plan, error)
}

// Members changes who is in the mesh. On a node that holds no state every
// method returns an error that wraps mesh.ErrUnsupported.
type Members interface {
	// Join makes a node a member; the returned snapshot holds it.
	Join(ctx context.Context, r mesh.JoinRequest) (*mesh.Snapshot, error)
	// Update changes the fields of a member that are not empty in r.
	Update(ctx context.Context, r mesh.UpdateRequest) error
	// Adopt makes this gateway the one that a member is reached through; the
	// returned snapshot has it.
	Adopt(ctx context.Context, id mesh.NodeID) (*mesh.Snapshot, error)
	// Leave removes a member, or frees the id of one that is gone. An id of which
	// nothing is left is an error that wraps mesh.ErrNotFound.
	Leave(ctx context.Context, id mesh.NodeID) error
	// LeaveBound is Leave, but the id stays bound to its key.
	LeaveBound(ctx context.Context, id mesh.NodeID) error
}

// Links tells how this node's WireGuard peers are doing.
type Links interface {
	// Stats are the counters of the WireGuard interface.
	Stats() (mesh.InterfaceStats, error)
}

// Remote asks other nodes over the mesh.
type Remote interface {
	// RemoteStatus is Node.GetStatus of node id, which runs Meshgate.
	RemoteStatus(ctx context.Context, id mesh.NodeID) (*v1.Status, error)
}

// Build describes the running program.
type Build struct {
	Version, Commit, Date string
}

// Config is what the services work with.
type Config struct {
	// State, Members, Objects, Keys, Links, Remote, Ways, RemoteWays, Signaling and
	// Pairs are required.
	State   State
	Members Members
	Objects Objects
	Keys    Keys
	Links   Links
	Remote  Remote
	// Ways are those of this node, and RemoteWays of others.
	Ways       Ways
	RemoteWays RemoteWays
	// Exits is how this node uses an exit; nil: it cannot use one.
	Exits     Exits
	Signaling Signaling
	// Presence asks others which nodes are up; nil: nobody is asked.
	Presence RemotePresence
	// Cluster is the nodes that keep the state; nil: this node alone.
	Cluster Cluster
	// Replicas changes which they are; nil where no state is kept.
	Replicas Replicas
	// Early says that the gateway does not serve yet: nobody leads as long as
	// Replicas does not say so.
	Early bool
	// Store is the state itself; nil where none is kept. Requests to it may have
	// MaxStoreMessage bytes.
	Store Store
	// Tokens are those of the mesh; nil where no state is kept.
	Tokens Tokens
	// Pairs says who may be a pair.
	Pairs PairPlans
	// RelayServers mints STUN and TURN servers of the mesh for a node or a user,
	// with credentials, and for nobody ("") those of STUN; nil: there are none.
	RelayServers func(ctx context.Context, node string) []*v1.ICEServer
	// Trust is what ListServers tells the operator of this host; may be nil.
	Trust *meshgatev1.GatewayTrust
	// Relays is the TURN server of this gateway; nil: it has none. RemoteRelays
	// asks other gateways for theirs; nil: nobody is asked.
	Relays       Relays
	RemoteRelays RemoteRelays
	// Build is shown by Node.GetStatus; empty fields stay empty.
	Build Build
}

// Validate names the required field that is missing.
func (c *Config) Validate() error {
	switch {
	case c.State == nil:
		return errors.New("api: Config.State is nil")
	case c.Members == nil:
		return errors.New("api: Config.Members is nil")
	case c.Objects == nil:
		return errors.New("api: Config.Objects is nil")
	case c.Keys == nil:
		return errors.New("api: Config.Keys is nil")
	case c.Links == nil:
		return errors.New("api: Config.Links is nil")
	case c.Remote == nil:
		return errors.New("api: Config.Remote is nil")
	case c.Ways == nil:
		return errors.New("api: Config.Ways is nil")
	case c.RemoteWays == nil:
		return errors.New("api: Config.RemoteWays is nil")
	case c.Signaling == nil:
		return errors.New("api: Config.Signaling is nil")
	case c.Pairs == nil:
		return errors.New("api: Config.Pairs is nil")
	}
	return nil
}

// Service is one RPC service, ready to be mounted.
type Service struct {
	// Name is the full protobuf name, such as "v1.Node".
	Name string
	// Path is "/" + Name + "/".
	Path    string
	Handler http.Handler
	// Unimplemented is true for a service whose every answer says that it is
	// not served here.
	Unimplemented bool
}

// Services makes the handlers of every service of the API, each built with opts,
// which bound what clients send.
func Services(cfg Config, opts ...connect.HandlerOption) ([]Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	links := &links{source: cfg.Links, ways: cfg.Ways}
	presences := newPresences(&cfg, links)
	membership := &membershipService{
		state: cfg.State, members: cfg.Members, cluster: cfg.Cluster, servers: cfg.RelayServers, attendance: &presences.attendance,
	}
	pairs := &pairsService{plans: cfg.Pairs, servers: cfg.RelayServers, membership: membership}
	ways := &pathsService{state: cfg.State, ways: cfg.Ways, remote: cfg.RemoteWays, exits: cfg.Exits, servers: cfg.RelayServers, trust: cfg.Trust}
	return append(unimplemented(opts),
		late(v1connect.NodeName, v1connect.NewNodeHandler, opts)(&nodeService{Config: cfg, links: links, presences: presences, started: time.Now()}),
		late(v1connect.MeshName, v1connect.NewMeshHandler, opts)(&meshService{state: cfg.State}),
		late(v1connect.AdminName, v1connect.NewAdminHandler, opts)(&adminService{state: cfg.State, objects: cfg.Objects}),
		late(meshgatev1connect.ObjectsName, meshgatev1connect.NewObjectsHandler, opts)(&objectsService{objects: cfg.Objects}),
		late(v1connect.StorageQueryServiceName, v1connect.NewStorageQueryServiceHandler, opts)(&queryService{state: cfg.State, keys: cfg.Keys}),
		inShifts(late(v1connect.MembershipName, v1connect.NewMembershipHandler, opts)(membership)),
		inShifts(late(meshgatev1connect.PairsName, meshgatev1connect.NewPairsHandler, opts)(pairs)),
		late(v1connect.WebRTCName, v1connect.NewWebRTCHandler, opts)(&webRTCService{signaling: cfg.Signaling}),
		late(meshgatev1connect.ClusterName, meshgatev1connect.NewClusterHandler, opts)(&clusterService{state: cfg.State, replicas: cfg.Replicas}),
		late(meshgatev1connect.EnrolmentName, meshgatev1connect.NewEnrolmentHandler, opts)(&enrolmentService{state: cfg.State, membership: membership}),
		NewStoreHandler(cfg.Store, opts...),
		late(meshgatev1connect.TokensName, meshgatev1connect.NewTokensHandler, opts)(&tokensService{tokens: cfg.Tokens}),
		late(meshgatev1connect.PathsName, meshgatev1connect.NewPathsHandler, opts)(ways),
		late(meshgatev1connect.PresenceName, meshgatev1connect.NewPresenceHandler, opts)(&presenceService{presences}),
		late(meshgatev1connect.TurnName, meshgatev1connect.NewTurnHandler, opts)(
			&turnService{state: cfg.State, relays: cfg.Relays, remote: cfg.RemoteRelays}),
		late(meshgatev1connect.WatchName, meshgatev1connect.NewWatchHandler, opts)(
			&watchService{state: cfg.State, links: links, presences: presences, replicas: cfg.Replicas, early: cfg.Early}),
	), nil
}

// late makes a service of which the handler is made when it is first called. It takes
// some 20 KiB, and of most services a member of a mesh is never asked for one.
func late[H any](name string, make func(H, ...connect.HandlerOption) (string, http.Handler), opts []connect.HandlerOption) func(H) Service {
	return func(service H) Service {
		handler := sync.OnceValue(func() http.Handler {
			_, h := make(service, opts...)
			return h
		})
		return Service{Name: name, Path: "/" + name + "/", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handler().ServeHTTP(w, r)
		})}
	}
}

// inShifts has the answers of a service end shifts.
func inShifts(s Service) Service {
	s.Handler = endShifts(s.Handler)
	return s
}

// snapshot returns the state, or why there is none yet.
func snapshot(s State) (*mesh.Snapshot, error) {
	snap := s.Snapshot()
	if snap == nil {
		return nil, errNotReady
	}
	return snap, nil
}
