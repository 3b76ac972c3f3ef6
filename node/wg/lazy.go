// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/device"
)

const (
	// defaultResident is Options.Resident when that is 0: peers that take 20 MB
	// together at most when nothing moves.
	defaultResident = 512
	// sweepEvery is how often peers that are quiet are looked for.
	sweepEvery = time.Minute
	// quietTime is how long a peer is quiet before it leaves the library: until
	// then the library itself keeps the keys of its last session, and forgets
	// them when nothing came of it (REJECT_AFTER_TIME * 3 of the protocol).
	quietTime = device.RejectAfterTime * 3
	// evictBatch is how many peers leave at once; others wait for that.
	evictBatch = 64
	// wakePatience bounds how long packets of all peers wait for one: a Set that
	// puts ten thousand changes in force takes a fraction of it.
	wakePatience = 5 * time.Second
)

// wakeRequest asks for some idle peers; done is closed when all that can be done
// is done.
type wakeRequest struct {
	idle []*contact
	done chan struct{}
}

// beLazy makes a device ready for idle peers; again is harmless. The caller has
// the right to Set.
func (d *Device) beLazy(private mesh.WireGuardPrivateKey) {
	if d.doorman == nil {
		d.doorman = newDoorman(d.bind, &d.roster, d.letIn, d.wg.IsUnderLoad)
	}
	if is := d.doorman.identity.Load(); is == nil || is.private != private {
		d.doorman.identity.Store(newIdentity(private))
	}
	d.bind.door.Store(d.doorman)
	d.attend.Do(func() {
		d.bind.spawn(d.doorman.run)
		d.bind.spawn(d.keep)
	})
}

// keep fetches the peers that Read asks for and takes those out that are quiet,
// until ended is closed.
func (d *Device) keep(ended <-chan struct{}) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case r := <-d.wakes:
			d.fetch(r.idle)
			close(r.done)
		case now := <-tick.C:
			d.sweep(now)
		}
	}
}

// wake makes the library have idle peers, for packets that wait for it. Read
// must not do that itself: the library waits for Read while it closes, with
// its configuration locked. Packets that waited too long go to nobody.
func (d *Device) wake(idle []*contact) {
	patience := time.NewTimer(wakePatience)
	defer patience.Stop()
	r := wakeRequest{idle: idle, done: make(chan struct{})}
	wakes := d.wakes
	for {
		select {
		case wakes <- r:
			wakes = nil
		case <-r.done:
			return
		case <-d.bind.ended:
			return
		case <-patience.C:
			d.logger.Warn("packets are dropped: their peers were not made ready in time", "n", len(idle))
			return
		}
	}
}

// fetch puts those peers into the library for which there is somewhere to send
// packets to.
func (d *Device) fetch(idle []*contact) {
	d.changing.Lock()
	defer d.changing.Unlock()
	for _, c := range idle {
		if c.at() != stateLost {
			d.activate(c)
		}
	}
}

// letIn puts a peer into the library that has called. It reports whether the
// library has it.
func (d *Device) letIn(c *contact) bool {
	if c.at() == stateActive {
		return true
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	return d.activate(c)
}

// activate puts a peer into the library, unless it is there or is no longer
// configured. It reports whether the library has it. The caller holds changing.
func (d *Device) activate(c *contact) bool {
	p := d.applied.peers[c.key]
	switch {
	case p == nil || p.contact != c:
		return false
	case c.resident():
		c.since = time.Now()
		c.state.Store(uint32(stateActive))
		return true
	}
	if d.nowhere(c.endpoint) {
		c.endpoint = p.endpoint.literal()
	}
	err := d.bring(p, c.endpoint)
	if err != nil && d.nowhere(c.endpoint) {
		// The connection that it was at has just ended.
		c.endpoint = p.endpoint.literal()
		err = d.bring(p, c.endpoint)
	}
	if err != nil {
		d.bind.lost.Store(true) // nobody knows how much of it was done
		if !d.closed.Load() {
			d.logger.Warn("peer cannot be made ready; the next change of the configuration tries again", "peer", p.label(c.key), "err", err)
		}
		return false
	}
	return true
}

// bring tells the library all about an idle peer.
func (d *Device) bring(p *appliedPeer, endpoint string) error {
	if err := d.wg.IpcSet(whole(p.contact.key, p.allowed, p.keepalive, endpoint)); err != nil {
		return err
	}
	d.enter(p.contact)
	return nil
}

// whole returns the instructions that make a peer out of nothing.
func whole(key mesh.WireGuardKey, allowed []netip.Prefix, keepalive time.Duration, endpoint string) string {
	var b strings.Builder
	b.WriteString(selects(key))
	grant(&b, allowed)
	fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", keepalive/time.Second)
	if endpoint != "" {
		fmt.Fprintf(&b, "endpoint=%s\n", endpoint)
	}
	return b.String()
}

// whole returns the instructions that put an idle peer that changes into the
// library.
func (d *Device) whole(p *changedPeer) string {
	endpoint := p.endpointTo()
	if endpoint == "" {
		endpoint = p.contact.endpoint
	}
	if d.nowhere(endpoint) {
		endpoint = p.endpoint.literal()
	}
	return whole(p.Key, p.networks(), p.Keepalive, endpoint)
}

// settle decides which of the peers that change the library is to have, and
// returns all others that it does not have but is to have.
func (d *Device) settle(ch *changes, lazy bool) []*appliedPeer {
	for i := range ch.peers {
		p := &ch.peers[i]
		p.stays = !lazy || p.contact.resident() && p.was != nil || p.contact.pinned(p.Keepalive, p.endpoint)
	}
	if lazy || !d.lazy {
		return nil
	}
	changed := make(map[mesh.WireGuardKey]bool, len(ch.peers)+len(ch.removed))
	for _, key := range ch.removed {
		changed[key] = true
	}
	for i := range ch.peers {
		changed[ch.peers[i].Key] = true
	}
	var home []*appliedPeer
	for key, p := range d.applied.peers {
		if !changed[key] && !p.contact.resident() {
			home = append(home, p)
		}
	}
	return home
}

// homeward returns the instructions that put idle peers into the library. When
// peers are not lazy any more, nobody has nothing left.
func (d *Device) homeward(home []*appliedPeer, lazy bool) string {
	var b strings.Builder
	for _, p := range home {
		if d.nowhere(p.contact.endpoint) {
			p.contact.endpoint = p.endpoint.literal()
		}
		b.WriteString(whole(p.contact.key, p.allowed, p.keepalive, p.contact.endpoint))
	}
	if d.lazy && !lazy {
		b.WriteString(selects(d.nobody) + "remove=true\n")
	}
	return b.String()
}

// beEager ends what beLazy began: the library has all peers. From now on nobody
// watches what initiations they send.
func (d *Device) beEager() {
	d.bind.door.Store(nil)
	rules := *d.filter.load()
	rules.lazy = false
	d.filter.current.Store(&rules)
	for _, p := range d.applied.peers {
		p.contact.covered.Store(false)
	}
}

// sweep takes peers out of the library that have been quiet for long. It marks
// them first and takes them out the next time if they still are: what Read let
// pass before it saw the mark has been counted by then.
func (d *Device) sweep(now time.Time) {
	for _, batch := range slices.Collect(slices.Chunk(d.quiet(now), evictBatch)) {
		d.evict(batch)
	}
}

// quiet finds the peers to take out.
func (d *Device) quiet(now time.Time) []*contact {
	d.changing.Lock()
	defer d.changing.Unlock()
	if !d.lazy {
		return nil
	}
	s, err := d.state()
	if err != nil {
		d.logger.Warn("idle peers stay; the next sweep tries again", "err", err)
		return nil
	}
	var out []*contact
	for key, is := range s.peers {
		p := d.applied.peers[key]
		if p == nil || !p.contact.resident() {
			continue
		}
		c := p.contact
		if t := trafficOf(is); t != c.seen || c.pinned(p.keepalive, p.endpoint) || !c.covered.Load() {
			c.seen, c.since = t, now
			c.state.Store(uint32(stateActive))
		} else if now.Sub(c.since) < quietTime {
			continue
		} else if c.at() == stateLeaving {
			c.endpoint = is.Endpoint
			out = append(out, c)
		} else {
			c.state.Store(uint32(stateLeaving))
		}
	}
	return out
}

// evict takes peers out of the library that still are about to leave.
func (d *Device) evict(batch []*contact) {
	d.changing.Lock()
	defer d.changing.Unlock()
	var claims, removed strings.Builder
	leave := batch[:0]
	for _, c := range batch {
		p := d.applied.peers[c.key]
		if c.at() != stateLeaving || p == nil || p.contact != c || !d.lazy {
			continue
		}
		leave = append(leave, c)
		if d.nowhere(c.endpoint) {
			c.endpoint = p.endpoint.literal()
		}
		grant(&claims, p.allowed)
		fmt.Fprintf(&removed, "%sremove=true\n", selects(c.key))
	}
	if len(leave) == 0 {
		return
	}
	if err := d.wg.IpcSet(selects(d.nobody) + claims.String() + removed.String()); err != nil {
		if d.closed.Load() {
			return
		}
		d.bind.lost.Store(true)
		d.logger.Warn("idle peers stay; the next change of the configuration tries again", "n", len(leave), "err", err)
		return
	}
	for _, c := range leave {
		c.before, c.seen = c.before.plus(c.seen), traffic{}
		d.rest(c)
	}
}

// pinned reports whether the library must keep the peer: we have to send it
// something all the time, or somebody said where it is.
func (c *contact) pinned(keepalive time.Duration, e peerEndpoint) bool {
	if c.attached != nil && !c.attached.open() {
		c.attached = nil
	}
	return c.attached != nil || c.hasPath() || keepalive >= time.Second && e.addr.IsValid()
}

// enter notes that the library has a peer from now on.
func (d *Device) enter(c *contact) {
	if !c.resident() {
		d.metrics.active.Inc()
	}
	c.seen, c.since = traffic{}, time.Now()
	c.state.Store(uint32(stateActive))
}

// rest notes that the library does not have a configured peer, which is at
// c.endpoint.
func (d *Device) rest(c *contact) {
	if c.resident() {
		d.metrics.active.Dec()
	}
	state := stateIdle
	if c.endpoint == "" {
		state = stateLost
	}
	c.state.Store(uint32(state))
}

// selects returns the line that the instructions about a peer begin with.
func selects(key mesh.WireGuardKey) string {
	return "public_key=" + hex.EncodeToString(key[:]) + "\n"
}

// grant writes the instructions that put prefixes behind a peer, and take them
// from whoever had them.
func grant(b *strings.Builder, prefixes []netip.Prefix) {
	for _, prefix := range prefixes {
		fmt.Fprintf(b, "allowed_ip=%s\n", prefix)
	}
}

// withdraw writes the instructions that take prefixes away from a peer.
func withdraw(b *strings.Builder, prefixes []netip.Prefix) {
	for _, prefix := range prefixes {
		fmt.Fprintf(b, "allowed_ip=-%s\n", prefix)
	}
}

// literal is the endpoint as the library takes it; "" when it is none.
func (e peerEndpoint) literal() string {
	if !e.addr.IsValid() {
		return ""
	}
	return e.addr.String()
}
