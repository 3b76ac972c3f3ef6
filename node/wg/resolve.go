// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"fmt"
	"net"
	"net/netip"
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

// resolve finds the endpoints of peers. Names that resolved once are not
// looked up again as long as the configuration keeps them, since the peer may
// have roamed. Only a context that ended is an error.
func (d *Device) resolve(ctx context.Context, peers []Peer) (map[mesh.WireGuardKey]peerEndpoint, error) {
	endpoints := make(map[mesh.WireGuardKey]peerEndpoint, len(peers))
	var names []*Peer
	for i := range peers {
		p := &peers[i]
		known, ok := d.peers[p.Key]
		if !ok || known.text != p.Endpoint || !known.addr.IsValid() {
			known = peerEndpoint{text: p.Endpoint, addr: literalEndpoint(p.Endpoint)}
		}
		endpoints[p.Key] = known
		if p.Endpoint != "" && !known.addr.IsValid() {
			names = append(names, p)
		}
	}
	if len(names) == 0 {
		return endpoints, nil
	}
	var (
		mu      sync.Mutex // guards endpoints
		pending sync.WaitGroup
		slots   = make(chan struct{}, resolveParallel)
	)
	limited, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	for _, p := range names {
		pending.Go(func() {
			slots <- struct{}{} // every holder lets go when limited ends
			defer func() { <-slots }()
			addr, err := lookupEndpoint(limited, p.Endpoint)
			if err != nil {
				d.logger.Warn("endpoint does not resolve", "peer", p.Key, "addr", p.Endpoint, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			endpoints[p.Key] = peerEndpoint{text: p.Endpoint, addr: addr}
		})
	}
	pending.Wait()
	return endpoints, ctx.Err()
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

// lookupEndpoint resolves "name:port" to the address that the host prefers.
func lookupEndpoint(ctx context.Context, endpoint string) (netip.AddrPort, error) {
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
	return netip.AddrPortFrom(addrs[0].Unmap(), port), nil
}
