// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// switchable is a right that can be lost.
type switchable struct{ lost atomic.Bool }

func (s *switchable) allowed() error {
	if s.lost.Load() {
		return errors.New("lost")
	}
	return nil
}

func mint(u *RelayUsers, user string, right *switchable) {
	u.Minted(user, right.allowed, time.Now().Add(10*time.Minute))
}

func TestRelayUsers_RightsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, foreign := range []bool{false, true} {
			u := NewRelayUsers(20*time.Minute, func(string) bool { return foreign })
			if u.AllowUser("stranger") != foreign {
				t.Errorf("a stranger, foreign %t", foreign)
			}
			var first, second, bob switchable
			mint(u, "alice", &first)
			mint(u, "alice", &second)
			mint(u, "bob", &bob)
			first.lost.Store(true)
			open := []string{"alice", "bob", "elsewhere"}
			revoked := func(own ...string) bool {
				if !foreign {
					own = append(own, "elsewhere") // nobody vouches for who got no credential here
				}
				return slices.Equal(u.Revoked(open), own)
			}
			if !u.AllowUser("alice") || !revoked() {
				t.Error("one of two rights stands, and alice is refused")
			}
			second.lost.Store(true)
			if u.AllowUser("alice") || !u.AllowUser("bob") || !revoked("alice") {
				t.Errorf("no right stands; revoked are %q", u.Revoked(open))
			}
			var third switchable
			mint(u, "alice", &third)
			if !u.AllowUser("alice") || !revoked() {
				t.Error("alice has a right again")
			}
			third.lost.Store(true)
			pass(10 * time.Minute) // no credential is good, but relays may be open
			if u.AllowUser("bob") != foreign || !revoked("alice") {
				t.Errorf("after the credentials' end; revoked are %q", u.Revoked(open))
			}
			pass(10 * time.Minute)
			mint(u, "carol", &bob)
			if len(u.users) != 1 || u.order.Len() != 1 {
				t.Errorf("%d users are remembered in vain", len(u.users)-1)
			}
		}
	})
}

func TestRelayUsers_Peers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewRelayUsers(20*time.Minute, nil)
		at := netip.MustParseAddrPort
		for i, a := range []string{"8.8.8.8:4000", "[::ffff:9.9.9.9]:4000", "9.9.9.9:4000", "8.8.8.8:4000"} {
			if added := u.Candidate("alice", "friend", at(a)); added != (i < 2) {
				t.Errorf("%s, named as number %d: added %t", a, i, added)
			}
		}
		for _, a := range []string{
			"10.0.0.1:4000", "127.0.0.1:4000", "169.254.169.254:80", "[::1]:1", "[fd00::1]:1", "[64:ff9b::a00:1]:1", "[::ffff:10.0.0.1]:1",
		} {
			if u.Candidate("alice", "friend", at(a)) || u.AllowPeer("alice", at(a)) {
				t.Errorf("%s is allowed", a)
			}
		}
		for peer, want := range map[string]bool{"8.8.8.8:4000": true, "9.9.9.9:4000": true, "8.8.8.8:53": false, "8.8.8.9:4000": false} {
			if u.AllowPeer("alice", at(peer)) != want || u.AllowPeer("bob", at(peer)) {
				t.Errorf("%s: want %t for alice, no for bob", peer, want)
			}
		}
		if u.AllowUser("alice") {
			t.Error("a candidate opened the relay")
		}
		pass(19 * time.Minute)
		u.Candidate("alice", "friend", at("8.8.8.8:4000"))
		pass(2 * time.Minute)
		if !u.AllowPeer("alice", at("8.8.8.8:4000")) || u.AllowPeer("alice", at("9.9.9.9:4000")) {
			t.Error("what was named again is to stay, and nothing else")
		}
	})
}

func TestRelayUsers_AreBounded(t *testing.T) {
	u := NewRelayUsers(20*time.Minute, nil)
	const most = 64
	u.mostUsers = most
	var right switchable
	mint(u, "first", &right)
	for i := range most {
		mint(u, fmt.Sprint(i), &right)
	}
	if len(u.users) != most || u.order.Len() != most || u.AllowUser("first") || !u.AllowUser("0") {
		t.Errorf("%d users", len(u.users))
	}
	for i := range uint16(3 * maxRelayPeers) {
		u.Candidate("0", "friend", netip.AddrPortFrom(netip.MustParseAddr("8.8.8.8"), i+1))
		mint(u, "0", &right)
	}
	k := u.users["0"].Value.(*relayUser)
	peers := k.named[0].peers
	if len(peers) != maxRelayPeers || len(k.rights) != maxRelayRights || cap(k.rights) > 4*maxRelayRights || cap(peers) > 4*maxRelayPeers {
		t.Errorf("%d peers, %d rights", len(peers), len(k.rights))
	}
	if !u.AllowPeer("0", netip.AddrPortFrom(netip.MustParseAddr("8.8.8.8"), 3*maxRelayPeers)) {
		t.Error("the newest peer is not known")
	}
}

func TestRelayUsers_NamersDoNotDisplaceEachOther(t *testing.T) {
	u := NewRelayUsers(20*time.Minute, nil)
	at := func(port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("8.8.8.8"), uint16(port))
	}
	for port := 1; port <= maxRelayPeers; port++ {
		u.Candidate("alice", "friend", at(port))
	}
	for port := 1000; port < 1200; port++ {
		u.Candidate("alice", "evil", at(port))
	}
	u.Candidate("alice", "evil", at(1)) // what both name is not evil's to displace
	for port := 2000; port < 2000+maxRelayPeers; port++ {
		u.Candidate("alice", "evil", at(port))
	}
	for port := 1; port <= maxRelayPeers; port++ {
		if !u.AllowPeer("alice", at(port)) {
			t.Errorf("port %d of the friend is forgotten", port)
		}
	}
	if u.AllowPeer("alice", at(1199)) || !u.AllowPeer("alice", at(2000)) {
		t.Error("of one namer the newest are to stay, and nothing else")
	}
	for i := range maxRelayNamers - 1 {
		u.Candidate("alice", "friend", at(1))
		u.Candidate("alice", fmt.Sprint("other ", i), at(3000+i))
	}
	u.Candidate("alice", "one more", at(4000))
	k := u.users["alice"].Value.(*relayUser)
	if len(k.named) != maxRelayNamers || cap(k.named) > 4*maxRelayNamers || u.AllowPeer("alice", at(2000)) || u.AllowPeer("alice", at(3000)) || !u.AllowPeer("alice", at(1)) {
		t.Errorf("%d namers; want the last ones that named something", len(k.named))
	}
}

// Whoever names the most to all users together is the one whose oldest is
// forgotten, whoever comes last.
func TestRelayUsers_TheHeaviestNamerLosesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := NewRelayUsers(20*time.Minute, nil)
		const most = 1 << 10
		u.named.most = most
		at := netip.MustParseAddrPort("8.8.8.8:4000")
		user := func(i int) string { return fmt.Sprint("user ", i) }
		u.Candidate(user(0), "friend", at)
		for i := range most - 1 {
			u.Candidate(user(i/maxRelayPeers), "heavy", netip.AddrPortFrom(at.Addr(), uint16(i%maxRelayPeers)+1))
		}
		oldest := netip.AddrPortFrom(at.Addr(), 1)
		if u.named.n != most || !u.AllowPeer(user(0), oldest) {
			t.Fatalf("%d were named, and the first is not known", u.named.n)
		}
		u.Candidate(user(1), "newcomer", at)
		if u.named.n != most || u.AllowPeer(user(0), oldest) || !u.AllowPeer(user(0), at) || !u.AllowPeer(user(1), at) {
			t.Errorf("%d are remembered; the oldest of the heaviest is to go", u.named.n)
		}
		u.Candidate(user(2), "newcomer", at) // named anew, it takes no other's place
		u.Candidate(user(2), "newcomer", at)
		if n := len(u.named.heaviest); n != 3 || u.named.heaviest[0].held != most-3 {
			t.Errorf("%d namers, the heaviest with %d", n, u.named.heaviest[0].held)
		}
		pass(20 * time.Minute)
		u.Candidate(user(1), "newcomer", at)
		if u.named.n != 1 || len(u.named.byName) != 1 || len(u.named.heaviest) != 1 || len(u.users[user(0)].Value.(*relayUser).named) != 0 {
			t.Errorf("%d are remembered after their end", u.named.n)
		}
		u.removeLocked(u.users[user(1)])
		if u.named.n != 0 || len(u.named.byName) != 0 || u.named.all.first != nil || u.named.all.last != nil {
			t.Errorf("%d are remembered of a user who is not", u.named.n)
		}
	})
}

// The most that all can make a gateway remember takes 64 MB, with the longest of
// names. A sixteenth of it is enough to see.
func TestRelayUsers_TakeLittleMemory(t *testing.T) {
	const part = 16
	const users, rights, named, most = maxRelayUsers / part, maxAllRights / part, maxNamed / part, 64e6 / part
	before := inUse()
	u := NewRelayUsers(20*time.Minute, nil)
	u.mostUsers, u.mostRights, u.named.most = users, rights, named
	long := func(i int) string { return fmt.Sprintf("%0*d", mesh.MaxNameLen, i) }
	mint := func(i int) { u.Minted(long(i), (&grant{}).check, time.Now().Add(10*time.Minute)) }
	for i := range users {
		for range rights / users {
			mint(i)
		}
	}
	for i := range named {
		u.Candidate(long(i%users), long(i), netip.AddrPortFrom(netip.MustParseAddr("8.8.8.8"), uint16(i)))
	}
	if got := inUse() - before; len(u.users) != users || u.held != rights || len(u.named.byName) != named || got > most {
		t.Errorf("%d users and %d namers take %d bytes, want at most %d", len(u.users), len(u.named.byName), got, int64(most))
	}
	mint(users - 1)
	if len(u.users) != users-1 || u.held > rights || u.named.n != named-named/users {
		t.Errorf("%d users have %d rights and %d peers, one right too many", len(u.users), u.held, u.named.n)
	}
}

// inUse is the heap, in bytes.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
