// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
)

// The keys of the registry are those of v1 nodes: objects are protojson at
// their kind's prefix and name, the rest is plain text.
const (
	root = "/registry/"

	keyIPv4         = root + "meshstate/ipv4prefix"
	keyIPv6         = root + "meshstate/ipv6prefix"
	keyDomain       = root + "meshstate/meshdomain"
	keyRBACDisabled = root + "rbac-disabled"

	prefixNodes    = root + "nodes/"
	prefixEdges    = root + "edges/" // SOURCE/TARGET, and the same edge at TARGET/SOURCE
	prefixRoles    = root + "roles/"
	prefixBindings = root + "rolebindings/"
	prefixGroups   = root + "groups/"
	prefixACLs     = root + "network-acls/"
	prefixRoutes   = root + "routes/"

	// keyRevision is written with every change that is made through Update,
	// and is a condition of it: two changes that were decided on the same
	// snapshot can never both happen. v1 nodes do not know it.
	keyRevision = root + "meshgate/revision"
	// prefixBound holds the keys to which ids are bound whose nodes were purged.
	// v1 nodes do not know it.
	prefixBound = root + "meshgate/keys/"
	// prefixSilent holds since when members have not been heard, in the form of
	// RFC 3339. v1 nodes do not know it.
	prefixSilent = root + "meshgate/silent/"
	// keyWatched holds for how many seconds leaders have watched who is silent, all
	// told, and prefixMissed what that was when a member was noted as silent. v1
	// nodes do not know them.
	keyWatched   = root + "meshgate/watched"
	prefixMissed = root + "meshgate/missed/"
	// keyLastIPv4 holds the IPv4 address that was handed out last. v1 nodes do
	// not know it; where it is missing, addresses are handed out from the first.
	keyLastIPv4 = root + "meshgate/last-ipv4"
)

// Names of the objects that Bootstrap makes. All but GroupVoters are not to be
// changed afterwards; of GroupVoters the subjects may.
const (
	RoleAdmin                 = "mesh-admin"
	RoleVoters                = "voters"
	BindingAdmin              = "mesh-admin"
	BindingVoters             = "bootstrap-voters"
	GroupVoters               = "voters"
	ACLBootstrapNodes         = "bootstrap-nodes"
	ACLGateways               = "gateways"
	ACLDefaultAccept          = "default-accept"
	DefaultAdmin              = "admin"
	DefaultDomain             = "webmesh.internal."
	defaultIPv4               = "172.16.0.0/12"
	rbacDisabledPresent       = "true"
	maxPriority         int32 = 1<<31 - 1
	minPriority         int32 = -1 << 31
)

// AutoRoute is the name of the route object with the networks that a node
// offered when it joined.
func AutoRoute(id mesh.NodeID) string { return string(id) + AutoSuffix }

// IsAuto reports whether a route is what its node offers itself, and not what an
// admin has put.
func IsAuto(r *mesh.Route) bool { return r.Name == AutoRoute(mesh.NodeID(r.Node)) }

// AutoSuffix ends the names of the routes that nodes offer themselves.
const AutoSuffix = "-auto"

// AutoRouteOf returns the node for whose own routes a name is kept; false if it
// is free.
func AutoRouteOf(name string) (mesh.NodeID, bool) {
	id, ok := strings.CutSuffix(name, AutoSuffix)
	return mesh.NodeID(id), ok
}
