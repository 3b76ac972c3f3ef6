// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

var publicPeer = netip.MustParseAddrPort("11.0.0.1:4000")

// Whatever is wrong with a credential, the answer is the one that a request
// without credential gets.
func TestServer_BadCredentialsGetTheSameChallenge(t *testing.T) {
	s := newServer(t, func(c *Config) { c.AllowUser = func(user string) bool { return user != "banned" } })
	good := s.secrets.Mint("u", time.Minute)
	other, _ := NewSecrets(nil, nil)
	tests := map[string]Credential{
		"expired":           s.secrets.Mint("u", -time.Minute),
		"ends now":          s.secrets.Mint("u", 0),
		"wrong password":    {Username: good.Username, Password: "x"},
		"empty password":    {Username: good.Username},
		"other secret":      other.Mint("u", time.Minute),
		"other user":        {Username: good.Username + "2", Password: good.Password},
		"longer life":       {Username: "9" + good.Username, Password: good.Password},
		"no expiry":         {Username: "u", Password: password(s.secrets.current, "u")},
		"no user":           {Username: "9999999999:", Password: password(s.secrets.current, "9999999999:")},
		"no user, no colon": {Username: "9999999999", Password: password(s.secrets.current, "9999999999")},
		"negative expiry":   {Username: "-1:u", Password: password(s.secrets.current, "-1:u")},
		"empty secret":      {Username: good.Username, Password: password(nil, good.Username)},
		"banned":            s.secrets.Mint("banned", time.Minute),
	}
	for name, cred := range tests {
		t.Run(name, func(t *testing.T) {
			for _, c := range []*rawClient{dialUDP(t, s, cred), dialTCP(t, s, cred)} {
				c.login()
				for _, method := range []stun.Method{stun.MethodAllocate, stun.MethodRefresh, stun.MethodCreatePermission} {
					res := c.request(method, transportUDP)
					plain := c.do(stun.MustBuild(stun.TransactionID, stun.NewType(method, stun.ClassRequest), transportUDP, stun.NewSoftware("as long"), stun.Fingerprint))
					if code(res) != 401 || code(plain) != 401 || fmt.Sprint(types(res)) != fmt.Sprint(types(plain)) {
						t.Errorf("%v: got %v, code %d; without credential %v, code %d", method, res, code(res), plain, code(plain))
					}
				}
			}
		})
	}
	failed, total := s.totals().core.Failed, 0
	for _, reason := range []core.Failure{core.FailedMismatch, core.FailedExpired, core.FailedRevoked, core.FailedUnknown} {
		if failed[reason] == 0 {
			t.Errorf("no failure counted as %s", reason)
		}
		total += int(failed[reason])
	}
	if want := len(tests) * 6; total != want {
		t.Errorf("%d failures counted, want %d", total, want)
	}
}

// types are the types of the attributes of a message.
func types(m *stun.Message) (list []stun.AttrType) {
	for _, a := range m.Attributes {
		list = append(list, a.Type)
	}
	return list
}

func TestServer_EvenPorts(t *testing.T) {
	for _, ports := range [][2]uint16{{}, {30001, 39999}} {
		s := newServer(t, func(c *Config) { c.Relay.MinPort, c.Relay.MaxPort = ports[0], ports[1] })
		for range 10 {
			c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
			res := c.request(stun.MethodAllocate, transportUDP, rawAttr(stun.AttrEvenPort, []byte{0}))
			var relayed stun.XORMappedAddress
			if err := relayed.GetFromAs(res, stun.AttrXORRelayedAddress); err != nil || relayed.Port%2 != 0 {
				t.Errorf("ports %v: relay %v (%v), code %d", ports, relayed, err, code(res))
			}
		}
	}
}

func TestServer_LifetimesAreBounded(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.Lifetime, c.Limits.MaxLifetime = 90*time.Second, 2*time.Minute })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	ask := func(method stun.Method, seconds uint32) uint32 {
		res := c.request(method, transportUDP, lifetimeSeconds(seconds))
		v, err := res.Get(stun.AttrLifetime)
		if err != nil {
			t.Fatalf("%v: %v, code %d", method, err, code(res))
		}
		return binary.BigEndian.Uint32(v)
	}
	if got := ask(stun.MethodAllocate, 0); got != 90 { // only a Refresh can ask for an end
		t.Errorf("allocate 0: lifetime %d", got)
	}
	for seconds, want := range map[uint32]uint32{1: 90, 90: 90, 100: 100, 3600: 120, 1<<32 - 1: 120} {
		if got := ask(stun.MethodRefresh, seconds); got != want {
			t.Errorf("refresh %d: lifetime %d, want %d", seconds, got, want)
		}
	}
	if got := ask(stun.MethodRefresh, 0); got != 0 {
		t.Errorf("refresh 0: lifetime %d", got)
	}
}

func TestServer_Quotas(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.RelaysPerUser, c.Limits.Relays = 2, 3 })
	refused := func(user string) int {
		return code(dialUDP(t, s, s.secrets.Mint(user, time.Minute)).login().request(stun.MethodAllocate, transportUDP))
	}
	first := dialUDP(t, s, s.secrets.Mint("a", time.Minute))
	first.allocate()
	dialTCP(t, s, s.secrets.Mint("a", 2*time.Minute)).allocate() // another credential of the same user
	if got := refused("a"); got != 486 {
		t.Errorf("third allocation of a user: %d, want 486", got)
	}
	dialUDP(t, s, s.secrets.Mint("b", time.Minute)).allocate()
	if got := refused("c"); got != 508 {
		t.Errorf("fourth allocation in total: %d, want 508", got)
	}
	first.request(stun.MethodRefresh, lifetimeSeconds(0))
	if got := refused("a"); got != 0 {
		t.Errorf("after one has ended: %d", got)
	}
}

func TestServer_PermissionsAndChannelsAreBounded(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.PermissionsPerAllocation, c.Limits.ChannelsPerAllocation = 3, 2 })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	peer := func(i byte) stun.Setter {
		return peerAddress(netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 0, 0, i}), 1000))
	}
	for i := range byte(2) {
		if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000+uint16(i)), peer(i))); got != 0 {
			t.Fatalf("channel %d: %d", i, got)
		}
	}
	if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4002), peer(2))); got != 508 {
		t.Errorf("third channel: %d, want 508", got)
	}
	if got := code(c.request(stun.MethodCreatePermission, peer(0), peer(1), peer(2))); got != 0 {
		t.Errorf("third permission: %d", got)
	}
	if got := code(c.request(stun.MethodCreatePermission, peer(3))); got != 508 {
		t.Errorf("fourth permission: %d, want 508", got)
	}
	// A refusal costs nothing: what is granted can still be refreshed.
	if got := code(c.request(stun.MethodCreatePermission, peer(0), peer(1), peer(2))); got != 0 {
		t.Errorf("permissions anew: %d", got)
	}
	if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4001), peer(1))); got != 0 {
		t.Errorf("channel anew: %d", got)
	}
}

// What all allocations of a user have together is bounded, and so is what all users
// have. Other bounds take nothing away, and the log and the metrics say which is reached.
func TestServer_PermissionsAndChannelsOfUsersAreBounded(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, func(c *Config) {
		c.Limits.PermissionsPerUser, c.Limits.Permissions = 2, 3
		c.Limits.ChannelsPerUser, c.Limits.Channels = 1, 2
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	clients := map[string]*rawClient{}
	for _, name := range []string{"a1", "a2", "b1", "c1"} {
		clients[name] = dialUDP(t, s, s.secrets.Mint(name[:1], time.Minute))
		clients[name].allocate()
	}
	ask := func(client string, bind bool, host byte, want int) {
		t.Helper()
		c, peer := clients[client], peerAddress(netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 0, 0, host}), 1000))
		res := c.request(stun.MethodCreatePermission, peer)
		if bind {
			res = c.request(stun.MethodChannelBind, channelNumber(0x4000+uint16(host)), peer)
		}
		if got := code(res); got != want {
			t.Errorf("%s asks for peer %d (channel: %t): %d, want %d", client, host, bind, got, want)
		}
	}
	ask("a1", true, 1, 0)
	ask("a2", false, 1, 0)
	ask("a2", false, 2, 508) // a user's third permission
	ask("a2", true, 1, 508)  // a user's second channel
	ask("b1", true, 1, 0)
	ask("c1", false, 1, 508) // the fourth permission of all
	if err := s.SetLimits(Limits{PermissionsPerUser: 1, Permissions: 4, ChannelsPerUser: 1, Channels: 2}); err != nil {
		t.Fatal(err)
	}
	ask("a2", false, 1, 0)  // what is held is held
	ask("c1", true, 1, 508) // the third channel of all
	clients["b1"].request(stun.MethodRefresh, lifetimeSeconds(0))
	ask("c1", true, 1, 0)
	s.Evict("a")
	if got := [2]int{s.ledger.Total(core.Permissions), s.ledger.Total(core.Channels)}; got != [2]int{1, 1} {
		t.Errorf("%v permissions and channels are held, want one of each", got)
	}
	want := [core.NumResources][core.NumBounds]uint64{
		core.Permissions: {core.BoundUser: 1, core.BoundTotal: 1}, core.Channels: {core.BoundUser: 1, core.BoundTotal: 1},
	}
	if got := s.totals().core.Full; got != want {
		t.Errorf("refused %v, want %v", got, want)
	}
	s.Close()
	for _, flag := range []string{"--turn.permissions\"", "--turn.channels\""} {
		if strings.Count(log.String(), flag) != 1 {
			t.Errorf("%s in the log:\n%s", flag, log.String())
		}
	}
}

// Without a word of the operator or the hook, the Internet is not open either.
func TestServer_PublicPeersAreDeniedByDefault(t *testing.T) {
	s := newServer(t, func(c *Config) { c.AllowNetworks = nil })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	for _, peer := range []string{"8.8.8.8:53", "1.1.1.1:443", "1.1.1.1:0", "11.0.0.1:4000"} {
		at := peerAddress(netip.MustParseAddrPort(peer))
		if got := code(c.request(stun.MethodCreatePermission, at)); got != 403 {
			t.Errorf("permission for %s: %d", peer, got)
		}
		if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000), at)); got != 403 && got != 400 {
			t.Errorf("channel to %s: %d", peer, got)
		}
	}
}

func TestServer_ListsAndClosesAllocations(t *testing.T) {
	s := newServer(t, nil)
	first := dialUDP(t, s, s.secrets.Mint("ann", time.Minute))
	relayed := first.allocate()
	first.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))
	second := dialTCP(t, s, s.secrets.Mint("bob", time.Minute))
	second.allocate()
	list := s.Allocations()
	if len(list) != 2 {
		t.Fatalf("%d allocations: %+v", len(list), list)
	}
	a, b := list[0], list[1]
	if a.User != "ann" || a.Client.String() != first.LocalAddr().String() || a.Stream || !slices.Equal(a.Relayed, []netip.AddrPort{relayed}) ||
		a.Permissions != 1 || a.Channels != 1 || a.Expires.Before(a.Since) {
		t.Errorf("ann holds %+v", a)
	}
	if b.User != "bob" || b.Client.String() != second.LocalAddr().String() || !b.Stream || b.ID == a.ID {
		t.Errorf("bob holds %+v", b)
	}
	if !s.CloseAllocation(a.ID) {
		t.Error("ann's was not found")
	}
	eventually(t, "bob's is left", func() bool { l := s.Allocations(); return len(l) == 1 && l[0].ID == b.ID })
	if s.CloseAllocation(a.ID) {
		t.Error("ann's was closed twice")
	}
}
