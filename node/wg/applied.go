// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// applied is what was put in force last, so that a Set costs what it changes
// and not as much as there are peers. It is right as long as nothing went
// wrong; see Device.resync.
type applied struct {
	privateKey mesh.WireGuardPrivateKey
	// publicKey is that of privateKey, which takes some 60 microseconds to find.
	publicKey  mesh.WireGuardKey
	listenPort uint16
	mark       uint32
	peers      map[mesh.WireGuardKey]*appliedPeer
	// owner says behind which peer each prefix is.
	owner map[netip.Prefix]mesh.WireGuardKey
	// stray are prefixes that nobody has in the library, but none of the peers.
	stray []netip.Prefix
	// lists are those of the configuration; nil when all peers have to be looked
	// at the next time.
	lists []appliedList
	// round counts comparisons.
	round uint64
}

// appliedList is one of Config.Lists.
type appliedList struct {
	peers []Peer
	// open is true when something is left to do for one of the peers.
	open bool
}

// appliedPeer is a configured peer. Its fields but round are replaced, never
// changed.
type appliedPeer struct {
	name      string
	allowed   []netip.Prefix // Peer.networks, not the caller's memory
	veil      bool           // Peer.Veil
	keepalive time.Duration  // whole seconds
	endpoint  peerEndpoint
	contact   *contact
	// lost is true when packets for the peer went nowhere at the last resync:
	// it had no endpoint, or one that was an attached connection and is gone.
	lost bool
	// round is that of the last comparison that had to find the peer, until it
	// does.
	round uint64
}

// changes are what a configuration changes about the peers.
type changes struct {
	// peers are those that are new or differ, with what they were: nil for new
	// ones.
	peers []changedPeer
	// removed are those that are not in the configuration.
	removed []mesh.WireGuardKey
}

type changedPeer struct {
	*Peer
	was *appliedPeer
	// endpoint is the wanted one.
	endpoint peerEndpoint
	contact  *contact
	// list is the index of the one of Config.Lists that the peer is in; negative
	// when it is in none.
	list int
	// stays is true when the library is to have the peer.
	stays bool
}

// compare finds what c changes, and what no device could be. It changes nothing
// that the next comparison could see.
func (a *applied) compare(c *Config) (*changes, error) {
	kept, gone := a.keep(c)
	left := a.expect(gone)
	var (
		ch    changes
		own   = a.publicKey
		added = make(map[mesh.WireGuardKey]bool)
	)
	if c.PrivateKey != a.privateKey || own.IsZero() {
		own = c.PrivateKey.Public()
	}
	look := func(peers []Peer, list int) error {
		for i := range peers {
			p := &peers[i]
			was := a.peers[p.Key]
			if p.Key == own || added[p.Key] || was != nil && was.round != a.round {
				return fmt.Errorf("peer %v: the key is taken: %w", p.Key, mesh.ErrInvalid)
			}
			if was == nil {
				added[p.Key] = true
			} else {
				was.round = 0
				left--
				if was.is(p) {
					continue
				}
			}
			ch.peers = append(ch.peers, changedPeer{Peer: p, was: was, list: list})
		}
		return nil
	}
	if err := look(c.Peers, -1); err != nil {
		return nil, err
	}
	for i, list := range c.Lists {
		if kept[i] {
			continue
		}
		if err := look(list, i); err != nil {
			return nil, err
		}
	}
	if left > 0 {
		ch.removed = a.missing(gone)
	}
	return &ch, a.validate(&ch)
}

// keep finds which lists of c are as they were, and returns those that c has no
// more. Without lists that were, all peers are to be looked at.
func (a *applied) keep(c *Config) (kept []bool, gone []appliedList) {
	kept = make([]bool, len(c.Lists))
	if a.lists == nil || c.PrivateKey != a.privateKey {
		return kept, nil
	}
	was := make(map[*Peer]int, len(a.lists))
	for i, list := range a.lists {
		if !list.open && len(list.peers) > 0 {
			was[&list.peers[0]] = i
		}
	}
	still := make([]bool, len(a.lists))
	for i, list := range c.Lists {
		if len(list) == 0 {
			continue
		}
		// One that is there twice is kept once: its peers have their keys twice.
		if at, ok := was[&list[0]]; ok && !still[at] && len(list) == len(a.lists[at].peers) {
			kept[i], still[at] = true, true
		}
	}
	gone = make([]appliedList, 0, len(a.lists))
	for i, list := range a.lists {
		if !still[i] {
			gone = append(gone, list)
		}
	}
	return kept, gone
}

// expect begins a comparison that has to find the peers of some lists, or all
// if that is nil, and returns how many these are.
func (a *applied) expect(gone []appliedList) (n int) {
	a.round++
	if gone == nil {
		for _, was := range a.peers {
			was.round = a.round
		}
		return len(a.peers)
	}
	for _, list := range gone {
		for i := range list.peers {
			a.peers[list.peers[i].Key].round = a.round
		}
		n += len(list.peers)
	}
	return n
}

// missing returns which of the expected peers the comparison has not found.
func (a *applied) missing(gone []appliedList) (keys []mesh.WireGuardKey) {
	if gone == nil {
		for key, was := range a.peers {
			if was.round == a.round {
				keys = append(keys, key)
			}
		}
	}
	for _, list := range gone {
		for i := range list.peers {
			if key := list.peers[i].Key; a.peers[key].round == a.round {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// is reports whether there is nothing to do about p.
func (was *appliedPeer) is(p *Peer) bool {
	return !was.lost && was.endpoint.text == p.Endpoint && (p.Endpoint == "" || was.endpoint.addr.IsValid()) &&
		was.name == p.Name && was.keepalive == p.Keepalive.Truncate(time.Second) && p.Keepalive >= 0 &&
		slices.Equal(was.allowed, p.networks()) && was.veil == p.Veil
}

// validate checks the peers that change, and that no two peers get one prefix.
func (a *applied) validate(ch *changes) error {
	free := make(map[netip.Prefix]bool)
	for _, key := range ch.removed {
		for _, prefix := range a.peers[key].allowed {
			free[prefix] = true
		}
	}
	for i := range ch.peers {
		if was := ch.peers[i].was; was != nil {
			for _, prefix := range was.allowed {
				free[prefix] = true
			}
		}
	}
	taken := make(map[netip.Prefix]mesh.WireGuardKey)
	for i := range ch.peers {
		p := ch.peers[i].Peer
		if err := p.validate(); err != nil {
			return fmt.Errorf("peer %v: %w", p.Key, err)
		}
		for _, prefix := range p.networks() {
			other, held := taken[prefix]
			if !held && !free[prefix] {
				other, held = a.owner[prefix]
			}
			if held {
				return fmt.Errorf("peer %v: allowed prefix %v belongs to peer %v: %w", p.Key, prefix, other, mesh.ErrInvalid)
			}
			taken[prefix] = p.Key
		}
	}
	return nil
}

// contacts gives those that are new a contact. Known is whether no initiation of
// theirs can be known to anybody but the doorman. PathOf finds a path that is
// left of a peer that the library lost.
func (ch *changes) contacts(known bool, pathOf func(mesh.WireGuardKey) *path) {
	for i := range ch.peers {
		p := &ch.peers[i]
		if p.was != nil {
			p.contact = p.was.contact
			continue
		}
		p.contact = &contact{key: p.Key, path: pathOf(p.Key)}
		p.contact.state.Store(uint32(stateIdle)) // packets wait until it is in force
		p.contact.covered.Store(known)
	}
}

// routes returns which prefixes come and go with the changes.
func (ch *changes) routes(a *applied) (added []route, removed []netip.Prefix) {
	for _, key := range ch.removed {
		removed = append(removed, a.peers[key].allowed...)
	}
	for i := range ch.peers {
		p := &ch.peers[i]
		removed = append(removed, without(p.had(), p.networks())...)
		for _, prefix := range without(p.networks(), p.had()) {
			added = append(added, route{prefix, p.contact})
		}
	}
	return added, removed
}

// allRoutes returns the prefixes of all peers of c, of which ch are the changes.
func (ch *changes) allRoutes(a *applied, c *Config) []route {
	fresh := make(map[mesh.WireGuardKey]*contact, len(ch.peers))
	for i := range ch.peers {
		fresh[ch.peers[i].Key] = ch.peers[i].contact
	}
	var all []route
	for _, list := range c.lists() {
		for i := range list {
			p := &list[i]
			to := fresh[p.Key]
			if to == nil {
				to = a.peers[p.Key].contact
			}
			for _, prefix := range p.networks() {
				all = append(all, route{prefix, to})
			}
		}
	}
	return all
}

// had returns what was behind the peer.
func (p *changedPeer) had() []netip.Prefix {
	if p.was == nil {
		return nil
	}
	return p.was.allowed
}

// take notes that the changes, which are those of c, were made.
func (a *applied) take(c *Config, ch *changes) {
	for _, key := range ch.removed {
		for _, prefix := range a.peers[key].allowed {
			delete(a.owner, prefix)
		}
		delete(a.peers, key)
	}
	for i := range ch.peers {
		for _, prefix := range ch.peers[i].had() {
			delete(a.owner, prefix)
		}
	}
	for i := range ch.peers {
		p := &ch.peers[i]
		allowed := p.had()
		if networks := p.networks(); !slices.Equal(allowed, networks) {
			allowed = slices.Clone(networks)
		}
		for _, prefix := range allowed {
			a.owner[prefix] = p.Key
		}
		a.peers[p.Key] = &appliedPeer{
			name: p.Name, allowed: allowed,
			keepalive: p.Keepalive.Truncate(time.Second), endpoint: p.endpoint,
			contact: p.contact, veil: p.Veil,
		}
	}
	a.takeLists(c, ch)
}

// takeLists notes what the next comparison need not look at.
func (a *applied) takeLists(c *Config, ch *changes) {
	a.lists = nil
	if len(c.Peers) > 0 {
		return // the memory of Peers is the caller's
	}
	a.lists = make([]appliedList, len(c.Lists))
	for i, list := range c.Lists {
		a.lists[i].peers = list
	}
	for i := range ch.peers {
		if p := &ch.peers[i]; p.Endpoint != "" && !p.endpoint.addr.IsValid() {
			a.lists[p.list].open = true // a name to be looked up again
		}
	}
}

// lists returns all peers.
func (c *Config) lists() [][]Peer { return append([][]Peer{c.Peers}, c.Lists...) }

// count returns the number of peers.
func (c *Config) count() (n int) {
	for _, list := range c.lists() {
		n += len(list)
	}
	return n
}

// resync asks the library for its state. What it does not know, such as where
// peers were configured to be, is taken from what was applied before.
func (d *Device) resync() error {
	s, err := d.state()
	if err != nil {
		return err
	}
	next := applied{
		privateKey: s.privateKey, listenPort: s.listenPort, mark: s.mark,
		peers: make(map[mesh.WireGuardKey]*appliedPeer, len(s.peers)),
		owner: make(map[netip.Prefix]mesh.WireGuardKey),
	}
	for key, p := range s.peers {
		slices.SortFunc(p.AllowedIPs, netip.Prefix.Compare)
		is := &appliedPeer{allowed: p.AllowedIPs, keepalive: p.Keepalive, lost: d.nowhere(p.Endpoint)}
		if was := d.applied.peers[key]; was != nil {
			is.follow(was)
		} else {
			is.contact = &contact{key: key}
		}
		if !is.contact.resident() {
			d.enter(is.contact)
		}
		next.add(key, is)
	}
	d.resyncIdle(&next, s)
	d.applied = next
	return nil
}

// resyncIdle adds the peers to next that are configured, but not in the library.
func (d *Device) resyncIdle(next *applied, s *uapiState) {
	if !d.lazy {
		next.stray = s.unclaimed
		return
	}
	unclaimed := make(map[netip.Prefix]struct{}, len(s.unclaimed))
	for _, prefix := range s.unclaimed {
		unclaimed[prefix] = struct{}{}
	}
	for key, was := range d.applied.peers {
		if next.peers[key] != nil {
			continue
		}
		is := &appliedPeer{keepalive: was.keepalive, lost: d.nowhere(was.contact.endpoint)}
		for _, prefix := range was.allowed {
			if _, ok := unclaimed[prefix]; ok {
				is.allowed = append(is.allowed, prefix)
				delete(unclaimed, prefix)
			}
		}
		is.follow(was)
		d.rest(is.contact)
		next.add(key, is)
	}
	next.stray = slices.Collect(maps.Keys(unclaimed))
}

// add notes a peer.
func (a *applied) add(key mesh.WireGuardKey, p *appliedPeer) {
	for _, prefix := range p.allowed {
		a.owner[prefix] = key
	}
	a.peers[key] = p
}

// label is how the logs call the peer.
func (is *appliedPeer) label(key mesh.WireGuardKey) string {
	p := Peer{Name: is.name, Key: key}
	return p.label()
}

// follow takes from was what the library does not know.
func (is *appliedPeer) follow(was *appliedPeer) {
	is.name, is.endpoint, is.contact, is.veil = was.name, was.endpoint, was.contact, was.veil
	is.lost = is.lost && was.endpoint.addr.IsValid()
	if slices.Equal(sorted(was.allowed), sorted(is.allowed)) {
		is.allowed = was.allowed
	}
}

// nowhere reports whether an endpoint, as the library writes it, is none, or an
// attached connection or a path that is gone.
func (d *Device) nowhere(endpoint string) bool {
	ep, ours := d.bind.own(endpoint)
	return endpoint == "" || ours && ep == nil
}

// sorted returns a sorted copy.
func sorted(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Prefix.Compare)
	return list
}
