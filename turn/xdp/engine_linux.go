// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/meshgate/meshgate/turn/core"
)

// object is program/turn.c as `make generate` has compiled it.
//
//go:embed program/turn.o
var object []byte

// The programs in it.
const (
	nativeProgram  = "serve_native"
	genericProgram = "serve_generic"
)

// Engine is a kernel path that is open. Its methods are safe for concurrent use,
// and those of a nil Engine do nothing: that is a server without a kernel path.
type Engine struct {
	cfg      Config
	programs *ebpf.Collection
	asker    *asker // nil: routes are looked up in the name of the interface that a packet came in at
	ports    []*port
	only     map[int]netip.Addr // the host's address of a family, if it has one alone

	mu     sync.Mutex // guards the fields below
	table  *table     // nil after Close
	served Stats      // when it was closed
}

// Open starts the kernel path in the network of the calling thread, and says in
// one line of the log what became of it, and in another one where it may lose what
// it sends. With Auto it returns nil without an
// error when there can be none, and with Off always. Whatever happens to the
// process, the path ends with it.
func Open(cfg Config) (*Engine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Mode == Off {
		return nil, nil
	}
	e := &Engine{cfg: cfg.withDefaults()}
	passed, err := e.open()
	if err != nil {
		err = errors.Join(explain(err), e.Close())
		if cfg.Mode != Auto {
			return nil, fmt.Errorf("XDP mode %s: %w", cfg.Mode, err)
		}
		e.cfg.Logger.Info("channels are served in user space: there is no kernel path", "err", err)
		return nil, nil
	}
	attrs := []any{"interfaces", e.Interfaces()}
	if len(passed) > 0 {
		attrs = append(attrs, "without", errors.Join(passed...))
	}
	e.cfg.Logger.Info("channels are served in the kernel", attrs...)
	if names := e.pairs(); len(names) > 0 {
		e.cfg.Logger.Warn("what is served here is lost unless the other end of each of these veth pairs runs an XDP program, too;"+
			" set auto or generic where nobody sees to that. ethtool -S counts what is lost as xdp_tx_errors", "interfaces", names)
	}
	return e, nil
}

// open brings the path up; passed says why interfaces are not part of it.
func (e *Engine) open() (passed []error, err error) {
	candidates, err := e.candidates()
	if err != nil {
		return nil, err
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read the XDP program: %w", err)
	}
	var reason error
	if e.asker, reason = newAsker(); reason == nil {
		if err := spec.Variables["asker"].Set(uint32(e.asker.index)); err != nil {
			return nil, err
		}
	}
	for name, mode := range map[string]Mode{nativeProgram: Native, genericProgram: Generic} {
		if e.cfg.Mode != mode && e.cfg.Mode != Auto {
			delete(spec.Programs, name)
		}
	}
	if e.programs, err = ebpf.NewCollection(spec); err != nil {
		return nil, fmt.Errorf("load the XDP program: %w", err)
	}
	if err := rehearse(e.programs); err != nil {
		return nil, fmt.Errorf("test the XDP program: %w", err)
	}
	if e.table, err = newTable(e.programs.Maps); err != nil {
		return nil, err
	}
	for _, c := range candidates {
		if e.asker == nil && !c.forwards() {
			err = fmt.Errorf("%s does not forward, and the kernel tells it no routes: %w", c.Name, reason)
		} else {
			err = e.attach(c)
		}
		if err != nil && e.cfg.Mode != Auto && e.cfg.Interfaces != nil {
			return nil, err
		}
		if err != nil {
			passed = append(passed, err)
		}
	}
	if len(e.ports) == 0 {
		return nil, errors.Join(passed...)
	}
	return passed, nil
}

// pairs are the interfaces that can send only to an end with a program of its own,
// which cannot be told from here: it is most often in a network of somebody else.
func (e *Engine) pairs() (names []string) {
	for _, p := range e.ports {
		if p.pair {
			names = append(names, p.Name)
		}
	}
	return names
}

// Interfaces are where the program runs.
func (e *Engine) Interfaces() []Interface {
	if e == nil {
		return nil
	}
	var all []Interface
	for _, p := range e.ports {
		all = append(all, p.Interface)
	}
	return all
}

// Changed makes the kernel serve for flow what bindings yields, and nothing
// else. A flow on a stream has nothing to serve. What the kernel cannot take
// stays in user space.
func (e *Engine) Changed(flow core.Flow, bindings iter.Seq[core.Binding]) {
	if e == nil || flow.Conn != 0 {
		return
	}
	server, ok := e.here(e.cfg.Listeners[flow.Listener], flow.Client.Addr())
	if !ok || !plain(flow.Client.Addr()) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.table != nil {
		e.table.set(flow, server, e.servable(bindings))
	}
}

// Counters returns what the kernel has relayed for flow since it was asked last,
// in bindings that have ended too: ask after Changed, and from time to time.
func (e *Engine) Counters(flow core.Flow) core.Usage {
	if e == nil {
		return core.Usage{}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.table == nil {
		return core.Usage{}
	}
	return e.table.used(flow)
}

// Stats returns the counters; after Close as they were.
func (e *Engine) Stats() Stats {
	if e == nil {
		return Stats{}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats()
}

func (e *Engine) stats() Stats {
	if e.table == nil {
		return e.served
	}
	s := Stats{Bindings: e.table.held(), Refused: e.table.refused}
	var each []uint64 // CPUs
	for i := range s.Packets {
		if e.programs.Maps["outcomes"].Lookup(uint32(i), &each) != nil {
			continue // it is there as long as the program
		}
		for _, n := range each {
			s.Packets[i] += n
		}
	}
	return s
}

// Close takes the program away from the interfaces. All packets go to user space
// from then on. It may be called again.
func (e *Engine) Close() error {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for _, p := range e.ports {
		errs = append(errs, p.link.Close())
	}
	e.ports = nil
	if e.table != nil {
		e.served = e.stats()
		e.served.Bindings = 0
		errs = append(errs, e.table.close())
		e.table = nil
	}
	if e.programs != nil {
		e.programs.Close()
		e.programs = nil
	}
	if e.asker != nil {
		errs = append(errs, e.asker.close())
		e.asker = nil
	}
	return errors.Join(errs...)
}

// servable yields the bindings of all that the program can serve.
func (e *Engine) servable(all iter.Seq[core.Binding]) iter.Seq[local] {
	return func(yield func(local) bool) {
		for b := range all {
			at, ok := e.here(e.cfg.Local(b.Relayed), b.Peer.Addr())
			if !ok || !plain(b.Peer.Addr()) || e.cfg.Inside(b.Peer) != b.Peer {
				continue
			}
			if !yield(local{Binding: b, at: at}) {
				return
			}
		}
	}
}

// here makes a definite address of this host of one that may be unspecified, for
// packets from and to another host. It is false if there is none of that family.
func (e *Engine) here(addr netip.AddrPort, other netip.Addr) (netip.AddrPort, bool) {
	if addr.IsValid() && addr.Addr().IsUnspecified() {
		addr = netip.AddrPortFrom(e.only[family(other)], addr.Port())
	}
	return addr, addr.IsValid() && family(addr.Addr()) == family(other)
}

// plain reports whether an address means the same at every interface.
func plain(a netip.Addr) bool { return a.IsValid() && a.Zone() == "" && !a.IsLinkLocalUnicast() }

// family is 4 or 6.
func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 4
	}
	return 6
}
