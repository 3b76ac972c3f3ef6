// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"
)

// pipeStream returns a stream and the client's end of it. settled may change.
func pipeStream(t *testing.T, settled *bool) (*stream, net.Conn, *int) {
	t.Helper()
	server, client := net.Pipe()
	t.Cleanup(func() { server.Close(); client.Close() })
	oversize := new(int)
	return newStream(server, 10*time.Minute, func() bool { return *settled }, func() { *oversize++ }), client, oversize
}

func TestStream_CutsFrames(t *testing.T) {
	stunFrame := packet(sendIndication, attr(attrData, 5, 1, 2, 3, 4, 5))
	frames := [][]byte{
		packet(bindingRequest),
		{0x40, 0, 0, 0}, // complete in its four bytes: waits for nothing more
		{0x40, 1, 0, 1, 7, 0, 0, 0},
		stunFrame,
		{0x4f, 0xff, 0, 4, 1, 2, 3, 4},
	}
	all := bytes.Join(frames, nil)
	for name, chunk := range map[string]int{"at once": len(all), "byte by byte": 1, "in sevens": 7} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				settled := true
				s, client, _ := pipeStream(t, &settled)
				go func() {
					for rest := all; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
						client.Write(rest[:min(chunk, len(rest))])
					}
					client.Close()
				}()
				buf := make([]byte, maxPacket)
				for i, want := range frames {
					n, _, err := s.ReadFrom(buf)
					if err != nil || !bytes.Equal(buf[:n], want) {
						t.Fatalf("frame %d: %x, %v, want %x", i, buf[:n], err, want)
					}
				}
				if _, _, err := s.ReadFrom(buf); err == nil {
					t.Error("a frame after the end")
				}
			})
		})
	}
}

func TestStream_SkipsFramesThatAreTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settled := true
		s, client, oversize := pipeStream(t, &settled)
		go func() {
			client.Write(append([]byte{0x40, 0, 0xff, 0xff}, make([]byte, 65536)...))
			client.Write(packet(bindingRequest))
		}()
		buf := make([]byte, maxPacket)
		if n, _, err := s.ReadFrom(buf); err != nil || n != headerLen || *oversize != 1 {
			t.Errorf("got %d bytes, %v, %d skipped", n, err, *oversize)
		}
	})
}

func TestStream_GarbageEndsIt(t *testing.T) {
	for name, tc := range map[string]struct {
		b       []byte
		settled bool
	}{
		"http":                       {[]byte("GET / HTTP/1.1\r\n"), false},
		"channel data of a stranger": {[]byte{0x40, 0, 0, 0}, false},
		"tls":                        {[]byte{22, 3, 1, 2, 0, 1, 0, 1}, true},
		"reserved channel":           {[]byte{0x50, 0, 0, 0}, true},
		"wrong cookie":               {[]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x43}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, client, _ := pipeStream(t, &tc.settled)
				go client.Write(tc.b)
				if _, _, err := s.ReadFrom(make([]byte, maxPacket)); !errors.Is(err, errNoFrame) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// The bubble's clock stands still until everybody waits: these tests take no time.
func TestStream_Deadlines(t *testing.T) {
	frame := packet(bindingRequest)
	tests := []struct {
		name    string
		settled bool
		drip    time.Duration // pause between bytes
		bytes   []byte        // what the client sends, over and over
		want    time.Duration // when the server has enough
	}{
		{"a silent stranger", false, 0, nil, helloTimeout},
		{"a silent client with an allocation", true, 0, nil, 10 * time.Minute},
		{"a stranger who drips a frame", false, time.Second, frame[:19], helloTimeout},
		{"a client who drips a frame", true, time.Second, frame[:19], frameTimeout},
		{"a stranger who keeps asking", false, time.Second / 5, frame, helloTimeout + frameTimeout},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				settled := tc.settled
				s, client, _ := pipeStream(t, &settled)
				start := time.Now()
				ended := make(chan time.Duration, 1)
				go func() {
					buf := make([]byte, maxPacket)
					for {
						if _, _, err := s.ReadFrom(buf); err != nil {
							ended <- time.Since(start)
							s.Close()
							return
						}
					}
				}()
				for i := 0; tc.drip > 0; i++ {
					time.Sleep(tc.drip)
					if _, err := client.Write(tc.bytes[i%len(tc.bytes):][:1]); err != nil {
						break
					}
				}
				if got := <-ended; got > tc.want+time.Second {
					t.Errorf("ended after %s, want %s", got, tc.want)
				}
			})
		})
	}
}

func TestStream_ClientThatDoesNotReadIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settled := true
		s, client, _ := pipeStream(t, &settled)
		start := time.Now()
		if _, err := s.WriteTo(make([]byte, 100), nil); !timedOut(err) {
			t.Fatalf("got %v", err)
		}
		if got := time.Since(start); got != writeTimeout {
			t.Errorf("gave up after %s", got)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the connection is still open: %v", err)
		}
	})
}

func TestServer_GarbageStreamEndsOnlyItself(t *testing.T) {
	s := newServer(t, nil)
	honest := dialTCP(t, s, s.secrets.Mint("u", time.Minute))
	honest.allocate()
	bad := dialTCP(t, s, Credential{})
	bad.send([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	if _, err := bad.tryPacket(patience); err == nil || timedOut(err) {
		t.Errorf("the garbage connection is still open: %v", err)
	}
	if got := code(honest.request(stun.MethodRefresh)); got != 0 {
		t.Errorf("the honest one: %d", got)
	}
	eventually(t, "the garbage connection is forgotten", func() bool { return value(s.metrics.connections) == 1 })
}

func TestServer_BoundsConnections(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.ConnectionsPerSource = 2 })
	first, second := dialTCP(t, s, Credential{}), dialTCP(t, s, Credential{})
	first.binding()
	second.binding()
	third := dialTCP(t, s, Credential{})
	if _, err := third.tryPacket(patience); err == nil || timedOut(err) {
		t.Fatalf("the third connection is open: %v", err)
	}
	if n := value(s.metrics.drops[dropConnections]); n != 1 {
		t.Errorf("%d connections refused, want 1", n)
	}
	first.Close()
	eventually(t, "a place is free", func() bool { return value(s.metrics.connections) == 1 })
	dialTCP(t, s, Credential{}).binding()
}

func TestServer_ServesAListenerOfTLS(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert := selfSigned(t)
	l := tls.NewListener(raw, &tls.Config{Certificates: []tls.Certificate{cert}})
	s := newServer(t, func(c *Config) { c.UDP, c.TCP, c.Listeners = nil, nil, []net.Listener{l} })
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	conn, err := tls.Dial("tcp", s.TCPAddrs()[0].String(), &tls.Config{RootCAs: roots, ServerName: "turn.test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &rawClient{TB: t, Conn: conn, cred: s.secrets.Mint("u", time.Minute)}
	c.allocate()
	if n := value(s.metrics.allocations); n != 1 {
		t.Errorf("%d allocations", n)
	}
	conn.Close()
	eventually(t, "the allocation ends with its connection", func() bool { return value(s.metrics.allocations) == 0 })
}

func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"turn.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// told is a connection that hears whether its client holds an allocation.
type told struct {
	net.Conn
	heard []bool
}

func (c *told) Settled(holds bool) { c.heard = append(c.heard, holds) }

func TestStream_TellsWhoHoldsAnAllocation(t *testing.T) {
	server, client := net.Pipe()
	defer client.Close()
	c := &told{Conn: server}
	defer c.Close()
	settled := false
	s := newStream(c, time.Minute, func() bool { return settled }, func() {})
	go func() {
		for range 5 {
			_, _ = client.Write(packet(bindingRequest))
		}
	}()
	for _, holds := range []bool{false, true, true, false, true} {
		settled = holds
		if _, _, err := s.ReadFrom(make([]byte, maxPacket)); err != nil {
			t.Fatal(err)
		}
	}
	if want := []bool{true, false, true}; !slices.Equal(c.heard, want) {
		t.Errorf("the connection heard %v, want %v", c.heard, want)
	}
}
