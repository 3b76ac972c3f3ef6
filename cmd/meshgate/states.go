// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

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
	// stateIdle is a node to which a way stands, and nothing was sent of late.
	stateIdle = "idle"
	// stateSilent is a node with a session to which no way stands any more.
	stateSilent = "no answer"
	// stateBarred is a node that the network ACLs keep off.
	stateBarred = "cut off"
	// stateHeard is a gateway that the cluster hears and no tunnel has led to yet:
	// that its port of the API is reached says nothing about that of WireGuard.
	stateHeard = "no tunnel yet"
)

// statesOf is how each node is, by its id. Who is up is what the mesh says, the same
// at every gateway; how packets get there is as the one that answered sees it. From
// one that does not tell who is up, links have to say it, and alive, which of the
// gateways the cluster hears.
func statesOf(m *meshgatev1.WatchMeshResponse, alive map[string]bool) map[string]string {
	links := linksOf(m)
	near := neighbours(m)
	ways := waysFrom(m.GetGatewayId(), near, links, alive)
	states := make(map[string]string, len(m.GetNodes()))
	told := presenceOf(m.GetPresence())
	barred := barredOf(m.GetBarred())
	for _, o := range m.GetNodes() {
		id := o.GetId()
		up, gateway := alive[id]
		link := links[id]
		switch via := ways[id]; {
		case id == m.GetGatewayId():
			states[id] = selfState(o)
		case barred[id] != nil:
			states[id] = barredState(barred[id], told[id])
		case link != nil && !link.GetOnline() && stands(link.GetPath()):
			states[id] = stateIdle
		case told[id] != nil && told[id].GetState() != meshgatev1.PresenceState_PRESENCE_STATE_UP:
			states[id] = presenceState(told[id], time.Now())
		case told[id] != nil:
			states[id] = upState(o, told[id], link, cmp.Or(via, carrierOf(m.GetGatewayId(), told[id])), near[id][m.GetGatewayId()])
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

// presenceOf are nodes by their ids.
func presenceOf(list []*meshgatev1.NodePresence) map[string]*meshgatev1.NodePresence {
	told := make(map[string]*meshgatev1.NodePresence, len(list))
	for _, p := range list {
		told[p.GetNodeId()] = p
	}
	return told
}

// barredOf are nodes by their ids.
func barredOf(list []*meshgatev1.BarredNode) map[string]*meshgatev1.BarredNode {
	barred := make(map[string]*meshgatev1.BarredNode, len(list))
	for _, b := range list {
		barred[b.GetNodeId()] = b
	}
	return barred
}

// barredState is the state of a node that no packet gets to; p, which may be nil,
// says how it is otherwise.
func barredState(b *meshgatev1.BarredNode, p *meshgatev1.NodePresence) string {
	text := stateBarred + ": no network ACL accepts"
	if b.GetAcl() != "" {
		text = stateBarred + " by network ACL " + b.GetAcl()
	}
	switch p.GetState() {
	case meshgatev1.PresenceState_PRESENCE_STATE_DOWN, meshgatev1.PresenceState_PRESENCE_STATE_NEVER:
		return presenceState(p, time.Now()) + "; " + text
	}
	return text
}

// carrierOf is the gateway by way of which one reaches a node that it has no link
// to, by who hears the node; empty for one that hears it itself, and of a gateway.
func carrierOf(self string, p *meshgatev1.NodePresence) string {
	if id := p.GetGatewayId(); id != self && id != p.GetNodeId() {
		return id
	}
	return ""
}

// stands reports whether a way is there that was checked, packets or not.
func stands(p *meshgatev1.Path) bool {
	k := p.GetKind()
	return k == meshgatev1.PathKind_PATH_KIND_DIRECT || k == meshgatev1.PathKind_PATH_KIND_RELAYED
}

// presenceState is the state of a node wherever one asks; p may be nil.
func presenceState(p *meshgatev1.NodePresence, now time.Time) string {
	switch p.GetState() {
	case meshgatev1.PresenceState_PRESENCE_STATE_UP:
		return stateOnline
	case meshgatev1.PresenceState_PRESENCE_STATE_NEVER:
		return stateWaiting
	case meshgatev1.PresenceState_PRESENCE_STATE_UNSPECIFIED:
		if p.GetGatewayId() == "" {
			return ""
		}
		return fmt.Sprintf("not known: %s does not answer", p.GetGatewayId())
	}
	if p.GetLastHeard() == nil {
		return stateDown
	}
	what := "last heard"
	if p.GetStopped() {
		what = "stopped"
	}
	text := fmt.Sprintf("%s, %s %s ago", stateDown, what, ago(now.Sub(p.GetLastHeard().AsTime())))
	if p.GetGatewayId() != "" {
		text += " (" + p.GetGatewayId() + ")"
	}
	return text
}

// upState is the state of a node that is up: how the one that answers reaches it,
// through via where it has no link, or inside of another connection.
func upState(o *v1.MeshNode, p *meshgatev1.NodePresence, link *meshgatev1.Link, via string, inside bool) string {
	switch {
	case link == nil && via == "" && p.GetGatewayId() != "":
		return stateUnknown // it was heard, and no way leads there now
	case link == nil && via == "":
		return stateOnline // a gateway that the edges do not lead to
	case link == nil:
		return stateRelayed + " through " + via
	case link.GetPath().GetKind() == meshgatev1.PathKind_PATH_KIND_CARRIED:
		return stateRelayed + " through " + link.GetPath().GetVia()
	case link.GetOnline():
		return linkState(link, inside)
	case link.GetLastHandshake() == nil && link.GetTransmitBytes() == 0:
		return stateIdle
	case link.GetLastHandshake() == nil && p.GetGatewayId() == "" && selfState(o) == stateSelf:
		return stateHeard
	default:
		return stateOnline
	}
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
	if silent(l) {
		return stateSilent
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

// silent reports whether there is no way any more to a node that shook hands of late.
func silent(l *meshgatev1.Link) bool {
	return l.GetOnline() && l.GetPath().GetKind() == meshgatev1.PathKind_PATH_KIND_NONE
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
// shortest way to it. A neighbour that does not answer is no way to anybody, nor is
// one without a link; a gateway that the cluster hears does, although the link may rest.
func waysFrom(gateway string, near map[string]map[string]bool, links map[string]*meshgatev1.Link, alive map[string]bool) map[string]string {
	ways := map[string]string{}
	border := slices.DeleteFunc(slices.Sorted(maps.Keys(near[gateway])), func(id string) bool {
		return links[id] == nil || (!links[id].GetOnline() || silent(links[id])) && !alive[id]
	})
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
