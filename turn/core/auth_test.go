// SPDX-License-Identifier: Apache-2.0

package core

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// without removes the attributes of one type from a list.
func without(attrs []attr, kind uint16) []attr {
	var rest []attr
	for _, a := range attrs {
		if a.kind != kind {
			rest = append(rest, a)
		}
	}
	return rest
}

// credentials are the attributes of a request of a client that has a nonce.
func (c *client) credentials() []attr {
	c.signed(methodRefresh)
	return []attr{text(attrUsername, c.username), text(attrRealm, "meshgate"), text(attrNonce, c.nonce)}
}

// signedWith signs a Refresh request that has just these attributes.
func (c *client) signedWith(s signer, attrs ...attr) string {
	var out Output
	return c.exchange(c.write(&out, methodRefresh, classRequest, attrs).finish(s, false))
}

func (c *client) md5() signer {
	return signer{kind: hasIntegrity, algorithm: algorithmMD5, key: NewKey(c.username, "meshgate", c.password)}
}

func TestConformance_Credentials(t *testing.T) {
	missing := func(kind uint16) func(*client) string {
		return func(c *client) string { return c.signedWith(c.md5(), without(c.credentials(), kind)...) }
	}
	offered := func(algorithm, algorithms []byte) func(*client) string {
		return func(c *client) string {
			attrs := c.credentials()
			if algorithm != nil {
				attrs = append(attrs, attr{attrPasswordAlgorithm, algorithm})
			}
			if algorithms != nil {
				attrs = append(attrs, attr{attrPasswordAlgorithms, algorithms})
			}
			c.sha256 = len(algorithm) > 1 && algorithm[1] == 2
			s := c.md5()
			if c.sha256 {
				s.algorithm = algorithmSHA256
			}
			return c.signedWith(s, attrs...)
		}
	}
	run(t, []row{
		{"8489-9.2.4", "wrong password", func(c *client) string { return c.as("alice", "x").ask(methodAllocate, udp()) }, "401 nonce algorithms"},
		{"8489-9.2.4", "unknown user", func(c *client) string { return c.as("mallory", "x").ask(methodAllocate, udp()) }, "401 nonce algorithms"},
		{"8489-9.2.4", "empty user", func(c *client) string { return c.as("", "x").ask(methodAllocate, udp()) }, "401 nonce algorithms"},
		{"8489-9.2.4", "hostile user", func(c *client) string { return c.as("%s%n\x00'--", "x").ask(methodAllocate, udp()) }, "401 nonce algorithms"},
		{"8489-9.2.4", "second key of two", func(c *client) string { return c.as("1:carol", "old").ask(methodRefresh) }, "437"},
		{"8489-9.2.4", "no USERNAME", missing(attrUsername), "400"},
		{"8489-9.2.4", "no REALM", missing(attrRealm), "400"},
		{"8489-9.2.4", "no NONCE", missing(attrNonce), "400"},
		{"8489-9.2.4", "other realm", func(c *client) string {
			return c.signedWith(c.md5(), append(without(c.credentials(), attrRealm), text(attrRealm, "elsewhere"))...)
		}, "401 nonce algorithms"},
		{"8489-9.2.4", "MESSAGE-INTEGRITY of 19 bytes", func(c *client) string {
			attrs := append(c.credentials(), text(attrIntegrity, strings.Repeat("x", 19)))
			return c.exchange(c.unsigned(methodRefresh, classRequest, attrs...))
		}, "401 nonce algorithms"},
		{"8489-9.2.4", "nonce that is none", func(c *client) string { c.nonce = "0123456789abcdef"; return c.ask(methodRefresh) }, "438 nonce algorithms"},
		{"8489-9.2.4", "nonce of another client", func(c *client) string {
			other := c.client(c.flow.Listener, 2)
			other.signed(methodRefresh)
			c.nonce = other.nonce
			return c.ask(methodRefresh)
		}, "438 nonce algorithms"},
		{"8489-9.2.4", "nonce after an hour", func(c *client) string {
			c.signed(methodRefresh)
			c.now = c.now.Add(time.Hour)
			got := c.ask(methodRefresh)
			c.now = c.now.Add(time.Second)
			return got + "; " + c.ask(methodRefresh) + "; " + c.ask(methodRefresh)
		}, "437; 438 nonce algorithms; 437"},
		{"8489-9.2.4", "nonce before its time", func(c *client) string {
			c.signed(methodRefresh)
			c.now = c.now.Add(-2 * time.Minute)
			return c.ask(methodRefresh)
		}, "438 nonce algorithms"},
		{"8489-9.2.4", "stale nonce and wrong password", func(c *client) string {
			c.signed(methodRefresh)
			c.now, c.password = c.now.Add(2*time.Hour), "x"
			return c.ask(methodRefresh)
		}, "401 nonce algorithms"},
		{"8489-9.2.4", "one byte of the request changed", func(c *client) string {
			b := c.signed(methodAllocate, udp(), lifetime(700))
			b[headerLen+attrHeader+4+attrHeader+3]++
			return c.exchange(b)
		}, "401 nonce algorithms"},

		{"8489-9.2.4", "SHA-256", func(c *client) string { c.sha256 = true; return c.ask(methodAllocate, udp()) },
			"ok relayed=198.51.100.1:49152 lifetime=600 mapped=client sha256"},
		{"8489-9.2.4", "SHA-256 key with MESSAGE-INTEGRITY", offered([]byte{0, 2, 0, 0}, passwordAlgorithms()), "437 sha256"},
		{"8489-9.2.4", "MD5 key by name", offered([]byte{0, 1, 0, 0}, passwordAlgorithms()), "437 sha256"},
		{"8489-9.2.4", "no PASSWORD-ALGORITHMS", offered([]byte{0, 2, 0, 0}, nil), "400"},
		{"8489-9.2.4", "no PASSWORD-ALGORITHM", offered(nil, passwordAlgorithms()), "400"},
		{"8489-9.2.1", "list bid down", offered([]byte{0, 1, 0, 0}, []byte{0, 1, 0, 0}), "400"},
		{"8489-9.2.4", "algorithm 3", offered([]byte{0, 3, 0, 0}, passwordAlgorithms()), "400"},
		{"8489-9.2.4", "algorithm of 1 byte", offered([]byte{0}, passwordAlgorithms()), "400"},
		{"8489-14.6", "MESSAGE-INTEGRITY-SHA256 alone", func(c *client) string {
			s := c.md5()
			s.kind = hasIntegritySHA256
			return c.signedWith(s, c.credentials()...)
		}, "437"},
		{"8489-14.6", "MESSAGE-INTEGRITY-SHA256 counts before the other", func(c *client) string {
			b := c.signed(methodRefresh)
			b = append(b, 0, 0x1C, 0, 32)
			b = append(b, make([]byte, 32)...)
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerLen))
			return c.exchange(b)
		}, "401 nonce algorithms"},
		{"8489-14.4", "USERHASH, which is not offered", func(c *client) string {
			h := sha256.Sum256([]byte(c.username + ":meshgate"))
			return c.signedWith(c.md5(), append(without(c.credentials(), attrUsername), attr{attrUserhash, h[:]})...)
		}, "401 nonce algorithms"},
	})
}

// TestAnswers_ToStrangersAreSmall sends every method, with every set of a few
// attributes, and holds each answer against 2.6 times the request.
func TestAnswers_ToStrangersAreSmall(t *testing.T) {
	w := newWorld(t, func(cfg *Config) {
		cfg.Realm = strings.Repeat("r", maxRealm)
		cfg.Discovery = []uint16{udp4, udp4Q, udp4B, udp4BQ}
	})
	extras := []attr{
		udp(), flag(attrChangeRequest, 0, 0, 0, 6), flag(0x7FFF), text(0x8022, "software"), peerAt(peer4),
		text(attrIntegrity, strings.Repeat("x", 20)), text(attrUsername, "u"), text(attrRealm, "r"), text(attrNonce, "n"),
	}
	answered := 0
	for _, listener := range []uint16{udp4, udp6} {
		c := w.client(listener, 1)
		for m := range method(16) {
			for set := range 1 << len(extras) {
				var attrs []attr
				for i, a := range extras {
					if set>>i&1 != 0 {
						attrs = append(attrs, a)
					}
				}
				for _, print := range []bool{false, true} {
					var out Output
					b := c.write(&out, m, classRequest, attrs).finish(signer{}, print)
					before := len(c.toClient)
					c.core.FromClient(c.now, c.flow, b, &c.out)
					c.drive()
					for _, s := range c.toClient[before:] {
						answered++
						if 10*len(s.data) > 26*len(b) {
							t.Fatalf("%d bytes answer %d bytes: %x to %x", len(s.data), len(b), s.data, b)
						}
					}
				}
			}
			c.toClient = nil
		}
	}
	if answered < 1000 {
		t.Errorf("only %d requests were answered", answered)
	}
}

func TestAnswers_ShortestAllocateIsChallenged(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Realm = strings.Repeat("r", maxRealm) })
	c := w.client(udp4, 1)
	for _, want := range []struct {
		attrs []attr
		size  int
		words string
	}{
		{[]attr{udp()}, 72, "401 nonce"},
		{[]attr{udp(), text(0x8022, "test")}, 92, "401 nonce algorithms"},
	} {
		got := c.exchange(c.unsigned(methodAllocate, classRequest, want.attrs...))
		if size := len(c.toClient[len(c.toClient)-1].data); got != want.words || size != want.size {
			t.Errorf("got %s in %d bytes, want %s in %d", got, size, want.words, want.size)
		}
	}
}

func TestAnswers_ToStrangersStopWhenToldTo(t *testing.T) {
	w := newWorld(t)
	inside, stream, stranger := w.client(udp4, 1), w.client(tcp4, 2), w.client(udp4, 3)
	inside.allocate()
	stranger.signed(methodAllocate)
	w.silent = true
	binding := func(c *client) string { return c.exchange(c.unsigned(methodBinding, classRequest)) }
	for _, v := range []struct{ name, got, want string }{
		{"a stranger", binding(stranger), "none"},
		{"one with a wrong password", stranger.as("alice", "x").ask(methodAllocate, udp()), "none"},
		{"one with an allocation", binding(inside), "ok mapped=client"},
		{"one on a stream", binding(stream), "ok mapped=client"},
	} {
		if v.got != v.want {
			t.Errorf("%s got %s, want %s", v.name, v.got, v.want)
		}
	}
	if n := w.core.Stats().Dropped[DropUnanswered]; n < 2 {
		t.Errorf("%d answers were counted as withheld", n)
	}
}

// TestNonce_IsForOneSocket checks that clients never share nonces, whichever
// part of their address differs, and that cores with one key do.
func TestNonce_IsForOneSocket(t *testing.T) {
	n, twin, other := newNonces([]byte("key"), time.Hour), newNonces([]byte("key"), time.Hour), newNonces([]byte("yek"), time.Hour)
	clients := []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.1:2"), netip.MustParseAddrPort("192.0.2.2:1"),
		netip.MustParseAddrPort("[2001:db8::1]:1"),
	}
	for _, featured := range []bool{false, true} {
		for i, a := range clients {
			nonce := append([]byte(nil), n.issue(start, a, featured)...)
			for j, b := range clients {
				if got := n.good(start, b, nonce); got != (i == j) {
					t.Errorf("the nonce of %v is good for %v: %v", a, b, got)
				}
			}
			if !twin.good(start, a, nonce) || other.good(start, a, nonce) {
				t.Error("a nonce is not good where the key is the same, or where it is not")
			}
			for at := range nonce {
				bad := append([]byte(nil), nonce...)
				bad[at] ^= 1
				if n.good(start, a, bad) {
					t.Errorf("%q is good, which was made of %q", bad, nonce)
				}
			}
			// After the stamp has come around it must not be good again.
			if n.good(start.Add(nonceWindow*time.Second), a, nonce) {
				t.Errorf("%q is good again", nonce)
			}
		}
	}
}

func TestNonce_TellsFeaturesBothWays(t *testing.T) {
	client := netip.MustParseAddrPort("192.0.2.1:1")
	want := nonceCookie + "gAAB"
	if got := string(newNonces([]byte("key"), time.Hour).issue(start, client, true)); !strings.HasPrefix(got, want) {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestKey_PrintsNothing(t *testing.T) {
	k := NewKey("user", "realm", "pass")
	if s := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); s != "[key] [key] [key] [key]" {
		t.Error(s)
	}
	if fmt.Sprintf("%x", k.MD5[:]) != "8493fbc53ba582fb4c044c456bdc40eb" { // RFC 8489 section 9.2.2
		t.Errorf("%x", k.MD5)
	}
}
