// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Cluster is the nodes that keep the state of the mesh. Errors wrap those of
// package mesh.
type Cluster interface {
	// AddVoter makes a member a voter. The storage reaches it at address,
	// "host:port". An observer is promoted.
	AddVoter(ctx context.Context, id mesh.NodeID, address string) error
	// AddObserver makes a member keep the state without a vote.
	AddObserver(ctx context.Context, id mesh.NodeID, address string) error
	// Servers are the nodes that keep the state, this one included, as far as
	// this one knows. It does not wait.
	Servers() []StorageServer
}

// StorageServer is a node that keeps the state.
type StorageServer struct {
	ID mesh.NodeID
	// Status is CLUSTER_LEADER, CLUSTER_VOTER or CLUSTER_OBSERVER.
	Status v1.ClusterStatus
	// Address is where the storage listens, "host:port".
	Address string
}

// seat is the part in the storage that a request asks for.
type seat struct {
	voter, observer bool
	preferIPv6      bool
}

// checkSeat refuses what can be told before the state is changed. features are
// those that the node will have.
func (m *membershipService) checkSeat(want seat, features []mesh.Feature) error {
	switch {
	case !want.voter && !want.observer:
		return nil
	case want.voter && want.observer:
		return fmt.Errorf("%w: as_voter and as_observer exclude each other; ask for one of them", mesh.ErrInvalid)
	case m.cluster == nil:
		return fmt.Errorf("%w: this gateway runs a single voter; leave out as_voter and as_observer, or start the gateway as part of a cluster", mesh.ErrPrecondition)
	}
	if _, ok := (&mesh.Node{Features: features}).FeaturePort(v1.Feature_STORAGE_PROVIDER); !ok {
		return fmt.Errorf("%w: features: a node that is to keep the state needs STORAGE_PROVIDER with the port of its storage", mesh.ErrInvalid)
	}
	return nil
}

// checkKeepsSeat refuses features that would take from a node that keeps the
// state what makes it a gateway to the others: they would not let it into the
// storage any more, and no majority might be left to let it in again. Only the
// node itself, over the mesh, may say that it is none.
func (m *membershipService) checkKeepsSeat(ctx context.Context, id mesh.NodeID, features []mesh.Feature) error {
	if n := CallerFrom(ctx).Node; n != nil && n.ID == id {
		return nil
	}
	s, err := whole(ctx, m.state)
	if err != nil {
		return err
	}
	old, ok := s.Nodes.Get(id)
	if !ok || !m.seated(s, id) {
		return nil
	}
	will := &mesh.Node{Features: features}
	for _, kind := range []v1.Feature{v1.Feature_STORAGE_PROVIDER, v1.Feature_MEMBERSHIP} {
		if old.HasFeature(kind) && !will.HasFeature(kind) {
			return fmt.Errorf("%w: features: %q keeps the state of the mesh and cannot lose %s; name it, too, or remove the node from the storage first (meshgate cluster remove)",
				mesh.ErrPrecondition, id, kind)
		}
	}
	return nil
}

// seated reports whether a node keeps the state: alone, or as one of several.
func (m *membershipService) seated(s *mesh.Snapshot, id mesh.NodeID) bool {
	if m.cluster == nil {
		return id == m.state.Self()
	}
	_, ok := m.serverOf(s, id)
	return ok
}

// takeSeat gives a member the seat that it asked for. The member stays one when
// that fails; asking again is safe.
func (m *membershipService) takeSeat(ctx context.Context, want seat, n *mesh.Node) error {
	if !want.voter && !want.observer {
		return nil
	}
	address, err := storageAddress(n, want.preferIPv6)
	if err != nil {
		return err
	}
	add, field := m.cluster.AddObserver, "as_observer"
	if want.voter {
		add, field = m.cluster.AddVoter, "as_voter"
	}
	if err := add(ctx, n.ID, address); err != nil {
		return fmt.Errorf("%s: node %q is a member, but not in the storage yet; ask again: %w", field, n.ID, err)
	}
	return nil
}

// storageAddress is where the storage of n is reached: at its primary endpoint,
// so that the storage does not depend on the tunnels that it configures, else
// in the mesh. Who prefers IPv6 is not reached at an IPv4 address.
func storageAddress(n *mesh.Node, preferIPv6 bool) (string, error) {
	port, ok := n.FeaturePort(v1.Feature_STORAGE_PROVIDER)
	if !ok {
		return "", fmt.Errorf("%w: node %q has no feature STORAGE_PROVIDER with a port", mesh.ErrPrecondition, n.ID)
	}
	host := n.PrimaryEndpoint
	if addr, err := netip.ParseAddr(host); host == "" || (err == nil && addr.Is4() && preferIPv6) {
		own := n.IPv6.Addr()
		if n.IPv4.IsValid() && !preferIPv6 {
			own = n.IPv4.Addr()
		}
		host = own.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// storageServers are the nodes that keep the state: without a cluster, this one.
func (m *membershipService) storageServers(s *mesh.Snapshot) []StorageServer {
	if m.cluster != nil {
		return m.cluster.Servers()
	}
	self := s.Node(m.state.Self())
	server := StorageServer{ID: self.ID, Status: v1.ClusterStatus_CLUSTER_LEADER}
	port, ok := self.FeaturePort(v1.Feature_STORAGE_PROVIDER)
	if !ok {
		port, _ = self.FeaturePort(v1.Feature_MEMBERSHIP)
	}
	if addrs := self.Addrs(); len(addrs) > 0 {
		server.Address = netip.AddrPortFrom(addrs[0], port).String()
	}
	return []StorageServer{server}
}

// serverOf returns the part of a node in the storage.
func (m *membershipService) serverOf(s *mesh.Snapshot, id mesh.NodeID) (StorageServer, bool) {
	for _, server := range m.storageServers(s) {
		if server.ID == id {
			return server, true
		}
	}
	return StorageServer{}, false
}
