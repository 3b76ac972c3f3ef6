// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

const (
	headerForwardedFor = "X-Forwarded-For"
	// maxHops bounds how many proxies a request is followed back through.
	maxHops = 16
)

// proxies are the networks of proxies whose word counts about whom they speak for.
type proxies []netip.Prefix

func (p proxies) trusts(addr netip.Addr) bool {
	addr = addr.Unmap()
	return slices.ContainsFunc(p, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// client is where a request really came from: peer, unless that is a trusted
// proxy. Each proxy appends whom it heard the request from to X-Forwarded-For,
// so that the list is read from its end, and as far as trusted proxies wrote
// it: the first address that is not a proxy's is the client's, and whatever
// stands before it was the client's to invent. The port of a client behind a
// proxy is 0: nobody says it.
func (p proxies) client(peer netip.AddrPort, h http.Header) netip.AddrPort {
	if len(p) == 0 || !p.trusts(peer.Addr()) {
		return peer
	}
	found := peer
	rest := strings.Join(h[headerForwardedFor], ",")
	for range maxHops {
		var last string
		if i := strings.LastIndexByte(rest, ','); i >= 0 {
			rest, last = rest[:i], rest[i+1:]
		} else {
			rest, last = "", rest
		}
		addr, ok := parseHop(strings.TrimSpace(last))
		if !ok {
			return found // the last one that somebody vouches for
		}
		found = netip.AddrPortFrom(addr, 0)
		if !p.trusts(addr) || rest == "" {
			return found
		}
	}
	return found
}

// parseHop reads an address as proxies write it: alone, or with a port.
func parseHop(text string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}
