// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"net/netip"
	"time"
)

// Config says what a Core serves and whom it asks. Realm, Listeners,
// Authenticator and a family of Offers are required.
type Config struct {
	// Realm is the realm of all credentials: 1 to 20 bytes, so that a challenge
	// to the shortest Allocate request stays below 2.6 times its size.
	Realm string
	// Software names the server in answers to Allocate and Refresh requests that are
	// signed: at most 127 bytes; "" leaves it out.
	Software string
	// Listeners are where clients come in; Flow.Listener is an index into them.
	Listeners []Listener
	// Discovery names four datagram listeners that together answer RFC 5780's
	// questions: address A port P, A port Q, address B port P, B port Q. nil
	// turns NAT behaviour discovery off; CHANGE-REQUEST is then refused.
	Discovery []uint16
	// Offers says what clients can ask for.
	Offers Offers
	// Authenticator knows who may come.
	Authenticator Authenticator
	// Admit is asked about the user of each request that is signed with a key of
	// its account. One that it refuses is answered as if the key were wrong. It
	// must not block. nil admits all.
	Admit func(user string) bool
	// Permit decides which peers a user may reach. It is asked for permissions,
	// channels, connections and, unless it was asked since PolicyChanged, for
	// packets. It must not block. nil denies all.
	Permit func(user string, peer Peer) bool
	// Fleeting says of which peers, by their canonical address, Permit may change
	// its mind without PolicyChanged, as of the relays of other cores, which come
	// and go: it is asked about each packet then, and no path past the core gets
	// their channels. nil: of none.
	Fleeting func(peer netip.AddrPort) bool
	// Answer is asked before a datagram is sent to an address that has shown no
	// credential; false is silence. Where a client with an allocation is, the core
	// bounds such answers itself. nil answers all.
	Answer func(now time.Time, to netip.Addr) bool
	// Guesses counts credentials that are refused, by network; share one between
	// cores. A request of a network that has had too many refused gets no answer,
	// unless its key is right and its Account Drawn, or it is about an allocation of the
	// user that it names. nil: a network may try as many as it likes.
	Guesses Guesses
	// Quota counts what users hold; share one between cores. nil means no quota
	// but the Limits.
	Quota Quota
	// MayConnect is asked before a user's relay of TCP connects to a peer: false
	// refuses it with 486. It must not block. nil lets all.
	MayConnect func(now time.Time, user string) bool
	// Limits bounds one allocation and one core.
	Limits Limits
	// NonceKey authenticates nonces: 32 random bytes that all cores share, so
	// that a client may go on at another. nil draws a key of this core's own.
	NonceKey []byte
	// Rate returns the rate that bounds all allocations of a user together; nil is
	// none. It is asked about each one that is made or refreshed, with what the account
	// says (Account.BytesPerSecond), and must not block. nil: an allocation has what its
	// account says for itself.
	Rate func(user string, perSecond int64) *Rate
	// Ended is told of each allocation that was made and has ended, Expires left out. It
	// must not block. nil: nobody is.
	Ended func(Info)
	// Hint answers data over UDP from who has no allocation by a 437 that is
	// unsigned and answers no request: nobody else would tell a client for seconds
	// that the server has started anew. It is no larger than what it is for, and
	// sent only if Answer says so. Clients that know it ask whether it is true. Those
	// that have an allocation get it when Drain begins.
	Hint bool
	// Offload asks for ChannelsChanged actions, for a driver with a path that
	// serves channels past the core.
	Offload bool
	// Shard is the number of this core. It is the first byte of reservation
	// tokens and connection ids: ShardOf finds it in a request.
	Shard uint8
	// Random fills its argument with unpredictable bytes; nil is crypto/rand.
	Random func([]byte)
}

// Offers says what the driver of a Core can do for clients. One of IPv4 and
// IPv6 is required.
type Offers struct {
	// IPv4 and IPv6 are the families of which relays can be opened.
	IPv4, IPv6 bool
	// TCP allows relays of TCP to clients on streams (RFC 6062).
	TCP bool
	// DontFragment says that SendPeer actions with DontFragment can be honoured.
	DontFragment bool
}

// Listener is one socket address that clients send to. Replies leave from
// there: a host with several addresses has one listener for each.
type Listener struct {
	// Addr is the address that clients see.
	Addr netip.AddrPort
	// Stream says that clients come by TCP or TLS, else by UDP, and Secure that
	// it is TLS.
	Stream, Secure bool
}

// Authenticator knows the accounts of clients. It must not block.
type Authenticator interface {
	// Authenticate returns the account that a username stands for at now, if it
	// is known. The username is as hostile as its sender. Of an account that has
	// ended it is best to say when: then all failures take the same time.
	Authenticate(now time.Time, username []byte) (_ Account, known bool)
}

// Account is what an Authenticator knows about a username.
type Account struct {
	// User is whom quotas count and Permit is asked about. Several usernames
	// may stand for one user; only they may use each other's allocations.
	User string
	// Keys are the keys that the client may sign with; several while a secret
	// is rotated. At most 4 of them are tried.
	Keys []Key
	// Awaited says that there may soon be more Keys. A request that none of these
	// has signed gets no answer then: a client would give up a good credential.
	Awaited bool
	// Drawn says that Keys are of passwords that nobody guesses, such as a MAC: who
	// shares a network with somebody who guesses still comes in.
	Drawn bool
	// Expires is when the credential ends; zero means never. From then on requests
	// are refused, and no allocation gets a lifetime that ends later than the
	// default lifetime after it. They are refused, too, while it is more than 366
	// days off.
	Expires time.Time
	// BytesPerSecond bounds what the allocations of the user relay, both directions
	// together, with a burst of a second's worth; 0 means no bound. Whether they share
	// it is for Config.Rate to say.
	BytesPerSecond int64
}

// Limits bounds what clients can take from one core. The zero value of each
// field means its default.
type Limits struct {
	// DefaultLifetime is the lifetime of an allocation that asks for none or
	// less, and MaxLifetime the longest. Defaults 10 minutes and 1 hour.
	DefaultLifetime, MaxLifetime time.Duration
	// NonceLifetime is how long a nonce is good, at most 12 hours. Default 1 hour.
	NonceLifetime time.Duration
	// Relays is how many this core holds, reservations included. Default 65536.
	Relays int
	// Permissions, Channels and Connections bound each allocation. Defaults 64, 64 and 16.
	Permissions, Channels, Connections int
}

// Lifetimes and patience that the RFCs name.
const (
	permissionLifetime  = 5 * time.Minute  // RFC 8656 section 9
	channelLifetime     = 10 * time.Minute // RFC 8656 section 12
	reservationLifetime = 30 * time.Second // RFC 8656 section 7.2
	connectPatience     = 30 * time.Second // RFC 6062 sections 5.2 and 5.3
	openPatience        = 10 * time.Second // for the driver to answer OpenRelay
)

// maxRealm is the longest realm with which the challenge to an Allocate request
// of 28 bytes is at most 72 bytes.
const maxRealm = 20

// maxSoftware is what RFC 8489 section 14.14 allows in characters.
const maxSoftware = 127

func (l Limits) withDefaults() Limits {
	duration := func(field *time.Duration, value time.Duration) {
		if *field == 0 {
			*field = value
		}
	}
	count := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	duration(&l.DefaultLifetime, 10*time.Minute)
	duration(&l.MaxLifetime, max(time.Hour, l.DefaultLifetime))
	duration(&l.NonceLifetime, time.Hour)
	count(&l.Relays, 65536)
	count(&l.Permissions, 64)
	count(&l.Channels, 64)
	count(&l.Connections, 16)
	return l
}

func (cfg *Config) validate() error {
	l := cfg.Limits
	switch {
	case len(cfg.Realm) == 0 || len(cfg.Realm) > maxRealm:
		return invalid("Realm", "%q has %d bytes: give it 1 to %d", cfg.Realm, len(cfg.Realm), maxRealm)
	case len(cfg.Software) > maxSoftware:
		return invalid("Software", "%d bytes: give it at most %d", len(cfg.Software), maxSoftware)
	case cfg.Authenticator == nil:
		return invalid("Authenticator", "nil: somebody must know the credentials")
	case !cfg.Offers.IPv4 && !cfg.Offers.IPv6:
		return invalid("Offers", "neither IPv4 nor IPv6: allow relays of one family")
	case len(cfg.NonceKey) < 16:
		return invalid("NonceKey", "%d bytes: give it 32 random ones", len(cfg.NonceKey))
	case len(cfg.Listeners) == 0 || len(cfg.Listeners) > 1<<16:
		return invalid("Listeners", "%d entries: give it 1 to 65536", len(cfg.Listeners))
	case l.DefaultLifetime < time.Second || l.MaxLifetime < l.DefaultLifetime || l.MaxLifetime > 24*time.Hour:
		return invalid("Limits.MaxLifetime", "%v, with a default of %v: give them 1s to 24h, the default first", l.MaxLifetime, l.DefaultLifetime)
	case l.NonceLifetime < time.Second || l.NonceLifetime > maxNonceLifetime:
		return invalid("Limits.NonceLifetime", "%v: give it 1s to %v", l.NonceLifetime, maxNonceLifetime)
	case min(l.Relays, l.Permissions, l.Channels, l.Connections) < 0:
		return invalid("Limits", "a count is negative: give it 0 for its default, or more")
	}
	for i, listener := range cfg.Listeners {
		if !listener.Addr.Addr().IsValid() || listener.Addr.Addr().IsUnspecified() || listener.Addr.Port() == 0 {
			return invalid(fmt.Sprintf("Listeners[%d].Addr", i), "%v: give the address and port that clients send to", listener.Addr)
		}
	}
	return cfg.validateDiscovery()
}

func (cfg *Config) validateDiscovery() error {
	if cfg.Discovery == nil {
		return nil
	}
	if len(cfg.Discovery) != 4 {
		return invalid("Discovery", "%d listeners: give it 4 (A:P, A:Q, B:P, B:Q) or none", len(cfg.Discovery))
	}
	var addrs [4]netip.AddrPort
	for i, n := range cfg.Discovery {
		if int(n) >= len(cfg.Listeners) || cfg.Listeners[n].Stream {
			return invalid(fmt.Sprintf("Discovery[%d]", i), "%d is no datagram listener: give the index of one", n)
		}
		addrs[i] = cfg.Listeners[n].Addr
	}
	a, b, p, q := addrs[0].Addr(), addrs[2].Addr(), addrs[0].Port(), addrs[1].Port()
	square := addrs == [4]netip.AddrPort{
		netip.AddrPortFrom(a, p), netip.AddrPortFrom(a, q), netip.AddrPortFrom(b, p), netip.AddrPortFrom(b, q),
	}
	if !square || a == b || p == q || a.Is4() != b.Is4() {
		return invalid("Discovery", "%v: give two addresses of one family with the same two ports, in the order A:P, A:Q, B:P, B:Q", addrs)
	}
	return nil
}

// invalid says what is wrong with a field of Config, and what to do.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...))
}
