// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
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
			if !u.AllowUser("alice") || len(u.Revoked()) != 0 {
				t.Error("one of two rights stands, and alice is refused")
			}
			second.lost.Store(true)
			if u.AllowUser("alice") || !u.AllowUser("bob") || !slices.Equal(u.Revoked(), []string{"alice"}) {
				t.Errorf("no right stands; revoked are %q", u.Revoked())
			}
			var third switchable
			mint(u, "alice", &third)
			if !u.AllowUser("alice") || len(u.Revoked()) != 0 {
				t.Error("alice has a right again")
			}
			third.lost.Store(true)
			pass(10 * time.Minute) // no credential is good, but relays may be open
			if u.AllowUser("bob") != foreign || !slices.Equal(u.Revoked(), []string{"alice"}) {
				t.Errorf("after the credentials' end; revoked are %q", u.Revoked())
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
		u.Candidate("alice", "friend", at("8.8.8.8:4000"))
		u.Candidate("alice", "friend", at("[::ffff:9.9.9.9]:4000"))
		for _, a := range []string{
			"10.0.0.1:4000", "127.0.0.1:4000", "169.254.169.254:80", "[::1]:1", "[fd00::1]:1", "[64:ff9b::a00:1]:1", "[::ffff:10.0.0.1]:1",
		} {
			u.Candidate("alice", "friend", at(a))
			if u.AllowPeer("alice", at(a)) {
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
	var right switchable
	mint(u, "first", &right)
	for i := range maxRelayUsers {
		mint(u, fmt.Sprint(i), &right)
	}
	if len(u.users) != maxRelayUsers || u.order.Len() != maxRelayUsers || u.AllowUser("first") || !u.AllowUser("0") {
		t.Errorf("%d users", len(u.users))
	}
	for i := range uint16(3 * maxRelayPeers) {
		u.Candidate("0", "friend", netip.AddrPortFrom(netip.MustParseAddr("8.8.8.8"), i+1))
		mint(u, "0", &right)
	}
	k := u.users["0"].Value.(*relayUser)
	peers := k.namers[0].peers
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
	if len(k.namers) != maxRelayNamers || cap(k.namers) > 4*maxRelayNamers || u.AllowPeer("alice", at(2000)) || u.AllowPeer("alice", at(3000)) || !u.AllowPeer("alice", at(1)) {
		t.Errorf("%d namers; want the last ones that named something", len(k.namers))
	}
}
