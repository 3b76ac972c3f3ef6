// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"
)

// Hosts of peers, which only the table's server lets clients reach.
var (
	peerHost   = netip.MustParseAddr("127.0.0.2")
	secondHost = netip.MustParseAddr("127.0.0.3")
)

// algorithms is what PASSWORD-ALGORITHMS must be: SHA-256 and MD5.
var algorithms = []byte{0, 2, 0, 0, 0, 1, 0, 0}

// rowPatience is how long a row waits for what must come.
const rowPatience = 10 * time.Second

// party is the client of a row. It is logged in by the first request that it signs.
type party struct {
	*rawClient
	server    *tableServer
	way, user string

	sha256 bool   // name SHA-256 as the password algorithm
	byMD5  bool   // of what is signed by SHA-256 the key is by MD5
	print  bool   // add FINGERPRINT
	last   []byte // what came last

	relays    []netip.AddrPort // of the last success response that named some
	owner     Credential       // that it was for
	token, id []byte           // RESERVATION-TOKEN and CONNECTION-ID that came last

	peer   *net.UDPConn
	peerAt netip.AddrPort
}

// party dials as a user, who has a credential for two hours.
func (e *tableServer) party(t testing.TB, way, user string) *party {
	t.Helper()
	c := &party{rawClient: e.ways[way](t, e.secrets.Mint(user, 2*time.Hour)), server: e, way: way, user: user}
	if !c.stream() {
		t.Cleanup(c.leave)
	}
	return c
}

// leave ends the allocation that a client over UDP may have: the next one may get its port.
func (c *party) leave() {
	c.Helper()
	c.sha256, c.print, c.cred = false, false, c.owner
	for range 3 { // the row may have spoiled the nonce
		if c.cred.Username == "" || !strings.HasPrefix(c.ask(stun.MethodRefresh, lifetimeSeconds(0)), "438") {
			return
		}
	}
}

// other is another client of the same user, and by another one of somebody else.
func (c *party) other() *party { return c.server.party(c.TB, c.way, c.user) }

func (c *party) stranger() *party { return c.server.party(c.TB, c.way, "stranger-"+c.user) }

// become goes on as another user.
func (c *party) become(user string) *party {
	c.cred = c.server.secrets.Mint(user, 2*time.Hour)
	return c
}

func (c *party) stream() bool { return !strings.HasPrefix(c.way, "udp") }

// message is a message without credentials.
func (c *party) message(method stun.Method, class stun.MessageClass, attrs ...stun.Setter) []byte {
	c.Helper()
	all := slices.Concat([]stun.Setter{stun.TransactionID, stun.NewType(method, class)}, attrs)
	if c.print {
		all = append(all, stun.Fingerprint)
	}
	m, err := stun.Build(all...)
	if err != nil {
		c.Fatal(err)
	}
	return m.Raw
}

// unsigned is a request of a stranger, long enough for the whole challenge to fit.
func (c *party) unsigned(method stun.Method, attrs ...stun.Setter) []byte {
	return c.message(method, stun.ClassRequest, append(attrs, stun.NewSoftware("of a row"))...)
}

// sign makes a request with credentials; the first one is preceded by a challenge.
func (c *party) sign(method stun.Method, attrs ...stun.Setter) []byte {
	c.Helper()
	c.greet()
	return c.message(method, stun.ClassRequest, slices.Concat(attrs, c.credential(), []stun.Setter{c.integrity()})...)
}

// greet gets realm and nonce.
func (c *party) greet() {
	c.Helper()
	if c.nonce != "" {
		return
	}
	if got := c.exchange(c.unsigned(stun.MethodAllocate, transportUDP)); got != challenged {
		c.Fatalf("the challenge is %q", got)
	}
}

func (c *party) credential() []stun.Setter {
	list := []stun.Setter{stun.NewUsername(c.cred.Username), stun.NewRealm(c.realm), stun.NewNonce(c.nonce)}
	if c.sha256 {
		list = append(list, rawAttr(attrPasswordAlgorithm, algorithms[:4]), rawAttr(attrPasswordAlgorithms, algorithms))
	}
	return list
}

func (c *party) integrity() stun.Setter {
	if c.sha256 {
		return integritySHA256(c.negotiated())
	}
	return c.key()
}

// negotiated is the key by the password algorithm that the client names.
func (c *party) negotiated() []byte {
	if c.byMD5 {
		return c.key()
	}
	sum := sha256.Sum256([]byte(c.cred.Username + ":" + c.realm + ":" + c.cred.Password))
	return sum[:]
}

// integritySHA256 is MESSAGE-INTEGRITY-SHA256, which the codec does not know.
func integritySHA256(key []byte) stun.Setter {
	return setter(func(m *stun.Message) error {
		length := m.Length
		m.Length += 4 + sha256.Size
		m.WriteLength()
		h := hmac.New(sha256.New, key)
		h.Write(m.Raw)
		m.Length = length
		m.Add(attrIntegritySHA256, h.Sum(nil))
		return nil
	})
}

// ask sends a request with credentials and renders the answer.
func (c *party) ask(method stun.Method, attrs ...stun.Setter) string {
	c.Helper()
	return c.exchange(c.sign(method, attrs...))
}

// hold makes an allocation.
func (c *party) hold(attrs ...stun.Setter) *party {
	c.Helper()
	// Of two transports the first counts.
	if got := c.ask(stun.MethodAllocate, append(attrs, transportUDP)...); !strings.HasPrefix(got, "ok ") {
		c.Fatalf("allocate: %s", got)
	}
	return c
}

// must fails the row unless a request succeeds.
func (c *party) must(method stun.Method, attrs ...stun.Setter) {
	c.Helper()
	if got := c.ask(method, attrs...); !strings.HasPrefix(got, "ok") {
		c.Fatalf("%v: %s", method, got)
	}
}

// exchange sends a request and renders all that comes until its answer.
func (c *party) exchange(b []byte) string {
	c.Helper()
	return strings.Join(c.until(b), " + ")
}

// silent sends what must not be answered and renders what comes before the answer
// to a request behind it: the server works in order.
func (c *party) silent(packets ...[]byte) string {
	c.Helper()
	print := c.print
	c.print = false
	probe := c.message(stun.MethodBinding, stun.ClassRequest, longSoftware())
	c.print = print
	for _, b := range packets {
		_, _ = c.Write(b) // of a stream that has ended reading tells
	}
	got := c.until(probe)
	if last := len(got) - 1; got[last] == "ok mapped" {
		got[last] = "none"
		got = got[:max(1, last)]
	}
	return strings.Join(got, " + ")
}

// until sends a request and renders what comes, to its answer.
func (c *party) until(b []byte) (list []string) {
	c.Helper()
	_, _ = c.Write(b)
	for {
		p, err := c.receives()
		if err != nil {
			return append(list, missing(err))
		}
		word := c.render(p)
		if !c.stream() && !strings.Contains(word, "signed") && 10*len(p) > 26*len(b) {
			word += fmt.Sprintf(", %d bytes for %d", len(p), len(b)) // who has forged the source sends so much to others
		}
		c.last, list = p, append(list, word)
		if len(p) >= headerLen && p[0]>>6 == 0 && string(p[8:headerLen]) == string(b[8:headerLen]) {
			return list
		}
	}
}

// missing says why nothing came.
func missing(err error) string {
	if timedOut(err) {
		return "no answer"
	}
	return "closed"
}

// receives returns the next packet.
func (c *party) receives() ([]byte, error) {
	p, err := c.packetInto(c.server.buffer, rowPatience)
	return bytes.Clone(p), err
}

// next renders what comes next.
func (c *party) next() string {
	c.Helper()
	p, err := c.receives()
	if err != nil {
		return missing(err)
	}
	return c.render(p)
}

// meet opens a peer, at peerHost.
func (c *party) meet() *party {
	c.Helper()
	c.peer, c.peerAt = listenAt(c.TB, netip.AddrPortFrom(peerHost, 0).String())
	return c
}

// permitted has an allocation with a permission for its peer, bound with a channel.
func (c *party) permitted() *party {
	c.Helper()
	c.meet().hold().must(stun.MethodCreatePermission, peerAddress(c.peerAt))
	return c
}

func (c *party) bound() *party {
	c.Helper()
	c.meet().hold().must(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(c.peerAt))
	return c
}

// sendTo is a Send indication.
func (c *party) sendTo(peer netip.AddrPort, data []byte, attrs ...stun.Setter) []byte {
	c.Helper()
	return c.message(stun.MethodSend, stun.ClassIndication, append(attrs, peerAddress(peer), rawAttr(stun.AttrData, data))...)
}

// peerGets renders the next datagram that a peer gets.
func (c *party) peerGets() string {
	c.Helper()
	_ = c.peer.SetReadDeadline(time.Now().Add(rowPatience))
	buf := c.server.buffer
	n, src, err := c.peer.ReadFromUDPAddrPort(buf)
	switch {
	case err != nil:
		return "nothing"
	case slices.Contains(c.relays, src):
		return brief(buf[:n]) + " from the relay"
	default:
		return brief(buf[:n]) + " from elsewhere"
	}
}

// peerGetsNothing renders a datagram that lies there.
func (c *party) peerGetsNothing() string {
	c.Helper()
	const marker = "a marker that the peer sends to itself"
	if _, err := c.peer.WriteToUDPAddrPort([]byte(marker), c.peerAt); err != nil {
		c.Fatal(err)
	}
	if got := c.peerGets(); got != brief([]byte(marker))+" from elsewhere" {
		return got
	}
	return "nothing"
}

// fromPeer has the peer send a datagram to the relay.
func (c *party) fromPeer(data []byte) {
	c.Helper()
	if _, err := c.peer.WriteToUDPAddrPort(data, c.relays[0]); err != nil {
		c.Fatal(err)
	}
}

// corners are two addresses with the same two ports.
func corners(t testing.TB) []netip.AddrPort {
	t.Helper()
	a, b := netip.MustParseAddr("127.0.0.4"), netip.MustParseAddr("127.0.0.5")
	p := freePorts(t, 2, a, b)
	q := p + 1
	return []netip.AddrPort{netip.AddrPortFrom(a, p), netip.AddrPortFrom(a, q), netip.AddrPortFrom(b, p), netip.AddrPortFrom(b, q)}
}
