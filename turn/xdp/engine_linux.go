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

// Engine is a kernel path that is open, or could not be opened and serves nothing.
// Its methods are safe for concurrent use, and those of a nil Engine do nothing:
// that is a server without a kernel path.
type Engine struct {
	cfg   Config
	asker *asker // nil: routes are looked up in the name of the interface that a packet came in at
	alone error  // why there is no asker

	attaching sync.Mutex        // held before mu; guards the fields below
	programs  *ebpf.Collection  // nil after Close
	passed    map[int]candidate // interfaces at which the program cannot run, as they were when that was tried

	mu     sync.Mutex         // guards the fields below, not for long
	ports  []*port            // written with attaching held, too
	only   map[int]netip.Addr // the host's address of a family, if it has one alone
	table  *table             // nil after Close
	served Stats              // when it was closed, or could not be opened
}

// Open starts the kernel path in the network of the calling thread, and says in
// one line of the log what became of it, and in another one where it may lose what
// it sends. With Auto it is no error that there can be none: the Engine serves
// nothing, and its Stats say why. With Off it is nil. Whatever happens to the
// process, the path ends with it.
func Open(cfg Config) (*Engine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Mode == Off {
		return nil, nil
	}
	e := &Engine{cfg: cfg.withDefaults(), passed: make(map[int]candidate)}
	passed, err := e.open()
	switch {
	case err == nil:
	case cfg.Mode != Auto:
		return nil, fmt.Errorf("XDP mode %s: %w", cfg.Mode, errors.Join(err, e.Close()))
	default:
		err = errors.Join(err, e.Close())
		e.cfg.Logger.Info("channels are served in user space: there is no kernel path", "err", err)
		return e, nil
	}
	if len(e.ports) == 0 {
		e.cfg.Logger.Info("channels are served in user space until an interface runs the XDP program", "err", errors.Join(passed...))
		return e, nil
	}
	attrs := []any{"interfaces", e.Interfaces()}
	if len(passed) > 0 {
		attrs = append(attrs, "without", errors.Join(passed...))
	}
	e.cfg.Logger.Info("channels are served in the kernel", attrs...)
	e.warn(e.ports)
	return e, nil
}

// open brings the path up, which others do not know yet; passed says why interfaces
// are not part of it.
func (e *Engine) open() (passed []error, err error) {
	_, found, err := e.look()
	if err == nil {
		err = e.complete(found)
	}
	if err != nil && e.cfg.Mode != Auto {
		return nil, err
	}
	if err != nil {
		passed = append(passed, err)
	}
	if why, err := e.load(); err != nil {
		if err = explain(err); errors.As(err, new(refusal)) {
			why = Forbidden
		}
		e.served.Idle = why
		return nil, err
	}
	for _, c := range found {
		err := e.attach(c)
		if err != nil && e.cfg.Mode != Auto && e.cfg.Interfaces != nil {
			return nil, explain(err)
		}
		if err != nil {
			passed = append(passed, explain(err))
		}
	}
	if len(e.ports) == 0 && e.cfg.Mode != Auto {
		return nil, errors.Join(passed...)
	}
	return passed, nil
}

// load has the kernel take the programs, and tests them; why says what failed.
func (e *Engine) load() (why Reason, err error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return Unloadable, fmt.Errorf("read the XDP program: %w", err)
	}
	if e.asker, e.alone = newAsker(); e.alone == nil {
		if err := spec.Variables["asker"].Set(uint32(e.asker.index)); err != nil {
			return Unloadable, err
		}
	}
	for name, mode := range map[string]Mode{nativeProgram: Native, genericProgram: Generic} {
		if e.cfg.Mode != mode && e.cfg.Mode != Auto {
			delete(spec.Programs, name)
		}
	}
	if e.programs, err = ebpf.NewCollection(spec); err != nil {
		return Unloadable, fmt.Errorf("load the XDP program: %w", err)
	}
	if err := rehearse(e.programs); err != nil {
		return Faulty, fmt.Errorf("test the XDP program: %w", err)
	}
	if e.table, err = newTable(e.programs.Maps); err != nil {
		return Unloadable, err
	}
	return Serving, nil
}

// warn tells of interfaces that can send only to an end with a program of its own,
// which cannot be told from here: it is most often in a network of somebody else.
func (e *Engine) warn(ports []*port) {
	var names []string
	for _, p := range ports {
		if p.pair {
			names = append(names, p.Name)
		}
	}
	if len(names) > 0 {
		e.cfg.Logger.Warn("what is served here is lost unless the other end of each of these veth pairs runs an XDP program, too;"+
			" set auto or generic where nobody sees to that. ethtool -S counts what is lost as xdp_tx_errors", "interfaces", names)
	}
}

// Serves reports whether the engine takes bindings. It may have no interface yet.
func (e *Engine) Serves() bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.table != nil
}

// Interfaces are where the program runs.
func (e *Engine) Interfaces() []Interface { return e.Stats().Interfaces }

// Changed makes the kernel serve for flow what bindings yields, and nothing
// else. A flow on a stream has nothing to serve. What the kernel cannot take
// stays in user space.
func (e *Engine) Changed(flow core.Flow, bindings iter.Seq[core.Binding]) {
	if e == nil || flow.Conn != 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.table == nil {
		return
	}
	server, ok := here(e.cfg.Listeners[flow.Listener], flow.Client.Addr(), e.only)
	if !ok || !plain(flow.Client.Addr()) {
		bindings = func(func(core.Binding) bool) {} // what was served before is served no more
	}
	e.table.set(flow, server, e.servable(bindings))
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
		return Stats{Idle: Unwanted}
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
	for _, p := range e.ports {
		s.Interfaces = append(s.Interfaces, p.Interface)
	}
	if len(e.ports) == 0 {
		s.Idle = Nowhere
	}
	e.table.counted(&s)
	return s
}

// Close takes the program away from the interfaces. All packets go to user space
// from then on. It may be called again.
func (e *Engine) Close() error {
	if e == nil {
		return nil
	}
	e.attaching.Lock()
	defer e.attaching.Unlock()
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
			at, ok := here(e.cfg.Local(b.Relayed), b.Peer.Addr(), e.only)
			if !ok || !plain(b.Peer.Addr()) || e.cfg.Inside(b.Peer) != b.Peer {
				continue
			}
			if !yield(local{Binding: b, at: at}) {
				return
			}
		}
	}
}

// here makes a definite address of this host, which is only for its family, of one
// that may be unspecified, for packets from and to another host. It is false if
// there is none of that family.
func here(addr netip.AddrPort, other netip.Addr, only map[int]netip.Addr) (netip.AddrPort, bool) {
	if addr.IsValid() && addr.Addr().IsUnspecified() {
		addr = netip.AddrPortFrom(only[family(other)], addr.Port())
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
