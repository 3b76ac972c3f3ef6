// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// outboundTimeout bounds an attempt at one address.
	outboundTimeout = 10 * time.Second
	// maxRemembered is of how many names Outbound remembers the addresses.
	maxRemembered = 64
)

// Outbound makes the connections of the process that must not follow
// Config.Exit: to gateways and relays, over which the tunnel runs. The zero value
// is ready, and a nil one makes ordinary connections. It is safe for concurrent
// use.
type Outbound struct {
	marks atomic.Bool
	// exit is set while an exit is in use.
	exit atomic.Bool

	mu    sync.Mutex // guards found
	found map[string][]netip.Addr
}

// Apart has connections that are made from now on marked. The process needs the
// right to administer the network; without it they stay ordinary.
func (o *Outbound) Apart() { o.marks.Store(true) }

// Exit says whether an exit is in use. Then names are looked up apart, too, and
// those that are not found mean the addresses that they had before: what answers
// for names may be on the other side of the exit.
func (o *Outbound) Exit(used bool) { o.exit.Store(used) }

// DialContext connects like that of net.Dialer.
func (o *Outbound) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d := o.dialer()
	if o == nil || !o.exit.Load() {
		return d.DialContext(ctx, network, address)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := o.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		c, err := d.DialContext(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (o *Outbound) dialer() *net.Dialer {
	d := &net.Dialer{Timeout: outboundTimeout}
	if o != nil && o.marks.Load() {
		d.Control = setMark
	}
	return d
}

// LookupNetIP finds the addresses of a name, at least one, like that of
// net.Resolver.
func (o *Outbound) LookupNetIP(ctx context.Context, network, name string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{addr}, nil
	}
	if o == nil {
		return net.DefaultResolver.LookupNetIP(ctx, network, name)
	}
	r := net.DefaultResolver
	if o.exit.Load() {
		r = &net.Resolver{PreferGo: true, Dial: o.dialer().DialContext}
	}
	found, err := r.LookupNetIP(ctx, network, name)
	o.mu.Lock()
	defer o.mu.Unlock()
	known := o.found[name]
	switch {
	case err == nil && len(found) > 0:
		if o.found == nil {
			o.found = make(map[string][]netip.Addr)
		}
		if len(known) > 0 || len(o.found) < maxRemembered {
			o.found[name] = found
		}
		return found, nil
	case o.exit.Load() && len(known) > 0:
		return known, nil
	case err == nil:
		err = &net.DNSError{Err: "no addresses", Name: name, IsNotFound: true}
	}
	return nil, err
}
