// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"
)

// proxyHeader is a header for a client, with fields behind the addresses.
func proxyHeader(client netip.AddrPort, fields ...byte) []byte {
	b := append([]byte(proxySignature), 0x21, 0x11, 0, 0)
	if client.Addr().Is6() {
		b[13] = 0x21
	}
	b = append(b, client.Addr().AsSlice()...)
	b = append(b, make([]byte, client.Addr().BitLen()/8)...) // the server's address, which nobody needs
	b = binary.BigEndian.AppendUint16(b, client.Port())
	b = append(b, 13, 150)
	b = append(b, fields...)
	binary.BigEndian.PutUint16(b[14:], uint16(len(b)-proxyFixed))
	return b
}

// checked fills the checksum in, the first of the fields.
func checked(b []byte, at int) []byte {
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[at+3:], sum)
	return b
}

func TestParseProxy(t *testing.T) {
	four, six := netip.MustParseAddrPort("203.0.113.9:50000"), netip.MustParseAddrPort("[2001:db8::9]:50000")
	edit := func(b []byte, at int, v byte) []byte { b[at] = v; return b }
	checksum := []byte{3, 0, 4, 0, 0, 0, 0}
	for _, v := range []struct {
		name string
		b    []byte
		want netip.AddrPort
		ok   bool
	}{
		{"TCP over IPv4", proxyHeader(four), four, true},
		{"TCP over IPv6", proxyHeader(six), six, true},
		{"IPv4 in IPv6", proxyHeader(netip.MustParseAddrPort("[::ffff:203.0.113.9]:50000")), four, true},
		{"fields behind", proxyHeader(four, 4, 0, 2, 0, 0, 0x20, 0, 0), four, true},
		{"a checksum", checked(proxyHeader(four, checksum...), 28), four, true},
		{"the proxy itself", edit(proxyHeader(four), 12, 0x20), netip.AddrPort{}, true},
		{"the proxy itself, no addresses", []byte(proxySignature + "\x20\x00\x00\x00"), netip.AddrPort{}, true},
		{"an unknown client", edit(proxyHeader(four), 13, 0), netip.AddrPort{}, true},

		{"a wrong checksum", edit(checked(proxyHeader(four, checksum...), 28), 16, 99), netip.AddrPort{}, false},
		{"a short checksum", proxyHeader(four, 3, 0, 3, 0, 0, 0), netip.AddrPort{}, false},
		{"half a field", proxyHeader(four, 4, 0), netip.AddrPort{}, false},
		{"a field that is too long", proxyHeader(four, 4, 0, 2, 0), netip.AddrPort{}, false},
		{"version 1", []byte("PROXY TCP4 203.0.113.9 203.0.113.1 50000 3478\r\n"), netip.AddrPort{}, false},
		{"version 3", edit(proxyHeader(four), 12, 0x31), netip.AddrPort{}, false},
		{"another command", edit(proxyHeader(four), 12, 0x22), netip.AddrPort{}, false},
		{"UDP", edit(proxyHeader(four), 13, 0x12), netip.AddrPort{}, false},
		{"a socket of Unix", edit(proxyHeader(four), 13, 0x31), netip.AddrPort{}, false},
		{"IPv6 with the addresses of IPv4", edit(proxyHeader(four), 13, 0x21), netip.AddrPort{}, false},
		{"port 0", proxyHeader(netip.AddrPortFrom(four.Addr(), 0)), netip.AddrPort{}, false},
		{"no address", proxyHeader(netip.AddrPortFrom(netip.IPv4Unspecified(), 1)), netip.AddrPort{}, false},
		{"a group", proxyHeader(netip.MustParseAddrPort("224.0.0.1:1")), netip.AddrPort{}, false},
		{"a wrong length", append(proxyHeader(four), 0), netip.AddrPort{}, false},
		{"a long one", edit(proxyHeader(four), 14, 0xff), netip.AddrPort{}, false},
		{"nothing", nil, netip.AddrPort{}, false},
	} {
		got, err := parseProxy(v.b)
		if (err == nil) != v.ok || v.ok && got != v.want {
			t.Errorf("%s: got %v, %v, want %v", v.name, got, err, v.want)
		}
	}
}

// FuzzProxy shows that a header takes exactly its own bytes, cut anywhere, and that
// whom it names can be a client.
func FuzzProxy(f *testing.F) {
	f.Add(proxyHeader(netip.MustParseAddrPort("203.0.113.9:50000")), byte(3))
	f.Add(proxyHeader(netip.MustParseAddrPort("[2001:db8::9]:50000"), 4, 0, 1, 0), byte(200))
	f.Add([]byte(proxySignature+"\x20\x00\x00\x00"), byte(0))
	f.Fuzz(func(t *testing.T, b []byte, cut byte) {
		var in io.Reader = bytes.NewReader(b)
		if n := int(cut); n < len(b) {
			in = io.MultiReader(bytes.NewReader(b[:n]), bytes.NewReader(b[n:]))
		}
		client, err := readProxy(in)
		rest, _ := io.ReadAll(in)
		if err != nil {
			return
		}
		header := b[:len(b)-len(rest)]
		if len(header) > proxyFixed+proxyRest || len(header) != proxyFixed+int(binary.BigEndian.Uint16(b[14:])) {
			t.Fatalf("took %d bytes", len(header))
		}
		again, err := parseProxy(header)
		if err != nil || again != client {
			t.Fatalf("the header alone is %v, %v, and was %v", again, err, client)
		}
		if client.IsValid() && (client.Port() == 0 || client.Addr().Is4In6() || client.Addr().IsUnspecified()) {
			t.Fatalf("client %v", client)
		}
	})
}

// mapped asks the server what it takes for the client's address.
func (c *client) mapped() string {
	c.Helper()
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	c.send(m.Raw)
	var a stun.XORMappedAddress
	if err := a.GetFrom(c.message()); err != nil {
		c.Fatal(err)
	}
	return a.String()
}

func TestProxied_NamesTheClient(t *testing.T) {
	for _, over := range []string{"tcp", "tls"} {
		t.Run(over, func(t *testing.T) {
			s := newServer(t, func(cfg *Config) { cfg.Limits.ConnectionsPerSource = 2 })
			f := newShards(t, s, 1, nil)[0]
			var l net.Listener = Proxied(listen(t), []netip.Prefix{netip.PrefixFrom(loopback, 32)}, nil)
			if over == "tls" {
				l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert(t)}})
			}
			addr := serve(t, s, l)
			// More clients than one source may have: they have sources of their own.
			for i := range 4 {
				from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 50000)
				c := dial(t, addr)
				c.send(proxyHeader(from))
				if over == "tls" {
					c = newClient(t, tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true}))
				}
				if got := c.mapped(); got != from.String() {
					t.Errorf("the client is %v, want %v", got, from)
				}
				c.channel().send(channelData([]byte("hello")))
				c.binding()
				if n := len(f.toPeers()); n != i+1 {
					t.Errorf("%d packets of %d arrived", n, i+1)
				}
			}
			health := dial(t, addr)
			health.send([]byte(proxySignature + "\x20\x00\x00\x00"))
			if over == "tcp" {
				if got := health.mapped(); got != health.LocalAddr().String() {
					t.Errorf("the proxy itself is %v, want %v", got, health.LocalAddr())
				}
			}
		})
	}
}

// Nobody but a trusted proxy says who a client is.
func TestProxied_TakesNoHeaderOfStrangers(t *testing.T) {
	s := newServer(t, nil)
	newShards(t, s, 1, nil)
	var refused atomic.Int64
	addr := serve(t, s, Proxied(listen(t), []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, func() { refused.Add(1) }))
	liar := dial(t, addr)
	liar.send(proxyHeader(netip.MustParseAddrPort("203.0.113.9:50000")))
	liar.gone()
	if n := s.Stats().Ended[Garbage]; n != 1 || refused.Load() != 0 {
		t.Errorf("%d ended as garbage, %d as a proxy", n, refused.Load())
	}
	honest := dial(t, addr)
	if got := honest.mapped(); got != honest.LocalAddr().String() {
		t.Errorf("a client without a proxy is %v, want %v", got, honest.LocalAddr())
	}
}

// trusting is pipes whose ends come from a trusted address.
func trusting(refused func()) (*pipes, *ProxyListener) {
	p := newPipes()
	return p, Proxied(p, []netip.Prefix{netip.MustParsePrefix("192.0.2.8/32")}, refused)
}

func TestProxied_RefusesWhatIsNoHeader(t *testing.T) {
	header := proxyHeader(netip.MustParseAddrPort("203.0.113.9:50000"))
	for name, b := range map[string][]byte{
		"a request": stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw,
		"silence":   nil, "half a header": header[:20], "half of what is the same in all": header[:3],
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var refused atomic.Int64
				p, l := trusting(func() { refused.Add(1) })
				defer l.Close()
				c, _ := p.dial(t)
				start := time.Now()
				if len(b) > 0 {
					c.send(b[:min(len(b), proxyFixed)])
				}
				if len(b) > proxyFixed && len(b) < 28 {
					c.Write(b[proxyFixed:]) // of a request the header's reader wants no more
				}
				c.SetReadDeadline(time.Time{})
				if _, err := c.r.ReadByte(); err == nil {
					t.Error("the server says something")
				}
				synctest.Wait()
				if took := time.Since(start); took > headerTimeout || refused.Load() != 1 {
					t.Errorf("ended after %s, %d refused", took, refused.Load())
				}
			})
		})
	}
}

// What the header needed does not stay: whoever serves the connection has his own
// patience.
func TestProxied_LeavesNoDeadline(t *testing.T) {
	p, l := trusting(nil)
	defer l.Close()
	go p.dialAs(t, netip.MustParseAddrPort("203.0.113.9:50000"))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if read, _ := c.(*proxiedConn).Conn.(*pipeEnd).deadlines(); !read.IsZero() {
		t.Errorf("reading ends at %v", read)
	}
}

// dialAs is dial by a proxy.
func (p *pipes) dialAs(t testing.TB, client netip.AddrPort) {
	c, _ := p.dial(t)
	c.Write(proxyHeader(client))
}

// A flood of connections without headers neither takes all memory nor stops Close.
func TestProxied_BoundsWhatOwesAHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused atomic.Int64
		p, l := trusting(func() { refused.Add(1) })
		for range maxHeaders + 3 {
			p.dial(t)
		}
		synctest.Wait()
		if refused.Load() != 3 {
			t.Errorf("%d were refused, want 3", refused.Load())
		}
		l.Close()
		l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
	})
}

// Errors of the listener are for whoever accepts, who knows how to wait.
func TestProxied_HandsErrorsOn(t *testing.T) {
	l := Proxied(&failing{Listener: listen(t), failures: 2}, nil, nil)
	defer l.Close()
	for range 2 {
		if _, err := l.Accept(); !errors.Is(err, errFull) {
			t.Errorf("got %v, want %v", err, errFull)
		}
	}
	dial(t, l.Addr().String())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Listener.Close() // behind its back
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
}

var errFull = errors.New("file table is full")

// failing is a listener that fails some times.
type failing struct {
	net.Listener
	failures int
}

func (f *failing) Accept() (net.Conn, error) {
	if f.failures--; f.failures >= 0 {
		return nil, errFull
	}
	return f.Listener.Accept()
}
