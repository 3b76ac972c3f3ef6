// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"mime"
	"net/http"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// configuration is what a node needs to follow one state. Nobody changes it: it
// shares its parts with plans and with the configurations of others.
type configuration struct {
	gateway  mesh.NodeID
	revision uint64
	peers    mesh.Peers
	acls     []*v1.NetworkACL
	ice, dns []string
	gateways []*v1.MeshNode
}

// same reports whether c says the same as another one, which may be nil, in all
// but the revision.
func (c *configuration) same(other *configuration) bool {
	return other != nil && c.gateway == other.gateway && slices.Equal(c.ice, other.ice) && slices.Equal(c.dns, other.dns) &&
		sameMessages(c.acls, other.acls) && sameMessages(c.gateways, other.gateways) && samePeers(c.peers, other.peers)
}

// sameMessages compares lists of which most messages are the same memory.
func sameMessages[M any, P interface {
	*M
	proto.Message
}](a, b []P) bool {
	return mesh.SameList(a, b) || slices.EqualFunc(a, b, func(a, b P) bool { return a == b || proto.Equal(a, b) })
}

// samePeers compares the peers of two plans, which are the same memory when
// nothing has changed, and so are most of their peers' parts when something has.
func samePeers(a, b mesh.Peers) bool {
	if a.Len() != b.Len() {
		return false
	}
	for a, b := range a.Changes(b) {
		if !a.Equal(b) {
			return false
		}
	}
	return true
}

const (
	// peersField is the number of the field "peers", both of PeerConfigurations
	// and of JoinResponse.
	peersField = 5
	// maxForms is how many messages of one peer are kept: its endpoint differs by
	// zone, and what lies behind it by who asks.
	maxForms = 4
	// maxKept is of how many networks a peer's message is kept. Longer lists are
	// those of nodes that reach much of the mesh through one neighbour: no two
	// have the same.
	maxKept = 16
)

// peerMessages holds the messages of peers, encoded once for all nodes that have
// them: in a mesh of public nodes each is a peer of 128 others, whose
// configurations are hardly anything else. It is safe for concurrent use; the
// zero value is empty.
type peerMessages struct {
	mu    sync.Mutex // guards the fields below
	nodes mesh.Nodes // that were asked about last
	forms map[mesh.NodeID][]form

	// spare are buffers, *[]byte, for what is written before the next message is
	// made.
	spare sync.Pool
}

// buffer returns a buffer, empty, for the peers of a message. Whoever has sent the
// message puts it back into spare.
func (m *peerMessages) buffer() *[]byte {
	if b, ok := m.spare.Get().(*[]byte); ok {
		return b
	}
	return new([]byte)
}

// form is a peer and its message, encoded as one field of a list of peers.
type form struct {
	peer mesh.Peer
	raw  []byte
}

// message is the message of c, which follows s. If buffer is not nil, the message
// is packed: its peers are encoded there.
func (m *peerMessages) message(s *mesh.Snapshot, c *configuration, buffer *[]byte) (*v1.PeerConfigurations, error) {
	p := &v1.PeerConfigurations{
		GatewayId:   string(c.gateway),
		NetworkAcls: c.acls,
		IceServers:  c.ice,
		DnsServers:  c.dns,
		Gateways:    c.gateways,
		Revision:    c.revision,
	}
	if buffer != nil {
		return p, m.pack(p, s, c.peers, buffer)
	}
	p.Peers = peersToProto(c.peers)
	return p, nil
}

// pack puts the peers of a plan for s into a message with a field "peers",
// encoded. The message has them as if it did not know the field, and is written
// with them as they are: its reader finds nothing unusual. It is for binary
// encodings only. The message needs what is in buffer until it is written.
func (m *peerMessages) pack(into proto.Message, s *mesh.Snapshot, peers mesh.Peers, buffer *[]byte) (err error) {
	if *buffer, err = m.encode((*buffer)[:0], s, peers); err != nil {
		return err
	}
	into.ProtoReflect().SetUnknown(*buffer)
	return nil
}

// encode appends the fields of peers to raw.
func (m *peerMessages) encode(raw []byte, s *mesh.Snapshot, peers mesh.Peers) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.followLocked(s)
	raw = slices.Grow(raw, sizeHint*peers.Len())
	for p := range peers.All() {
		one, err := m.formLocked(&p)
		if err != nil {
			return nil, err
		}
		raw = append(raw, one...)
	}
	return raw, nil
}

// sizeHint is about what a peer takes, in bytes.
const sizeHint = 320

// formLocked returns the field of one peer.
func (m *peerMessages) formLocked(p *mesh.Peer) ([]byte, error) {
	known := m.forms[p.Node.ID]
	for i := range known {
		if f := &known[i]; f.peer.Node == p.Node && f.peer.Endpoint == p.Endpoint && f.peer.Protocol == p.Protocol &&
			(mesh.SameList(f.peer.AllowedIPs, p.AllowedIPs) || slices.Equal(f.peer.AllowedIPs, p.AllowedIPs)) {
			return f.raw, nil
		}
	}
	value, err := proto.Marshal(peerToProto(*p))
	if err != nil {
		return nil, fmt.Errorf("encode peer %q: %w", p.Node.ID, err)
	}
	raw := make([]byte, 0, protowire.SizeTag(peersField)+protowire.SizeBytes(len(value)))
	raw = protowire.AppendBytes(protowire.AppendTag(raw, peersField, protowire.BytesType), value)
	if len(p.AllowedIPs) > maxKept {
		return raw, nil
	}
	if len(known) > 0 && known[0].peer.Node != p.Node {
		known = nil // of an earlier record
	}
	if len(known) == maxForms {
		known = known[1:]
	}
	if m.forms == nil {
		m.forms = make(map[mesh.NodeID][]form)
	}
	m.forms[p.Node.ID] = append(slices.Clip(known), form{peer: *p, raw: raw})
	return raw, nil
}

// followLocked forgets the messages of nodes that are not in s any more.
func (m *peerMessages) followLocked(s *mesh.Snapshot) {
	if m.nodes == s.Nodes {
		return
	}
	for before, after := range s.Nodes.Changes(m.nodes) {
		if before != nil && after == nil {
			delete(m.forms, before.ID)
		}
	}
	m.nodes = s.Nodes
}

func peersToProto(peers mesh.Peers) []*v1.WireGuardPeer {
	var list []*v1.WireGuardPeer
	for p := range peers.All() {
		list = append(list, peerToProto(p))
	}
	return list
}

// peerToProto writes a peer as v1 nodes expect it: with the endpoint to dial,
// "host:port", in place of the node's primary endpoint.
func peerToProto(p mesh.Peer) *v1.WireGuardPeer {
	w := &v1.WireGuardPeer{Node: mesh.NodeToProto(p.Node), Proto: p.Protocol, AllowedIps: make([]string, 0, len(p.AllowedIPs))}
	w.Node.PrimaryEndpoint = p.Endpoint
	for _, prefix := range p.AllowedIPs {
		w.AllowedIps = append(w.AllowedIps, prefix.String())
	}
	return w
}

// packs reports whether the answer to a request is binary for sure, so that its
// messages may be packed.
func packs(h http.Header) bool {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && slices.Contains([]string{
		"application/grpc", "application/grpc+proto", "application/grpc-web", "application/grpc-web+proto",
		"application/connect+proto", "application/proto",
	}, kind)
}
