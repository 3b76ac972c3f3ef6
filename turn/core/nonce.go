// SPDX-License-Identifier: Apache-2.0

package core

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"net/netip"
	"time"
)

// A nonce is base64 of the low 16 bits of the second at which it was issued,
// and a MAC over the whole second, the client's address and port (RFC 8489
// section 9.2.4 wants another nonce for each) and the kind of nonce:
//
//	plain      2 + 10 bytes, 16 characters
//	featured   "obMatJos2", the features, 2 + 6 bytes: 24 characters
//
// The server keeps nothing.
const (
	plainNonce     = 16
	featuredNonce  = 24
	nonceCookie    = "obMatJos2" // RFC 8489 section 9.2
	cookieAndFlags = len(nonceCookie) + 4
	nonceStampLen  = 2
	nonceWindow    = 1 << 16 // seconds until a stamp comes again
	nonceEarly     = 60      // seconds that clocks of cores and machines may differ
)

// passwordFeature is the security feature of RFC 8489 section 18.1 that is offered:
// password algorithms, but no USERHASH, since expiring usernames cannot be enumerated.
// The RFC's text counts bits from the left, its example and erratum 6290 from the
// right; a client looks at one of the two: both are set.
const passwordFeature = 1<<23 | 1<<0

// maxNonceLifetime keeps the stamps of nonces that may be good apart.
const maxNonceLifetime = 12 * time.Hour

// nonces issues nonces and knows them again.
type nonces struct {
	mac      hash.Hash
	lifetime int64  // seconds
	flags    string // the features in base64
	in       [8 + 16 + 2 + 1]byte
	sum      [sha256.Size]byte
	raw      [12]byte
	text     [featuredNonce]byte
}

func newNonces(key []byte, lifetime time.Duration) *nonces {
	return &nonces{
		mac:      hmac.New(sha256.New, key),
		lifetime: int64(lifetime / time.Second),
		flags:    base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, passwordFeature)[1:]),
	}
}

// issue returns a nonce for a client, valid until the next call. A featured one
// goes with PASSWORD-ALGORITHMS.
func (n *nonces) issue(now time.Time, client netip.AddrPort, featured bool) []byte {
	return n.encode(now.Unix(), client, featured)
}

// encode writes the nonce that was issued at second.
func (n *nonces) encode(second int64, client netip.AddrPort, featured bool) []byte {
	binary.BigEndian.PutUint64(n.in[:], uint64(second))
	addr := client.Addr().As16()
	copy(n.in[8:], addr[:])
	binary.BigEndian.PutUint16(n.in[24:], client.Port())
	n.in[26] = 0
	if featured {
		n.in[26] = 1
	}
	n.mac.Reset()
	n.mac.Write(n.in[:])
	sum := n.mac.Sum(n.sum[:0])
	binary.BigEndian.PutUint16(n.raw[:], uint16(second))
	copy(n.raw[nonceStampLen:], sum)
	if !featured {
		base64.RawURLEncoding.Encode(n.text[:], n.raw[:])
		return n.text[:plainNonce]
	}
	copy(n.text[:], nonceCookie)
	copy(n.text[len(nonceCookie):], n.flags)
	base64.RawURLEncoding.Encode(n.text[cookieAndFlags:], n.raw[:8])
	return n.text[:featuredNonce]
}

// good reports whether nonce was issued to client and has not expired.
func (n *nonces) good(now time.Time, client netip.AddrPort, nonce []byte) bool {
	featured := len(nonce) == featuredNonce && isFeatured(nonce)
	var raw [12]byte
	switch {
	case featured:
		if _, err := base64.RawURLEncoding.Decode(raw[:], nonce[cookieAndFlags:]); err != nil {
			return false
		}
	case len(nonce) == plainNonce:
		if _, err := base64.RawURLEncoding.Decode(raw[:], nonce); err != nil {
			return false
		}
	default:
		return false
	}
	// The second nearest below now (and a little above it) with this stamp.
	second := now.Unix() + nonceEarly
	second -= (second - int64(binary.BigEndian.Uint16(raw[:]))) & (nonceWindow - 1)
	age := now.Unix() - second
	return age <= n.lifetime && subtle.ConstantTimeCompare(n.encode(second, client, featured), nonce) == 1
}

// isFeatured reports whether a nonce offers password algorithms: it begins with
// the cookie and has the bit set, whoever issued it.
func isFeatured(nonce []byte) bool {
	if len(nonce) < cookieAndFlags || string(nonce[:len(nonceCookie)]) != nonceCookie {
		return false
	}
	var flags [4]byte
	_, err := base64.StdEncoding.Decode(flags[1:], nonce[len(nonceCookie):cookieAndFlags])
	return err == nil && binary.BigEndian.Uint32(flags[:])&passwordFeature != 0
}
