// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/pair"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// wayMesh is what a node knows that has a tunnel to gw, and to others by a pair.
func wayMesh(t *testing.T) (*wayView, map[mesh.NodeID]*mesh.Node) {
	t.Helper()
	now := time.Now()
	nodes := map[mesh.NodeID]*mesh.Node{}
	v := &wayView{
		pairs: map[mesh.NodeID]pair.Status{}, peers: map[mesh.WireGuardKey]mesh.PeerStats{},
		gateways: map[netip.Addr]mesh.NodeID{netip.MustParseAddr("198.51.100.1"): "gw"}, now: now,
	}
	var list []*mesh.Node
	for i, id := range []mesh.NodeID{"gw", "a", "b", "c", "d", "e", "f"} {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		o := &mesh.Node{ID: id, PublicKey: key.Public(), IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, 0, byte(i + 1)}), 32), Paths: id != "e"}
		nodes[id], list = o, append(list, o)
	}
	nodes["gw"].Features = []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP, Port: 8443}}
	v.snapshot = &mesh.Snapshot{Nodes: mesh.NodesOf(list...)}
	v.network = policy.Compile(v.snapshot)
	peer := func(id mesh.NodeID, endpoint string, age time.Duration, ips ...string) {
		p := mesh.PeerStats{PublicKey: nodes[id].PublicKey.WireGuard(), Endpoint: endpoint}
		if age >= 0 {
			p.LastHandshake = now.Add(-age)
		}
		for _, ip := range ips {
			p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(ip))
		}
		v.stats.Peers, v.peers[p.PublicKey] = append(v.stats.Peers, p), p
	}
	peer("gw", "198.51.100.1:51820", time.Second, "172.16.0.0/16")
	peer("a", "203.0.113.7:51820", time.Second, "172.16.0.2/32")
	peer("b", "", time.Second)
	peer("c", "198.51.100.1:49160", time.Second, "172.16.0.4/32")
	peer("d", "192.0.2.9:1", 4*time.Minute, "172.16.0.5/32")
	return v, nodes
}

func TestWays_SayWhoCarriesPackets(t *testing.T) {
	v, nodes := wayMesh(t)
	since := v.now.Add(-time.Minute)
	v.pairs["a"] = pair.Status{Node: "a", Stands: true, Path: path.State{
		Standing: true, Direct: true, Route: path.Route{To: netip.MustParseAddrPort("203.0.113.7:51820")}, RTT: time.Millisecond, Since: since,
	}}
	v.pairs["b"] = pair.Status{Node: "b", Path: path.State{Why: "direct ways are being tried"}}
	at := netip.MustParseAddrPort
	for id, want := range map[mesh.NodeID]mesh.Way{
		"gw": {Node: "gw", Kind: mesh.DirectWay, Remote: at("198.51.100.1:51820")},
		"a":  {Node: "a", Kind: mesh.DirectWay, Remote: at("203.0.113.7:51820"), RTT: time.Millisecond, Since: since},
		"b":  {Node: "b", Kind: mesh.CarriedWay, Via: "gw", Why: "direct ways are being tried"},
		"c":  {Node: "c", Kind: mesh.RelayedWay, Via: "gw", Remote: at("198.51.100.1:49160"), Why: "no UDP of the node gets here by itself"},
		"d":  {Node: "d", Kind: mesh.NoWay, Why: "its last handshake is 4m0s old: it is off, out of reach, or has nothing to say"},
		"e":  {Node: "e", Kind: mesh.CarriedWay, Via: "gw", Why: "it runs no version of Meshgate that looks for direct paths"},
		"f":  {Node: "f", Kind: mesh.CarriedWay, Via: "gw", Why: "no packet was sent there of late, which is what a direct path is looked for by"},
	} {
		if diff := cmp.Diff(want, v.to(nodes[id]), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", id, diff)
		}
	}
}

func TestWays_APairThatIsRelayedOrWaits(t *testing.T) {
	v, nodes := wayMesh(t)
	relayed := path.State{Standing: true, Transport: path.TLS, Relay: "gw", Why: "no answer on 4 direct ways"}
	v.pairs["a"] = pair.Status{Node: "a", Stands: true, Path: relayed}
	if w := v.to(nodes["a"]); w.Kind != mesh.RelayedWay || w.Transport != "TLS" || w.Via != "gw" || w.Why != relayed.Why {
		t.Errorf("relayed: %+v", w)
	}
	// The way stands, and the session on it does not yet.
	v.pairs["b"] = pair.Status{Node: "b", Path: path.State{Standing: true, Direct: true}}
	if w := v.to(nodes["b"]); w.Kind != mesh.CarriedWay || !strings.Contains(w.Why, "first handshake") {
		t.Errorf("waiting: %+v", w)
	}
	// A gateway is reached at its endpoint until its path is known.
	v.pairs["gw"] = pair.Status{Node: "gw", Gateway: true}
	if w := v.to(nodes["gw"]); w.Kind != mesh.DirectWay {
		t.Errorf("gateway: %+v", w)
	}
}

// A way that was direct a while ago says so, for an hour.
func TestWays_WereDirectBefore(t *testing.T) {
	v, nodes := wayMesh(t)
	st := path.State{Why: "no answer any more on 2 direct ways", LastDirect: netip.MustParseAddrPort("203.0.113.7:51820")}
	for _, c := range []struct {
		ago      time.Duration
		standing bool
		want     string
	}{
		{11 * time.Second, true, st.Why + "; it was direct to 203.0.113.7:51820 until 11s ago"},
		{11 * time.Second, false, st.Why + "; it was direct to 203.0.113.7:51820 until 11s ago"},
		{2 * time.Hour, true, st.Why},
	} {
		st.Standing, st.DirectEnded = c.standing, v.now.Add(-c.ago)
		v.pairs["b"] = pair.Status{Node: "b", Stands: c.standing, Path: st}
		if w := v.to(nodes["b"]); w.Why != c.want {
			t.Errorf("%+v: got %q", c, w.Why)
		}
	}
}

// A gateway that has stopped answering is not there, whatever handshakes say, and
// neither is what it carried.
func TestWays_TheGatewayIsSilent(t *testing.T) {
	v, nodes := wayMesh(t)
	v.pairs["gw"] = pair.Status{Node: "gw", Gateway: true, Stands: true, Silent: v.now.Add(-8 * time.Second)}
	v.pairs["b"] = pair.Status{Node: "b", Path: path.State{Why: "the other node does not answer any more"}}
	for id, want := range map[mesh.NodeID]string{
		"gw": "no answer for 8s: it is off, or out of reach",
		"b":  "out of reach: gateway gw has not answered for 8s",
		"f":  "out of reach: gateway gw has not answered for 8s",
	} {
		if w := v.to(nodes[id]); w.Kind != mesh.NoWay || w.Why != want {
			t.Errorf("%s: %+v", id, w)
		}
	}
	if w := v.to(nodes["a"]); w.Kind != mesh.DirectWay {
		t.Errorf("a node with a way of its own: %+v", w)
	}
}

func TestWays_NothingLeadsThere(t *testing.T) {
	v, nodes := wayMesh(t)
	for i := range v.stats.Peers {
		v.stats.Peers[i].LastHandshake = time.Time{}
	}
	if w := v.to(nodes["f"]); w.Kind != mesh.NoWay || !strings.Contains(w.Why, "gw, by way of which it is reached, does not answer") {
		t.Errorf("behind a gateway that is silent: %+v", w)
	}
	v.stats.Peers, v.peers = nil, nil
	if w := v.to(nodes["f"]); w.Kind != mesh.NoWay || !strings.Contains(w.Why, "leave no way to it") {
		t.Errorf("without peers: %+v", w)
	}
	v.self = nodes["a"] // without network ACLs
	if w := v.to(nodes["f"]); !strings.Contains(w.Why, "the network ACLs let nothing pass between a and f") {
		t.Errorf("without network ACLs: %+v", w)
	}
}
