// SPDX-License-Identifier: Apache-2.0

package core

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

const (
	sha1Len   = sha1.Size
	sha256Len = sha256.Size
)

// Password algorithms of RFC 8489 section 18.5.
const (
	algorithmMD5    uint16 = 0x0001
	algorithmSHA256 uint16 = 0x0002
)

// passwordAlgorithms is the value of PASSWORD-ALGORITHMS: SHA-256 before MD5,
// both without parameters.
func passwordAlgorithms() []byte {
	return []byte{0, byte(algorithmSHA256), 0, 0, 0, byte(algorithmMD5), 0, 0}
}

// Key is what one password of one username becomes in one realm: it stands for
// the password, so guard it alike.
type Key struct {
	// MD5 is MD5(username ":" realm ":" password).
	MD5 [md5.Size]byte
	// SHA256 is the same with SHA-256.
	SHA256 [sha256.Size]byte
}

// NewKey derives the long-term key of a password (RFC 8489 section 9.2.2).
func NewKey(username, realm, password string) Key {
	b := make([]byte, 0, len(username)+len(realm)+len(password)+2)
	b = append(b, username...)
	b = append(b, ':')
	b = append(b, realm...)
	b = append(b, ':')
	b = append(b, password...)
	return Key{MD5: md5.Sum(b), SHA256: sha256.Sum256(b)}
}

// String hides the key: it does not belong in logs.
func (k Key) String() string { return "[key]" }

// GoString hides the key.
func (k Key) GoString() string { return k.String() }

// signer signs the answer to a request as the request was signed. The zero
// signer does not sign.
type signer struct {
	kind      has // hasIntegrity or hasIntegritySHA256
	algorithm uint16
	key       Key
}

// mac computes the integrity of a message that ends before the integrity
// attribute and whose length, in header, counts that attribute.
func (s signer) mac(header, attributes []byte) []byte {
	secret := s.key.MD5[:]
	if s.algorithm == algorithmSHA256 {
		secret = s.key.SHA256[:]
	}
	h := s.hash(secret)
	h.Write(header)
	h.Write(attributes)
	return h.Sum(nil)
}

func (s signer) hash(secret []byte) hash.Hash {
	if s.kind == hasIntegritySHA256 {
		return hmac.New(sha256.New, secret)
	}
	return hmac.New(sha1.New, secret)
}

// verifies reports whether m carries the integrity attribute that s would
// write. With both attributes the stronger one counts (RFC 8489 section 9.2.4).
func (s signer) verifies(m *message) bool {
	at, sum := m.integrityAt, m.integrity
	if s.kind == hasIntegritySHA256 {
		at, sum = m.integritySHA256At, m.integritySHA256
	}
	header := [headerLen]byte(m.raw)
	binary.BigEndian.PutUint16(header[2:], uint16(at-headerLen+attrHeader+len(sum)))
	return hmac.Equal(s.mac(header[:], m.raw[headerLen:at]), sum)
}
