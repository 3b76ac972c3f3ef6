// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// cookieUDP is a native bind that keeps what was sent last.
type cookieUDP struct {
	fakeUDP
	last []byte
}

func (c *cookieUDP) Send(packets [][]byte, _ conn.Endpoint) error {
	c.last = packets[len(packets)-1]
	return nil
}

// door is a doorman on a clock of its own, before a library that never reads.
type door struct {
	*doorman
	t    *testing.T
	udp  *cookieUDP
	stop func()
}

// newDoor makes one; call it in a bubble. start has it work.
func newDoor(t *testing.T, busy func() bool) (d *door, caller *Initiator) {
	t.Helper()
	id, caller := testIdentity(t)
	udp := &cookieUDP{}
	b, _, _ := testBind(t, udp)
	d = &door{newDoorman(b, &roster{}, func(*contact) bool { return true }, busy), t, udp, nil}
	d.identity.Store(id)
	return d, caller
}

func (d *door) start() {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		d.run(done)
	}()
	d.stop = func() {
		close(done)
		<-ended
	}
}

// response writes a message that costs the library work, whoever it is from.
func (i *Initiator) response() []byte {
	m := message(device.MessageResponseType, device.MessageResponseSize)
	i.macs.AddMacs(m)
	return m
}

func idle() bool { return false }

// at is the endpoint of an address.
func at(address string) conn.Endpoint {
	return &conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort(address)}
}

// want checks how many messages the library was given since the start, and how
// many were dropped for a reason.
func (d *door) want(when string, handed int, reason dropReason, drops int) {
	d.t.Helper()
	synctest.Wait()
	if got := len(d.bind.receive); got != handed {
		d.t.Errorf("%s: %d messages were handed on, want %d", when, got, handed)
	}
	if got := int(counter(d.t, d.metrics, reason)); got != drops {
		d.t.Errorf("%s: %d were dropped for %q, want %d", when, got, reason, drops)
	}
}

// TestDoorman_HandsOnAtARate gives it more than the library may get at once,
// without ever so many waiting that it asks for cookies.
func TestDoorman_HandsOnAtARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, caller := newDoor(t, idle)
		d.start()
		defer d.stop()
		const each = doorLoad - 1
		offer := func() {
			for range each {
				d.offer(caller.response(), at("192.0.2.1:7"))
			}
			synctest.Wait()
		}
		offer()
		d.want("at first", each, reasonHandshakeCookie, 0)
		offer()
		d.want("all at once", handBurst, reasonHandshakeCookie, 0)
		const some = 20
		<-time.After(some*time.Second/handRate + time.Second/handRate/2)
		d.want("a little later", handBurst+some, reasonHandshakeCookie, 0)
		<-time.After(each * time.Second / handRate)
		d.want("in the end", 2*each, reasonHandshakeCookie, 0)
		<-time.After(time.Minute)
		offer()
		offer()
		d.want("after a pause", 2*each+handBurst, reasonHandshakeRate, 0)
	})
}

// TestDoorman_LeavesABusyLibraryAlone has the library under load, of which it is
// asked now and then.
func TestDoorman_LeavesABusyLibraryAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		var asked atomic.Int64
		d, caller := newDoor(t, func() bool { asked.Add(1); return busy.Load() })
		d.start()
		busy.Store(true)
		d.offer(caller.response(), at("192.0.2.1:7"))
		const pauses = 20
		<-time.After(pauses*loadPause + loadPause/2)
		d.want("under load", 0, reasonHandshakeQueue, 0)
		if n := asked.Load(); n != pauses+1 {
			t.Errorf("it asked %d times in %v, want %d", n, pauses*loadPause, pauses+1)
		}
		busy.Store(false)
		<-time.After(loadPause)
		d.want("when that is over", 1, reasonHandshakeQueue, 0)
		busy.Store(true)
		d.offer(caller.response(), at("192.0.2.1:7"))
		synctest.Wait()
		d.stop()
		d.want("at the end", 1, reasonHandshakeQueue, 1)
	})
}

// TestDoorman_HandsOnFewCookieReplies sends it answers to what was never asked,
// which nobody can tell from others.
func TestDoorman_HandsOnFewCookieReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, caller := newDoor(t, idle)
		d.start()
		defer d.stop()
		const each, half = 2 * cookieBurst, cookieBurst / 2
		offer := func() {
			for range each {
				d.offer(message(device.MessageCookieReplyType, device.MessageCookieReplySize), at("192.0.2.1:7"))
			}
		}
		offer()
		d.want("at once", cookieBurst, reasonHandshakeRate, each-cookieBurst)
		<-time.After(half*time.Second/cookieRate + time.Millisecond)
		offer()
		d.want("a little later", cookieBurst+half, reasonHandshakeRate, 2*each-cookieBurst-half)
		d.offer(caller.response(), at("192.0.2.1:7"))
		d.want("another message", cookieBurst+half+1, reasonHandshakeRate, 2*each-cookieBurst-half)
	})
}

// TestDoorman_LimitsAddressesUnderLoad has one address that gets its answers
// send more than its share while there is a load.
func TestDoorman_LimitsAddressesUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, caller := newDoor(t, idle)
		other := NewInitiator(t, caller.theirs)
		for range doorLoad + 1 { // it takes one of them before it looks
			d.offer(caller.response(), at("192.0.2.9:7"))
		}
		d.start()
		defer d.stop()
		d.want("a load", 0, reasonHandshakeCookie, doorLoad+1)
		first, second := at("192.0.2.1:7"), at("192.0.2.2:7")
		for who, from := range map[*Initiator]conn.Endpoint{caller: first, other: second} {
			d.offer(who.response(), from)
			synctest.Wait()
			if !who.Cookie(d.udp.last) {
				t.Fatal("the answer is no cookie")
			}
		}
		d.want("without a cookie", 0, reasonHandshakeCookie, doorLoad+3)
		const share, many = 4, 10 // the limiter of the library holds back the fifth
		for range many {
			d.offer(caller.response(), first)
		}
		d.want("many of one address", share, reasonHandshakeRate, many-share)
		d.offer(other.response(), second)
		d.want("one of another", share+1, reasonHandshakeRate, many-share)
		d.offer(caller.response(), second)
		d.want("with the cookie of another address", share+1, reasonHandshakeCookie, doorLoad+4)
		<-time.After(loadTime)
		for range many {
			d.offer(caller.response(), first)
		}
		d.want("when the load is over", share+1+many, reasonHandshakeRate, many-share)
	})
}
