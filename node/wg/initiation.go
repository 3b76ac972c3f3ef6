// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"github.com/meshgate/meshgate/node/mesh"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// Where the parts of a handshake initiation are (whitepaper, 5.4.2).
const (
	initiationEphemeral = 8
	initiationStatic    = initiationEphemeral + device.NoisePublicKeySize
	initiationTimestamp = initiationStatic + device.NoisePublicKeySize + chacha20poly1305.Overhead
	initiationMAC1      = initiationTimestamp + tai64n.TimestampSize + chacha20poly1305.Overhead
)

// identity is what the doorman of a device with one private key needs to read
// initiations.
type identity struct {
	private mesh.WireGuardPrivateKey
	// hash is the transcript that every initiation for this key begins with.
	hash [blake2s.Size]byte
	// checker knows MAC1, and makes and knows cookies of its own.
	checker device.CookieChecker
}

// newIdentity returns the identity of the device with this key.
func newIdentity(private mesh.WireGuardPrivateKey) *identity {
	public := private.Public()
	id := &identity{private: private}
	id.hash = mixHash(device.InitialHash, public[:])
	id.checker.Init(device.NoisePublicKey(public))
	return id
}

// transcript is a Noise handshake half-way through its first message.
type transcript struct {
	hash, chain [blake2s.Size]byte
	key         [chacha20poly1305.KeySize]byte
}

// mixHash returns the hash of h and data.
func mixHash(h [blake2s.Size]byte, data []byte) [blake2s.Size]byte {
	var buf [2*blake2s.Size + chacha20poly1305.Overhead]byte
	return blake2s.Sum256(append(append(buf[:0], h[:]...), data...))
}

// open decrypts what the sender sealed with the secret that both sides share,
// and goes on in the transcript.
func (t *transcript) open(dst, secret, sealed []byte) bool {
	device.KDF2(&t.chain, &t.key, t.chain[:], secret)
	aead, err := chacha20poly1305.New(t.key[:])
	if err != nil {
		return false
	}
	if _, err := aead.Open(dst[:0], device.ZeroNonce[:], sealed, t.hash[:]); err != nil {
		return false
	}
	t.hash = mixHash(t.hash, sealed)
	return true
}

// caller finds out who claims to have sent an initiation. That costs one
// Diffie-Hellman; whoever knows our public key can claim to be anybody. False
// means that the initiation is not for us, or garbage.
func (id *identity) caller(message []byte) (claimed mesh.WireGuardKey, t *transcript, ok bool) {
	if len(message) != device.MessageInitiationSize {
		return claimed, nil, false
	}
	ephemeral := message[initiationEphemeral:initiationStatic]
	t = &transcript{hash: mixHash(id.hash, ephemeral), chain: device.InitialChainKey}
	device.KDF1(&t.chain, t.chain[:], ephemeral)
	secret, err := curve25519.X25519(id.private[:], ephemeral)
	if err != nil {
		return claimed, nil, false // a point of low order
	}
	ok = t.open(claimed[:], secret, message[initiationStatic:initiationTimestamp])
	return claimed, t, ok
}

// prove checks that the caller holds the key that it claims, and returns when
// it says that it wrote the message: after every other one of its messages.
// That costs another Diffie-Hellman.
func (id *identity) prove(claimed mesh.WireGuardKey, t *transcript, message []byte) (written tai64n.Timestamp, ok bool) {
	secret, err := curve25519.X25519(id.private[:], claimed[:])
	if err != nil {
		return written, false
	}
	ok = t.open(written[:], secret, message[initiationTimestamp:initiationMAC1])
	return written, ok
}
