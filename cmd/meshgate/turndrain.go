// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store/raftstore"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/turn"
	"github.com/meshgate/meshgate/turn/client"
)

const (
	// drainLookTime bounds what it takes to find out where relays may go.
	drainLookTime = 3 * time.Second
	// drainEach is how often a gateway looks whether its last relay has ended.
	drainEach = 250 * time.Millisecond
	// drainLookEach is how often it looks where relays may go, and up to half of it
	// later: two that end together look one after the other.
	drainLookEach = 2 * time.Second
	// drainContact is how long ago a gateway may have been heard that is up: that is
	// many times a second.
	drainContact = 3 * time.Second
	// drainTryTime bounds what the answer of one address of a gateway may take, and
	// maxDrainTries how many of its addresses are tried.
	drainTryTime  = time.Second
	maxDrainTries = 2
	// drainTellEach is how often the log says that it waits.
	drainTellEach = time.Minute
	// maxDrainFor bounds --turn.drain-for.
	maxDrainFor = 24 * time.Hour
)

// checkDrain refuses what --turn.drain-for cannot be.
func (c *upConfig) checkDrain() error {
	if c.turnDrainFor < 0 || c.turnDrainFor > maxDrainFor {
		return usagef("--turn.drain-for %s: give 0 to %s", c.turnDrainFor, maxDrainFor)
	}
	return nil
}

// drainer is a TURN server that can send new clients on; *turn.Server is one.
type drainer interface {
	Drain(alternates []turn.Alternate)
	Undrain()
	Allocations() []turn.Allocation
}

// outlast returns a context that ends when told has and relays were got over that,
// with the cause of told. gotOver is called when nothing is served any more, and
// waits for what runs.
func (p *gatewayProcess) outlast(told context.Context) (ctx context.Context, cancel context.CancelCauseFunc, gotOver func()) {
	ctx, cancel = context.WithCancelCause(context.WithoutCancel(told))
	serving, served := context.WithCancel(context.WithoutCancel(told))
	over := make(chan struct{})
	stop := context.AfterFunc(told, func() {
		defer close(over)
		p.endRelays(serving, func() { cancel(context.Cause(told)) })
	})
	return ctx, cancel, func() {
		served()
		if !stop() {
			<-over
		}
	}
}

// endRelays gets relays over the end of this gateway, which it was told: who wants a
// new one is sent on to another gateway, and those that there are go on as long as
// the gateway serves. end makes it stop to serve; without --turn.drain-for that is at
// once, else when the last relay has ended or the time is over. While no other gateway gives
// relays there are new ones here: who is refused rests, and finds it started anew
// later than who gets no answer. Another signal to end ends the wait. ctx ends when
// nothing is served any more.
func (p *gatewayProcess) endRelays(ctx context.Context, end func()) {
	defer end()
	if p.turn == nil || p.cluster == nil {
		return
	}
	if p.cfg.turnDrainFor == 0 {
		end()
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM) // once more
	defer stop()
	if p.cfg.turnDrainFor > 0 {
		defer askForTime(ctx, os.Getenv(systemdSocket), stopAskEach, p.log)()
	}
	look := func() []turn.Alternate {
		ctx, cancel := context.WithTimeout(ctx, drainLookTime)
		defer cancel()
		return alternates(ctx, p.node.Snapshot(), p.node.Self(), p.store.Members(ctx), net.DefaultResolver.LookupNetIP, p.givesRelays)
	}
	waitDrained(ctx, p.turn, look, p.cfg.turnDrainFor, p.log)
}

// waitDrained waits until t holds no relay any more, for patience, or until ctx ends.
// Meanwhile it sends new clients to where look says, and has t take them itself while
// that is nowhere: the others may fail, or end, too.
func waitDrained(ctx context.Context, t drainer, look func() []turn.Alternate, patience time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	drains := false
	drain := func() (next time.Time) {
		switch to := look(); {
		case len(to) > 0:
			if !drains {
				log.Info("new relays go to other gateways, because this one ends", "n", len(t.Allocations()), "dur", patience)
			}
			drains = true
			t.Drain(to)
		case drains:
			log.Warn("no other gateway gives relays: there are new ones here until one does, although this gateway ends", "n", len(t.Allocations()))
			drains = false
			t.Undrain()
		}
		return time.Now().Add(drainLookEach + rand.N(drainLookEach/2))
	}
	tell := time.Now().Add(drainTellEach)
	for next := drain(); pause(ctx, drainEach) == nil && len(t.Allocations()) > 0; {
		if !time.Now().Before(next) {
			next = drain()
		}
		if !time.Now().Before(tell) {
			tell = time.Now().Add(drainTellEach)
			log.Info("waits for relays before it ends; a second signal ends it now", "n", len(t.Allocations()))
		}
	}
	if n := len(t.Allocations()); n > 0 && patience > 0 {
		log.Warn("relays end with this gateway", "n", n)
	}
}

// errSentOn says that a gateway has none itself.
var errSentOn = errors.New("the gateway sends new relays on")

// givesRelays reports whether the TURN server at one of addrs gives a relay to who has
// a credential of this gateway: one that drains, is full or has another secret does not, whatever
// the state says of its gateway. It gives the relay back.
func (p *gatewayProcess) givesRelays(ctx context.Context, addrs []netip.AddrPort) bool {
	credential := p.secrets.Mint(string(p.node.Self()), time.Minute)
	for _, at := range addrs[:min(len(addrs), maxDrainTries)] {
		ctx, cancel := context.WithTimeout(ctx, drainTryTime)
		a, err := client.Allocate(ctx, client.Config{
			Server: "turn:" + at.String() + "?transport=udp", Username: credential.Username, Password: credential.Password,
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				if address != at.String() {
					return nil, errSentOn
				}
				return new(net.Dialer).DialContext(ctx, network, address)
			},
		})
		cancel()
		if err == nil {
			_ = a.Close()
			return true
		}
	}
	return false
}

// lookUp finds the addresses of a name, as that of net.Resolver.
type lookUp func(ctx context.Context, network, name string) ([]netip.Addr, error)

// alternates are the TURN servers of the gateways of s, which may be nil, but self,
// that are up by what replicas says, and give relays: over UDP and TCP at each of their
// addresses, and over TLS at the port of their API.
func alternates(ctx context.Context, s *mesh.Snapshot, self mesh.NodeID, replicas []raftstore.Replica, find lookUp, gives func(context.Context, []netip.AddrPort) bool) (list []turn.Alternate) {
	if s == nil {
		return nil
	}
	for n := range grantedGateways(s) {
		port, ok := n.FeaturePort(v1.Feature_TURN_SERVER)
		if !ok || n.ID == self || !slices.ContainsFunc(replicas, func(r raftstore.Replica) bool { return r.ID == string(n.ID) && isUp(r) }) {
			continue
		}
		var addrs []netip.AddrPort
		for _, addr := range gatewayAddresses(n) {
			addrs = append(addrs, netip.AddrPortFrom(addr, port))
		}
		if !gives(ctx, addrs) {
			continue
		}
		for _, at := range addrs {
			list = append(list, turn.Alternate{Addr: at}, turn.Alternate{Addr: at, Stream: true})
		}
		list = append(list, secureAlternates(ctx, n.API.URL, find)...)
		if len(list) > maxRelayGateways*4 {
			break
		}
	}
	return list
}

// isUp reports whether a gateway was heard of just now.
func isUp(r raftstore.Replica) bool {
	return r.Leader || r.Answers || r.Known && !r.LagUnknown && r.LastContact <= drainContact
}

// gatewayAddresses are the public addresses of a gateway: where it says that it is, and
// where its WireGuard is.
func gatewayAddresses(n *mesh.Node) (list []netip.Addr) {
	if addr, err := netip.ParseAddr(n.PrimaryEndpoint); err == nil {
		list = append(list, addr.Unmap())
	}
	for _, at := range n.WireGuardEndpoints {
		if addr := at.Addr().Unmap(); !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	return list
}

// secureAlternates is TURN over TLS at the port of an API: at the addresses of its
// name, which is in its certificate.
func secureAlternates(ctx context.Context, api string, find lookUp) (list []turn.Alternate) {
	u, err := url.Parse(api)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil
	}
	port := uint64(443)
	if u.Port() != "" {
		if port, err = strconv.ParseUint(u.Port(), 10, 16); err != nil || port == 0 {
			return nil
		}
	}
	domain := ""
	addrs := []netip.Addr{}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		addrs = append(addrs, addr)
	} else {
		domain = u.Hostname()
		addrs, _ = find(ctx, "ip", domain) // without an answer there are none
	}
	for _, addr := range addrs[:min(len(addrs), 4)] {
		list = append(list, turn.Alternate{Addr: netip.AddrPortFrom(addr.Unmap(), uint16(port)), Stream: true, Secure: true, Domain: domain})
	}
	return list
}
