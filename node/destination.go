// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/wg"
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
// addresses, names of the host's own resolver, ports of this host that are not
// exposed, though a route may hold its address, and every port on which a node
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
	to, err := n.locate(s, through, host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if to.here {
		if !n.exposes(network, port) {
			return netip.AddrPort{}, notExposed(n.cfg.ID, network, port)
		}
	} else if err := controlPort(to.owner, network, port); err != nil {
		return netip.AddrPort{}, err
	}
	protocol, err := mesh.ParseProtocol(network)
	if err != nil {
		return netip.AddrPort{}, err
	}
	d := n.networkOf(s).Decide(policy.Flow{SrcNode: caller, DstNode: to.owner.ID, Dst: to.addr, Protocol: protocol, Port: port})
	if !d.Allowed {
		return netip.AddrPort{}, fmt.Errorf("%w: no network ACL lets %q reach %s port %d of %s on node %q", mesh.ErrDenied, caller, network, port, to.addr, to.owner.ID)
	}
	return netip.AddrPortFrom(to.addr, port), nil
}

// place is where a connection goes.
type place struct {
	// owner is the node that the address belongs to, or that routes to it.
	owner *mesh.Node
	addr  netip.Addr
	// here is true for this node itself, under whatever address.
	here bool
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
func (n *Node) locate(s *mesh.Snapshot, through *mesh.Node, host string) (place, error) {
	if host == "" || host == "localhost" {
		return n.first(through)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return n.named(s, through, host)
	}
	if addr.Zone() != "" {
		return place{}, fmt.Errorf("%w: host %q: an address with a zone", mesh.ErrInvalid, host)
	}
	mapped := addr.Is4In6()
	addr = addr.Unmap()
	if addr.IsLoopback() {
		// "the machine itself" means the target's exposed ports, never the
		// loopback interface of whoever dials.
		return n.first(through)
	}
	if s.Contains(addr) {
		owner, ok := s.NodeByAddr(addr)
		if !ok || (owner.ID != through.ID && n.members == nil) {
			return place{}, n.notBehind(s, through, host)
		}
		return place{owner: owner, addr: addr, here: owner.ID == n.cfg.ID}, nil
	}
	p, ok := routeOf(s, through.ID, addr)
	if !ok || !routable(addr) {
		return place{}, n.notBehind(s, through, host)
	}
	if mapped {
		return place{}, fmt.Errorf("%w: host %q stands for an IPv4 address; name %s", mesh.ErrDenied, host, addr)
	}
	here, err := n.checkRouted(s, p, addr, through.ID == n.cfg.ID || n.cfg.Mode == wg.ModeTUN)
	if err != nil {
		return place{}, err
	}
	if here {
		self, ok := s.Nodes.Get(n.cfg.ID)
		if !ok {
			return place{}, n.notBehind(s, through, host)
		}
		return place{owner: self, addr: addr, here: true}, nil
	}
	return place{owner: through, addr: addr}, nil
}

// named finds the node that host names.
func (n *Node) named(s *mesh.Snapshot, through *mesh.Node, host string) (place, error) {
	o, ok := s.Nodes.Get(mesh.NodeID(host))
	if !ok && n.members == nil {
		return place{}, fmt.Errorf("%w: host %q is neither an address nor a node that node %q knows, which are its peers; "+
			"if it is another node of the mesh, connect to it itself", mesh.ErrInvalid, host, n.cfg.ID)
	}
	if !ok {
		return place{}, fmt.Errorf("%w: host %q is neither an address nor a node of the mesh", mesh.ErrInvalid, host)
	}
	if o.ID != through.ID && n.members == nil {
		return place{}, n.notBehind(s, through, host)
	}
	return n.first(o)
}

// routeOf finds the network of node id that holds addr.
func routeOf(s *mesh.Snapshot, id mesh.NodeID, addr netip.Addr) (netip.Prefix, bool) {
	for _, r := range s.Routes {
		if r.Node != string(id) {
			continue
		}
		for _, p := range r.Destinations {
			if p.Contains(addr) {
				return p, true
			}
		}
	}
	return netip.Prefix{}, false
}

// first is node o at the address to dial it at.
func (n *Node) first(o *mesh.Node) (place, error) {
	addr, err := firstAddr(o)
	return place{owner: o, addr: addr, here: o.ID == n.cfg.ID}, err
}

func firstAddr(o *mesh.Node) (netip.Addr, error) {
	addrs := o.Addrs()
	if len(addrs) == 0 {
		return netip.Addr{}, fmt.Errorf("%w: node %q has no mesh address", mesh.ErrPrecondition, o.ID)
	}
	return addrs[0], nil
}

// notBehind says why host is not reachable through a node, as far as s knows: a
// node that holds no state knows only its peers.
func (n *Node) notBehind(s *mesh.Snapshot, through *mesh.Node, host string) error {
	addr, err := netip.ParseAddr(host)
	owner, known := s.Nodes.Get(mesh.NodeID(host))
	if err == nil && s.Contains(addr) {
		owner, known = s.NodeByAddr(addr)
	}
	why := "it is neither a node of the mesh nor in a route of that node"
	switch {
	case known:
		why = fmt.Sprintf("that is node %q; connect to %s itself", owner.ID, owner.ID)
	case err == nil && s.Contains(addr) && n.members == nil:
		why = fmt.Sprintf("node %q knows only its peers; if that is the address of another node, connect to that node itself", n.cfg.ID)
	case err == nil && s.Contains(addr):
		why = "no node of the mesh has that address"
	case err == nil && n.members == nil && through.ID == n.cfg.ID:
		why = fmt.Sprintf("node %q does not forward to it, whatever routes an admin has put; start it with --routes and the network", n.cfg.ID)
	}
	return fmt.Errorf("%w: %s is not reachable through node %q: %s", mesh.ErrDenied, host, through.ID, why)
}

func notExposed(id mesh.NodeID, network string, port uint16) error {
	return fmt.Errorf("%w: node %q does not expose %s port %d; start it with --expose %s:%d=HOST:PORT",
		mesh.ErrDenied, id, network, port, network, port)
}

// routable reports whether a routed network may hold addr: no address that
// means "this machine" or "this link" wherever it is used. Those that stand for
// an IPv4 address are refused elsewhere, which says so.
func routable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && (mesh.EmbedsIPv4(a) || !mesh.IsSpecial(a))
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
// policy (see Destination), but however an address is written and whatever the
// host's addresses have become since, it opens no port of the host that is not
// exposed.
//
// Errors that wrap mesh.ErrUnavailable say since when the node at the other
// end has not been heard.
func (n *Node) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil || at.Addr().Zone() != "" {
		return nil, fmt.Errorf("%w: dial %q: want an address and a port", mesh.ErrInvalid, address)
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	s := n.Snapshot()
	if s == nil {
		return nil, n.Healthy()
	}
	if self, ok := s.Nodes.Get(n.cfg.ID); ok && owns(self, at.Addr()) {
		return n.dialExposed(ctx, network, at.Port())
	}
	if s.Contains(at.Addr()) {
		return n.dialPeer(ctx, n.device, s, network, at)
	}
	p, own := routeOf(s, n.cfg.ID, at.Addr())
	here, err := n.checkRouted(s, p, at.Addr(), own || n.cfg.Mode == wg.ModeTUN)
	switch {
	case err != nil:
		return nil, fmt.Errorf("dial %s: %w", at, err)
	case here:
		return n.dialExposed(ctx, network, at.Port())
	case own:
		return dialRouted(ctx, network, at)
	}
	return n.dialPeer(ctx, n.device, s, network, at)
}

// dialExposed connects to the service behind an exposed port of this node.
func (n *Node) dialExposed(ctx context.Context, network string, port uint16) (net.Conn, error) {
	e, ok := n.exposedAt(network, port)
	if !ok {
		return nil, notExposed(n.cfg.ID, network, port)
	}
	return dialHost(ctx, e)
}

// dialRouted connects to a network behind this node through the host.
func dialRouted(ctx context.Context, network string, at netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	// The kernel has the last word on what is local, such as a whole network
	// that is routed to the host: it then uses one address at both ends.
	local, localErr := netip.ParseAddrPort(c.LocalAddr().String())
	if localErr != nil || local.Addr().Unmap() == at.Addr() {
		return nil, errors.Join(fmt.Errorf("%w: dial %s: it is this host itself, of which only exposed ports are reachable", mesh.ErrDenied, at), c.Close())
	}
	return c, nil
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
	addr, err := firstAddr(o)
	return netip.AddrPortFrom(addr, port), err
}

// RemoteStatus asks another node of the mesh how it is; a node that holds no state
// asks its gateway to do so for those that it does not know. One that does not answer
// within statusPatience is an error that wraps mesh.ErrUnavailable and says since
// when it has not been heard.
func (n *Node) RemoteStatus(ctx context.Context, id mesh.NodeID) (*v1.Status, error) {
	if s := n.Snapshot(); s != nil && s.Node(id) == nil {
		if f, ok := n.source.(*follower); ok {
			return f.askStatus(ctx, id)
		}
	}
	at, err := n.RPCAddress(id)
	if err != nil {
		return nil, err
	}
	asked, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	s, err := n.peers.Status(asked, at, "")
	if err != nil && asked.Err() != nil && ctx.Err() == nil {
		return nil, n.unanswered(id, at.Addr())
	}
	if err != nil {
		return nil, fmt.Errorf("ask node %q: %w", id, err)
	}
	return s, nil
}

// Peers makes clients of other nodes over the mesh.
func (n *Node) Peers() *peer.Peers { return n.peers }
