// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/pion/stun"
)

// messageRows are about what a STUN message is, and how a server takes it.
func messageRows() []requirement {
	binding := func(attrs ...stun.Setter) func(*party) string {
		return func(c *party) string { return c.exchange(c.message(stun.MethodBinding, stun.ClassRequest, attrs...)) }
	}
	silent := func(method stun.Method, class stun.MessageClass) func(*party) string {
		return func(c *party) string { return c.silent(c.message(method, class, transportUDP)) }
	}
	altered := func(change func(b []byte) []byte) func(*party) string {
		return func(c *party) string {
			return c.silent(change(c.message(stun.MethodBinding, stun.ClassRequest, stun.NewSoftware("altered"))))
		}
	}
	set := func(at int, v byte) func(*party) string {
		return altered(func(b []byte) []byte { b[at] = v; return b })
	}
	printed := func(change func(b []byte) []byte) func(*party) string {
		return func(c *party) string {
			c.print = true
			return c.silent(change(c.message(stun.MethodBinding, stun.ClassRequest)))
		}
	}
	longer := func(b []byte) []byte { return append(b, 0, 0, 0, 0) }
	return []requirement{
		{"8489-12", "Binding", "", "", binding(), "ok mapped"},
		{"8489-6.3.1", "unknown attributes", "", "", binding(rawAttr(0x7fff, []byte{1}), rawAttr(0x0025, nil)), "420 unknown=7fff0025"},
		{"8489-6.3.1", "unknown attribute that may be", "", "", binding(rawAttr(0xffff, []byte{1})), "ok mapped"},
		{"8489-6.3.1", "reserved attributes of old RFCs", "", "", binding(rawAttr(0x0010, []byte{0, 0, 0, 1})), "420 unknown=0010"},
		{"8489-6.3", "attribute that no request has", "", "", binding(rawAttr(stun.AttrXORMappedAddress, make([]byte, 8))), "ok mapped"},
		{"8489-6.3", "unknown method", "", "", silent(0x0f0, stun.ClassRequest), "none"},
		{"8489-6.3", "request of an indication's method", "", "", silent(stun.MethodSend, stun.ClassRequest), "none"},
		{"8489-6.3.2", "Binding indication", "", "", silent(stun.MethodBinding, stun.ClassIndication), "none"},
		{"8489-6.3.2", "Allocate indication", "", "", silent(stun.MethodAllocate, stun.ClassIndication), "none"},
		{"8489-6.3.2", "Data indication", "", "", silent(stun.MethodData, stun.ClassIndication), "none"},
		{"8489-6.3.3", "success response", "", "", silent(stun.MethodBinding, stun.ClassSuccessResponse), "none"},
		{"8489-6.3.4", "error response", "", "", silent(stun.MethodAllocate, stun.ClassErrorResponse), "none"},
		{"8489-6.3.1", "Binding twice alike", "", "", func(c *party) string {
			b := c.message(stun.MethodBinding, stun.ClassRequest)
			first, was := c.exchange(b), c.last
			return both(first, c.exchange(b), keep("same", bytes.Equal(was, c.last)))
		}, "ok mapped; ok mapped; same"},
		{"8489-6.2.2", "two requests in one piece", "stream", "", func(c *party) string {
			_, _ = c.Write(slices.Concat(c.message(stun.MethodBinding, stun.ClassRequest), c.unsigned(stun.MethodRefresh)))
			return both(c.next(), c.next())
		}, "ok mapped; " + challenged},
		{"8489-6.2.2", "request byte by byte", "stream", "", func(c *party) string {
			b := c.message(stun.MethodBinding, stun.ClassRequest, stun.NewSoftware("in pieces"))
			for i := range len(b) - 1 {
				_, _ = c.Write(b[i : i+1])
			}
			return c.silent(b[len(b)-1:])
		}, "ok mapped"},

		{"8489-5", "other cookie", "udp", "", set(4, 0x22), "none"},
		{"8489-5", "other cookie", "stream", "", set(4, 0x22), "closed"},
		{"8489-5", "first bits that are not zero", "udp", "", set(0, 0x80), "none"},
		{"8489-5", "first bits that are not zero", "stream", "", set(0, 0x80), "closed"},
		{"8489-5", "length that is no multiple of four", "udp", "", altered(func(b []byte) []byte { b[3]++; return append(b, 0) }), "none"},
		{"8489-5", "length that is no multiple of four", "stream", "", altered(func(b []byte) []byte { b[3]++; return append(b, 0) }), "closed"},
		{"8489-5", "shorter than its length", "udp", "", altered(func(b []byte) []byte { return b[:len(b)-4] }), "none"},
		{"8489-5", "longer than its length", "udp", "", altered(longer), "none"},
		{"8489-5", "less than a header", "udp", "", altered(func(b []byte) []byte { return b[:19] }), "none"},
		{"8489-5", "nothing at all", "udp", "", altered(func([]byte) []byte { return nil }), "none"},
		{"8489-14", "attribute beyond the end", "", "", altered(func(b []byte) []byte { b[headerLen+3] += 8; return b }), "none"},
		{"8489-14", "half a header of an attribute", "udp", "", altered(func(b []byte) []byte { b[3] += 2; return append(b, 0, 0) }), "none"},
		{"8489-14", "padding that is not zero", "", "", func(c *party) string {
			b := c.message(stun.MethodBinding, stun.ClassRequest, stun.NewSoftware("12345"))
			copy(b[len(b)-3:], "\xff\xff\xff")
			return c.exchange(b)
		}, "ok mapped"},
		{"8489-14", "first of two counts", "", "", fresh(stun.MethodAllocate, transportUDP, lifetimeSeconds(800), lifetimeSeconds(900)),
			"ok relayed4 lifetime=800 mapped signed"},
		{"8489-14.7", "FINGERPRINT", "", "", func(c *party) string {
			c.print = true
			return c.exchange(c.message(stun.MethodBinding, stun.ClassRequest))
		}, "ok mapped fingerprint"},
		{"8489-14.7", "FINGERPRINT behind MESSAGE-INTEGRITY", "", "", func(c *party) string {
			c.greet()
			c.print = true
			return c.ask(stun.MethodRefresh)
		}, "437 signed fingerprint"},
		{"8489-14.7", "FINGERPRINT that is wrong", "", "", printed(func(b []byte) []byte { b[len(b)-1]++; return b }), "none"},
		{"8489-14.7", "FINGERPRINT that is not the last", "", "", printed(func(b []byte) []byte {
			b = append(b, 0x80, 0x22, 0, 0)
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerLen))
			return b
		}), "none"},
		{"8489-14.5", "behind MESSAGE-INTEGRITY nothing counts", "", "", func(c *party) string {
			b := c.hold().sign(stun.MethodRefresh)
			b = append(b, 0, 0x0d, 0, 4, 0, 0, 0, 0, 0x7f, 0xff, 0, 0) // LIFETIME 0 and an unknown attribute
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerLen))
			return both(c.exchange(b), c.ask(stun.MethodRefresh))
		}, "ok lifetime=600 signed; ok lifetime=600 signed"},
	}
}

// asks are requests that need a credential, and what who has no allocation gets.
func asks() []struct {
	method stun.Method
	attrs  []stun.Setter
	want   string
} {
	type ask = struct {
		method stun.Method
		attrs  []stun.Setter
		want   string
	}
	peer := peerAddress(publicPeer)
	return []ask{
		{stun.MethodAllocate, []stun.Setter{transportUDP}, made4},
		{stun.MethodRefresh, nil, "437 signed"},
		{stun.MethodCreatePermission, []stun.Setter{peer}, "437 signed"},
		{stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peer}, "437 signed"},
		{stun.MethodConnect, []stun.Setter{peer}, "437 signed"},
		{stun.MethodConnectionBind, []stun.Setter{rawAttr(stun.AttrConnectionID, []byte{0, 0, 0, 1})}, "400 signed"},
	}
}

// credentialRows are about the long-term credential of each request.
func credentialRows() []requirement {
	var rows []requirement
	for _, a := range asks() {
		rows = append(rows,
			requirement{"8489-9.2.4", a.method.String() + " without credentials", "", "", func(c *party) string {
				return c.exchange(c.unsigned(a.method, a.attrs...))
			}, challenged},
			requirement{"8489-9.2.4", a.method.String() + " with a wrong password", "", "", func(c *party) string {
				c.cred.Password += "x"
				return c.ask(a.method, a.attrs...)
			}, challenged},
			requirement{"8489-9.2.4", a.method.String() + " with a stale nonce, then the one it gets", "", "", func(c *party) string {
				c.greet()
				c.nonce = c.nonce[:len(c.nonce)-1] + "!"
				return both(c.ask(a.method, a.attrs...), c.ask(a.method, a.attrs...))
			}, both(stale, a.want)})
	}
	// refresh asks with other attributes than those of a credential.
	refresh := func(change func(c *party, list []stun.Setter) []stun.Setter) func(*party) string {
		return func(c *party) string {
			c.greet()
			return c.exchange(c.message(stun.MethodRefresh, stun.ClassRequest, change(c, c.credential())...))
		}
	}
	without := func(i int) func(*party) string {
		return refresh(func(c *party, list []stun.Setter) []stun.Setter {
			return append(slices.Delete(list, i, i+1), c.integrity())
		})
	}
	with := func(attrs ...stun.Setter) func(*party) string {
		return refresh(func(c *party, list []stun.Setter) []stun.Setter { return append(append(list, attrs...), c.integrity()) })
	}
	algorithm, list := func(v ...byte) stun.Setter { return rawAttr(attrPasswordAlgorithm, v) }, rawAttr(attrPasswordAlgorithms, algorithms)
	return append(rows, []requirement{
		{"8489-9.2.4", "the shortest request without credentials", "udp", "", func(c *party) string {
			return c.exchange(c.message(stun.MethodAllocate, stun.ClassRequest, transportUDP))
		}, "401 realm nonce"},
		{"8489-9.2.4", "no USERNAME", "", "", without(0), "400"},
		{"8489-9.2.4", "no REALM", "", "", without(1), "400"},
		{"8489-9.2.4", "no NONCE", "", "", without(2), "400"},
		{"8489-9.2.4", "unknown user", "", "", func(c *party) string { c.cred.Username = "mallory"; return c.ask(stun.MethodRefresh) }, challenged},
		{"8489-9.2.4", "empty username", "", "", func(c *party) string { c.cred.Username = ""; return c.ask(stun.MethodRefresh) }, challenged},
		{"8489-9.2.4", "another realm", "", "", refresh(func(c *party, list []stun.Setter) []stun.Setter {
			list[1] = stun.NewRealm("elsewhere")
			return append(list, stun.NewLongTermIntegrity(c.cred.Username, "elsewhere", c.cred.Password))
		}), challenged},
		{"8489-9.2.4", "MESSAGE-INTEGRITY of 19 bytes", "", "", refresh(func(_ *party, list []stun.Setter) []stun.Setter {
			return append(list, rawAttr(stun.AttrMessageIntegrity, make([]byte, 19)))
		}), challenged},
		{"8489-9.2.4", "one bit of a request changed", "", "", func(c *party) string {
			b := c.sign(stun.MethodAllocate, transportUDP, lifetimeSeconds(700))
			b[headerLen+8+7] ^= 1
			return c.exchange(b)
		}, challenged},
		{"8489-9.2.4", "nonce of another client", "", "", func(c *party) string {
			other := c.other()
			other.greet()
			c.greet()
			c.nonce = other.nonce
			return c.ask(stun.MethodRefresh)
		}, stale},
		{"8489-9.2.4", "stale nonce and wrong password", "", "", func(c *party) string {
			c.greet()
			c.nonce, c.cred.Password = "0123456789abcdef", "x"
			return c.ask(stun.MethodRefresh)
		}, challenged},
		{"8489-9.2.4", "SHA-256", "", "", func(c *party) string { c.sha256 = true; return c.ask(stun.MethodAllocate, transportUDP) },
			"ok relayed4 lifetime=600 mapped signed256"},
		{"8489-9.2.4", "SHA-256 as the algorithm, HMAC-SHA1", "", "", func(c *party) string {
			c.sha256 = true
			return refresh(func(c *party, list []stun.Setter) []stun.Setter {
				return append(list, stun.MessageIntegrity(c.negotiated()))
			})(c)
		}, "437 signed256"},
		{"8489-9.2.4", "MD5 as the algorithm", "", "", func(c *party) string {
			c.byMD5 = true
			return with(algorithm(0, 1, 0, 0), list)(c)
		}, "437 signed256"},
		{"8489-9.2.4", "PASSWORD-ALGORITHM alone", "", "", with(algorithm(0, 2, 0, 0)), "400"},
		{"8489-9.2.4", "PASSWORD-ALGORITHMS alone", "", "", with(list), "400"},
		{"8489-9.2.4", "algorithm that was not offered", "", "", with(algorithm(0, 3, 0, 0), list), "400"},
		{"8489-9.2.1", "fewer algorithms than were offered", "", "",
			with(algorithm(0, 1, 0, 0), rawAttr(attrPasswordAlgorithms, []byte{0, 1, 0, 0})), "400"},
		{"8489-14.6", "MESSAGE-INTEGRITY-SHA256 that was not asked for", "", "", refresh(func(c *party, list []stun.Setter) []stun.Setter {
			return append(list, integritySHA256(c.key()))
		}), "437 signed"},
		{"8489-14.6", "MESSAGE-INTEGRITY-SHA256 of 16 bytes", "", "", func(c *party) string {
			c.sha256 = true
			b := c.sign(stun.MethodRefresh)
			b = b[:len(b)-16]
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerLen))
			b[len(b)-17] = 16
			return c.exchange(b)
		}, challenged},
		{"8489-9.2.4", "both integrities, the stronger one wrong", "", "", refresh(func(c *party, list []stun.Setter) []stun.Setter {
			return append(list, c.integrity(), rawAttr(attrIntegritySHA256, make([]byte, sha256.Size)))
		}), challenged},
		{"8489-9.2.4", "USERHASH, which was not offered", "", "", refresh(func(c *party, list []stun.Setter) []stun.Setter {
			sum := sha256.Sum256([]byte(c.cred.Username + ":" + c.realm))
			return append(list[1:], rawAttr(attrUserhash, sum[:]), c.integrity())
		}), challenged},
		{"8489-9.2.4", "no credentials at an allocation", "", "", func(c *party) string {
			c.hold()
			return c.exchange(c.unsigned(stun.MethodRefresh, lifetimeSeconds(0))) + "; " + c.ask(stun.MethodRefresh)
		}, challenged + "; ok lifetime=600 signed"},
	}...)
}

// ownerRows are about whose an allocation is, and where.
func ownerRows() []requirement {
	var rows []requirement
	for _, a := range asks() {
		want := map[stun.Method]string{stun.MethodAllocate: "437 signed", stun.MethodConnectionBind: "400 signed"}[a.method]
		if want == "" {
			want = "441 signed"
		}
		rows = append(rows,
			requirement{"8656-5", a.method.String() + " by another user", "", "", func(c *party) string {
				c.hold()
				user := c.cred
				got := c.become("mallory").ask(a.method, append(a.attrs, lifetimeSeconds(0))...)
				c.cred = user
				return both(got, c.ask(stun.MethodRefresh))
			}, both(want, "ok lifetime=600 signed")})
		if a.method != stun.MethodAllocate {
			rows = append(rows, requirement{"8656-5", a.method.String() + " without an allocation", "", "", fresh(a.method, a.attrs...), a.want},
				requirement{"8656-5", a.method.String() + " at the allocation of another 5-tuple", "", "", func(c *party) string {
					c.hold()
					return c.other().ask(a.method, a.attrs...)
				}, a.want})
		}
	}
	return append(rows, []requirement{
		{"8656-5", "newer credential of the same user", "", "", func(c *party) string {
			c.hold()
			c.cred = c.server.secrets.Mint(c.user, 3*3600e9)
			return c.ask(stun.MethodRefresh)
		}, "ok lifetime=600 signed"},
		{"8656-5", "Send without an allocation", "stream", "", func(c *party) string {
			return c.meet().silent(c.sendTo(c.peerAt, []byte("hello"))) + "; peer " + c.peerGetsNothing()
		}, "none; peer nothing"},
		// The RFC wants silence. A datagram gets a hint, no larger than it is, which
		// answers no request and which clients that do not know it ignore.
		{"8656-5", "Send without an allocation", "udp", "", func(c *party) string {
			got := c.meet().silent(c.sendTo(c.peerAt, []byte("hello")))
			return both(got, "peer "+c.peerGetsNothing())
		}, "437; peer nothing"},
	}...)
}
