// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Destination decides where a connection that caller opens through this node
// may go. target is the node the caller asked for: this node, or a stock
// WireGuard peer that this node answers for. host is an address, a node id,
// "localhost" or empty (the target itself).
//
// Reachable are ports that this node exposes, mesh addresses that network ACLs
// accept for the caller, and networks behind the target's routes that they
// accept. Everything else is refused: loopback, link-local and metadata
// addresses, names of the host's own resolver, and every port on which a node
// of the mesh serves the mesh itself, since a call from here would carry this
// node's authority.
//
// Errors wrap mesh.ErrInvalid, mesh.ErrNotFound or mesh.ErrDenied.
func (n *Node) Destination(caller string, target mesh.NodeID, network, host string, port uint16) (netip.AddrPort, error) {
	if network != "tcp" && network != "udp" {
		return netip.AddrPort{}, fmt.Errorf("%w: protocol %q; want tcp or udp", mesh.ErrInvalid, network)
	}
	if port == 0 {
		return netip.AddrPort{}, fmt.Errorf("%w: port 0; want 1 to 65535", mesh.ErrInvalid)
	}
	s := n.Snapshot()
	if s == nil {
		return netip.AddrPort{}, n.Healthy()
	}
	through, ok := s.Nodes.Get(target)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%w: no node %q in the mesh", mesh.ErrNotFound, target)
	}
	owner, addr, err := n.locate(s, through, host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	at := netip.AddrPortFrom(addr, port)
	if owner.ID == n.cfg.ID && s.Contains(addr) {
		if !n.exposes(network, port) {
			return netip.AddrPort{}, fmt.Errorf("%w: node %q does not expose %s port %d; start it with --expose %s:%d=HOST:PORT",
				mesh.ErrDenied, owner.ID, network, port, network, port)
		}
	} else if err := controlPort(owner, network, port); err != nil {
		return netip.AddrPort{}, err
	}
	protocol, err := mesh.ParseProtocol(network)
	if err != nil {
		return netip.AddrPort{}, err
	}
	d := n.networkOf(s).Decide(policy.Flow{SrcNode: caller, DstNode: owner.ID, Dst: addr, Protocol: protocol, Port: port})
	if !d.Allowed {
		return netip.AddrPort{}, fmt.Errorf("%w: no network ACL lets %q reach %s port %d of %s on node %q", mesh.ErrDenied, caller, network, port, addr, owner.ID)
	}
	return at, nil
}

// compiledACLs are the ACLs of a snapshot, which many connections ask for.
type compiledACLs struct {
	snapshot *mesh.Snapshot
	network  *policy.Network
}

// networkOf returns the compiled ACLs of s.
func (n *Node) networkOf(s *mesh.Snapshot) *policy.Network {
	if c := n.acls.Load(); c != nil && c.snapshot == s {
		return c.network
	}
	c := &compiledACLs{snapshot: s, network: policy.Compile(s)}
	n.acls.Store(c)
	return c.network
}

// locate finds the address that host means and the node that owns it.
func (n *Node) locate(s *mesh.Snapshot, through *mesh.Node, host string) (*mesh.Node, netip.Addr, error) {
	if host == "" || host == "localhost" {
		return first(through)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		named, ok := s.Nodes.Get(mesh.NodeID(host))
		if !ok {
			return nil, netip.Addr{}, fmt.Errorf("%w: host %q is neither an address nor a node of the mesh", mesh.ErrInvalid, host)
		}
		if named.ID != through.ID && n.members == nil {
			return nil, netip.Addr{}, notBehind(through, host)
		}
		return first(named)
	}
	if addr.Zone() != "" {
		return nil, netip.Addr{}, fmt.Errorf("%w: host %q: an address with a zone", mesh.ErrInvalid, host)
	}
	addr = addr.Unmap()
	if addr.IsLoopback() {
		// "the machine itself" means the target's exposed ports, never the
		// loopback interface of whoever dials.
		return first(through)
	}
	if s.Contains(addr) {
		owner, ok := s.NodeByAddr(addr)
		if !ok || (owner.ID != through.ID && n.members == nil) {
			return nil, netip.Addr{}, notBehind(through, host)
		}
		return owner, addr, nil
	}
	for _, r := range s.Routes {
		if r.Node == string(through.ID) && routable(addr) {
			for _, p := range r.Destinations {
				if p.Contains(addr) {
					return through, addr, nil
				}
			}
		}
	}
	return nil, netip.Addr{}, notBehind(through, host)
}

// first is a node with the address to dial it at.
func first(o *mesh.Node) (*mesh.Node, netip.Addr, error) {
	addrs := o.Addrs()
	if len(addrs) == 0 {
		return nil, netip.Addr{}, fmt.Errorf("%w: node %q has no mesh address", mesh.ErrPrecondition, o.ID)
	}
	return o, addrs[0], nil
}

func notBehind(through *mesh.Node, host string) error {
	return fmt.Errorf("%w: %s is not reachable through node %q: it is neither a node of the mesh nor in a route of that node", mesh.ErrDenied, host, through.ID)
}

// routable reports whether a routed network may hold addr: no address that
// means "this machine" or "this link" wherever it is used.
func routable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() && !a.IsLoopback() && !a.IsMulticast()
}

// controlPort refuses the ports on which a node serves the mesh itself.
func controlPort(owner *mesh.Node, network string, port uint16) error {
	for _, f := range owner.Features {
		if f.Port == port {
			return fmt.Errorf("%w: %s port %d of node %q serves the mesh itself (%s)", mesh.ErrDenied, network, port, owner.ID, f.Kind)
		}
	}
	return nil
}

// exposes reports whether this node exposes a port.
func (n *Node) exposes(network string, port uint16) bool {
	_, ok := n.exposedAt(network, port)
	return ok
}

func (n *Node) exposedAt(network string, port uint16) (Expose, bool) {
	for _, e := range n.cfg.Expose {
		if e.Protocol == network && e.Port == port {
			return e, true
		}
	}
	return Expose{}, false
}

// DialContext connects into the mesh: to "address:port" of a mesh address
// through WireGuard, to an exposed port of the node itself, or to a network
// behind this node through the host. It resolves no names and decides no
// policy; see Destination.
func (n *Node) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: dial %q: want an address and a port", mesh.ErrInvalid, address)
	}
	s := n.Snapshot()
	if s == nil {
		return nil, n.Healthy()
	}
	if self, ok := s.Nodes.Get(n.cfg.ID); ok && owns(self, at.Addr()) {
		e, ok := n.exposedAt(network, at.Port())
		if !ok {
			return nil, fmt.Errorf("%w: %s port %d is not exposed here", mesh.ErrDenied, network, at.Port())
		}
		return dialHost(ctx, e)
	}
	if !s.Contains(at.Addr()) && n.routes(s, at.Addr()) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	return n.device.DialContext(ctx, network, address)
}

// routes reports whether addr lies in a network that this node itself offers.
func (n *Node) routes(s *mesh.Snapshot, addr netip.Addr) bool {
	for _, r := range s.Routes {
		if r.Node != string(n.cfg.ID) {
			continue
		}
		for _, p := range r.Destinations {
			if p.Contains(addr) {
				return true
			}
		}
	}
	return false
}

// Listen opens a TCP port on one of the node's mesh addresses, for the mesh only.
func (n *Node) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	return n.device.Listen(ctx, network, address)
}

// ListenPacket opens a UDP port on one of the node's mesh addresses.
func (n *Node) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	return n.device.ListenPacket(ctx, network, address)
}

// owns reports whether addr is one of the node's own addresses.
func owns(o *mesh.Node, addr netip.Addr) bool {
	for _, a := range o.Addrs() {
		if a == addr.Unmap() {
			return true
		}
	}
	return false
}

// RPCAddress is where node id serves the RPCs of the mesh to other nodes.
func (n *Node) RPCAddress(id mesh.NodeID) (netip.AddrPort, error) {
	s := n.Snapshot()
	if s == nil {
		return netip.AddrPort{}, n.Healthy()
	}
	o, ok := s.Nodes.Get(id)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%w: no node %q in the mesh", mesh.ErrNotFound, id)
	}
	port, ok := o.FeaturePort(v1.Feature_NODES)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%w: node %q runs no Meshgate", mesh.ErrPrecondition, id)
	}
	_, addr, err := first(o)
	return netip.AddrPortFrom(addr, port), err
}

// RemoteStatus asks another node of the mesh how it is.
func (n *Node) RemoteStatus(ctx context.Context, id mesh.NodeID) (*v1.Status, error) {
	at, err := n.RPCAddress(id)
	if err != nil {
		return nil, err
	}
	s, err := n.peers.Status(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("ask node %q: %w", id, err)
	}
	return s, nil
}

// Peers makes clients of other nodes over the mesh.
func (n *Node) Peers() *peer.Peers { return n.peers }
