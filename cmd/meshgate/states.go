// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"net/netip"
	"slices"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// The states of nodes, in the words of the console and one more.
const (
	stateSelf    = "this gateway"
	stateNode    = "this node"
	stateOnline  = "online"
	stateRelayed = "relayed"
	stateDown    = "down"
	stateWaiting = "waiting"
	stateUnknown = "not connected"
	// stateHeard is a gateway that the cluster hears and no tunnel has led to yet:
	// that its port of the API is reached says nothing about that of WireGuard.
	stateHeard = "no tunnel yet"
)

// statesOf is how each node is, by its id, as the gateway that answered sees it.
// alive says which of the gateways are, as the cluster hears of them many times a
// second: a link between gateways that has nothing to carry says nothing.
func statesOf(m *meshgatev1.WatchMeshResponse, alive map[string]bool) map[string]string {
	links := linksOf(m)
	near := neighbours(m)
	ways := waysFrom(m.GetGatewayId(), near, links, alive)
	states := make(map[string]string, len(m.GetNodes()))
	for _, o := range m.GetNodes() {
		id := o.GetId()
		up, gateway := alive[id]
		link := links[id]
		switch via := ways[id]; {
		case id == m.GetGatewayId():
			states[id] = selfState(o)
		case gateway && !up:
			states[id] = stateDown
		case gateway && link.GetLastHandshake() == nil:
			states[id] = stateHeard
		case gateway:
			states[id] = stateOnline
		case link.GetPath().GetKind() == meshgatev1.PathKind_PATH_KIND_CARRIED:
			states[id] = stateRelayed + " through " + link.GetPath().GetVia()
		case link != nil:
			states[id] = linkState(link, near[id][m.GetGatewayId()])
		case via != "":
			states[id] = stateRelayed + " through " + via
		default:
			states[id] = stateUnknown
		}
	}
	return states
}

// selfState is the state of who answers: a gateway, or the node of this host.
func selfState(o *v1.MeshNode) string {
	for _, f := range o.GetFeatures() {
		if f.GetFeature() == v1.Feature_MEMBERSHIP {
			return stateSelf
		}
	}
	if len(o.GetFeatures()) == 0 {
		return stateSelf // one that says nothing of itself
	}
	return stateNode
}

// linkState is the state of the gateway's own link to a node. inside is true when
// the edge says that packets travel inside of another connection.
func linkState(l *meshgatev1.Link, inside bool) string {
	if !l.GetOnline() {
		if l.GetLastHandshake() == nil {
			return stateWaiting
		}
		return stateDown
	}
	plain := !inside
	if at := l.GetEndpoint(); at != "" {
		_, err := netip.ParseAddrPort(at)
		plain = err == nil
	}
	if plain {
		return stateOnline
	}
	return stateRelayed
}

func linksOf(m *meshgatev1.WatchMeshResponse) map[string]*meshgatev1.Link {
	links := make(map[string]*meshgatev1.Link, len(m.GetLinks()))
	for _, l := range m.GetLinks() {
		links[l.GetNodeId()] = l
	}
	return links
}

// neighbours are the ends of edges by the other end, and whether what goes there
// travels inside of another connection. A link is an edge, too.
func neighbours(m *meshgatev1.WatchMeshResponse) map[string]map[string]bool {
	near := map[string]map[string]bool{}
	add := func(from, to string, inside bool) {
		if near[from] == nil {
			near[from] = map[string]bool{}
		}
		if _, ok := near[from][to]; !ok {
			near[from][to] = inside
		}
	}
	nodes := make(map[string]*v1.MeshNode, len(m.GetNodes()))
	for _, o := range m.GetNodes() {
		nodes[o.GetId()] = o
	}
	for _, e := range m.GetEdges() {
		if waits(nodes[e.GetSource()]) && waits(nodes[e.GetTarget()]) {
			continue // a pair, through which nobody else is reached
		}
		inside := slices.ContainsFunc([]v1.EdgeAttribute{v1.EdgeAttribute_EDGE_ATTRIBUTE_ICE, v1.EdgeAttribute_EDGE_ATTRIBUTE_LIBP2P},
			func(a v1.EdgeAttribute) bool { return e.GetAttributes()[a.String()] == "true" })
		add(e.GetSource(), e.GetTarget(), inside)
		add(e.GetTarget(), e.GetSource(), inside)
	}
	for _, l := range m.GetLinks() {
		add(m.GetGatewayId(), l.GetNodeId(), false)
		add(l.GetNodeId(), m.GetGatewayId(), false)
	}
	return near
}

// waits reports whether a node takes part in pairs, and can be called only after
// it said how.
func waits(o *v1.MeshNode) bool { return o.GetPaths() && o.GetPrimaryEndpoint() == "" }

// waysFrom is, for each node without a link, the neighbour of the gateway on the
// shortest way to it. A neighbour that does not answer is no way to anybody; a
// gateway that the cluster hears does, although the link to it may rest.
func waysFrom(gateway string, near map[string]map[string]bool, links map[string]*meshgatev1.Link, alive map[string]bool) map[string]string {
	ways := map[string]string{}
	border := slices.DeleteFunc(slices.Sorted(maps.Keys(near[gateway])), func(id string) bool { return !links[id].GetOnline() && !alive[id] })
	via := map[string]string{} // of those to go on from
	for _, id := range border {
		via[id] = id
	}
	for len(border) > 0 {
		var next []string
		for _, at := range border {
			for _, id := range slices.Sorted(maps.Keys(near[at])) {
				if id == gateway || links[id] != nil || ways[id] != "" {
					continue
				}
				ways[id], via[id] = via[at], via[at]
				next = append(next, id)
			}
		}
		border = next
	}
	return ways
}
