// SPDX-License-Identifier: Apache-2.0

package path

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // RFC 8489 section 14.5 knows no other that checks speak
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
)

// Types of STUN messages (RFC 8489 section 5) of the one method that paths use.
const (
	BindingRequest MessageType = 0x0001
	BindingSuccess MessageType = 0x0101
	BindingError   MessageType = 0x0111
)

// MaxMessage bounds a STUN message that is parsed, in bytes. Ours have a hundred,
// but for those that are to be as large as a full packet.
const MaxMessage = 1500

// What this package reads and writes of STUN (RFC 8489 section 14, RFC 5780
// section 7, RFC 8445 section 16.1).
const (
	stunHeader = 20
	stunCookie = 0x2112A442

	attrMapped      = 0x0001
	attrChange      = 0x0003
	attrUsername    = 0x0006
	attrIntegrity   = 0x0008
	attrErrorCode   = 0x0009
	attrXorMapped   = 0x0020
	attrPriority    = 0x0024
	attrControlled  = 0x8029
	attrOrigin      = 0x802B
	attrOther       = 0x802C
	attrControlling = 0x802A
	attrSoftware    = 0x8022
	attrFingerprint = 0x8028
	// attrNote is ours: see Note. It is one of those that others ignore.
	attrNote = 0xFF4D
	// attrFiller is ours: see Message.Length. That of RFC 5780 is not ignored.
	attrFiller = 0xFF4E

	firstOptional   = 0x8000 // attributes from here on may be ignored
	fingerprintXor  = 0x5354554E
	integritySize   = 4 + sha1.Size // with its header
	fingerprintSize = 8
	noteLength      = 12
	maxUsername     = 2*maxUfrag + 1
)

// errMalformed is what ParseMessage returns for each message that it refuses:
// who sent it learns nothing, and nobody else can act on more.
var errMalformed = errors.New("path: malformed STUN message")

// MessageType is the type of a STUN message: its method and class.
type MessageType uint16

// Transaction is the id of a STUN request and of its response.
type Transaction [12]byte

// Note is what the agents of a pair tell each other with each request, in an
// attribute of their own.
type Note struct {
	// Sequence grows with each request of an agent, so that a request counts once.
	Sequence uint64
	// Leg says how the request reaches the internet: 0 from the host itself, else
	// from a relay that the sender reaches by this Transport.
	Leg Transport
	// Uses says that the sender's data takes this way.
	Uses bool
	// Round asks the other side to try all ways that are better than this one
	// now: packets that meet halfway are what opens NATs.
	Round bool
	// Veils says that the sender takes data that comes veiled, which is up to the
	// caller; those who know nothing of it say no.
	Veils bool
}

// Message is a STUN Binding message. Its zero fields stand for attributes that
// are not there. The slices of a parsed message point into its bytes.
type Message struct {
	Type MessageType
	ID   Transaction

	Username []byte
	// Mapped is XOR-MAPPED-ADDRESS: the sender of a request, as the other side
	// sees it. A server of RFC 3489 says it without the XOR.
	Mapped netip.AddrPort
	// Other and Origin are OTHER-ADDRESS and RESPONSE-ORIGIN, which a server has
	// for tests of the behaviour of NATs (RFC 5780).
	Other, Origin netip.AddrPort
	// ChangeIP and ChangePort ask such a server to answer from elsewhere.
	ChangeIP, ChangePort bool

	Priority uint32
	Note     *Note
	// ErrorCode is 300 to 699 in a BindingError.
	ErrorCode int
	// Fingerprint says that the message has one. A wrong one makes it malformed.
	Fingerprint bool
	// Length is what Marshal fills the message up to, in bytes, a multiple of four;
	// 0, or less than it has anyway, for not. It is not parsed.
	Length int

	raw    []byte // what was parsed
	sealed int    // where MESSAGE-INTEGRITY begins in raw; 0 for none
	// strange says that there is an attribute that must be understood and is not.
	strange bool
}

// IsMessage says whether b begins like a Binding message. None of WireGuard's
// does: theirs have three zeros after the first byte, which is not zero.
func IsMessage(b []byte) bool {
	if len(b) < stunHeader || binary.BigEndian.Uint32(b[4:8]) != stunCookie {
		return false
	}
	switch MessageType(binary.BigEndian.Uint16(b)) {
	case BindingRequest, BindingSuccess, BindingError:
		return true
	}
	return false
}

// ParseMessage reads the Binding message that fills b to its last byte. It is
// strict: every length is right, every address has the size of its family,
// nothing but FINGERPRINT counts after MESSAGE-INTEGRITY, and nothing comes
// after FINGERPRINT, which is right where it is there. Of an attribute that
// comes twice the first one counts. The message refers to b.
func ParseMessage(b []byte) (Message, error) {
	var m Message
	if !IsMessage(b) || len(b) > MaxMessage || len(b)%4 != 0 || int(binary.BigEndian.Uint16(b[2:])) != len(b)-stunHeader {
		return m, errMalformed
	}
	m.Type, m.raw = MessageType(binary.BigEndian.Uint16(b)), b
	copy(m.ID[:], b[8:stunHeader])
	for at := stunHeader; at < len(b); {
		kind, n := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		next := at + 4 + (n+3)&^3
		// The length is a multiple of four, so that a header is whole.
		if next > len(b) || m.Fingerprint || !m.attribute(kind, b[at+4:at+4+n], at) {
			return m, errMalformed
		}
		at = next
	}
	return m, nil
}

// attribute reads one attribute, whose header is at the offset at; false when it
// is malformed.
func (m *Message) attribute(kind uint16, value []byte, at int) bool {
	if m.sealed > 0 && kind != attrFingerprint {
		return true // nobody vouches for it
	}
	switch kind {
	case attrUsername:
		if m.Username == nil {
			m.Username = value
		}
		return len(value) > 0
	case attrIntegrity:
		m.sealed = at
		return len(value) == sha1.Size
	case attrFingerprint:
		m.Fingerprint = true
		return len(value) == 4 && binary.BigEndian.Uint32(value) == crc32.ChecksumIEEE(m.raw[:at])^fingerprintXor
	case attrXorMapped:
		return address(&m.Mapped, value, m.raw[4:stunHeader])
	case attrMapped:
		return address(&m.Mapped, value, nil)
	case attrOther:
		return address(&m.Other, value, nil)
	case attrOrigin:
		return address(&m.Origin, value, nil)
	case attrPriority, attrChange, attrNote, attrErrorCode:
		return m.number(kind, value)
	case attrSoftware, attrControlled, attrControlling: // known, and no matter here
		return true
	}
	m.strange = m.strange || kind < firstOptional
	return true
}

// number reads an attribute of numbers and flags.
func (m *Message) number(kind uint16, value []byte) bool {
	switch {
	case len(value) < 4 || kind != attrErrorCode && kind != attrNote && len(value) != 4:
		return false
	case kind == attrPriority:
		m.Priority = binary.BigEndian.Uint32(value)
	case kind == attrChange:
		m.ChangeIP, m.ChangePort = value[3]&4 != 0, value[3]&2 != 0
	case kind == attrErrorCode:
		m.ErrorCode = int(value[2]&7)*100 + int(value[3])
		return m.ErrorCode >= 300 && m.ErrorCode < 700 && value[3] < 100
	case len(value) < noteLength || Transport(value[9]) > TLS:
		return false // a note may grow at its end
	case m.Note == nil:
		m.Note = &Note{
			Sequence: binary.BigEndian.Uint64(value),
			Uses:     value[8]&1 != 0,
			Round:    value[8]&2 != 0,
			Veils:    value[8]&4 != 0,
			Leg:      Transport(value[9]),
		}
	}
	return true
}

// address reads an address, over which key is laid unless it is nil. The first
// one counts, but an address with XOR, which no NAT rewrites, before one
// without.
func address(to *netip.AddrPort, value, key []byte) bool {
	if len(value) != 8 && len(value) != 20 || value[1] != 1 && len(value) == 8 || value[1] != 2 && len(value) == 20 {
		return false
	}
	if to.IsValid() && key == nil {
		return true
	}
	var plain [20]byte
	copy(plain[:], value)
	if key != nil {
		plain[2], plain[3] = plain[2]^key[0], plain[3]^key[1]
		for i := range value[4:] {
			plain[4+i] ^= key[i]
		}
	}
	ip, _ := netip.AddrFromSlice(plain[4:len(value)])
	*to = netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(plain[2:]))
	return true
}

// Holds says whether the message was made by one who knows the password of
// short-term credentials. It takes as long for a wrong seal as for the right one.
func (m *Message) Holds(password string) bool {
	if m.sealed == 0 {
		return false
	}
	return hmac.Equal(integrity(m.raw, m.sealed, password), m.raw[m.sealed+4:m.sealed+integritySize])
}

// integrity is the seal of the first end bytes of a message. The length that is
// signed ends with the seal (RFC 8489 section 14.5).
func integrity(b []byte, end int, password string) []byte {
	var head [stunHeader]byte
	copy(head[:], b)
	binary.BigEndian.PutUint16(head[2:], uint16(end+integritySize-stunHeader))
	mac := hmac.New(sha1.New, []byte(password))
	_, _ = mac.Write(head[:])
	_, _ = mac.Write(b[stunHeader:end])
	return mac.Sum(nil)
}

// Marshal returns the bytes of the message, sealed with the password unless it
// is empty, and with a fingerprint if the message is to have one.
func (m *Message) Marshal(password string) []byte {
	b := make([]byte, stunHeader, 128)
	binary.BigEndian.PutUint16(b, uint16(m.Type))
	binary.BigEndian.PutUint32(b[4:], stunCookie)
	copy(b[8:], m.ID[:])
	if len(m.Username) > 0 {
		b = appendAttribute(b, attrUsername, m.Username)
	}
	if m.Mapped.IsValid() {
		b = appendAddress(b, attrXorMapped, m.Mapped, b[4:stunHeader])
	}
	if m.Origin.IsValid() {
		b = appendAddress(b, attrOrigin, m.Origin, nil)
	}
	if m.Other.IsValid() {
		b = appendAddress(b, attrOther, m.Other, nil)
	}
	if m.ChangeIP || m.ChangePort {
		b = appendAttribute(b, attrChange, []byte{0, 0, 0, bit(m.ChangeIP, 4) | bit(m.ChangePort, 2)})
	}
	if m.Priority != 0 {
		b = appendAttribute(b, attrPriority, binary.BigEndian.AppendUint32(nil, m.Priority))
	}
	if m.ErrorCode != 0 {
		b = appendAttribute(b, attrErrorCode, []byte{0, 0, byte(m.ErrorCode / 100), byte(m.ErrorCode % 100)})
	}
	if n := m.Note; n != nil {
		value := binary.BigEndian.AppendUint64(nil, n.Sequence)
		b = appendAttribute(b, attrNote, append(value, bit(n.Uses, 1)|bit(n.Round, 2)|bit(n.Veils, 4), byte(n.Leg), 0, 0))
	}
	b = m.fill(b, password != "")
	if password != "" {
		b = appendAttribute(b, attrIntegrity, integrity(b, len(b), password))
	}
	setLength(b, len(b))
	if m.Fingerprint {
		setLength(b, len(b)+fingerprintSize)
		b = appendAttribute(b, attrFingerprint, binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)^fingerprintXor))
	}
	return b
}

// fill appends what is missing to Length, before what comes last.
func (m *Message) fill(b []byte, sealed bool) []byte {
	missing := m.Length - len(b) - 4
	if sealed {
		missing -= integritySize
	}
	if m.Fingerprint {
		missing -= fingerprintSize
	}
	if missing < 0 {
		return b
	}
	return appendAttribute(b, attrFiller, make([]byte, missing))
}

func setLength(b []byte, end int) { binary.BigEndian.PutUint16(b[2:], uint16(end-stunHeader)) }

func bit(on bool, mask byte) byte {
	if on {
		return mask
	}
	return 0
}

func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

func appendAddress(b []byte, kind uint16, a netip.AddrPort, key []byte) []byte {
	ip := a.Addr().Unmap().AsSlice()
	value := binary.BigEndian.AppendUint16([]byte{0, byte(1 + len(ip)/16)}, a.Port())
	value = append(value, ip...)
	if key != nil {
		value[2], value[3] = value[2]^key[0], value[3]^key[1]
		for i := range ip {
			value[4+i] ^= key[i]
		}
	}
	return appendAttribute(b, kind, value)
}
