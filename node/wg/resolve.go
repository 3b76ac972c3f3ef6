// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// resolveTimeout bounds all look-ups of one Set together: other peers wait.
	resolveTimeout = 5 * time.Second
	// resolveParallel bounds the look-ups at one time.
	resolveParallel = 16
)

// errNoEndpoint says that a name stands for addresses only at which no peer is.
var errNoEndpoint = errors.New("it stands for no address at which another node can be")

// resolve finds the endpoints of peers that change. Names that resolved once
// are not looked up again as long as the configuration keeps them, since the
// peer may have roamed. Only a context that ended is an error.
func (d *Device) resolve(ctx context.Context, c *Config, ch *changes) error {
	var names []*changedPeer
	for i := range ch.peers {
		p := &ch.peers[i]
		if p.was != nil && p.was.endpoint.text == p.Endpoint {
			p.endpoint = p.was.endpoint
		} else {
			p.endpoint = peerEndpoint{text: p.Endpoint, addr: literalEndpoint(p.Endpoint)}
		}
		if p.Endpoint != "" && !p.endpoint.addr.IsValid() {
			names = append(names, p)
		}
	}
	if len(names) == 0 {
		return nil
	}
	var (
		pending sync.WaitGroup
		slots   = make(chan struct{}, resolveParallel)
	)
	limited, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	for _, p := range names {
		pending.Go(func() {
			slots <- struct{}{} // every holder lets go when limited ends
			defer func() { <-slots }()
			addr, err := lookupEndpoint(limited, p.Endpoint, c.refusesEndpoint)
			e := &p.endpoint // nobody else looks at it meanwhile
			if err == nil {
				e.addr, e.told = addr, ""
			} else if told := kindOf(err); e.told != told && ctx.Err() == nil {
				// The next Set asks again; it has no more to say.
				d.logger.Warn("endpoint does not resolve", "peer", p.label(), "addr", p.Endpoint, "err", err)
				e.told = told
			}
		})
	}
	pending.Wait()
	return ctx.Err()
}

// kindOf tells errors of look-ups apart, but not by the resolver's sockets.
func kindOf(err error) string {
	if said := new(net.DNSError); errors.As(err, &said) {
		return fmt.Sprintf("not found %t, timeout %t", said.IsNotFound, said.IsTimeout)
	}
	return err.Error()
}

// literalEndpoint returns the endpoint that is written as an address, else an
// invalid one.
func literalEndpoint(endpoint string) netip.AddrPort {
	addr, err := netip.ParseAddrPort(endpoint)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// lookupEndpoint resolves "name:port" to the address that the host prefers of
// those that are not refused. Whoever names an endpoint decides what it
// resolves to, and when.
func lookupEndpoint(ctx context.Context, endpoint string, refused func(netip.Addr) bool) (netip.AddrPort, error) {
	host, port, err := splitEndpoint(endpoint)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if len(addrs) == 0 {
		return netip.AddrPort{}, fmt.Errorf("look up %s: no address: %w", host, mesh.ErrUnavailable)
	}
	for _, a := range addrs {
		if a = a.Unmap(); !refused(a) {
			return netip.AddrPortFrom(a, port), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("look up %s: %w: %w", host, errNoEndpoint, mesh.ErrInvalid)
}

// refusesEndpoint reports whether no peer can be at a: an address that means
// something else on every host, or one inside the mesh, to which the tunnel
// would lead through itself.
func (c *Config) refusesEndpoint(a netip.Addr) bool {
	if a.IsLoopback() {
		return !c.OneMachine
	}
	return !a.IsValid() || a.Zone() != "" || martian(a) ||
		slices.ContainsFunc(c.Networks, func(p netip.Prefix) bool { return p.Contains(a) })
}
