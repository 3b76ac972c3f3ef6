// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pion/stun"
)

// stunMessage builds a message of one kind with attributes as they are given.
func stunMessage(kind uint16, attributes ...[]byte) []byte {
	body := bytes.Join(attributes, nil)
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = binary.BigEndian.AppendUint32(b, stunCookie)
	b = append(b, "transaction!"...)
	return append(b, body...)
}

// attribute builds one with its padding.
func attribute(kind uint16, value ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

func TestSound(t *testing.T) {
	v4 := []byte{0, 1, 0, 80, 1, 2, 3, 4}
	v6 := append([]byte{0, 2, 0, 80}, make([]byte, 16)...)
	data := func(p []byte) []byte { return attribute(0x0013, p...) }
	for _, tc := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"nothing", nil, true},
		{"DTLS", []byte{22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, true},
		{"empty request", stunMessage(1), true},
		{"address of IPv4", stunMessage(0x0101, attribute(0x0020, v4...)), true},
		{"address of IPv6", stunMessage(0x0101, attribute(0x0020, v6...)), true},
		{"address of no length", stunMessage(0x0016, attribute(0x0012)), false},
		{"address of one byte", stunMessage(0x0101, attribute(0x0020, 0)), false},
		{"address without its IP", stunMessage(0x0101, attribute(0x0020, 0, 1, 0, 80)), false},
		{"IPv6 address as long as IPv4", stunMessage(0x0101, attribute(0x0020, 0, 2, 0, 80, 1, 2, 3, 4)), false},
		{"address of an unknown family", stunMessage(0x0101, attribute(0x0020, 0, 3, 0, 80, 1, 2, 3, 4)), false},
		{"attribute beyond the end", stunMessage(1, []byte{0, 6, 0, 9, 1, 2, 3, 4}), false},
		{"half an attribute", stunMessage(1, []byte{0, 6}), false},
		{"shorter than it says", stunMessage(1, attribute(6, 1, 2, 3, 4))[:24], false},
		{"text of any length", stunMessage(1, attribute(6, 'a')), true},
		{"data that is sound", stunMessage(0x0017, data(stunMessage(1))), true},
		{"data that is not", stunMessage(0x0017, data(stunMessage(0x0101, attribute(0x0020)))), false},
		{"channel data that is sound", append([]byte{0x40, 0, 0, 2}, "hi"...), true},
		{"channel data that is not", append([]byte{0x40, 0, 0, 24}, stunMessage(0x0101, attribute(0x0020))...), false},
		{"channel data beyond the end", []byte{0x40, 0, 0, 9, 1}, false},
		{"nested for ever", stunMessage(0x17, data(stunMessage(0x17, data(stunMessage(0x17, data(stunMessage(1))))))), false},
	} {
		if got := sound(tc.p); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

// decodeAll hands p to everything of pion that reads attributes.
func decodeAll(p []byte) {
	m := &stun.Message{Raw: append([]byte(nil), p...)}
	if m.Decode() != nil {
		return
	}
	for _, kind := range []stun.AttrType{
		stun.AttrXORMappedAddress, stun.AttrXORPeerAddress, stun.AttrXORRelayedAddress,
		stun.AttrMappedAddress, stun.AttrAlternateServer, stun.AttrOtherAddress, stun.AttrResponseOrigin,
	} {
		_ = (&stun.XORMappedAddress{}).GetFromAs(m, kind)
		_ = (&stun.MappedAddress{}).GetFromAs(m, kind)
	}
	_ = (&stun.AlternateServer{}).GetFrom(m)
	_ = (&stun.OtherAddress{}).GetFrom(m)
	_ = (&stun.ResponseOrigin{}).GetFrom(m)
	_ = (&stun.ErrorCodeAttribute{}).GetFrom(m)
	_ = (&stun.UnknownAttributes{}).GetFrom(m)
	_ = stun.Fingerprint.Check(m)
	_ = stun.MessageIntegrity("key").Check(m)
	_ = m.String()
}

// What is sound does not panic pion. The seeds hold the packet that does.
func FuzzSound(f *testing.F) {
	f.Add(stunMessage(0x0016, attribute(0x0012)))
	f.Add(stunMessage(0x0101, attribute(0x0020, 0, 1, 0, 80, 1, 2, 3, 4)))
	f.Add(stunMessage(0x0111, attribute(0x0009, 0, 0, 4, 1), attribute(0x8028, 1, 2, 3, 4)))
	f.Add(stunMessage(0x0017, attribute(0x0013, stunMessage(1)...)))
	f.Fuzz(func(_ *testing.T, p []byte) {
		if sound(p) {
			decodeAll(p)
		}
	})
}

// One packet with an empty address attribute ends a process that hands it to
// pion/stun v0.6.1. Here it meets each kind of socket.
func TestHostilePacketsDoNotEndTheProcess(t *testing.T) {
	killer := stunMessage(0x0101, attribute(0x0020))
	if len(killer) > 32 {
		t.Fatalf("%d bytes", len(killer))
	}
	hostile, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() { // a STUN server that answers with it
		defer close(answered)
		buf := make([]byte, 2048)
		for {
			n, from, err := hostile.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			reply := bytes.Clone(killer)
			if n >= stunHeader {
				copy(reply[8:20], buf[8:20])
			}
			_, _ = hostile.WriteToUDPAddrPort(reply, from)
		}
	}()
	defer func() { _ = hostile.Close(); <-answered }()

	t.Run("from a STUN server", func(t *testing.T) {
		e := newEngine(t, Config{})
		p, err := e.NewPeer(context.Background(), PeerConfig{Servers: []ICEServer{{URLs: []string{"stun:" + hostile.LocalAddr().String()}}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Offer(); err != nil {
			t.Fatal(err)
		}
		waitDropped(t, e)
		_ = p.Close()
	})
	t.Run("at the shared socket", func(t *testing.T) {
		socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		e := newEngine(t, Config{UDP: socket})
		if _, err := hostile.WriteTo(killer, socket.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		waitDropped(t, e)
		connect(t, newPeer(t, e), newPeer(t, newEngine(t, Config{})))
	})
}

func waitDropped(t *testing.T, e *Engine) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for e.Drops().Malformed == 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("the packet was not seen")
		}
	}
}

func TestGuardedStream_GivesWholeFramesUntilAnUnsoundOne(t *testing.T) {
	near, far := net.Pipe()
	n := newGuardedNet(&interfaces{}, func() {}, nil, 0)
	conn, err := n.guardStream(near)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { n.quit(); n.close() }()
	good := stunMessage(0x0101, attribute(0x0020, 0, 1, 0, 80, 1, 2, 3, 4))
	channel := []byte{0x40, 1, 0, 3, 'a', 'b', 'c', 0}
	go func() {
		for _, b := range bytes.Join([][]byte{good, channel, stunMessage(0x0101, attribute(0x0020))}, nil) {
			_, _ = far.Write([]byte{b}) // in the smallest pieces
		}
	}()
	want := append(bytes.Clone(good), channel...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%x, %v", got, err)
	}
	if _, err := conn.Read(got); err == nil || errors.Is(err, io.EOF) {
		t.Fatalf("an unsound frame gave %v", err)
	}
	_ = far.Close()
}
