// SPDX-License-Identifier: Apache-2.0

// Package mesh is the vocabulary of a mesh: ids, keys, nodes, edges, routes,
// network ACLs, roles and the immutable Snapshot that holds them all.
//
// It has values only: no I/O, no goroutines, no clock, no logs. Every other
// package of the node speaks in these types; raw strings and protobuf
// messages are parsed into them at the border (gateway/api, node/registry).
package mesh

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"time"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Errors that name what went wrong to the caller of an API. gateway/api maps
// each to one RPC code; packages wrap them with what was tried.
var (
	// ErrInvalid says that an argument can never be accepted.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotFound says that the named object does not exist.
	ErrNotFound = errors.New("not found")
	// ErrRemoved is the ErrNotFound of a node that takes itself for a member and,
	// in a state that has all joins, is none. It ends that node, so that nothing
	// less may be wrapped in it.
	ErrRemoved = fmt.Errorf("%w", ErrNotFound)
	// ErrExists says that the object exists and may not be replaced.
	ErrExists = errors.New("already exists")
	// ErrDenied says that policy forbids the action to this caller.
	ErrDenied = errors.New("permission denied")
	// ErrUnauthenticated says that the caller's identity was not shown.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrExhausted says that a limit or an address pool is used up.
	ErrExhausted = errors.New("resource exhausted")
	// ErrPrecondition says that the system is not in the state that the action needs.
	ErrPrecondition = errors.New("failed precondition")
	// ErrConflict says that something is no longer as the caller has seen it.
	ErrConflict = errors.New("conflict")
	// ErrUnavailable says that a needed part is out of reach for now.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnsupported says that this build or node does not do that.
	ErrUnsupported = errors.New("unsupported")
)

// NodeID names a node. Make one with ParseNodeID; the zero value names none.
type NodeID string

// Node is a member of the mesh, with or without Meshgate running on it.
type Node struct {
	ID        NodeID
	PublicKey PublicKey
	// PrimaryEndpoint is a routable IP address or DNS name, without a port;
	// empty for a node that nobody can dial.
	PrimaryEndpoint string
	// WireGuardEndpoints are the addresses at which WireGuard listens.
	WireGuardEndpoints []netip.AddrPort
	// Zone is the zone awareness id; empty means none.
	Zone string
	// IPv4 is the node's mesh address as a /32; invalid when it has none.
	IPv4 netip.Prefix
	// IPv6 is the node's mesh network as a /112; its first address is the node's own.
	IPv6       netip.Prefix
	Features   []Feature
	Services   []Service
	Multiaddrs []string
	JoinedAt   time.Time
	// API is where a gateway serves everybody; zero for other nodes.
	API API
	// Paths is true for a node that takes part in pairs: it looks for a path to
	// another one on which WireGuard goes without a gateway.
	Paths bool
	// Exit is true for a node that takes packets for the Internet from nodes that
	// choose it for that. No plan has it.
	Exit bool
}

// API is where a gateway serves its API, and how it is recognised there.
type API struct {
	// URL is "https://host[:port]"; empty when it is not known.
	URL string
	// Pin is the SHA-256 of the key of its certificate; zero where certificate
	// authorities vouch for it.
	Pin [sha256.Size]byte
}

// Feature is something that a node offers, with the TCP or UDP port for it.
type Feature struct {
	Kind v1.Feature
	Port uint16
}

// Service is a port that a node exposes on its own mesh address.
type Service struct {
	// Protocol is "tcp" or "udp".
	Protocol string
	Port     uint16
	// Kind is a hint for people, such as "http"; it decides nothing.
	Kind string
}

// Edge joins two nodes. It has no direction: Source sorts before Target.
type Edge struct {
	Source, Target NodeID
	// Weight is the cost of the edge; lower is nearer.
	Weight int32
	// Attributes hold v1.EdgeAttribute names with the value "true".
	Attributes map[string]string
}

// Route is a set of networks behind a node.
type Route struct {
	Name string
	// Node is a node id or "group:NAME".
	Node         string
	Destinations []netip.Prefix
	// NextHop, when set, is the node that forwards to the destinations in place of Node.
	NextHop NodeID
}

// ACL is one network access rule. Of all that match, the one with the highest
// priority decides; when none matches, the traffic is denied.
type ACL struct {
	Name     string
	Priority int32
	// Accept is true for ACTION_ACCEPT; DENY and UNKNOWN are false.
	Accept bool
	// SourceNodes and DestinationNodes hold ids, "group:NAME" or "*".
	// Empty matches every node.
	SourceNodes, DestinationNodes []string
	// SourceCIDRs and DestinationCIDRs match by containment. Empty, or one
	// prefix of zero bits in the address's family, matches every address.
	// "*" on the wire is stored as 0.0.0.0/0 and ::/0.
	SourceCIDRs, DestinationCIDRs []netip.Prefix
	// Protocols are sorted; empty matches every protocol.
	Protocols []Protocol
	// Ports are the receiver's, sorted, of protocols that have ports. Empty
	// matches every port, and what has none.
	Ports []uint16
}

// CompareACLs orders ACLs as they are asked: highest priority first, then by
// name, so that equal priorities decide the same on every node.
func CompareACLs(a, b ACL) int {
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Name, b.Name))
}

// Subject is who a role or group speaks of. Type ALL with name "*" is everyone.
type Subject struct {
	Type v1.SubjectType
	Name string
}

// Group is a named set of subjects; groups may hold groups.
type Group struct {
	Name     string
	Subjects []Subject
}

// Rule grants verbs on resources. Without names it grants only actions that
// carry no name, except where Resources holds RESOURCE_ALL (v1 behaviour).
type Rule struct {
	Resources []v1.RuleResource
	Names     []string
	Verbs     []v1.RuleVerb
}

// Role is a named set of rules.
type Role struct {
	Name  string
	Rules []Rule
}

// RoleBinding gives a role to subjects.
type RoleBinding struct {
	Name     string
	Role     string
	Subjects []Subject
}

// Action is what somebody wants to do; policy.Allowed decides on it.
type Action struct {
	Resource v1.RuleResource
	// Name is the object's name; empty for actions on no named object.
	Name string
	Verb v1.RuleVerb
}

// Snapshot is the whole registry at one version. It is immutable: nobody
// changes a Snapshot or anything reachable from it after it was published.
type Snapshot struct {
	// Version grows with each change of the replicated state.
	Version uint64
	// Revision is the last change that is in it. Unlike Version it is the same on
	// every gateway for the same state, and tells which of two states is newer.
	Revision uint64
	// Domain is the mesh's DNS domain, with a trailing dot.
	Domain string
	// IPv4 and IPv6 are the networks of the mesh. The IPv6 network is a /32
	// on the wire with 48 fixed bits (wire behaviour of v1 nodes).
	IPv4, IPv6 netip.Prefix
	// RBACDisabled is true when an operator switched RBAC off.
	RBACDisabled bool
	// LastIPv4 is the IPv4 address that was handed out last; invalid before the
	// first. The next one is looked for behind it.
	LastIPv4 netip.Addr
	// Silent tells since when members have not been heard, of those that their
	// gateways missed, by the clocks of these. Nobody changes it.
	Silent map[NodeID]time.Time
	// Watched is for how long leaders have watched who is silent, all told, which no
	// clock that is set changes, and Missed what it was when a member in Silent was
	// missed. Nobody changes it.
	Watched time.Duration
	Missed  map[NodeID]time.Duration
	Nodes   Nodes
	// Edges are those that are stored; EdgesOf and AllEdges add those that
	// follow from the nodes.
	Edges Edges
	// Routes, Roles, Bindings and Groups are sorted by name.
	Routes   []Route
	Roles    []Role
	Bindings []RoleBinding
	Groups   []Group
	// ACLs are sorted by CompareACLs.
	ACLs []ACL
}

// Unheard is for how long a member in Silent was not heard while that was watched; 0
// while it is not known. It may be longer by what was watched and not yet stored
// when the member was missed.
func (s *Snapshot) Unheard(id NodeID) time.Duration {
	at, ok := s.Missed[id]
	if _, silent := s.Silent[id]; !ok || !silent {
		return 0
	}
	return max(s.Watched-at, 0)
}

// Node returns the node with the given id; nil when there is none.
func (s *Snapshot) Node(id NodeID) *Node {
	n, _ := s.Nodes.Get(id)
	return n
}

// SameList reports whether two lists of snapshots are the same memory. As
// published lists do not change, they are equal then; lists that are not may be.
func SameList[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }
