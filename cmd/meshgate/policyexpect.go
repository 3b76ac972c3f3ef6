// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	expectAllow = "allow"
	expectDeny  = "deny"
	// gotMixed is the answer when an expectation holds for some addresses only.
	gotMixed = "mixed"
)

// userPrefix marks the name of a user. Names have no colon.
const userPrefix = "user:"

// expectation is one test of a policy: about traffic, or about an action.
type expectation struct {
	// line is where it stands in its file.
	line int
	// text is how it is shown.
	text   string
	expect string

	// from is a node, a user or an address; empty for a test of an action.
	from string
	// host is a node or an address.
	host     string
	protocol string
	port     uint16

	// as is who acts.
	as string
	// stranger says that from or as was marked as a user whom the mesh need not know.
	stranger bool
	action   mesh.Action
}

// parseExpectation reads a test:
//
//	{from: alice, to: "web-1:443", proto: tcp, expect: allow}
//	{as: alice, can: put routes/x, expect: deny}
func parseExpectation(item *yaml.Node) (expectation, error) {
	e := expectation{line: item.Line}
	var fields map[string]string
	if err := item.Decode(&fields); err != nil || item.Kind != yaml.MappingNode {
		return e, errors.New("want the keys from, to, proto, expect; or as, can, expect")
	}
	isAction := fields["as"] != "" || fields["can"] != ""
	known := []string{"from", "to", "proto", "expect"}
	if isAction {
		known = []string{"as", "can", "expect"}
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, key) {
			return e, fmt.Errorf("unknown key %q; want %s", key, strings.Join(known, ", "))
		}
	}
	e.expect = fields["expect"]
	if e.expect != expectAllow && e.expect != expectDeny {
		return e, fmt.Errorf("expect: %q is neither allow nor deny", e.expect)
	}
	if isAction {
		return e, e.parseAction(fields["as"], fields["can"])
	}
	return e, e.parseTraffic(fields["from"], fields["to"], fields["proto"])
}

// parseAction reads "VERB RESOURCE" or "VERB RESOURCE/NAME".
func (e *expectation) parseAction(as, can string) error {
	e.text = as + " can " + can
	if e.as, e.stranger = strings.CutPrefix(as, userPrefix); e.as == "" {
		return errors.New("as: want the name of a node or user")
	}
	verb, on, ok := strings.Cut(can, " ")
	if !ok {
		return fmt.Errorf("can: %q: want a verb and a resource, such as: put routes/office", can)
	}
	resource, name, _ := strings.Cut(strings.TrimSpace(on), "/")
	v, known := v1.RuleVerb_value[enumName(verb, "VERB_", v1.RuleVerb_value)]
	if !known || v == 0 {
		return fmt.Errorf("can: verb %q; want get, put, delete or *", verb)
	}
	r, known := v1.RuleResource_value[enumName(resource, "RESOURCE_", v1.RuleResource_value)]
	if !known || r == 0 {
		return fmt.Errorf("can: resource %q; want votes, roles, rolebindings, groups, networkacls, routes, datachannels, edges, observers, pubsub or *", resource)
	}
	e.action = mesh.Action{Verb: v1.RuleVerb(v), Resource: v1.RuleResource(r), Name: name}
	return nil
}

// parseTraffic reads the ends of a conversation. Without a protocol, a port is
// one of TCP.
func (e *expectation) parseTraffic(from, to, protocol string) error {
	if from == "" || to == "" {
		return errors.New("from, to: want who opens the conversation, and with whom")
	}
	e.from, e.stranger = strings.CutPrefix(from, userPrefix)
	e.host = to
	if at, err := netip.ParseAddrPort(to); err == nil {
		e.host, e.port = at.Addr().String(), at.Port()
	} else if _, err := netip.ParseAddr(to); err != nil {
		if host, port, ok := strings.Cut(to, ":"); ok {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil || n == 0 {
				return fmt.Errorf("to: port %q is not in 1..65535", port)
			}
			e.host, e.port = host, uint16(n)
		}
	}
	e.protocol = protocol
	if protocol == "" {
		e.protocol = "tcp"
	}
	p, err := mesh.ParseProtocols([]string{e.protocol})
	switch {
	case err != nil || len(p) == 0:
		return fmt.Errorf("proto: %q is no protocol; want tcp, udp, icmp, another name or a number", protocol)
	case p[0].HasPorts() && e.port == 0:
		return fmt.Errorf("to: %q: want a port, such as %s:443; or another proto, such as icmp", to, to)
	case !p[0].HasPorts() && e.port != 0:
		return fmt.Errorf("to: %q: %s has no ports", to, e.protocol)
	}
	e.text = fmt.Sprintf("%s to %s, %s", from, to, e.protocol)
	return nil
}

// outcome is what became of an expectation.
type outcome struct {
	OK     bool   `json:"ok"`
	Line   int    `json:"line"`
	Test   string `json:"test"`
	Expect string `json:"expect"`
	// Got is "allow", "deny", or "mixed" when it depends on the addresses.
	Got string `json:"got"`
	// Why names the ACL or role that decided.
	Why string `json:"why"`
}

// checker holds expectations against a policy.
type checker struct {
	snapshot *mesh.Snapshot
	network  *policy.Network
	owners   *policy.Owners
}

func newChecker(s *mesh.Snapshot) *checker {
	return &checker{snapshot: s, network: policy.Compile(s), owners: policy.IndexOwners(s)}
}

// check says whether e holds.
func (c *checker) check(e expectation) outcome {
	o := outcome{Line: e.line, Test: e.text, Expect: e.expect}
	if e.as != "" {
		g := policy.Explain(c.snapshot, e.as, e.action)
		o.Got, o.Why = verdictText(g.Allowed), g.String()
	} else {
		o.Got, o.Why = c.traffic(e)
	}
	o.OK = o.Got == o.Expect
	return o
}

func verdictText(allowed bool) string {
	if allowed {
		return expectAllow
	}
	return expectDeny
}

// end is somebody at one address; an address that is not set is unknown.
type end struct {
	name string
	addr netip.Addr
}

// traffic says what becomes of a conversation, for every pair of addresses of
// its ends.
func (c *checker) traffic(e expectation) (got, why string) {
	from, err := c.ends(e.from, true)
	if err != nil {
		return expectDeny, "from: " + err.Error()
	}
	to, err := c.ends(e.host, false)
	if err != nil {
		return expectDeny, "to: " + err.Error()
	}
	for _, src := range from {
		for _, dst := range to {
			if src.addr.IsValid() && dst.addr.IsValid() && src.addr.Is4() != dst.addr.Is4() {
				continue
			}
			d := c.decide(e, src, dst)
			this, reason := verdictText(d.Allowed), d.String()
			switch {
			case got == "":
				got, why = this, reason
			case got != this && got != gotMixed:
				got, why = gotMixed, fmt.Sprintf("%s; but at %s %s", why, dst.addr, reason)
			}
		}
	}
	if got == "" {
		return expectDeny, fmt.Sprintf("%s and %s have no addresses of the same IP version", e.from, e.host)
	}
	return got, why
}

// decide asks the ACLs about one pair of ends. What a node opens itself is
// decided as its packets are; a gateway decides about users.
func (c *checker) decide(e expectation, src, dst end) policy.Decision {
	f := policy.Flow{SrcNode: src.name, Src: src.addr, DstNode: mesh.NodeID(dst.name), Dst: dst.addr, Port: e.port}
	list, _ := mesh.ParseProtocols([]string{e.protocol}) // parseTraffic has read it
	f.Protocol = list[0]
	if dst.addr.Is6() && slices.Contains(list, mesh.ProtocolICMPv6) {
		f.Protocol = mesh.ProtocolICMPv6
	}
	if c.snapshot.Node(mesh.NodeID(src.name)) != nil {
		return c.network.Opens(f)
	}
	return c.network.Decide(f)
}

// ends returns who name is: a node at its addresses, or the nodes that hold or
// route an address. As a source, any other name is a user. Where the policy
// names no nodes, any other name is a node whose addresses are unknown.
func (c *checker) ends(name string, source bool) ([]end, error) {
	if addr, err := netip.ParseAddr(name); err == nil {
		addr = addr.Unmap()
		owners := c.owners.Of(addr)
		if len(owners) == 0 {
			return nil, fmt.Errorf("no node has or routes %s", addr)
		}
		var ends []end
		for _, id := range owners {
			ends = append(ends, end{id, addr})
		}
		return ends, nil
	}
	n, isNode := c.snapshot.Nodes.Get(mesh.NodeID(name))
	if !isNode && !source && c.snapshot.Nodes.Len() > 0 {
		return nil, fmt.Errorf("no node %q in the mesh", name)
	}
	if !isNode || len(n.Addrs()) == 0 {
		return []end{{name: name}}, nil
	}
	var ends []end
	for _, addr := range n.Addrs() {
		ends = append(ends, end{name, addr})
	}
	return ends, nil
}
