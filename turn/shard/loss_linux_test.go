// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

func TestLossOf(t *testing.T) {
	for err, want := range map[error]Loss{
		unix.ENETUNREACH: NoRoute, unix.EHOSTUNREACH: NoRoute, unix.ENETDOWN: NoRoute, unix.EADDRNOTAVAIL: NoRoute, unix.EAFNOSUPPORT: NoRoute,
		unix.EPERM: Denied, unix.EACCES: Denied,
		unix.ENOBUFS: NoRoom, unix.ENOMEM: NoRoom, unix.EAGAIN: NoRoom,
		unix.EMSGSIZE: TooLarge,
		unix.EINVAL:   Failed, net.ErrClosed: Failed,
	} {
		for _, err := range []error{err, &net.OpError{Err: os.NewSyscallError("sendto", err)}} {
			if got := lossOf(err); got != want {
				t.Errorf("%v: %v, want %v", err, got, want)
			}
		}
	}
}

// island is a shard in a network that has nothing but loopback, and a client in it.
type island struct {
	*world
	client *client
	told   func() []string // by Config.Unsent
}

func newIsland(t *testing.T, engine func(*Config)) *island {
	t.Helper()
	relays := &prepared{testRelays: testRelays{open: map[netip.AddrPort]bool{}}, sockets: map[core.Family]*Socket{}}
	var listener *Socket
	var conn *net.UDPConn
	inNamespace(t, func() {
		listener, relays.sockets[core.IPv4] = newBurst(t, loopback4).port.socket, newBurst(t, loopback4).port.socket
		conn, _ = socket(t, loopback4)
	})
	if t.Failed() {
		t.FailNow()
	}
	var mu sync.Mutex
	var told []string
	w := newWorld(t, engine, func(cfg *Config) {
		for _, l := range cfg.Listeners {
			l.Close()
		}
		cfg.Listeners = map[uint16]*Socket{0: listener}
		cfg.Core.Listeners = []core.Listener{{Addr: listener.Addr()}}
		cfg.Relays = relays
		cfg.Unsent = func(why Loss, err error) {
			var errno unix.Errno
			errors.As(err, &errno)
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(why, " ", unix.ErrnoName(errno)))
		}
	})
	return &island{
		world: w, client: &client{TB: t, UDPConn: conn, server: listener.Addr(), user: "ann"},
		told: func() []string { mu.Lock(); defer mu.Unlock(); return told },
	}
}

func (i *island) usage() (u core.Usage) {
	done := make(chan struct{})
	i.Do(func(_ time.Time, c *core.Core, _ *core.Output) {
		for a := range c.Allocations() {
			u = a.Usage
		}
		if all := c.Stats().Relayed; all != u {
			i.Errorf("the allocation has relayed %+v, all have %+v", u, all)
		}
		close(done)
	})
	await(i.TB, done, "a call")
	return u
}

// What the host does not send to peers is counted with its reason, told, and
// relayed by nobody.
func TestShard_CountsWhatIsNotSentToPeers(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		i := newIsland(t, engine)
		c := i.client
		c.allocate()
		for n, test := range []struct {
			peer  string
			whole bool
			why   Loss
			told  string
		}{
			{"198.51.100.9:9", false, NoRoute, "no_route ENETUNREACH"},
			{"127.255.255.255:9", false, Denied, "not_permitted EACCES"}, // a broadcast
			{"127.0.0.1:9", true, TooLarge, "too_large EMSGSIZE"},
		} {
			peer := netip.MustParseAddrPort(test.peer)
			c.permit(peer)
			for range 3 {
				if test.whole {
					c.send(indication(peer, make([]byte, 1600), attr(stun.AttrDontFragment)))
				} else {
					c.send(indication(peer, make([]byte, 100)))
				}
			}
			eventually(t, test.told, func() bool { return i.Stats().Lost[test.why] == 3 })
			if s := i.Stats(); s.Unsent != uint64(3*n+3) || s.ToPeers != (Traffic{}) {
				t.Errorf("%s: counted %+v", test.told, s)
			}
			if told := i.told(); len(told) != 3*n+3 || told[3*n] != test.told {
				t.Errorf("told %q, want %s at last", told, test.told)
			}
		}
		if u := i.usage(); u != (core.Usage{}) {
			t.Errorf("the allocation has used %+v", u)
		}
		peer, at := netip.MustParseAddrPort("127.0.0.1:9"), i.Stats()
		c.send(indication(peer, make([]byte, 100))) // which may be cut, and nobody is there
		eventually(t, "one is sent", func() bool { return i.Stats().ToPeers == Traffic{1, 100} })
		if u := i.usage(); u != (core.Usage{SentPackets: 1, SentBytes: 100}) || i.Stats().Unsent != at.Unsent {
			t.Errorf("in the end %+v, %+v", u, i.Stats())
		}
	})
}

// The same holds for what does not reach a client, of which answers were never counted.
func TestShard_CountsWhatIsNotSentToClients(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		i := newIsland(t, engine)
		far := &client{TB: t, user: "ann"}
		flow := core.Flow{Client: netip.MustParseAddrPort("198.51.100.9:9")}
		answers := 0
		ask := func(m *stun.Message) *stun.Message {
			t.Helper()
			res := make(chan []byte, 1)
			answers++
			i.Do(func(now time.Time, c *core.Core, out *core.Output) {
				c.FromClient(now, flow, m.Raw, out)
				for _, a := range out.Actions {
					if a.Kind == core.SendClient {
						res <- append([]byte(nil), a.Data...)
						return
					}
				}
				res <- nil // it comes when the relay is open
			})
			got := &stun.Message{Raw: <-res}
			if got.Raw != nil {
				if err := got.Decode(); err != nil {
					t.Fatal(err)
				}
			}
			return got
		}
		var nonce stun.Nonce
		challenge := ask(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), transportUDP))
		if err := nonce.GetFrom(challenge); err != nil {
			t.Fatal(err)
		}
		far.nonce = nonce.String()
		ask(far.signed(stun.MethodAllocate, transportUDP))
		peer, peerAt := i.client.UDPConn, i.client.LocalAddr().(*net.UDPAddr).AddrPort()
		ask(far.signed(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(peerAt)))
		relay := make(chan netip.AddrPort, 1)
		i.Do(func(_ time.Time, c *core.Core, _ *core.Output) {
			for a := range c.Allocations() {
				relay <- a.Relayed[0]
			}
		})
		to := <-relay
		for range 4 {
			if _, err := peer.WriteToUDPAddrPort(make([]byte, 100), to); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "all are lost", func() bool { return i.Stats().Lost[NoRoute] == uint64(answers)+4 })
		if s, u := i.Stats(), i.usage(); s.ToClients != (Traffic{}) || u != (core.Usage{}) {
			t.Errorf("relayed %+v, used %+v", s.ToClients, u)
		}
	})
}
