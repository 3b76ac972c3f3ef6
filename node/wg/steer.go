// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/device"
)

// steerEvery is how often peers are led back to their paths.
const steerEvery = time.Second

// Route is a way to a peer: its address as a socket of ours sees it.
type Route struct {
	Socket Socket
	To     netip.AddrPort
}

// Activity says when messages of WireGuard last went over a path; a time is zero
// when none has. Nobody has checked who sent those that were heard: it tells
// when to look whether a path is alive, and does not prove that it is.
type Activity struct {
	Sent, Heard time.Time
	// From is the accepted route that Heard is about.
	From Route
}

// Path is the endpoint of a peer, for WireGuard always the same one, which leads
// over sockets and addresses that change. Its methods may be called
// concurrently. All but Close may be called by Options.STUN, too.
//
// A peer with an open path is always ready, whatever Options.Resident says. Its
// packets from places that the path does not accept take WireGuard there, as
// ever, and within a second back to the path if that leads anywhere.
type Path struct {
	device *Device
	path   *path
}

// OpenPath makes a path the endpoint of a configured peer, in place of
// Peer.Endpoint and of connections of AttachPeer, until the path is closed or
// the peer leaves the configuration, which closes it. It begins at the address
// of Peer.Endpoint if that is known, else nowhere, and accepts what comes from
// there unless another path does.
//
// Errors wrap mesh.ErrNotFound for an unknown peer, mesh.ErrExists when it has a
// path, and mesh.ErrExhausted when there are 4096.
func (d *Device) OpenPath(key mesh.WireGuardKey) (*Path, error) {
	p, err := d.openPath(key)
	if err != nil {
		return nil, fmt.Errorf("open path to peer %v: %w", key, err)
	}
	return &Path{device: d, path: p}, nil
}

// openPath is OpenPath without the words.
func (d *Device) openPath(key mesh.WireGuardKey) (*path, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	peer := d.applied.peers[key]
	if peer == nil {
		return nil, fmt.Errorf("no such peer: %w", mesh.ErrNotFound)
	}
	p, err := d.bind.openPath(key, peer.endpoint.addr)
	if err != nil {
		return nil, err
	}
	if err := d.point(peer, p.DstToString()); err != nil {
		p.end(peer.endpoint.addr)
		return nil, err
	}
	peer.contact.path, peer.contact.endpoint = p, p.DstToString()
	peer.contact.leads.Store(p)
	d.steering.Do(func() { d.bind.spawn(d.steer) })
	d.turn()
	return p, nil
}

// Route sends packets through s to an address from now on; nowhere if that or
// the socket is not valid: they are dropped and counted then. WireGuard asks for
// a session that it lacks every 5 s; who leads a new peer from nowhere to
// somewhere does not wait for that with Device.Handshake.
func (p *Path) Route(s Socket, to netip.AddrPort) {
	p.path.route(Route{s, unmapped(to)})
	p.device.turn()
}

// Routed returns where packets go now; the zero Route when nowhere.
func (p *Path) Routed() Route { return p.path.where() }

// Accept makes routes the places that the peer's packets may come from, instead
// of those before; at most 32. Only those of which the peer has shown that they
// are its own should be among them: WireGuard checks each packet, but sends its
// answers to the path. A route that another path accepts is taken away from that:
// the caller knows which peer is there now.
//
// After an error nothing changed. Errors wrap mesh.ErrInvalid for a route that
// is none or too many, and are net.ErrClosed when the path is closed.
func (p *Path) Accept(routes []Route) error {
	taken, err := p.path.accept(routes)
	if err != nil {
		return fmt.Errorf("accept routes of peer %v: %w", p.path.key, err)
	}
	if taken {
		// What came from there has made the other path the endpoint of this peer.
		p.device.turn()
	}
	return nil
}

// Activity returns when messages last went over the path.
func (p *Path) Activity() Activity { return p.path.activity() }

// Closed reports whether the path has been closed, or its peer has left the
// configuration.
func (p *Path) Closed() bool { return p.path.ended.Load() }

// Close gives the peer its configured endpoint back, if it has one. Again is
// harmless.
func (p *Path) Close() {
	d := p.device
	d.changing.Lock()
	defer d.changing.Unlock()
	peer := d.applied.peers[p.path.key]
	if peer == nil || peer.contact.path != p.path {
		p.path.end(netip.AddrPort{})
		return
	}
	p.path.end(peer.endpoint.addr)
	c := peer.contact
	c.path, c.endpoint = nil, peer.endpoint.literal()
	if c.attached != nil && c.attached.open() {
		c.endpoint = c.attached.DstToString()
	}
	// Packets that were on their way may take WireGuard back to what is left of
	// the path. The next Set looks.
	d.bind.lost.Store(true)
	if c.endpoint == "" || d.closed.Load() {
		return
	}
	if err := d.point(peer, c.endpoint); err != nil && !d.closed.Load() {
		d.logger.Warn("peer stays without a path; the next change of the configuration tries again", "peer", peer.label(p.path.key), "err", err)
	}
}

// point makes an endpoint, in its text form, that of a configured peer, which
// the library has from then on. The caller holds changing.
func (d *Device) point(p *appliedPeer, to string) error {
	c := p.contact
	if c.resident() {
		if err := d.wg.IpcSet(selects(c.key) + "update_only=true\nendpoint=" + to + "\n"); err != nil {
			return err
		}
	} else if err := d.bring(p, to); err != nil {
		d.bind.lost.Store(true) // nobody knows how much of it was done
		return err
	}
	d.enter(c)
	return nil
}

// turn makes steer look at once. It does not wait.
func (d *Device) turn() {
	select {
	case d.turned <- struct{}{}:
	default:
	}
}

// steer leads peers back to their paths, until ended is closed: the library
// takes the place that a packet came from for the peer's, and knows nothing of
// better ones. It does not say when it has done so, and to ask costs more than
// to tell it again.
func (d *Device) steer(ended <-chan struct{}) {
	tick := time.NewTicker(steerEvery)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-d.turned:
		case <-tick.C:
		}
		if d.lead() > 0 {
			tick.Reset(steerEvery)
		} else {
			tick.Stop() // OpenPath turns
		}
	}
}

// lead makes paths that lead anywhere the endpoints of their peers, and returns
// how many paths there are.
func (d *Device) lead() int {
	// Close takes a path away under the same lock.
	d.changing.Lock()
	defer d.changing.Unlock()
	open := d.bind.paths.all()
	for _, p := range open {
		if p.hop.Load() == nil {
			continue
		}
		if peer := d.wg.LookupPeer(device.NoisePublicKey(p.key)); peer != nil {
			peer.SetEndpointFromPacket(p)
		}
	}
	return len(open)
}
