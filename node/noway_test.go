// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/wg"
)

// Who meets a way that the policy closed is told so, and not of the network.
func TestNoWay_NamesThePolicy(t *testing.T) {
	addressed := func(id mesh.NodeID, v4, v6 string) *mesh.Node {
		o := &mesh.Node{ID: id}
		if v4 != "" {
			o.IPv4 = netip.MustParsePrefix(v4)
		}
		if v6 != "" {
			o.IPv6 = netip.MustParsePrefix(v6)
		}
		return o
	}
	a, b := addressed("a", "172.16.0.1/32", "fd00::1:0/112"), addressed("b", "172.16.0.2/32", "fd00::2:0/112")
	six := addressed("six", "", "fd00::6:0/112")
	accept := func(from, to string, cidrs ...string) mesh.ACL {
		acl := mesh.ACL{Accept: true, SourceNodes: []string{from}, DestinationNodes: []string{to}}
		for _, c := range cidrs {
			acl.DestinationCIDRs = append(acl.DestinationCIDRs, netip.MustParsePrefix(c))
		}
		return acl
	}
	const closed, open = "the network ACLs let nothing pass between a and %s", "the network ACLs and the edges of the mesh leave no way to it"
	for name, tt := range map[string]struct {
		acls []mesh.ACL
		self *mesh.Node
		to   *mesh.Node
		want string
	}{
		"no ACL":                     {nil, a, b, fmt.Sprintf(closed, "b")},
		"one that lets others":       {[]mesh.ACL{accept("a", "gw")}, a, b, fmt.Sprintf(closed, "b")},
		"one that lets both":         {[]mesh.ACL{accept("*", "*")}, a, b, open},
		"one the other way":          {[]mesh.ACL{accept("b", "a")}, a, b, open},
		"one in IPv6":                {[]mesh.ACL{accept("a", "b", "fd00::/32")}, a, b, open},
		"one in a family that lacks": {[]mesh.ACL{accept("a", "six", "172.16.0.0/12")}, a, six, fmt.Sprintf(closed, "six")},
		"nothing known of oneself":   {nil, nil, b, open},
	} {
		t.Run(name, func(t *testing.T) {
			if got := noWay(policy.Compile(&mesh.Snapshot{ACLs: tt.acls}), tt.self, tt.to); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	shut := mesh.ACL{Name: "lockdown", Priority: 100}
	if got := noWay(policy.Compile(&mesh.Snapshot{ACLs: []mesh.ACL{shut, accept("*", "*")}}), a, b); !strings.Contains(got, `denied by acl "lockdown"`) ||
		!strings.Contains(got, "NAME --priority 101 --src-node a --dst-node b") {
		t.Errorf("got %q", got)
	}
	n := &Node{cfg: Config{ID: "a"}}
	s := &mesh.Snapshot{Nodes: mesh.NodesOf(a, b)}
	err := n.unrouted(s, b, fmt.Errorf("dial tcp 172.16.0.2:9: %w", wg.ErrNoRoute))
	if !errors.Is(err, mesh.ErrUnavailable) || !strings.Contains(err.Error(), "no way to node b: the network ACLs let nothing pass") || strings.Contains(err.Error(), "no route") {
		t.Errorf("got %v", err)
	}
	for _, other := range []struct {
		to  *mesh.Node
		err error
	}{{nil, wg.ErrNoRoute}, {b, errRefused}} {
		if err := n.unrouted(s, other.to, other.err); !errors.Is(err, other.err) {
			t.Errorf("got %v, want %v", err, other.err)
		}
	}
}
