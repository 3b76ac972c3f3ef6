// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

const (
	// reflexiveEvery is how often gateways are asked where the packets of the
	// WireGuard port come from, and reflexiveFirst how often until one answers.
	reflexiveEvery, reflexiveFirst = 20 * time.Second, 500 * time.Millisecond
	// maxNative bounds the candidates of the WireGuard port: relayed ones have to
	// have room in a signal, too.
	maxNative = 10
)

// natives are the addresses of the WireGuard port: of the host, and those that
// NATs give it.
type natives struct {
	pairs  *Pairs
	lookup *path.Lookup
	host   []netip.Addr
	port   uint16 // of the device
	looked time.Time
	// mapped is what each server has said, and asked when it was asked last.
	mapped map[netip.AddrPort]netip.AddrPort
	asked  time.Time
	// list is all of that as candidates.
	list []path.Candidate
}

func (n *natives) init(p *Pairs) {
	n.pairs, n.lookup, n.mapped = p, path.NewLookup(), make(map[netip.AddrPort]netip.AddrPort)
}

// tend looks at the host's addresses and asks the gateways. It returns when to
// do so again.
func (n *natives) tend(now time.Time) time.Time {
	if next := n.looked.Add(lookEvery); !next.After(now) {
		n.looked = now
		n.look(now)
	}
	every := reflexiveEvery
	if len(n.mapped) == 0 {
		every = reflexiveFirst
	}
	if !n.asked.Add(every).After(now) {
		n.ask(now)
	}
	return earlier(n.looked.Add(lookEvery), n.asked.Add(every))
}

// look finds the host's addresses.
func (n *natives) look(now time.Time) {
	list, err := n.pairs.cfg.Addrs()
	if err != nil {
		n.pairs.log.Debug("addresses of the host cannot be read", "err", err)
		return
	}
	var host []netip.Addr
	for _, a := range list {
		a = a.Unmap()
		if path.CheckAddress(netip.AddrPortFrom(a, 1)) == nil && !n.pairs.forbidden(a) && !slices.Contains(host, a) {
			host = append(host, a)
		}
	}
	slices.SortFunc(host, netip.Addr.Compare)
	port := n.pairs.cfg.Device.ListenPort()
	if slices.Equal(host, n.host) && port == n.port {
		return
	}
	was, moved := n.host, n.host != nil && n.port != 0
	n.host, n.port = host, port
	if moved {
		n.pairs.restart(now)
		if slices.ContainsFunc(was, func(a netip.Addr) bool { return !slices.Contains(host, a) }) {
			n.pairs.relays.moved = now
		}
	}
	n.renew(now)
}

// restart is for a host that is in another network or was asleep: what servers
// said before is of no use, and nothing that stood may stand any more.
func (p *Pairs) restart(now time.Time) {
	clear(p.native.mapped)
	p.native.asked = time.Time{}
	p.relays.doubted = now
	for _, l := range p.links {
		l.finder.Restart(now)
		l.due = now
	}
}

// HostChanged has the addresses of the host looked at now: they may have changed. It
// waits while Run is busy.
func (p *Pairs) HostChanged() {
	p.do(func(now time.Time) {
		p.native.looked = now
		p.native.look(now)
	})
}

// ask asks the gateways that are peers.
func (n *natives) ask(now time.Time) {
	n.asked = now
	for p := range n.pairs.plan.Peers.All() {
		if !p.Node.HoldsState() {
			continue
		}
		for _, at := range n.pairs.outside(p) {
			if out, err := n.lookup.Ask(now, path.Native, at); err == nil {
				_ = n.pairs.cfg.Device.SendSTUN(wg.NativeSocket, out.To, out.Bytes) // asked again soon
			}
		}
	}
}

// packet takes what a server answers.
func (n *natives) packet(now time.Time, d datagram) {
	said, ok := n.lookup.Packet(now, path.Socket(d.socket), d.from, d.bytes)
	if !ok || !said.Mapped.IsValid() || n.mapped[said.Server] == said.Mapped {
		return
	}
	n.mapped[said.Server] = said.Mapped
	n.renew(now)
}

// renew makes the candidates anew, and tells all links.
func (n *natives) renew(now time.Time) {
	var list []path.Candidate
	if n.port != 0 {
		for _, a := range n.host {
			list = append(list, path.Candidate{Kind: path.Host, Addr: netip.AddrPortFrom(a, n.port)})
		}
	}
	servers := make([]netip.AddrPort, 0, len(n.mapped))
	for s := range n.mapped {
		servers = append(servers, s)
	}
	slices.SortFunc(servers, netip.AddrPort.Compare)
	for _, s := range servers {
		if at := n.mapped[s]; !n.pairs.forbidden(at.Addr()) && !slices.ContainsFunc(list, func(c path.Candidate) bool { return c.Addr == at }) {
			list = append(list, path.Candidate{Kind: path.ServerReflexive, Addr: at})
		}
	}
	if len(list) > maxNative {
		// What NATs give reaches farther than one more address of the host.
		slices.SortStableFunc(list, func(a, b path.Candidate) int { return int(b.Kind) - int(a.Kind) })
		list = list[:maxNative]
		slices.SortStableFunc(list, func(a, b path.Candidate) int { return int(a.Kind) - int(b.Kind) })
	}
	if slices.Equal(list, n.list) {
		return
	}
	n.list = list
	for _, l := range n.pairs.links {
		n.introduce(now, l)
	}
}

// introduce tells a link of the WireGuard port.
func (n *natives) introduce(now time.Time, l *link) {
	if err := l.finder.SetLocal(now, path.Native, n.list); err != nil {
		n.pairs.log.Debug("addresses of the host are of no use for a path", "err", err)
	}
	l.due = now
}

// transportOf is how a URL of a server says that it is to be reached.
func transportOf(url string) path.Transport {
	switch {
	case strings.HasPrefix(url, "turns:"):
		return path.TLS
	case strings.HasPrefix(url, "turn:") && strings.HasSuffix(url, "?transport=tcp"):
		return path.TCP
	case strings.HasPrefix(url, "turn:"):
		return path.UDP
	}
	return path.NoRelay
}

// replan takes a plan of the node.
func (p *Pairs) replan(now time.Time, plan mesh.Plan, inMesh func(netip.Addr) bool) {
	p.plan, p.inMesh = plan, inMesh
	p.veilsRouted = routesVeils(plan)
	has := make(map[mesh.NodeID]bool, plan.Peers.Len())
	for peer := range plan.Peers.All() {
		k, ok := kindOf(peer)
		if !ok {
			continue
		}
		has[peer.Node.ID] = true
		l := p.links[peer.Node.ID]
		if l != nil && l.kind == k && l.key == peer.Node.PublicKey.WireGuard() && slices.Equal(endpoints(l.peer), endpoints(peer)) {
			l.peer = peer
			continue
		}
		if l != nil {
			p.drop(l, "the mesh has changed")
		}
		l, err := p.newLink(now, k, peer)
		if err != nil {
			p.log.Warn("no path", "node", string(peer.Node.ID), "err", err)
			continue
		}
		p.attend(now, l)
	}
	for id, l := range p.links {
		if l.kind != sought && !has[id] || l.kind == sought && p.neighbour(id) {
			p.drop(l, "the mesh has changed")
		}
	}
	p.native.look(now)
}

// kindOf says what link a peer of a plan is to have, if any.
func kindOf(p mesh.Peer) (kind, bool) {
	switch {
	case p.Node.HoldsState() && p.Node.RunsMeshgate() && p.Endpoint != "":
		return gateway, true
	case p.Node.Paths && p.Endpoint == "":
		return edge, true
	}
	return 0, false
}
