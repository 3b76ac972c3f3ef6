// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestReadFrame(t *testing.T) {
	stunFrame := []byte(newMessage(methodRefresh|classSuccess, newTxID()).add(attrLifetime, []byte{0, 0, 2, 88}))
	large := append([]byte{0x40, 0, 0xFF, 0xFF}, make([]byte, 65536)...)
	largeMessage := []byte(newMessage(dataIndication, newTxID()).add(attrData, make([]byte, 60000)))
	channel := []byte{0x40, 1, 0, 3, 'a', 'b', 'c'}
	tests := map[string]struct {
		stream []byte
		frames [][]byte
		end    error
	}{
		"nothing":              {nil, nil, io.EOF},
		"channel data":         {append(bytes.Clone(channel), 0), [][]byte{channel}, io.EOF},
		"empty channel data":   {[]byte{0x40, 0, 0, 0}, [][]byte{{0x40, 0, 0, 0}}, io.EOF},
		"message":              {stunFrame, [][]byte{stunFrame}, io.EOF},
		"several":              {bytes.Join([][]byte{stunFrame, channel, {0}, stunFrame}, nil), [][]byte{stunFrame, channel, stunFrame}, io.EOF},
		"large data":           {append(bytes.Clone(large), stunFrame...), [][]byte{nil, stunFrame}, io.EOF},
		"large message":        {append(bytes.Clone(largeMessage), stunFrame...), [][]byte{nil, stunFrame}, io.EOF},
		"cut head":             {stunFrame[:3], nil, io.EOF},
		"cut message head":     {stunFrame[:19], nil, io.ErrUnexpectedEOF},
		"cut message":          {stunFrame[:21], nil, io.ErrUnexpectedEOF},
		"cut data":             {channel[:6], nil, io.ErrUnexpectedEOF},
		"cut padding":          {channel, nil, io.EOF},
		"cut large data":       {large[:60000], nil, io.EOF},
		"http":                 {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), nil, errFraming},
		"another cookie":       {bytes.Replace(stunFrame, []byte{0x21, 0x12}, []byte{0x21, 0x13}, 1), nil, errFraming},
		"length of no message": {[]byte{0, 1, 0, 2, 0x21, 0x12, 0xA4, 0x42}, nil, errFraming},
		"channel of nobody":    {[]byte{0x40, maxChannels, 0, 0}, nil, errFraming},
		"dtls":                 {[]byte{22, 3, 3, 0, 4, 1, 2, 3, 4}, nil, errFraming},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := bufio.NewReaderSize(bytes.NewReader(tc.stream), streamBuffer)
			var p packet
			for _, want := range tc.frames {
				err := readFrame(r, &p)
				if want == nil && !errors.Is(err, errOversize) || want != nil && (err != nil || !bytes.Equal(p.bytes(), want)) {
					t.Fatalf("frame is %x, %v, want %x", p.bytes(), err, want)
				}
			}
			if err := readFrame(r, &p); !errors.Is(err, tc.end) {
				t.Errorf("the stream ends with %v, want %v", err, tc.end)
			}
		})
	}
}

// Whatever comes over a stream: frames are pieces of it, in order, and fit.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0x40, 0, 0, 3, 'a', 'b', 'c', 0, 0x40, 0, 0, 0})
	f.Add([]byte(newMessage(dataIndication, newTxID()).addPeer(testPeer).add(attrData, []byte("x"))))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n"))
	f.Add([]byte{0x40, 0, 0xFF, 0xFF})
	f.Fuzz(func(t *testing.T, stream []byte) {
		source := bytes.NewReader(stream)
		r := bufio.NewReaderSize(source, streamBuffer)
		var p packet
		for range len(stream) + 1 {
			at := len(stream) - source.Len() - r.Buffered()
			err := readFrame(r, &p)
			if errors.Is(err, errOversize) {
				continue
			}
			if err != nil {
				return
			}
			if p.n > packetSize || p.n < channelHead || !bytes.Equal(p.bytes(), stream[at:at+p.n]) {
				t.Fatalf("frame %x is not at %d of %x", p.bytes(), at, stream)
			}
		}
		t.Fatal("more frames than bytes")
	})
}

// listenTCP returns the URI of a server that does with connections what serve does.
func listenTCP(t *testing.T, serve func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-served })
	return "turn:" + l.Addr().String() + "?transport=tcp"
}

func TestStream_WhatIsNoServer(t *testing.T) {
	tests := map[string]struct {
		serve func(c net.Conn)
		want  error
	}{
		"http": {func(c net.Conn) {
			io.ReadFull(c, make([]byte, 28))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}, ErrProtocol},
		"closes": {func(c net.Conn) { io.ReadFull(c, make([]byte, 28)) }, ErrBroken},
		"half a frame": {func(c net.Conn) {
			io.ReadFull(c, make([]byte, 28))
			c.Write([]byte{0x01, 0x13, 0, 60, 0x21, 0x12})
		}, ErrBroken},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Allocate(t.Context(), Config{Server: listenTCP(t, tc.serve)}); !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
		})
	}
}

// serveFake answers over a stream as the fake server does, until it says stop.
func serveFake(c net.Conn, s *fakeServer, stop func() bool) {
	r := bufio.NewReaderSize(c, streamBuffer)
	var p packet
	for !stop() {
		if err := readFrame(r, &p); err != nil {
			return
		}
		if p.buf[0]>>6 != 0 {
			continue
		}
		if answer := s.answer(p.bytes()); answer != nil {
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	}
}

// A server that does not read: writers do not wait, memory does not grow.
func TestStream_WriterNeverWaitsForASlowServer(t *testing.T) {
	release := make(chan struct{})
	s := newFakeServer()
	s.relayed = netip.MustParseAddrPort("127.0.0.1:9")
	uri := listenTCP(t, func(c net.Conn) {
		serveFake(c, s, func() bool { return s.count(methodChannelBind) > 0 })
		<-release
	})
	a := mustAllocate(t, Config{Server: uri, Username: testUser, Password: testPassword})
	defer close(release)
	packet := make([]byte, 1400)
	start := time.Now()
	n := 0
	for a.Stats().SendQueue == 0 {
		if err := a.WriteTo(packet, testPeer); err != nil {
			t.Fatal(err)
		}
		if n++; n > 1<<20 {
			t.Fatal("nothing is ever dropped")
		}
	}
	link := a.link.(*stream)
	link.mu.Lock()
	size := cap(link.pending) + cap(link.spare)
	link.mu.Unlock()
	if size > 2*2*(sendQueue+controlRoom) {
		t.Errorf("%d bytes are held", size)
	}
	if d := time.Since(start); d > patience {
		t.Errorf("%d packets took %s", n, d)
	}
}

// A reader that does not read: what comes is dropped, and the protocol goes on.
func TestAllocation_SlowReader(t *testing.T) {
	s := startServer(t, nil)
	for _, transport := range []Transport{UDP, TCP} {
		t.Run(string(transport), func(t *testing.T) {
			c, peer := listenUDP(t, loopback)
			a := mustAllocate(t, s.config(transport, "u"))
			exchange(t, a, c, peer)
			eventually(t, "packets are dropped", func() bool {
				for range 50 {
					if _, err := c.WriteToUDPAddrPort([]byte("flood"), a.Relayed()); err != nil {
						t.Fatal(err)
					}
				}
				return a.Stats().ReceiveQueue > 0
			})
			other, to := listenUDP(t, loopback)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := a.WriteTo([]byte("still here"), to); err != nil || ctx.Err() != nil {
				t.Fatal(err)
			}
			expect(t, other, []byte("still here"))
			if data, from := readOne(t, a); string(data) != "flood" || from != peer {
				t.Errorf("got %q from %s", data, from)
			}
		})
	}
}

func TestAllocation_SmallReadBuffer(t *testing.T) {
	s := startServer(t, nil)
	c, peer := listenUDP(t, loopback)
	a := mustAllocate(t, s.config(UDP, "u"))
	exchange(t, a, c, peer)
	c.WriteToUDPAddrPort([]byte("long packet"), a.Relayed())
	c.WriteToUDPAddrPort([]byte("short"), a.Relayed())
	buf, sizes, from := make([]byte, 5), make([]int, 1), make([]netip.AddrPort, 1)
	if n, err := a.ReadBatch([][]byte{buf}, sizes, from); err != nil || n != 1 || string(buf[:sizes[0]]) != "short" {
		t.Errorf("%d packets, %q, %v", n, buf, err)
	}
	if got := a.Stats().ReadBuffer; got != 1 {
		t.Errorf("%d counted", got)
	}
}
