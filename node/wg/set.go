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

// set does the work of Set for a valid configuration.
func (d *Device) set(ctx context.Context, c *Config) error {
	current, err := d.state()
	if err != nil {
		return err
	}
	endpoints, err := d.resolve(ctx, c)
	if err != nil {
		return err
	}
	d.peerLog.setPeers(c.Peers)
	// Policy first: a peer that lost a right loses it before it gains another.
	if err := d.setAddresses(c); err != nil {
		return err
	}
	if err := d.setPort(c, current); err != nil {
		return err
	}
	if text := d.diff(c, current, endpoints); text != "" {
		if err := d.wg.IpcSet(text); err != nil {
			return fmt.Errorf("apply: %w", err)
		}
	}
	d.peers = endpoints
	d.metrics.peers.Set(float64(len(c.Peers)))
	if !d.up {
		if err := d.wg.Up(); err != nil {
			return fmt.Errorf("listen on udp port %d: %w", c.ListenPort, err)
		}
		d.up = true
	}
	return nil
}

// setAddresses puts the addresses and rules of c in force.
func (d *Device) setAddresses(c *Config) error {
	rules := newRules(c)
	d.filter.current.Store(rules)
	return d.plane.setAddresses(rules.own)
}

// setPort changes the UDP port if c asks for another. When that one is taken
// the old one stays.
func (d *Device) setPort(c *Config, current *uapiState) error {
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

// diff returns the instructions that lead from current to c; "" if there is
// nothing to do. What is taken away comes first.
func (d *Device) diff(c *Config, current *uapiState, endpoints map[mesh.WireGuardKey]peerEndpoint) string {
	var device, removed, changed strings.Builder
	if c.PrivateKey != current.privateKey {
		fmt.Fprintf(&device, "private_key=%s\n", hex.EncodeToString(c.PrivateKey[:]))
	}
	for key := range current.peers {
		if _, stays := endpoints[key]; !stays {
			fmt.Fprintf(&removed, "public_key=%s\nremove=true\n", hex.EncodeToString(key[:]))
		}
	}
	for i := range c.Peers {
		peer := &c.Peers[i]
		was := current.peers[peer.Key]
		if was == nil {
			was = new(mesh.PeerStats)
		}
		selects := fmt.Sprintf("public_key=%s\n", hex.EncodeToString(peer.Key[:]))
		if lines := withdrawn(peer, was); lines != "" {
			removed.WriteString(selects + lines)
		}
		lines := granted(peer, was) + d.endpointLine(peer.Key, was.Endpoint, endpoints[peer.Key])
		if lines != "" || was.PublicKey.IsZero() {
			changed.WriteString(selects + lines)
		}
	}
	return device.String() + removed.String() + changed.String()
}

// withdrawn returns the instructions that take away what peer should not have.
func withdrawn(peer *Peer, was *mesh.PeerStats) string {
	var b strings.Builder
	for _, p := range without(was.AllowedIPs, peer.AllowedIPs) {
		fmt.Fprintf(&b, "allowed_ip=-%s\n", p)
	}
	return b.String()
}

// granted returns the instructions that give peer what it lacks.
func granted(peer *Peer, was *mesh.PeerStats) string {
	var b strings.Builder
	for _, p := range without(peer.AllowedIPs, was.AllowedIPs) {
		fmt.Fprintf(&b, "allowed_ip=%s\n", p)
	}
	if seconds := peer.Keepalive.Truncate(time.Second); seconds != was.Keepalive {
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

// endpointLine returns the instruction that sends a peer's packets to where it
// was configured to be; "" when that has not changed, unless the peer has
// nowhere else to be: no endpoint, or an attached connection that is gone.
func (d *Device) endpointLine(key mesh.WireGuardKey, now string, want peerEndpoint) string {
	lost := now == "" || strings.HasPrefix(now, attachedPrefix) && d.bind.lookup(now) == nil
	if !want.addr.IsValid() || want.addr == d.peers[key].addr && !lost {
		return ""
	}
	return fmt.Sprintf("endpoint=%s\n", want.addr)
}

// pointPeer sends the packets of a configured peer to an endpoint.
func (d *Device) pointPeer(key mesh.WireGuardKey, endpoint string) error {
	d.setting <- struct{}{} // never held for longer than resolveTimeout
	defer func() { <-d.setting }()
	if _, ok := d.peers[key]; !ok {
		return fmt.Errorf("no such peer: %w", mesh.ErrNotFound)
	}
	return d.wg.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hex.EncodeToString(key[:]), endpoint))
}
