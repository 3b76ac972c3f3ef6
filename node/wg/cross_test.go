// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/meshgate/meshgate/node/mesh"
)

// libraryPeers never become garbage: the library empties their queues then, which
// nobody outside of a bubble may do.
var libraryPeers []*device.Peer

// caller is a device of the library at one end of a line, with a bind of ours or
// the line itself.
type caller struct {
	*device.Device
	line *wire
	tun  *tuntest.ChannelTUN
	key  mesh.WireGuardPrivateKey
	addr netip.Addr
	bind *bind // nil for a stock one
	peer *device.Peer
}

// callers makes two devices that are peers of each other. Those that are stock have
// no bind of ours.
func callers(t *testing.T, takes time.Duration, stock [2]bool) (a, b *caller) {
	t.Helper()
	x, y := newWire(t, takes)
	a, b = &caller{line: x, addr: netip.MustParseAddr("10.0.0.1")}, &caller{line: y, addr: netip.MustParseAddr("10.0.0.2")}
	for _, c := range []*caller{a, b} {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		c.key, c.tun = key.WireGuard(), tuntest.NewChannelTUN()
	}
	a.start(t, b, stock[0])
	b.start(t, a, stock[1])
	return a, b
}

// start makes the device of a caller that has everything else.
func (c *caller) start(t *testing.T, to *caller, stock bool) {
	t.Helper()
	native, other := conn.Bind(c.line), to.key.Public()
	if !stock {
		m, err := newMetrics(nil)
		if err != nil {
			t.Fatal(err)
		}
		b := newBind(c.line, sizesOf(false), newFramePool(minFrame), nil, m)
		b.calls.use(c.key.Public())
		b.calls.renew = func([]byte) { c.call() }
		native, c.bind = b, b
		t.Cleanup(b.shutdown)
	}
	c.Device = device.NewDevice(c.tun.TUN(), native, &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	t.Cleanup(c.Close)
	err := c.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=%s/32\n",
		hex.EncodeToString(c.key[:]), hex.EncodeToString(other[:]), c.line.other, to.addr))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Up(); err != nil {
		t.Fatal(err)
	}
	c.peer = c.LookupPeer(device.NoisePublicKey(other))
	libraryPeers = append(libraryPeers, c.peer)
}

// call is Device.call.
func (c *caller) call() {
	c.peer.ExpireCurrentKeypairs()
	_ = c.peer.SendHandshakeInitiation(false)
}

// handshake is Device.Handshake.
func (c *caller) handshake(with *caller) {
	if c.bind.calls.another(with.key.Public(), nil) {
		c.call()
	}
}

// ask sends a packet to the other device, and tells when it is there.
func (c *caller) ask(to *caller) (there <-chan time.Time) {
	c.tun.Outbound <- tuntest.Ping(to.addr, c.addr)
	came := make(chan time.Time, 1)
	go func() {
		<-to.tun.Inbound
		came <- time.Now()
	}()
	return came
}

// Whatever happens to the first messages of two peers, packets between them are
// soon there.
func TestCross_PacketsAreSoonThere(t *testing.T) {
	const ours, theirs = false, true
	first := func(n int, kind byte) func([]byte) bool {
		return func(b []byte) bool {
			if b[0] != kind || n == 0 {
				return false
			}
			n--
			return true
		}
	}
	for _, c := range []struct {
		name  string
		takes time.Duration
		stock [2]bool
		// both is set when both ask at once, and not only one. Of that calls get lost;
		// -1 is for an answer to it.
		both  bool
		lost  int
		times int // chance decides which of two calls counts
		want  time.Duration
	}{
		{"one asks", lineTakes, [2]bool{ours, ours}, false, 0, 1, 3 * lineTakes},
		{"both ask", lineTakes, [2]bool{ours, ours}, true, 0, 6, 4 * lineTakes},
		{"both ask, far away", 200 * time.Millisecond, [2]bool{ours, ours}, true, 0, 4, 2 * time.Second},
		{"both ask, very far away", 400 * time.Millisecond, [2]bool{ours, ours}, true, 0, 4, 4 * time.Second},
		{"both ask, one is stock", lineTakes, [2]bool{ours, theirs}, true, 0, 6, 1200 * time.Millisecond},
		{"the first call is lost", lineTakes, [2]bool{ours, ours}, false, 1, 1, 150*time.Millisecond + 3*lineTakes},
		{"the first call to a stock peer is lost", lineTakes, [2]bool{ours, theirs}, false, 1, 1, 150*time.Millisecond + 3*lineTakes},
		{"the answer is lost", lineTakes, [2]bool{ours, ours}, false, -1, 1, 150*time.Millisecond + 3*lineTakes},
		{"two calls are lost", lineTakes, [2]bool{ours, ours}, false, 2, 1, 600*time.Millisecond + 3*lineTakes},
		{"both ask, one is not heard first", lineTakes, [2]bool{ours, ours}, true, 1, 6, 500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range c.times {
				synctest.Test(t, func(t *testing.T) {
					a, b := callers(t, c.takes, c.stock)
					if c.lost < 0 {
						b.line.losing(first(-c.lost, device.MessageResponseType))
					} else {
						a.line.losing(first(c.lost, device.MessageInitiationType))
					}
					began := time.Now()
					waits := []<-chan time.Time{a.ask(b)}
					if c.both {
						waits = append(waits, b.ask(a))
					}
					for _, there := range waits {
						if took := (<-there).Sub(began); took > c.want {
							t.Errorf("a packet was there after %v, want %v", took, c.want)
						}
					}
				})
			}
		})
	}
}

// Whenever a new session is asked for while one is made, there is one soon: a peer
// takes no other call in the moment after one, and never one of the same time stamp.
func TestCross_ASessionIsAskedForSoonAfterAnother(t *testing.T) {
	const takes = 2 * time.Millisecond
	for _, stock := range []bool{false, true} {
		for after := time.Duration(0); after < 50*time.Millisecond; after += time.Millisecond {
			synctest.Test(t, func(t *testing.T) {
				a, b := callers(t, takes, [2]bool{false, stock})
				there := a.ask(b)
				<-time.After(after)
				a.handshake(b)
				asked := time.Now()
				<-there
				if took := (<-a.ask(b)).Sub(asked); took > 100*time.Millisecond {
					t.Errorf("asked for after %v, the other end stock: %t: a packet was there after %v", after, stock, took)
				}
				<-time.After(time.Second) // nothing is on its way any more
			})
		}
	}
}
