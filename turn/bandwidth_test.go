// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// tenMbit is 10 Mbit/s as a bound of a session.
const tenMbit = 10_000_000 / 8

// timeless is a core whose time the test makes, with a driver in memory.
type timeless struct {
	testing.TB
	core   *core.Core
	now    time.Time
	out    core.Output
	relays []core.RelayID // in the order in which they were opened
}

func newTimeless(t testing.TB, number uint8, now time.Time, who core.Authenticator, rate func(string, int64) *core.Rate) *timeless {
	t.Helper()
	c, err := core.New(now, core.Config{
		Realm: "r", Listeners: []core.Listener{{Addr: netip.MustParseAddrPort("11.0.0.9:3478")}}, Offers: core.Offers{IPv4: true},
		Authenticator: who, Permit: func(string, core.Peer) bool { return true }, Rate: rate, Shard: number,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &timeless{TB: t, core: c, now: now}
}

// drive opens relays and returns what goes to clients.
func (v *timeless) drive() (answers [][]byte) {
	for i := 0; i < len(v.out.Actions); i++ { // answers append more
		switch a := v.out.Actions[i]; a.Kind {
		case core.OpenRelay:
			v.relays = append(v.relays, a.Relay)
			v.core.RelayOpened(v.now, a.Relay, netip.AddrPortFrom(netip.MustParseAddr("11.0.0.9"), uint16(50000+len(v.relays))), &v.out)
		case core.SendClient:
			answers = append(answers, slices.Clone(a.Data))
		}
	}
	v.out.Reset()
	return answers
}

// must fails the test unless a request with a credential succeeds.
func (v *timeless) must(flow core.Flow, cred Credential, method stun.Method, attrs ...stun.Setter) {
	v.Helper()
	auth := []stun.Setter{stun.NewSoftware("of somebody who asks again and again")}
	for range 2 {
		m := stun.MustBuild(slices.Concat([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attrs, auth)...)
		v.core.FromClient(v.now, flow, m.Raw, &v.out)
		answers := v.drive()
		if len(answers) != 1 {
			v.Fatalf("%d answers to %v", len(answers), m)
		}
		res := &stun.Message{Raw: answers[0]}
		if err := res.Decode(); err != nil {
			v.Fatal(err)
		}
		if code(res) == 0 {
			return
		}
		var nonce stun.Nonce
		if err := nonce.GetFrom(res); err != nil {
			v.Fatalf("%v: code %d", method, code(res))
		}
		auth = []stun.Setter{stun.NewUsername(cred.Username), stun.NewRealm("r"), nonce, stun.NewLongTermIntegrity(cred.Username, "r", cred.Password)}
	}
	v.Fatalf("%v is refused", method)
}

// relayed is how many bytes the core has relayed.
func (v *timeless) relayed() int {
	u := v.core.Stats().Relayed
	return int(u.SentBytes + u.ReceivedBytes)
}

// A session whose credential says 10 Mbit/s relays no more than that, and the second's
// worth that may come at once, in any window of time: by all of its allocations, of two
// threads, in both directions, at a server that has not minted the credential. Another
// user has no bound by it.
func TestSession_KeepsItsBandwidth(t *testing.T) {
	minter, _ := NewSecrets(testSecret, nil)
	server, _ := NewSecrets(testSecret, nil)
	alice, bob := minter.MintBounded("alice", time.Hour, tenMbit), minter.Mint("shop.bob", time.Hour)
	now, rates := time.Now(), newRates(0, func(string) {})
	who := &accounts{realm: "r", secrets: server}
	shards := []*timeless{newTimeless(t, 0, now, who, rates.of), newTimeless(t, 1, now, who, rates.of), newTimeless(t, 2, now, who, rates.of)}
	flows := []core.Flow{{Client: netip.MustParseAddrPort("11.0.0.2:1")}, {Client: netip.MustParseAddrPort("11.0.0.2:2")}}
	for i, v := range shards {
		for _, flow := range flows {
			cred := alice
			if i == 2 {
				cred = bob
			}
			v.must(flow, cred, stun.MethodAllocate, transportUDP)
			v.must(flow, cred, stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))
		}
	}
	const step, seconds = 10 * time.Millisecond, 10
	packet := append([]byte{0x40, 0, 0x4, 0xb0}, make([]byte, 1200)...)
	total, excess, offered := 0, 0.0, 0
	for range seconds * int(time.Second/step) {
		before := shards[0].relayed() + shards[1].relayed()
		for _, v := range shards {
			v.now = v.now.Add(step)
			for i, flow := range flows {
				for range 4 {
					v.core.FromClient(v.now, flow, packet, &v.out)
					v.core.FromPeer(v.now, v.relays[i], publicPeer, packet[4:], 0, &v.out)
					v.out.Reset()
				}
			}
		}
		offered += 2 * 2 * 4 * 1200
		passed := shards[0].relayed() + shards[1].relayed() - before
		total += passed
		// What is beyond the bound in the worst window that ends here.
		if excess = max(0, excess+float64(passed)-tenMbit*step.Seconds()); excess > tenMbit {
			t.Fatalf("%.0f bytes more than the bound passed in some window", excess)
		}
	}
	if least, most := (seconds-1)*tenMbit, (seconds+1)*tenMbit; total < least || total > most {
		t.Errorf("%d bytes in %d seconds, want %d to %d", total, seconds, least, most)
	}
	if got := shards[2].relayed(); got != offered {
		t.Errorf("a user without a bound relayed %d bytes of %d", got, offered)
	}
}

// Who comes with a credential of more, after it has used up what a low one gave, has it
// at once.
func TestSession_HasMoreAtOnce(t *testing.T) {
	minter, _ := NewSecrets(testSecret, nil)
	low, high := minter.MintBounded("alice", time.Hour, 2000), minter.MintBounded("alice", time.Hour, tenMbit)
	v := newTimeless(t, 0, time.Now(), &accounts{realm: "r", secrets: minter}, newRates(0, func(string) {}).of)
	flow := core.Flow{Client: netip.MustParseAddrPort("11.0.0.2:1")}
	v.must(flow, low, stun.MethodAllocate, transportUDP)
	v.must(flow, low, stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))
	packet := append([]byte{0x40, 0, 0x4, 0xb0}, make([]byte, 1200)...)
	send := func() (relayed int) {
		before := v.relayed()
		for range 100 {
			v.core.FromClient(v.now, flow, packet, &v.out)
			v.out.Reset()
		}
		return v.relayed() - before
	}
	v.now = v.now.Add(time.Minute)
	if got := send(); got != 1<<16/1200*1200 {
		t.Errorf("%d bytes at once by the low bound", got)
	}
	if v.must(flow, high, stun.MethodRefresh); send() != 100*1200 {
		t.Error("not all passes by the high bound")
	}
}

// A permitted address that floods a relay, from any of its ports, ends nothing of what
// the client sends to others, and what comes in stays within the bound.
func TestSession_SendsWhateverComesIn(t *testing.T) {
	minter, _ := NewSecrets(testSecret, nil)
	cred := minter.MintBounded("node-1", time.Hour, tenMbit)
	flow, noisy := core.Flow{Client: netip.MustParseAddrPort("11.0.0.2:1")}, netip.MustParseAddr("11.7.0.2")
	payload := make([]byte, 1200)
	packet := append([]byte{0x40, 0, 0x4, 0xb0}, payload...)
	for _, flood := range []int{10, 20, 100} { // packets for each of the client: 1.2, 2.4 and 12 MB/s
		v := newTimeless(t, 0, time.Now(), &accounts{realm: "r", secrets: minter}, newRates(0, func(string) {}).of)
		v.must(flow, cred, stun.MethodAllocate, transportUDP)
		v.must(flow, cred, stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))
		v.must(flow, cred, stun.MethodCreatePermission, peerAddress(netip.AddrPortFrom(noisy, 1)))
		const rounds = 500 // of 10 ms
		for range rounds {
			v.now = v.now.Add(10 * time.Millisecond)
			for i := range flood {
				if v.core.FromPeer(v.now, v.relays[0], netip.AddrPortFrom(noisy, uint16(1+i)), payload, 0, &v.out); i == flood/2 {
					v.core.FromClient(v.now, flow, packet, &v.out)
				}
				v.out.Reset()
			}
		}
		u := v.core.Stats().Relayed
		if u.SentPackets != rounds {
			t.Errorf("%d packets of the client passed of %d, with %d from peers for each", u.SentPackets, rounds, flood)
		}
		if most := uint64(tenMbit * 6); u.SentBytes+u.ReceivedBytes > most || u.ReceivedBytes < most/2 {
			t.Errorf("%d bytes in and %d out in 5 seconds, want no more than %d", u.ReceivedBytes, u.SentBytes, most)
		}
	}
}

// The same over sockets, in the time that it takes: what was relayed is within the
// bound for that time, however long it is.
func TestServer_SessionKeepsItsBandwidth(t *testing.T) {
	minter, _ := NewSecrets(testSecret, nil)
	_, addr := listenAt(t, "127.0.0.2:0")
	s := newServer(t, func(c *Config) {
		c.Secrets, _ = NewSecrets(testSecret, nil)
		c.AllowPeer = func(_ string, p netip.AddrPort) bool { return p == addr }
	})
	cred := minter.MintBounded("alice", time.Minute, tenMbit)
	clients := []*rawClient{dialUDP(t, s, cred), dialUDP(t, s, cred), dialTCP(t, s, cred)}
	for _, c := range clients {
		c.allocate()
		c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(addr))
	}
	start, offered := time.Now(), 0
	for range 8 {
		for _, c := range clients {
			for range 10 {
				c.send(append([]byte{0x40, 0, 0x20, 0}, make([]byte, 8192)...))
				offered += 8192
			}
			c.binding() // all of that has been looked at
		}
	}
	relayed := int(s.totals().core.Relayed.SentBytes)
	if most := tenMbit + int(tenMbit*time.Since(start).Seconds()); relayed > most || relayed < min(offered, tenMbit)-8192 {
		t.Errorf("%d bytes of %d were relayed, want a second's worth (%d) and at most %d", relayed, offered, tenMbit, most)
	}
	if relayed+8192*s.dropped(core.DropRate) != offered {
		t.Errorf("%d bytes were relayed and %d packets dropped, of %d bytes", relayed, s.dropped(core.DropRate), offered)
	}
}
