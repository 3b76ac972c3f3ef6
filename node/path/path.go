// SPDX-License-Identifier: Apache-2.0

// Package path finds the best way for packets between two nodes and keeps to
// it. It is told which sockets this node has and which addresses the other one,
// checks every way between them with STUN, and says where packets go now: to
// the other node itself where NATs let that be, else by way of a relay.
//
// An Agent is for two nodes that exchange what they have through signals; a
// Probe for a peer that does not signal, such as a gateway, whose addresses are
// known. Both are values without goroutines, clocks or sockets: the caller owns
// a lock around each, says what time it is, hands over the packets that arrive,
// and after each call sends what Outgoing returns, reads Selected and Accepted,
// and calls Tick (again at the time that it returned, at the latest).
//
// There is no nomination. Each side sends on the way that it likes best, and
// takes packets on all that were checked. What is better is the same for both:
// the same network, the internet, one relay before two, UDP before TCP before
// TLS. Between ways that are equal in this the side with the lesser id decides,
// by round-trip time; it marks the checks of its way (Note.Uses), and the other
// side follows, so that what is heard on a way vouches for what is sent on it.
package path

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
)

// Socket tells the sockets of a node apart. All but Native are relays, numbered
// by the caller.
type Socket uint32

// Native is the UDP socket of WireGuard itself.
const Native Socket = 0

// Kind is what an address is to the node that offers it.
type Kind uint8

// The kinds of candidates of RFC 8445 section 4, from the best to the worst.
const (
	Host            Kind = iota // an address of an interface
	PeerReflexive               // where its checks came from, signalled by nobody
	ServerReflexive             // what a STUN server says where its packets come from
	Relayed                     // an address that a relay holds for it
)

// String implements fmt.Stringer, for people.
func (k Kind) String() string {
	switch k {
	case Host:
		return "host"
	case PeerReflexive:
		return "peer-reflexive"
	case ServerReflexive:
		return "server-reflexive"
	case Relayed:
		return "relayed"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Transport is how a node reaches the relay that holds an address for it.
type Transport uint8

// The transports, from the best to the worst. NoRelay is for what is not
// relayed.
const (
	NoRelay Transport = iota
	UDP
	TCP
	TLS
)

// String implements fmt.Stringer, for people.
func (t Transport) String() string {
	switch t {
	case NoRelay:
		return "none"
	case UDP:
		return "UDP"
	case TCP:
		return "TCP"
	case TLS:
		return "TLS"
	}
	return fmt.Sprintf("transport %d", uint8(t))
}

// Candidate is an address at which a node may be reached.
type Candidate struct {
	Kind Kind
	Addr netip.AddrPort
	// Transport is NoRelay unless the kind is Relayed.
	Transport Transport
	// Relay names the gateway whose relay it is; for people, may be empty.
	Relay string
}

// Route is where packets go: out of a socket, to an address. The zero value is
// nowhere.
type Route struct {
	Socket Socket
	To     netip.AddrPort
}

// Packet is a STUN message to send.
type Packet struct {
	Route
	Bytes []byte // the receiver's
}

// Bounds of credentials, in bytes. RFC 8445 section 5.3 asks for no less than 4
// and 22, and allows more than anyone uses.
const (
	minUfrag, maxUfrag       = 4, 32
	minPassword, maxPassword = 22, 64
)

// Credentials are what the checks of one side are addressed to and sealed with.
// The password is a secret of the two nodes: it belongs into signals alone.
type Credentials struct {
	Ufrag    string
	Password string
}

// Tag is how the messages for one agent or probe are known before it looks at
// them: see Owner.
type Tag [6]byte

// NewCredentials returns random credentials. They are for one agent: its Tag is
// in them.
func NewCredentials() Credentials {
	var b [len(Tag{}) + 18]byte
	_, _ = rand.Read(b[:]) // it never fails
	// Of the characters of RFC 8445 section 5.3; both lengths divide by three.
	text := base64.RawStdEncoding.EncodeToString(b[:])
	return Credentials{Ufrag: text[:8], Password: text[8:]}
}

// tag is what NewCredentials has put into the ufrag.
func (c Credentials) tag() (tag Tag, ok bool) {
	if len(c.Ufrag) != 8 {
		return tag, false
	}
	n, err := base64.RawStdEncoding.Decode(tag[:], []byte(c.Ufrag))
	return tag, err == nil && n == len(tag)
}

// Validate checks credentials that another node sent. Errors wrap
// mesh.ErrInvalid, name the field, and show no secret.
func (c Credentials) Validate() error {
	if err := iceChars("ufrag", c.Ufrag, minUfrag, maxUfrag); err != nil {
		return err
	}
	return iceChars("password", c.Password, minPassword, maxPassword)
}

func iceChars(field, s string, least, most int) error {
	if len(s) < least || len(s) > most {
		return fmt.Errorf("%s has %d characters, not %d to %d: %w", field, len(s), least, most, mesh.ErrInvalid)
	}
	for _, r := range s {
		if !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", r) {
			return fmt.Errorf("%s holds a character that is none of a-z, A-Z, 0-9, + and /: %w", field, mesh.ErrInvalid)
		}
	}
	return nil
}

// Owner says for whom a STUN message is: the agent whose credentials a request
// names, or the agent or probe whose request a response answers. It promises
// nothing else; Packet decides. Requests without a user name are for nobody:
// they are for Answer.
func Owner(b []byte) (Tag, bool) {
	m, err := ParseMessage(b)
	if err != nil {
		return Tag{}, false
	}
	if m.Type != BindingRequest {
		return Tag(m.ID[:len(Tag{})]), true
	}
	ufrag, _, ok := strings.Cut(string(m.Username), ":")
	if !ok || len(ufrag) > maxUfrag {
		return Tag{}, false
	}
	return Credentials{Ufrag: ufrag}.tag()
}

// newTransaction returns an id for a request, which Owner finds the way back
// from.
func newTransaction(tag Tag) Transaction {
	var id Transaction
	_, _ = rand.Read(id[copy(id[:], tag[:]):])
	return id
}

// priority is that of a candidate (RFC 8445 section 5.1.2), for the one
// component that there is. Nothing here depends on it: who watches the packets
// can read it.
func priority(k Kind, t Transport) uint32 {
	preference := [...]uint32{Host: 126, PeerReflexive: 110, ServerReflexive: 100, Relayed: 0}[min(k, Relayed)]
	return preference<<24 | uint32(math.MaxUint16-uint16(t))<<8 | 255
}

// CheckAddress refuses an address at which no other node can be: one without a
// port, of this host, of a link, of a group, or one that stands for another
// address. Private networks are fine, for two nodes may share one. Errors wrap
// mesh.ErrInvalid.
func CheckAddress(a netip.AddrPort) error {
	switch addr := a.Addr(); {
	case !addr.IsValid():
		return fmt.Errorf("address is missing; give IP:PORT: %w", mesh.ErrInvalid)
	case a.Port() == 0:
		return fmt.Errorf("address %v has no port: %w", a, mesh.ErrInvalid)
	case addr.Zone() != "":
		return fmt.Errorf("address %v has a zone, which means nothing on another host: %w", a, mesh.ErrInvalid)
	case mesh.IsSpecial(addr) || mesh.EmbedsIPv4(addr):
		return fmt.Errorf("address %v cannot be another node's (loopback, link-local, multicast or otherwise special): %w", a, mesh.ErrInvalid)
	}
	return nil
}

// Validate checks a candidate that another node sent. Errors wrap
// mesh.ErrInvalid and name the field.
func (c Candidate) Validate() error {
	switch {
	case c.Kind > Relayed:
		return fmt.Errorf("kind %d is unknown: %w", c.Kind, mesh.ErrInvalid)
	case c.Kind == PeerReflexive:
		return fmt.Errorf("kind %v is for what nobody signals: %w", c.Kind, mesh.ErrInvalid)
	case c.Transport > TLS:
		return fmt.Errorf("transport %d is unknown: %w", c.Transport, mesh.ErrInvalid)
	case (c.Transport == NoRelay) != (c.Kind != Relayed):
		return fmt.Errorf("transport %v does not go with kind %v: relayed candidates alone have one: %w", c.Transport, c.Kind, mesh.ErrInvalid)
	}
	if c.Relay != "" {
		if err := mesh.ValidName(c.Relay); err != nil {
			return fmt.Errorf("relay: %w", err)
		}
	}
	return CheckAddress(c.Addr)
}
