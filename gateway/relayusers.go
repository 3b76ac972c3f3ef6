// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshgate/meshgate/turn"
)

const (
	// maxRelayUsers bounds how many users are remembered, more than a mesh has
	// nodes; the one to whom the longest time nothing was minted is forgotten
	// first, that is, refused.
	maxRelayUsers = 16384
	// maxRelayRights bounds the rights that are remembered of a user. A new one
	// takes the place of the oldest. maxAllRights bounds those of all: beyond it,
	// users are forgotten.
	maxRelayRights, maxAllRights = 8, 3 * maxRelayUsers
)

// RelayUsers knows to whom TURN credentials were given and which peers the
// sessions of these users have named: it is AllowUser of turn.Config, and the
// part of AllowPeer that follows signalling. It is safe for concurrent use.
type RelayUsers struct {
	foreign  func(user string) bool
	lifetime time.Duration
	// most users, and rights of all of them, are remembered.
	mostUsers, mostRights int

	mu    sync.RWMutex // guards the fields below
	users map[string]*list.Element
	order *list.List // of *relayUser, the last one minted for in front
	held  int        // rights of all users
	named namings
}

// relayUser is what is known of a user; RelayUsers.mu guards it.
type relayUser struct {
	name   string
	rights []relayRight // the newest last
	named  []namedBy    // the last one to name something last
}

type relayRight struct {
	allowed func() error
	until   time.Time // of the credential
	over    time.Time // when the last relay of the credential has ended
}

// NewRelayUsers knows nobody. A relay ends lifetime after its credential was
// minted, at the latest. foreign says whether a user is let in that is not known
// here, because others mint credentials that the server accepts; nil: nobody is.
func NewRelayUsers(lifetime time.Duration, foreign func(user string) bool) *RelayUsers {
	return &RelayUsers{
		foreign: foreign, lifetime: lifetime, mostUsers: maxRelayUsers, mostRights: maxAllRights,
		users: make(map[string]*list.Element), order: list.New(), named: newNamings(),
	}
}

// Minted notes that user got a credential that ends at until, by the right
// that allowed tells of.
func (u *RelayUsers) Minted(user string, allowed func() error, until time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dropLocked(time.Now())
	k := u.getLocked(user)
	u.order.MoveToFront(u.users[user])
	u.held -= len(k.rights)
	k.rights = append(k.rights, relayRight{allowed, until, time.Now().Add(u.lifetime)})
	k.rights = slices.Delete(k.rights, 0, max(0, len(k.rights)-maxRelayRights))
	for u.held += len(k.rights); u.held > u.mostRights; {
		u.removeLocked(u.order.Back())
	}
}

// Candidate notes that namer, the other side of a session of user, has named at
// as an address of its own. Only public addresses count: whoever has a node in
// the mesh can make it name any address at all. It says whether user may reach what
// it could not reach before.
func (u *RelayUsers) Candidate(user, namer string, at netip.AddrPort) (added bool) {
	if !turn.IsPublic(at.Addr()) {
		return false
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	u.named.expire(now)
	k := u.getLocked(user)
	added = !k.has(func(p *relayPeer) bool { return p.at == at })
	u.named.add(k, namer, at, now.Add(u.lifetime))
	return added
}

// getLocked returns user, whom it makes if need be.
func (u *RelayUsers) getLocked(user string) *relayUser {
	if e, ok := u.users[user]; ok {
		return e.Value.(*relayUser)
	}
	if u.order.Len() >= u.mostUsers {
		u.removeLocked(u.order.Back())
	}
	k := &relayUser{name: user}
	u.users[user] = u.order.PushFront(k)
	return k
}

func (u *RelayUsers) removeLocked(e *list.Element) {
	k := e.Value.(*relayUser)
	u.order.Remove(e)
	delete(u.users, k.name)
	u.held -= len(k.rights)
	for len(k.named) > 0 {
		u.named.dropAll(k.named[0].peers)
	}
}

// dropLocked forgets some of those who can have no relay any more, from the
// back: they are minted for in the order of the list.
func (u *RelayUsers) dropLocked(now time.Time) {
	u.named.expire(now)
	for e := u.order.Back(); e != nil && e.Value.(*relayUser).over(now); e = u.order.Back() {
		u.removeLocked(e)
	}
}

// over says whether nothing that is known of k counts any more.
func (k *relayUser) over(now time.Time) bool {
	return !slices.ContainsFunc(k.rights, func(r relayRight) bool { return now.Before(r.over) }) &&
		!k.has(func(p *relayPeer) bool { return now.Before(p.until) })
}

// AllowUser says whether user may log in: one of the rights by which it got
// credentials still stands.
func (u *RelayUsers) AllowUser(user string) bool {
	u.mu.RLock()
	e, ok := u.users[user]
	var rights []relayRight
	if ok {
		rights = slices.Clone(e.Value.(*relayUser).rights)
	}
	u.mu.RUnlock()
	now := time.Now()
	rights = slices.DeleteFunc(rights, func(r relayRight) bool { return !now.Before(r.until) })
	if len(rights) == 0 { // no credential of ours is good now
		return u.foreign != nil && u.foreign(user)
	}
	slices.Reverse(rights) // the newest is the likeliest
	return slices.ContainsFunc(rights, func(r relayRight) bool { return r.allowed() == nil })
}

// AllowPeer says whether a session of user has named at not long ago.
func (u *RelayUsers) AllowPeer(user string, at netip.AddrPort) bool {
	u.mu.RLock()
	defer u.mu.RUnlock()
	e, ok := u.users[user]
	if !ok {
		return false
	}
	now := time.Now()
	return e.Value.(*relayUser).has(func(p *relayPeer) bool { return p.at == at && now.Before(p.until) })
}

// Revoked lists those of users, who have relays, that have lost every right to
// them: these have to be ended. Who got no credential here is asked for as one who
// logs in.
func (u *RelayUsers) Revoked(users []string) (revoked []string) {
	for _, name := range users {
		u.mu.RLock()
		var rights []relayRight
		if e, ok := u.users[name]; ok {
			rights = slices.Clone(e.Value.(*relayUser).rights)
		}
		u.mu.RUnlock()
		stands := slices.ContainsFunc(rights, func(r relayRight) bool { return r.allowed() == nil })
		if !stands && (len(rights) > 0 || u.foreign == nil || !u.foreign(name)) {
			revoked = append(revoked, name)
		}
	}
	return revoked
}
