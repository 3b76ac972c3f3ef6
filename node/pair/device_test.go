// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
)

// fakeDevice is a device that knows the peers of the last plan.
type fakeDevice struct{ n *testNode }

// fakeWay is a path of it.
type fakeWay struct {
	n        *testNode
	key      mesh.WireGuardKey
	route    wg.Route
	accepted []wg.Route
	activity wg.Activity
	looks    int // at activity
	closed   bool
}

func (d fakeDevice) ListenPort() uint16 { return wireguardPort }

func (d fakeDevice) OpenPath(key mesh.WireGuardKey) (Way, error) {
	plan := d.n.pairs.View().Apply(d.n.plan)
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	if !known(plan, key) {
		return nil, mesh.ErrNotFound
	}
	w := &fakeWay{n: d.n, key: key}
	d.n.ways[key] = w
	return w, nil
}

func (d fakeDevice) AddSocket(s wg.PacketSocket) (wg.Socket, func(), error) {
	d.n.mu.Lock()
	d.n.last++
	number := d.n.last
	d.n.mu.Unlock()
	d.n.listen(number, s.(*fakeRelay).at)
	return number, func() {
		d.n.lab.mu.Lock()
		delete(d.n.lab.hosts, s.(*fakeRelay).at)
		d.n.lab.mu.Unlock()
		_ = s.Close()
	}, nil
}

func (d fakeDevice) SendSTUN(number wg.Socket, to netip.AddrPort, b []byte) error {
	d.n.mu.Lock()
	s := d.n.sockets[number]
	d.n.mu.Unlock()
	if s == nil {
		return mesh.ErrNotFound
	}
	d.n.lab.send(s, to, b)
	return nil
}

// Handshake succeeds after ten milliseconds, if both have each other and a way.
func (d fakeDevice) Handshake(key mesh.WireGuardKey) {
	d.n.mu.Lock()
	d.n.shakes[key]++
	d.n.mu.Unlock()
	time.AfterFunc(10*time.Millisecond, func() {
		d.n.lab.mu.Lock()
		var peer *testNode
		for _, o := range d.n.lab.nodes {
			if o.record.PublicKey.WireGuard() == key {
				peer = o
			}
		}
		d.n.lab.mu.Unlock()
		own := d.n.record.PublicKey.WireGuard()
		if peer == nil || !d.n.leads(key) || !peer.leads(own) {
			return
		}
		d.n.shook(key)
		peer.shook(own)
	})
}

func (n *testNode) leads(key mesh.WireGuardKey) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.ways[key]
	return w != nil && w.route.To.IsValid()
}

func (n *testNode) shook(key mesh.WireGuardKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shaken[key] = time.Now()
}

// shookWith is when two nodes last made a session.
func (n *testNode) shookWith(o *testNode) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.shaken[o.record.PublicKey.WireGuard()]
}

// talk notes that packets went both ways between two nodes.
func (l *lab) talk(a, b *testNode) {
	for _, ends := range [][2]*testNode{{a, b}, {b, a}} {
		n := ends[0]
		n.mu.Lock()
		if w := n.ways[ends[1].record.PublicKey.WireGuard()]; w != nil {
			w.activity = wg.Activity{Sent: time.Now(), Heard: time.Now(), From: w.route}
		}
		n.mu.Unlock()
	}
}

func (d fakeDevice) Stats() (mesh.InterfaceStats, error) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	var s mesh.InterfaceStats
	for key, at := range d.n.shaken {
		s.Peers = append(s.Peers, mesh.PeerStats{PublicKey: key, LastHandshake: at})
	}
	return s, nil
}

func (w *fakeWay) Route(s wg.Socket, to netip.AddrPort) {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	w.route = wg.Route{Socket: s, To: to}
}

func (w *fakeWay) Accept(routes []wg.Route) error {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	for _, o := range w.n.ways {
		o.accepted = slices.DeleteFunc(o.accepted, func(r wg.Route) bool { return o != w && slices.Contains(routes, r) })
	}
	w.accepted = routes
	return nil
}

func (w *fakeWay) Narrow(bool) {}

func (w *fakeWay) Activity() wg.Activity {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	w.looks++
	return w.activity
}

func (w *fakeWay) Closed() bool { w.n.mu.Lock(); defer w.n.mu.Unlock(); return w.closed }
func (w *fakeWay) Close()       { w.n.mu.Lock(); defer w.n.mu.Unlock(); w.closed = true }
