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
// next Set tries again. Errors that wrap mesh.ErrInvalid changed nothing;
// after another error the next Set carries on from where this one stopped.
//
// A Set costs what it changes, and a look at each peer. Only after an error, or
// when an attached connection has ended, it reads the state of the device.
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
		if err := d.resync(); err != nil {
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
	if d.unsure {
		d.routes = newPrefixSet(c.allowed())
		d.peerLog.setPeers(c.Peers)
	} else {
		d.routes = d.routes.with(ch.routes(&d.applied))
		d.peerLog.follow(ch)
	}
	d.unsure = true // until all of it is done
	// Policy first: a peer that lost a right loses it before it gains another.
	if err := d.setAddresses(c); err != nil {
		return err
	}
	if err := d.setPort(c); err != nil {
		return err
	}
	if text := d.diff(c, ch); text != "" {
		if err := d.wg.IpcSet(text); err != nil {
			return fmt.Errorf("apply: %w", err)
		}
	}
	d.applied.take(ch)
	d.applied.privateKey = c.PrivateKey
	d.metrics.peers.Set(float64(len(c.Peers)))
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

// setAddresses puts the addresses and rules of c in force.
func (d *Device) setAddresses(c *Config) error {
	rules := newRules(c, d.routes)
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
// to do. What is taken away comes first.
func (d *Device) diff(c *Config, ch *changes) string {
	var device, removed, changed strings.Builder
	if c.PrivateKey != d.applied.privateKey {
		fmt.Fprintf(&device, "private_key=%s\n", hex.EncodeToString(c.PrivateKey[:]))
	}
	for _, key := range ch.removed {
		fmt.Fprintf(&removed, "public_key=%s\nremove=true\n", hex.EncodeToString(key[:]))
	}
	for i := range ch.peers {
		peer := &ch.peers[i]
		selects := fmt.Sprintf("public_key=%s\n", hex.EncodeToString(peer.Key[:]))
		if lines := peer.withdrawn(); lines != "" {
			removed.WriteString(selects + lines)
		}
		if lines := peer.granted() + peer.endpointLine(); lines != "" || peer.was == nil {
			changed.WriteString(selects + lines)
		}
	}
	return device.String() + removed.String() + changed.String()
}

// withdrawn returns the instructions that take away what the peer should not
// have.
func (p *changedPeer) withdrawn() string {
	var b strings.Builder
	for _, prefix := range without(p.had(), p.AllowedIPs) {
		fmt.Fprintf(&b, "allowed_ip=-%s\n", prefix)
	}
	return b.String()
}

// granted returns the instructions that give the peer what it lacks.
func (p *changedPeer) granted() string {
	var b strings.Builder
	for _, prefix := range without(p.AllowedIPs, p.had()) {
		fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
	}
	was := time.Duration(0)
	if p.was != nil {
		was = p.was.keepalive
	}
	if seconds := p.Keepalive.Truncate(time.Second); seconds != was {
		fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", seconds/time.Second)
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

// endpointLine returns the instruction that sends the peer's packets to where it
// was configured to be; "" when that has not changed, unless the peer has
// nowhere else to be: no endpoint, or an attached connection that is gone.
func (p *changedPeer) endpointLine() string {
	if !p.endpoint.addr.IsValid() || p.was != nil && p.endpoint.addr == p.was.endpoint.addr && !p.was.lost {
		return ""
	}
	return fmt.Sprintf("endpoint=%s\n", p.endpoint.addr)
}

// pointPeer sends the packets of a configured peer to an endpoint.
func (d *Device) pointPeer(key mesh.WireGuardKey, endpoint string) error {
	d.setting <- struct{}{} // never held for longer than resolveTimeout
	defer func() { <-d.setting }()
	if _, ok := d.applied.peers[key]; !ok {
		return fmt.Errorf("no such peer: %w", mesh.ErrNotFound)
	}
	return d.wg.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hex.EncodeToString(key[:]), endpoint))
}
