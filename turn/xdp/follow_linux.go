// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"errors"
	"net"
	"slices"

	"github.com/cilium/ebpf"
)

// Follow looks at the host's interfaces and addresses again: the program gets to
// run at those that Config means and that were not there before, or could not run
// it as they were, and those that are gone are forgotten. It says in the log what
// has changed. An interface whose address is gone keeps the program, which then
// finds nothing to do there. Bindings follow at their next Changed. Call it from time
// to time, in the network of Open; it may take long, and nobody waits for it.
func (e *Engine) Follow() error {
	if e == nil {
		return nil
	}
	e.attaching.Lock()
	defer e.attaching.Unlock()
	if e.programs == nil {
		return nil
	}
	all, found, err := e.look()
	if err != nil {
		return err
	}
	err = e.forget(all)
	for _, c := range found {
		if before, tried := e.passed[c.Index]; e.runsAt(c.Index) || tried && before.same(c) {
			continue
		}
		if err := e.attach(c); err != nil {
			e.cfg.Logger.Info("an interface does not run the XDP program: what it carries is served in user space", "interface", c.Name, "err", explain(err))
			continue
		}
		delete(e.passed, c.Index)
		added := e.ports[len(e.ports)-1]
		e.cfg.Logger.Info("channels are served in the kernel at another interface", "interface", added.Interface)
		e.warn([]*port{added})
	}
	return err
}

// forget takes interfaces that are not among all any more out of the books.
func (e *Engine) forget(all []net.Interface) error {
	names := make(map[int]string, len(all))
	for _, i := range all {
		names[i.Index] = i.Name
	}
	for index := range e.passed {
		if names[index] == "" {
			delete(e.passed, index)
		}
	}
	var errs []error
	var kept []*port
	for _, p := range e.ports {
		if name := names[p.index]; name != "" {
			same := *p
			same.Name = name // two must not have one name, and another one may have got it
			kept = append(kept, &same)
			continue
		}
		// The kernel has taken the program away with the interface.
		errs = append(errs, p.link.Close())
		if err := e.programs.Maps["ports"].Delete(uint32(p.index)); !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
		e.cfg.Logger.Info("an interface at which the kernel served channels is gone", "interface", p.Interface)
	}
	e.mu.Lock()
	e.ports = kept
	e.mu.Unlock()
	return errors.Join(errs...)
}

func (e *Engine) runsAt(index int) bool {
	return slices.ContainsFunc(e.ports, func(p *port) bool { return p.index == index })
}

// same reports whether an interface is as it was, as far as its driver may care.
func (c candidate) same(now candidate) bool {
	return c.Name == now.Name && c.MTU == now.MTU && c.Flags == now.Flags && c.driver == now.driver &&
		slices.Equal(c.HardwareAddr, now.HardwareAddr)
}
