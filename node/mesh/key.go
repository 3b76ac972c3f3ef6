// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"

	"filippo.io/edwards25519"
	"golang.org/x/crypto/curve25519"
)

// redacted stands for a private key wherever one is printed.
const redacted = "[private key]"

// Keys travel as base64 of a libp2p crypto message: field 1 is the key type
// (5, "Webmesh"), field 2 the key bytes. The two headers are all of it that varies.
const (
	publicHeader  = "\x08\x05\x12\x20" // + 32 bytes: Ed25519 public key
	privateHeader = "\x08\x05\x12\x40" // + 64 bytes: Ed25519 seed, public key
)

// PublicKey is the identity of a node: an Ed25519 public key. ParsePublicKey
// and PrivateKey.Public make valid ones; the zero value is no key.
type PublicKey [32]byte

// ParsePublicKey decodes the wire form of a public key (48 base64 characters).
// It refuses every other key type, encodings that are not canonical, bytes
// that are no point of the curve and points of low order, whose WireGuard key
// would give every peer the same shared secret. Errors wrap ErrInvalid.
func ParsePublicKey(encoded string) (PublicKey, error) {
	raw, err := decodeKey(encoded, publicHeader, ed25519.PublicKeySize)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	point, err := new(edwards25519.Point).SetBytes(raw)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: not a point of the curve: %w", ErrInvalid)
	}
	if !bytes.Equal(point.Bytes(), raw) {
		return PublicKey{}, fmt.Errorf("public key: not the canonical form of its point: %w", ErrInvalid)
	}
	if new(edwards25519.Point).MultByCofactor(point).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return PublicKey{}, fmt.Errorf("public key: a point of low order: %w", ErrInvalid)
	}
	return PublicKey(raw), nil
}

// Encode returns the wire form, which ParsePublicKey reads; "" for the zero key.
func (k PublicKey) Encode() string {
	if k.IsZero() {
		return ""
	}
	return encodeKey(publicHeader, k[:])
}

// String is Encode.
func (k PublicKey) String() string { return k.Encode() }

// IsZero reports whether k is no key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// Verify reports whether sig is the signature of msg by the holder of k.
func (k PublicKey) Verify(msg, sig []byte) bool {
	return !k.IsZero() && ed25519.Verify(k[:], msg, sig)
}

// WireGuard returns the X25519 form of the key; zero for bytes that are no key.
// A point and its negative share this form: to find out whether two nodes have
// the same key, compare their WireGuard keys.
func (k PublicKey) WireGuard() WireGuardKey {
	if k.IsZero() {
		return WireGuardKey{}
	}
	point, err := new(edwards25519.Point).SetBytes(k[:])
	if err != nil {
		return WireGuardKey{}
	}
	return WireGuardKey(point.BytesMontgomery())
}

// PrivateKey is the secret half of a node's identity. It prints, formats and
// logs as a placeholder; only Encode and WireGuard give the secret away. The
// zero value is no key.
type PrivateKey struct {
	key [ed25519.PrivateKeySize]byte
}

// GenerateKey makes a new random key.
func GenerateKey() (PrivateKey, error) {
	var seed [ed25519.SeedSize]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("generate private key: %w", err)
	}
	return keyFromSeed(seed[:]), nil
}

// ParsePrivateKey decodes the wire form of a private key (92 base64
// characters). The public half must belong to the seed. Errors wrap ErrInvalid
// and never hold the input.
func ParsePrivateKey(encoded string) (PrivateKey, error) {
	raw, err := decodeKey(encoded, privateHeader, ed25519.PrivateKeySize)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("private key: %w", err)
	}
	key := keyFromSeed(raw[:ed25519.SeedSize])
	if !bytes.Equal(key.key[:], raw) {
		return PrivateKey{}, fmt.Errorf("private key: public half does not belong to the seed: %w", ErrInvalid)
	}
	return key, nil
}

// keyFromSeed expands a seed of 32 bytes.
func keyFromSeed(seed []byte) PrivateKey {
	return PrivateKey{key: [ed25519.PrivateKeySize]byte(ed25519.NewKeyFromSeed(seed))}
}

// Encode returns the wire form, which is secret.
func (k PrivateKey) Encode() string { return encodeKey(privateHeader, k.key[:]) }

// IsZero reports whether k is no key.
func (k PrivateKey) IsZero() bool { return k == PrivateKey{} }

// Public returns the public half.
func (k PrivateKey) Public() PublicKey { return PublicKey(k.key[ed25519.SeedSize:]) }

// Sign signs msg; PublicKey.Verify checks it.
func (k PrivateKey) Sign(msg []byte) []byte { return ed25519.Sign(k.key[:], msg) }

// WireGuard returns the X25519 form of the key: the clamped first half of
// SHA-512 of the seed, so that its public key is Public().WireGuard().
func (k PrivateKey) WireGuard() WireGuardPrivateKey {
	digest := sha512.Sum512(k.key[:ed25519.SeedSize])
	var wg WireGuardPrivateKey
	copy(wg[:], digest[:32])
	wg[0] &= 248
	wg[31] &= 127
	wg[31] |= 64
	return wg
}

// Format writes a placeholder for every verb, so that no format string leaks the key.
func (k PrivateKey) Format(f fmt.State, _ rune) { writeRedacted(f) }

// String returns a placeholder.
func (k PrivateKey) String() string { return redacted }

// GoString returns a placeholder.
func (k PrivateKey) GoString() string { return redacted }

// LogValue returns a placeholder.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// WireGuardKey is an X25519 public key, by which WireGuard knows a peer. The
// zero value is no key.
type WireGuardKey [32]byte

// String returns the form that WireGuard tools use: base64 of 32 bytes.
func (k WireGuardKey) String() string { return encodeKey("", k[:]) }

// IsZero reports whether k is no key.
func (k WireGuardKey) IsZero() bool { return k == WireGuardKey{} }

// WireGuardPrivateKey is an X25519 private key. It prints, formats, marshals
// and logs as a placeholder. The zero value is no key.
type WireGuardPrivateKey [32]byte

// Base64 returns the form that WireGuard tools use, which is secret.
func (k WireGuardPrivateKey) Base64() string { return encodeKey("", k[:]) }

// IsZero reports whether k is no key.
func (k WireGuardPrivateKey) IsZero() bool { return k == WireGuardPrivateKey{} }

// Public returns the public half; zero for the zero key.
func (k WireGuardPrivateKey) Public() WireGuardKey {
	if k.IsZero() {
		return WireGuardKey{}
	}
	public, err := curve25519.X25519(k[:], curve25519.Basepoint)
	if err != nil {
		return WireGuardKey{} // not reached: the base point has prime order
	}
	return WireGuardKey(public)
}

// Format writes a placeholder for every verb, so that no format string leaks the key.
func (k WireGuardPrivateKey) Format(f fmt.State, _ rune) { writeRedacted(f) }

// String returns a placeholder.
func (k WireGuardPrivateKey) String() string { return redacted }

// GoString returns a placeholder.
func (k WireGuardPrivateKey) GoString() string { return redacted }

// LogValue returns a placeholder.
func (k WireGuardPrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder, so that no encoder leaks the key.
func (k WireGuardPrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// writeRedacted writes the placeholder. A fmt.State has no error to report.
func writeRedacted(f fmt.State) { _, _ = io.WriteString(f, redacted) }

// encodeKey returns base64 of header and key.
func encodeKey(header string, key []byte) string {
	return base64.StdEncoding.EncodeToString(append([]byte(header), key...))
}

// decodeKey returns the size bytes after header, and refuses every input that
// encodeKey would not have made. Its errors never hold the input: it may be secret.
func decodeKey(encoded, header string, size int) ([]byte, error) {
	if want := base64.StdEncoding.EncodedLen(len(header) + size); len(encoded) != want {
		return nil, fmt.Errorf("%d characters where %d were expected: %w", len(encoded), want, ErrInvalid)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) != len(header)+size {
		return nil, fmt.Errorf("not base64 of %d bytes: %w", len(header)+size, ErrInvalid)
	}
	if string(raw[:len(header)]) != header {
		return nil, fmt.Errorf("unknown key type: %w", ErrInvalid)
	}
	return raw[len(header):], nil
}
