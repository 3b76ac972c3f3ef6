// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// drawPeers makes a list as another one was made, or from nothing, with what it
// must hold.
func drawPeers(t *rapid.T, from Peers, has map[NodeID]Peer) (Peers, map[NodeID]Peer) {
	has = maps.Clone(has)
	for range rapid.IntRange(0, 300).Draw(t, "changes") {
		id := NodeID(fmt.Sprintf("n%03d", rapid.IntRange(0, 400).Draw(t, "id")))
		if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
			from = from.Without(id)
			delete(has, id)
			continue
		}
		p := Peer{Node: &Node{ID: id}, Endpoint: rapid.SampledFrom([]string{"", "192.0.2.1:1"}).Draw(t, "endpoint")}
		p.Protocol = v1.ConnectProtocol(rapid.IntRange(0, 1).Draw(t, "protocol"))
		if was, ok := has[id]; ok && rapid.Bool().Draw(t, "same node") {
			p.Node, p.AllowedIPs = was.Node, was.AllowedIPs
		}
		if rapid.Bool().Draw(t, "another list") {
			p.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.9.0.1/32")}
		}
		from, has[id] = from.With(p), p
	}
	if rapid.IntRange(0, 5).Draw(t, "from nothing") == 0 {
		from = PeersOf(slices.Collect(maps.Values(has))...)
	}
	return from, has
}

// alike reports whether two peers are equal, with their AllowedIPs in one memory.
func alike(a, b Peer) bool {
	return a.Node == b.Node && a.Endpoint == b.Endpoint && a.Protocol == b.Protocol && len(a.AllowedIPs) == len(b.AllowedIPs) &&
		(len(a.AllowedIPs) == 0 || &a.AllowedIPs[0] == &b.AllowedIPs[0])
}

// Whatever comes, goes and changes: a list holds what was put into it, in order,
// and its changes are those that a look at every peer finds.
func TestPeers_AreASortedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, had := drawPeers(t, Peers{}, map[NodeID]Peer{})
		after, has := drawPeers(t, before, had)
		checkPeers(t, before, had)
		checkPeers(t, after, has)
		ids := maps.Clone(had)
		maps.Copy(ids, has)
		var want [][2]Peer
		for _, id := range slices.Sorted(maps.Keys(ids)) {
			if a, b := had[id], has[id]; !alike(a, b) {
				want = append(want, [2]Peer{a, b})
			}
		}
		var got [][2]Peer
		for a, b := range after.Changes(before) {
			got = append(got, [2]Peer{a, b})
		}
		if !slices.EqualFunc(got, want, func(a, b [2]Peer) bool { return alike(a[0], b[0]) && alike(a[1], b[1]) }) {
			t.Fatalf("changes %v, want %v", got, want)
		}
	})
}

// checkPeers compares a list with what it must hold, by every way to read it.
func checkPeers(t *rapid.T, p Peers, has map[NodeID]Peer) {
	want := slices.SortedFunc(maps.Values(has), func(a, b Peer) int { return cmp.Compare(a.Node.ID, b.Node.ID) })
	if got := slices.Collect(p.All()); !slices.EqualFunc(got, want, alike) || p.Len() != len(want) {
		t.Fatalf("%d peers %v, want %d %v", p.Len(), got, len(want), want)
	}
	var chunks []Peer
	for list := range p.Chunks() {
		if len(list) == 0 || len(list) > chunkLen {
			t.Fatalf("a list of %d", len(list))
		}
		chunks = append(chunks, list...)
	}
	if !slices.EqualFunc(chunks, want, alike) {
		t.Fatalf("in lists %v, want %v", chunks, want)
	}
	for id := range 400 {
		id := NodeID(fmt.Sprintf("n%03d", id))
		got, ok := p.Get(id)
		if is, exists := has[id]; ok != exists || !alike(got, is) {
			t.Fatalf("%s: %v, want %v", id, got, is)
		}
	}
}

// Of several peers that are one node the last counts, wherever it stands.
func TestPeersOf_HasOneOfEachNode(t *testing.T) {
	list := func(text ...string) []Peer {
		var peers []Peer
		for _, s := range text {
			peers = append(peers, Peer{Node: &Node{ID: NodeID(s[:1])}, Endpoint: s})
		}
		return peers
	}
	for _, c := range []struct{ from, want []Peer }{
		{nil, nil},
		{list("a1"), list("a1")},
		{list("c1", "a1", "b1"), list("a1", "b1", "c1")},
		{list("b1", "a1", "b2", "c1", "a2", "b3"), list("a2", "b3", "c1")},
	} {
		p := PeersOf(slices.Clone(c.from)...)
		var got []string
		for peer := range p.All() {
			got = append(got, peer.Endpoint)
		}
		var want []string
		for _, peer := range c.want {
			want = append(want, peer.Endpoint)
		}
		if !slices.Equal(got, want) || p.Len() != len(want) {
			t.Errorf("%d peers %v, want %v", p.Len(), got, want)
		}
	}
}

// One change among ten thousand leaves all lists but one the same memory.
func TestPeers_ShareMemory(t *testing.T) {
	var all []Peer
	for i := range 10_000 {
		all = append(all, Peer{Node: &Node{ID: NodeID(fmt.Sprintf("n%05d", i))}})
	}
	before := PeersOf(all...)
	if !before.Same(before) || before.Same(PeersOf(slices.Clone(all)...)) || !before.Without("nobody").Same(before) {
		t.Error("Same does not tell memory")
	}
	after := before.With(Peer{Node: all[5000].Node, Endpoint: "192.0.2.1:1"})
	had := make(map[*Peer]bool)
	for list := range before.Chunks() {
		had[&list[0]] = true
	}
	fresh := 0
	for list := range after.Chunks() {
		if !had[&list[0]] {
			fresh++
		}
	}
	if fresh != 1 || after.Same(before) {
		t.Errorf("%d lists made anew", fresh)
	}
}

func TestPeer_Equal(t *testing.T) {
	peer := func(change func(*Peer)) Peer {
		p := Peer{
			Node: &Node{ID: "bob", PrimaryEndpoint: "192.0.2.1"}, Endpoint: "192.0.2.1:51820",
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("172.16.0.2/32")}, Protocol: v1.ConnectProtocol_CONNECT_ICE,
		}
		change(&p)
		return p
	}
	same := peer(func(*Peer) {})
	for name, c := range map[string]struct {
		other Peer
		want  bool
	}{
		"in other memory":    {peer(func(*Peer) {}), true},
		"no peer":            {Peer{}, false},
		"another endpoint":   {peer(func(p *Peer) { p.Endpoint = "" }), false},
		"another protocol":   {peer(func(p *Peer) { p.Protocol = v1.ConnectProtocol_CONNECT_NATIVE }), false},
		"other networks":     {peer(func(p *Peer) { p.AllowedIPs = nil }), false},
		"veiled networks":    {peer(func(p *Peer) { p.Veiled = p.AllowedIPs }), false},
		"sent to veiled":     {peer(func(p *Peer) { p.Veils = true }), false},
		"another record":     {peer(func(p *Peer) { p.Node.PrimaryEndpoint = "" }), false},
		"the same but no id": {peer(func(p *Peer) { p.Node = nil }), false},
	} {
		if same.Equal(c.other) != c.want || c.other.Equal(same) != c.want {
			t.Errorf("%s: want %v", name, c.want)
		}
	}
	if !(Peer{}).Equal(Peer{}) {
		t.Error("no peer is not no peer")
	}
}
