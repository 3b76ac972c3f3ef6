// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// maxKeepalive is the longest interval, in seconds, that WireGuard can be told.
const maxKeepalive = math.MaxUint16

// peerEndpoint is where a peer was configured to be.
type peerEndpoint struct {
	// text is Peer.Endpoint.
	text string
	// addr is what it stands for; invalid when empty or a name not resolved yet.
	addr netip.AddrPort
	// told is the kind of error of looking text up that was logged last.
	told string
}

// Set makes the device what c says and changes nothing else: an unchanged peer
// keeps its session, and its endpoint if it has roamed since; connections on
// addresses that stay live on. Equal calls are harmless.
//
// A peer whose endpoint is a name that does not resolve gets no endpoint; the
// next Set tries again. One that has a path stays there, whatever its endpoint
// is. Errors that wrap mesh.ErrInvalid changed nothing;
// after another error the next Set carries on from where this one stopped.
//
// A Set costs what it changes, and a look at each peer of Config.Peers and of
// those Config.Lists that are new. Only after an error, or when an attached
// connection has ended, it reads the state of the device.
func (d *Device) Set(ctx context.Context, c Config) error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("configure %s: %w", d.name, err)
	}
	select {
	case d.setting <- struct{}{}:
		defer func() { <-d.setting }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if d.closed.Load() {
		return fmt.Errorf("configure %s: %w", d.name, net.ErrClosed)
	}
	if err := d.set(ctx, &c); err != nil {
		return fmt.Errorf("configure %s: %w", d.name, err)
	}
	return nil
}

// set does the work of Set, of which the caller has the right.
func (d *Device) set(ctx context.Context, c *Config) error {
	// Who sat at a connection that is gone has to be told anew where to go.
	if d.bind.lost.Swap(false) || d.unsure {
		d.unsure = true
		d.changing.Lock()
		err := d.resync()
		d.changing.Unlock()
		if err != nil {
			return err
		}
	}
	ch, err := d.applied.compare(c)
	if err != nil {
		return err
	}
	if err := d.resolve(ctx, c, ch); err != nil {
		return err
	}
	lazy := c.count() > d.resident
	if lazy {
		d.beLazy(c.PrivateKey)
	}
	ch.contacts(lazy, d.bind.paths.forPeer)
	if d.unsure {
		d.routes = newPrefixSet(ch.allRoutes(&d.applied, c))
		d.peerLog.setPeers(c.lists()...)
	} else {
		d.routes = d.routes.with(ch.routes(&d.applied))
		d.peerLog.follow(ch)
	}
	d.unsure = true // until all of it is done
	// Policy first: a peer that lost a right loses it before it gains another.
	if err := d.setAddresses(c, lazy || d.lazy); err != nil {
		return err
	}
	if err := d.setPort(c); err != nil {
		return err
	}
	if c.Mark != d.applied.mark {
		if err := d.wg.IpcSet(fmt.Sprintf("fwmark=%d\n", c.Mark)); err != nil {
			return fmt.Errorf("mark sockets: %w", err)
		}
		d.applied.mark = c.Mark
	}
	// The gate makes no use of what the library does not have.
	veiled, still := d.veiled(ch)
	d.gate.veils.Store(newVeils(still))
	if err := d.setPeers(c, ch, lazy); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	d.veiledPeers = veiled
	d.gate.veils.Store(newVeils(veiled))
	d.metrics.peers.Set(float64(c.count()))
	if !d.up {
		if err := d.wg.Up(); err != nil {
			return fmt.Errorf("listen on udp port %d: %w", c.ListenPort, err)
		}
		d.up = true
	}
	d.applied.listenPort = d.ListenPort()
	d.unsure = false
	return nil
}

// setPeers makes the changes. Lazy says whether peers may be idle from now on.
func (d *Device) setPeers(c *Config, ch *changes, lazy bool) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	home := d.settle(ch, lazy)
	if text := d.diff(c, ch) + d.homeward(home, lazy); text != "" {
		if err := d.wg.IpcSet(text); err != nil {
			return err
		}
	}
	for _, key := range ch.removed {
		gone := d.applied.peers[key].contact
		gone.endpoint = ""
		if gone.hasPath() {
			gone.path.end(netip.AddrPort{})
		}
		d.rest(gone)
	}
	for i := range ch.peers {
		p := &ch.peers[i]
		if line := p.endpointTo(); line != "" {
			p.contact.endpoint = line
		}
		if p.stays {
			d.enter(p.contact)
		} else {
			d.rest(p.contact)
		}
	}
	for _, p := range home {
		d.enter(p.contact)
	}
	d.applied.take(c, ch)
	d.roster.take(ch)
	if c.PrivateKey != d.applied.privateKey || d.applied.publicKey.IsZero() {
		d.applied.publicKey = c.PrivateKey.Public()
		d.bind.calls.use(d.applied.publicKey)
	}
	d.applied.privateKey, d.applied.stray = c.PrivateKey, nil
	if d.lazy && !lazy {
		d.beEager()
	}
	d.lazy = lazy
	return nil
}

// setAddresses puts the addresses and rules of c in force. Lazy says whether
// peers may be idle.
func (d *Device) setAddresses(c *Config, lazy bool) error {
	rules := newRules(c, d.routes)
	rules.lazy = lazy
	d.filter.current.Store(rules)
	return d.plane.setAddresses(rules.own)
}

// setPort changes the UDP port if c asks for another. When that one is taken
// the old one stays.
func (d *Device) setPort(c *Config) error {
	current := &d.applied
	if c.ListenPort == 0 || c.ListenPort == current.listenPort {
		return nil
	}
	err := d.wg.IpcSet(fmt.Sprintf("listen_port=%d\n", c.ListenPort))
	if err == nil {
		return nil
	}
	err = fmt.Errorf("listen on udp port %d: %w", c.ListenPort, err)
	if back := d.wg.IpcSet(fmt.Sprintf("listen_port=%d\n", current.listenPort)); back != nil {
		err = fmt.Errorf("%w; return to port %d: %w", err, current.listenPort, back)
	}
	return err
}

// diff returns the instructions that make the changes; "" if there is nothing
// to do. What is taken away comes first. What is behind idle peers is nobody's.
func (d *Device) diff(c *Config, ch *changes) string {
	var device, removed, changed, unclaimed, claimed strings.Builder
	if c.PrivateKey != d.applied.privateKey {
		fmt.Fprintf(&device, "private_key=%s\n", hex.EncodeToString(c.PrivateKey[:]))
	}
	withdraw(&unclaimed, d.applied.stray)
	for _, key := range ch.removed {
		if was := d.applied.peers[key]; was.contact.resident() {
			fmt.Fprintf(&removed, "%sremove=true\n", selects(key))
		} else {
			withdraw(&unclaimed, was.allowed)
		}
	}
	for i := range ch.peers {
		peer := &ch.peers[i]
		networks := peer.networks()
		lost, gained := without(peer.had(), networks), without(networks, peer.had())
		switch {
		case !peer.stays:
			withdraw(&unclaimed, lost)
			grant(&claimed, gained)
		case peer.was != nil && !peer.contact.resident():
			withdraw(&unclaimed, lost)
			changed.WriteString(d.whole(peer))
		default:
			if len(lost) > 0 {
				removed.WriteString(selects(peer.Key))
				withdraw(&removed, lost)
			}
			if lines := peer.changed(gained); lines != "" || peer.was == nil {
				changed.WriteString(selects(peer.Key) + lines)
			}
		}
	}
	return device.String() + d.ofNobody(&unclaimed) + removed.String() + d.ofNobody(&claimed) + changed.String()
}

// ofNobody returns the instructions about prefixes of idle peers.
func (d *Device) ofNobody(lines *strings.Builder) string {
	if lines.Len() == 0 {
		return ""
	}
	return selects(d.nobody) + lines.String()
}

// changed returns the instructions for a peer that the library has, or that is
// new.
func (p *changedPeer) changed(gained []netip.Prefix) string {
	var b strings.Builder
	grant(&b, gained)
	was := time.Duration(0)
	if p.was != nil {
		was = p.was.keepalive
	}
	if seconds := p.Keepalive.Truncate(time.Second); seconds != was {
		fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", seconds/time.Second)
	}
	if to := p.endpointTo(); to != "" {
		fmt.Fprintf(&b, "endpoint=%s\n", to)
	}
	return b.String()
}

// without returns the prefixes of a that are not in b. On a leaf of a large
// mesh both hold thousands.
func without(a, b []netip.Prefix) []netip.Prefix {
	in := make(map[netip.Prefix]struct{}, len(b))
	for _, p := range b {
		in[p] = struct{}{}
	}
	var rest []netip.Prefix
	for _, p := range a {
		if _, ok := in[p]; !ok {
			rest = append(rest, p)
		}
	}
	return rest
}

// endpointTo returns the endpoint that the peer's packets are to be sent to from
// now on; "" when it was configured to be there before, unless the peer has
// nowhere else to be: no endpoint, or an attached connection that is gone. A peer
// with a path stays there.
func (p *changedPeer) endpointTo() string {
	if p.contact.hasPath() {
		return ""
	}
	if p.was != nil && p.endpoint.addr == p.was.endpoint.addr && !p.was.lost {
		return ""
	}
	return p.endpoint.literal()
}

// pointPeer sends the packets of a configured peer to an attached connection,
// unless it has a path.
func (d *Device) pointPeer(key mesh.WireGuardKey, a *attachment) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	p := d.applied.peers[key]
	if p == nil {
		return fmt.Errorf("no such peer: %w", mesh.ErrNotFound)
	}
	if !p.contact.hasPath() {
		if err := d.point(p, a.DstToString()); err != nil {
			return err
		}
	}
	p.contact.attached = a
	return nil
}
