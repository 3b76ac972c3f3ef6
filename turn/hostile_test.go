// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// The packet that ends a bare pion/turn v3.0.3: an authenticated user's Send
// indication whose last attribute is an XOR-PEER-ADDRESS without a value.
func TestHostile_EmptyPeerAddress(t *testing.T) {
	s := newServer(t, nil)
	for _, c := range []*rawClient{
		dialUDP(t, s, s.secrets.Mint("u", time.Minute)), dialTCP(t, s, s.secrets.Mint("u", time.Minute)),
	} {
		c.allocate()
		for length := range 20 {
			if length == 8 {
				continue
			}
			value := make([]byte, length)
			if length > 1 {
				value[1] = familyIPv4
			}
			c.send(packet(sendIndication, attr(attrData, 1, 0), attr(attrXORPeerAddress, length, value...)))
			c.send(packet(createPermissionRequest, attr(attrXORPeerAddress, length, value...)))
		}
		drain(c)
	}
	if n := s.dropped(core.DropJunk); n != 2*19 {
		t.Errorf("%d dropped, want %d", n, 2*19)
	}
}

// mutator makes hostile packets out of good ones; the seed makes a run repeatable.
type mutator struct {
	*rand.Rand
	good [][]byte
}

// corrupt changes a good packet a little, or makes one up.
func (m *mutator) corrupt() []byte {
	if m.IntN(8) == 0 {
		return m.noise(m.IntN(200))
	}
	b := bytes.Clone(m.good[m.IntN(len(m.good))])
	for range 1 + m.IntN(4) {
		switch at := m.IntN(len(b)); m.IntN(5) {
		case 0:
			b[at] = byte(m.Uint32())
		case 1:
			b[at] ^= 1 << m.IntN(8)
		case 2:
			b = b[:max(1, at)]
		case 3:
			b = append(b[:at], append(m.noise(m.IntN(12)), b[at:]...)...)
		case 4: // a length that lies, with a header that fits
			if len(b) >= headerLen+4 {
				binary.BigEndian.PutUint16(b[headerLen+2:], uint16(m.IntN(64)))
			}
		}
	}
	if len(b) >= headerLen && m.IntN(2) == 0 { // let more pass the header checks
		b = b[:len(b)&^3]
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerLen))
		binary.BigEndian.PutUint32(b[4:], cookie)
	}
	return b
}

// request makes a well-signed request of attributes that make no sense together.
func (m *mutator) request(c *rawClient) []byte {
	types := []uint16{
		attrChannelNumber, attrLifetime, attrXORPeerAddress, attrData, attrAddressFamily, attrEvenPort,
		attrRequestedTransport, attrDontFragment, attrReservationToken, attrXORRelayedAddress, attrErrorCode, 0x7ffe, 0x8fff,
	}
	methods := []stun.Method{stun.MethodRefresh, stun.MethodCreatePermission, stun.MethodChannelBind, stun.MethodAllocate}
	var attrs []stun.Setter
	for range m.IntN(8) {
		t := types[m.IntN(len(types))]
		v := m.noise([]int{0, 1, 4, 8, 20, m.IntN(32)}[m.IntN(6)])
		if len(v) > 1 && m.IntN(2) == 0 {
			v[0], v[1] = 0, 1+byte(m.IntN(2))
		}
		if t == attrLifetime && len(v) == 4 && binary.BigEndian.Uint32(v) == 0 {
			continue // would end the allocation that the test keeps
		}
		attrs = append(attrs, rawAttr(stun.AttrType(t), v))
	}
	return c.signed(methods[m.IntN(len(methods))], attrs...).Raw
}

func (m *mutator) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.Uint32())
	}
	return b
}

// Ten thousand packets from strangers and ten thousand from a user with an
// allocation end nothing: neither the process nor the service of others.
func TestHostile_RandomAndMutatedPackets(t *testing.T) {
	const rounds, batch = 10_000, 50
	s := newServer(t, nil)
	peer := netip.MustParseAddrPort("11.0.0.9:9")
	honest := dialUDP(t, s, s.secrets.Mint("honest", time.Hour))
	honest.allocate()

	insider := dialUDP(t, s, s.secrets.Mint("insider", time.Hour))
	insider.allocate()
	insider.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(peer))
	stranger := dialUDP(t, s, s.secrets.Mint("stranger", time.Hour)).login()

	for _, c := range []*rawClient{stranger, insider} {
		m := &mutator{Rand: rand.New(rand.NewPCG(1, 2)), good: [][]byte{
			stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw,
			c.signed(stun.MethodCreatePermission, peerAddress(peer), peerAddress(publicPeer)).Raw,
			c.signed(stun.MethodChannelBind, channelNumber(0x4001), peerAddress(peer)).Raw,
			c.signed(stun.MethodRefresh, lifetimeSeconds(600)).Raw,
			c.signed(stun.MethodAllocate, rawAttr(stun.AttrRequestedTransport, []byte{6, 0, 0, 0})).Raw,
			packet(sendIndication, attr(attrXORPeerAddress, 8, xored(peer, make([]byte, 12))...), attr(attrData, 3, 1, 2, 3)),
			append([]byte{0x40, 0, 0, 3}, 1, 2, 3, 0),
		}}
		for i := range rounds {
			if i%4 == 0 {
				c.send(m.request(c))
			} else {
				c.send(m.corrupt())
			}
			if i%batch == 0 {
				drain(c)
			}
		}
		drain(c)
	}
	for _, c := range []*rawClient{honest, insider} {
		if got := code(c.request(stun.MethodRefresh)); got != 0 {
			t.Errorf("refresh afterwards: %d", got)
		}
	}
}

// drain waits until the server has worked off what c has sent.
func drain(c *rawClient) {
	c.Helper()
	c.do(stun.MustBuild(stun.TransactionID, stun.BindingRequest, longSoftware()))
}

// The same over streams: what breaks the framing costs the connection, never the server.
func TestHostile_MutatedStreams(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.RelaysPerUser, c.Limits.Relays = 10_000, 10_000 })
	m := &mutator{Rand: rand.New(rand.NewPCG(3, 4))}
	sent := 0
	for sent < 10_000 {
		c := dialTCP(t, s, s.secrets.Mint("u", time.Hour))
		c.allocate()
		m.good = [][]byte{
			stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw,
			c.signed(stun.MethodCreatePermission, peerAddress(publicPeer)).Raw,
			packet(sendIndication, attr(attrXORPeerAddress, 8, xored(publicPeer, make([]byte, 12))...), attr(attrData, 3, 1, 2, 3)),
			append([]byte{0x40, 0, 0, 3}, 1, 2, 3, 0),
		}
		go func() { // answers are not of interest, but must be read
			for {
				if _, err := c.tryPacket(patience); err != nil {
					return
				}
			}
		}()
		for i := 0; i < 200; i++ {
			b := m.corrupt()
			if i%2 == 0 {
				b = m.request(c)
			}
			sent++
			if _, err := c.Write(b); err != nil {
				break
			}
		}
		c.Close()
	}
	eventually(t, "all connections and allocations are gone", func() bool {
		return s.totals().connections == 0 && s.nothingLeft()
	})
	dialTCP(t, s, s.secrets.Mint("honest", time.Minute)).allocate()
}

// A stranger gets back no more than its share, and no more than 2.6 times what it
// sent, however much it sends.
func TestHostile_AnswersToStrangersAreBounded(t *testing.T) {
	const flood = 2000
	s := newServer(t, func(c *Config) { c.Threads, c.TCP = 1, nil })
	answered, began := 0, time.Now()
	s.each(func(now time.Time, c *core.Core, out *core.Output) {
		for i := range flood {
			src := core.Flow{Client: netip.AddrPortFrom(publicPeer.Addr(), uint16(1000+i))}
			for _, kind := range []uint16{bindingRequest, allocateRequest} {
				b := packet(kind, attr(attrRequestedTransport, 4, protocolUDP, 0, 0, 0))
				c.FromClient(now, src, b, out)
				for _, a := range out.Actions {
					if answered++; len(a.Data)*10 > len(b)*26 {
						t.Errorf("%d bytes are answered by %d", len(b), len(a.Data))
					}
				}
				out.Reset() // to nobody
			}
		}
	})
	rate, seconds := s.limits.Load().AnswersPerSecond, int(time.Since(began)/time.Second)+1
	if limit := (3 + seconds) * rate; answered == 0 || answered > limit {
		t.Errorf("%d of %d answered, limit %d", answered, 2*flood, limit)
	}
	if n := s.dropped(core.DropUnanswered); n != 2*flood-answered {
		t.Errorf("%d dropped, want %d", n, 2*flood-answered)
	}
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	c.binding()
}

// What no server is sent is dropped, and counted; data without an allocation gets a
// hint over UDP, if that is no larger.
func TestHostile_DropsWhatIsNotForAServer(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	send := func(typ stun.MessageType, attrs ...stun.Setter) {
		c.send(stun.MustBuild(append([]stun.Setter{stun.TransactionID, typ}, attrs...)...).Raw)
	}
	send(stun.BindingSuccess)
	send(stun.NewType(stun.MethodAllocate, stun.ClassSuccessResponse))
	send(stun.NewType(stun.MethodData, stun.ClassIndication))
	send(stun.NewType(0xfff, stun.ClassRequest))
	send(stun.NewType(stun.MethodSend, stun.ClassIndication))                              // no data
	send(stun.NewType(stun.MethodSend, stun.ClassIndication), rawAttr(stun.AttrData, nil)) // no peer
	c.send([]byte{0x50, 0, 0, 0})
	c.send([]byte("GET / HTTP/1.1\r\n\r\n"))
	c.send(nil)
	c.binding()
	if n := s.dropped(core.DropJunk); n != 9 {
		t.Errorf("%d junk, want 9", n)
	}
	c.send([]byte{0x40, 0, 0, 0}) // smaller than what would be said of it
	c.binding()
	c.indicate(publicPeer, []byte("x"))
	if m := c.receive(); m.Type != stun.NewType(stun.MethodRefresh, stun.ClassErrorResponse) || code(m) != 437 || m.TransactionID != [12]byte{} {
		t.Errorf("data without an allocation is answered by %v, want a hint", m)
	}
	c.binding()
	if n := s.dropped(core.DropNoAllocation); n != 2 {
		t.Errorf("%d without allocation, want 2", n)
	}
}
