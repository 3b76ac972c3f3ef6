// SPDX-License-Identifier: Apache-2.0

// Package xdp serves the channels of a TURN server in the kernel: a program at
// the network interfaces (XDP) takes ChannelData over UDP and what peers send to
// relays, and sends it on before the kernel's own network stack sees it.
//
// The program serves the bindings that core.Core yields and nothing else; all
// other packets go on to the server's sockets as if it were not there, and so
// does each packet of a binding about which there is something to decide: one
// that is a fragment, has IP options, does not fit the next link, or whose next
// hop is not known. Deadlines and the rate of an allocation hold in the kernel
// too, and what it relays is counted there.
//
// A host's packet filter does not see packets that are served here, as little
// as what a switch forwards. That of the interface's other side does.
//
// It takes Linux 5.12 on a little-endian machine, and CAP_NET_ADMIN, CAP_BPF and
// CAP_PERFMON. On other systems there is no such path.
package xdp

import (
	"fmt"
	"log/slog"
	"net/netip"
)

// Mode says where the program runs.
type Mode string

// The modes.
const (
	// Off is no kernel path.
	Off Mode = "off"
	// Auto is Native where the driver has it and Generic elsewhere, but neither at
	// the loopback interface. Where the kernel does not let the server, there is
	// no kernel path.
	Auto Mode = "auto"
	// Generic runs the program behind the driver, in the kernel's stack. Every
	// driver can, loopback included, but all packets of the interface pay for it:
	// those that the kernel had put together are copied. Of what other interfaces of
	// the same host send, it serves only what has whole checksums (ethtool -K tx off).
	Generic Mode = "generic"
	// Native runs the program in the driver. Of the two ends of a veth pair the
	// other one needs a program too, or packets that are sent back get lost, so
	// Auto does not choose it there.
	Native Mode = "native"
)

// ParseMode returns the mode with a name.
func ParseMode(name string) (Mode, error) {
	switch m := Mode(name); m {
	case Off, Auto, Generic, Native:
		return m, nil
	default:
		return "", fmt.Errorf("%q is no XDP mode: want off, auto, generic or native", name)
	}
}

// Config says what an Engine serves. Mode and Listeners are required.
type Config struct {
	// Mode says where the program runs.
	Mode Mode
	// Listeners are the addresses of the server's UDP sockets on this host, by their
	// index in core.Config.Listeners. One without an address (0.0.0.0 or ::) is
	// served if the host has exactly one of the family, and no other listener has
	// its port at an address: then it is for what comes later, and stays in user space.
	Listeners map[uint16]netip.AddrPort
	// Relays are addresses that relays have on this host, if they are other ones
	// than those of Listeners. They say at which interfaces peers come in.
	Relays []netip.Addr
	// Interfaces are the names of the network interfaces to run at, of which none may
	// fail unless Mode is Auto. nil means those that have an address of Listeners or
	// Relays, as many as work; one must, unless Mode is Auto. Loopback is one of them
	// if there is no other.
	Interfaces []string
	// Local returns the address on this host of a relay that peers see at relayed;
	// behind a one-to-one NAT it is another one. An unspecified address means the
	// same as in Listeners. It is called with a lock held and must not block. nil:
	// they are the same.
	Local func(relayed netip.AddrPort) netip.AddrPort
	// Inside returns where the server sends what is for peer. Bindings to peers for
	// which that is another address than theirs, so that they are on this host, stay
	// in user space. Called as Local is. nil: it is never another one.
	Inside func(peer netip.AddrPort) netip.AddrPort
	// Logger is told what Open has found out; nil discards it.
	Logger *slog.Logger
}

func (cfg Config) withDefaults() Config {
	same := func(a netip.AddrPort) netip.AddrPort { return a }
	if cfg.Local == nil {
		cfg.Local = same
	}
	if cfg.Inside == nil {
		cfg.Inside = same
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Listeners = definite(cfg.Listeners)
	return cfg
}

// definite leaves out listeners at all addresses that have siblings at some.
func definite(listeners map[uint16]netip.AddrPort) map[uint16]netip.AddrPort {
	has := make(map[netip.AddrPort]bool) // by family, as its unspecified address, and port
	any := func(a netip.AddrPort) netip.AddrPort {
		if a.Addr().Is4() {
			return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
		}
		return netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
	}
	for _, a := range listeners {
		if a != any(a) {
			has[any(a)] = true
		}
	}
	kept := make(map[uint16]netip.AddrPort)
	for i, a := range listeners {
		if !has[a] {
			kept[i] = a
		}
	}
	return kept
}

func (cfg Config) validate() error {
	if _, err := ParseMode(string(cfg.Mode)); err != nil {
		return fmt.Errorf("invalid Mode: %w", err)
	}
	if cfg.Mode == Off {
		return nil
	}
	if len(cfg.Listeners) == 0 {
		return fmt.Errorf("no Listeners: name the server's UDP listeners, or set Mode to off")
	}
	for i, addr := range cfg.Listeners {
		if !addr.IsValid() || addr.Port() == 0 {
			return fmt.Errorf("invalid Listeners[%d] %v: give the address and port of a UDP listener", i, addr)
		}
	}
	return nil
}

// Outcome is what became of a packet that belongs to a binding.
type Outcome uint8

// The outcomes. After all but Sent, Limited and Broken the packet went to user
// space.
const (
	Sent      Outcome = iota // on its way
	Limited                  // dropped: more than the allocation may relay
	Padded                   // ChannelData whose length is not that of the datagram
	Expired                  // the binding has ended
	Touched                  // one of many that user space sees, so that neighbours stay known
	Unreached                // the next hop is not known, or at an interface without the program
	Oversize                 // it would not fit the way
	Unsummed                 // no checksum of the whole datagram to trust
	Roomless                 // the driver left no room for a header
	Broken                   // dropped: the packet could not be written
	NumOutcomes
)

// String is the outcome as a label.
func (o Outcome) String() string {
	names := [NumOutcomes]string{
		"sent", "limited", "padded", "expired", "touched", "unreached", "oversize", "unsummed", "roomless", "broken",
	}
	if o >= NumOutcomes {
		return fmt.Sprintf("outcome %d", uint8(o))
	}
	return names[o]
}

// Reason says why the kernel serves nothing.
type Reason uint8

// The reasons.
const (
	Serving    Reason = iota // none: it serves
	Unwanted                 // the mode is Off
	Forbidden                // the process lacks a capability
	Unloadable               // the kernel does not take the program
	Faulty                   // the program has failed its test
	Nowhere                  // no interface runs the program: Follow may find one
	NumReasons
)

// String is the reason as a label.
func (r Reason) String() string {
	names := [NumReasons]string{"none", "off", "capabilities", "program", "self_test", "interfaces"}
	if r >= NumReasons {
		return fmt.Sprintf("reason %d", uint8(r))
	}
	return names[r]
}

// Stats are counters since Open, and what the engine holds now.
type Stats struct {
	// Packets counts packets of bindings, by outcome, and Bytes those of their data.
	Packets, Bytes [NumOutcomes]uint64
	// Bindings is how many the kernel serves, Refused how often it could not take
	// one: that stays in user space until it changes.
	Bindings int
	Refused  uint64
	// Interfaces are where the program runs, and Idle is why the kernel serves nothing.
	Interfaces []Interface
	Idle       Reason
}

// Interface is a network interface at which the program runs.
type Interface struct {
	Name string
	Mode Mode // Native or Generic
}

// String is such as "eth0 (native)".
func (i Interface) String() string { return fmt.Sprintf("%s (%s)", i.Name, i.Mode) }
