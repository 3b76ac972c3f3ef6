// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
)

// QuietTime and DoorLoad are the limits that tests go beyond.
const (
	QuietTime = quietTime
	DoorLoad  = doorLoad
)

// Sweep takes peers out that are quiet, as happens by itself each minute.
func (d *Device) Sweep(now time.Time) { d.sweep(now) }

// Active reports whether the library has a peer.
func (d *Device) Active(key mesh.WireGuardKey) bool {
	return d.wg.LookupPeer(device.NoisePublicKey(key)) != nil
}

// Initiator writes handshake messages as a peer does, or one who pretends to be.
type Initiator struct {
	Private mesh.WireGuardPrivateKey
	// Claims is whose key the messages say that they are from.
	Claims mesh.WireGuardKey
	theirs mesh.WireGuardKey
	macs   device.CookieGenerator
}

// NewInitiator returns one that is honest, and calls theirs.
func NewInitiator(tb testing.TB, theirs mesh.WireGuardKey) *Initiator {
	tb.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		tb.Fatal(err)
	}
	i := &Initiator{Private: key.WireGuard(), theirs: theirs}
	i.Claims = i.Private.Public()
	i.macs.Init(device.NoisePublicKey(theirs))
	return i
}

// Initiation writes the first message of a handshake.
func (i *Initiator) Initiation(tb testing.TB, at time.Time) []byte {
	tb.Helper()
	dh := func(private, public []byte) []byte {
		secret, err := curve25519.X25519(private, public)
		if err != nil {
			tb.Fatal(err)
		}
		return secret
	}
	ephemeral := make([]byte, 32)
	if _, err := rand.Read(ephemeral); err != nil {
		tb.Fatal(err)
	}
	public := dh(ephemeral, curve25519.Basepoint)
	t := transcript{hash: mixHash(mixHash(device.InitialHash, i.theirs[:]), public), chain: device.InitialChainKey}
	device.KDF1(&t.chain, t.chain[:], public)
	seal := func(secret, plain []byte) []byte {
		device.KDF2(&t.chain, &t.key, t.chain[:], secret)
		aead, err := chacha20poly1305.New(t.key[:])
		if err != nil {
			tb.Fatal(err)
		}
		sealed := aead.Seal(nil, device.ZeroNonce[:], plain, t.hash[:])
		t.hash = mixHash(t.hash, sealed)
		return sealed
	}
	var stamp [12]byte
	binary.BigEndian.PutUint64(stamp[:], 0x400000000000000a+uint64(at.Unix()))
	binary.BigEndian.PutUint32(stamp[8:], uint32(at.Nanosecond()))
	message := slices.Concat([]byte{1, 0, 0, 0, 7, 7, 7, 7}, public,
		seal(dh(ephemeral, i.theirs[:]), i.Claims[:]), seal(dh(i.Private[:], i.theirs[:]), stamp[:]), make([]byte, 32))
	i.macs.AddMacs(message)
	return message
}

// Garbage writes a message that only who knows the key of the peer can tell
// from an initiation.
func (i *Initiator) Garbage() []byte {
	message := make([]byte, device.MessageInitiationSize)
	_, _ = rand.Read(message) // never fails
	copy(message, []byte{1, 0, 0, 0})
	i.macs.AddMacs(message)
	return message
}

// Cookie takes in an answer that asks for a cookie.
func (i *Initiator) Cookie(message []byte) bool {
	var reply device.MessageCookieReply
	if len(message) != device.MessageCookieReplySize || message[0] != device.MessageCookieReplyType {
		return false
	}
	copy(reply.Nonce[:], message[8:])
	copy(reply.Cookie[:], message[32:])
	return i.macs.ConsumeReply(&reply)
}

// LibraryEndpoint is where the library sends packets for a peer.
func (d *Device) LibraryEndpoint(tb testing.TB, key mesh.WireGuardKey) string {
	tb.Helper()
	s, err := d.state()
	if err != nil {
		tb.Fatal(err)
	}
	if s.peers[key] == nil {
		return "not there"
	}
	return s.peers[key].Endpoint
}

// Straggle does to a peer what a packet does that was on its way on a path.
func (d *Device) Straggle(key mesh.WireGuardKey, p *Path) {
	d.wg.LookupPeer(device.NoisePublicKey(key)).SetEndpointFromPacket(p.path)
}

// Limits of packet sockets and paths.
const (
	MaxSockets = maxSockets
	MaxRoutes  = maxRoutes
)
