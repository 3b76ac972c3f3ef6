// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// rest is how long a server has to become quiet before its memory is read.
const rest = 200 * time.Millisecond

// measure measures everything and leaves nothing behind. With an error comes what
// was measured before, if anything was.
func measure(ctx context.Context, o options) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	r := newReport(o)
	defer r.judge()
	if !slices.Contains(o.without, coturn) {
		if r.Coturn, err = w.lookCoturn(ctx); err != nil {
			return nil, err
		}
	}
	if o.comparing() {
		for i := range o.rounds {
			if err := w.round(ctx, o, r, i%2 == 1); err != nil {
				return r, fmt.Errorf("round %d: %w", i+1, err)
			}
		}
	}
	if o.wants(partFlood) {
		if r.Flood, err = w.flood(ctx, o); err != nil {
			return r, fmt.Errorf("flood: %w", err)
		}
	}
	return r, nil
}

// comparing reports whether anything is to be measured of several servers.
func (o options) comparing() bool {
	return slices.ContainsFunc(parts(), func(p string) bool { return p != partFlood && o.wants(p) })
}

// round starts all servers, measures everything once and ends them. What is
// compared is measured of one server after the other.
func (w *world) round(ctx context.Context, o options, r *report, backwards bool) (err error) {
	var servers []*server
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, w.quit(context.WithoutCancel(ctx), s))
		}
	}()
	for _, name := range []string{meshgate, coturn, pion} {
		if slices.Contains(o.without, name) {
			continue
		}
		s, err := w.ready(ctx, name, o.clients, o, r)
		if s != nil {
			servers = append(servers, s)
		}
		if err != nil {
			return err
		}
	}
	order := slices.Clone(servers)
	if backwards {
		slices.Reverse(order)
	}
	if o.wants(partRelay) {
		for _, c := range o.cells {
			if err := w.relay(ctx, order, c, o, r); err != nil {
				return err
			}
		}
	}
	if o.wants(partLight) {
		for _, c := range o.light {
			for _, s := range order {
				t, err := w.transfer(ctx, s, transferOrder{cell: c, Warm: o.warm, Count: o.lightCount, Rate: lightRate})
				if err != nil {
					return err
				}
				r.add(partLight, c, s.name, t)
			}
		}
	}
	if o.wants(partOverload) {
		for _, s := range order {
			if err := w.overload(ctx, s, o, r); err != nil {
				return err
			}
		}
	}
	if o.wants(partKernel) {
		return w.kernel(ctx, servers, o, r)
	}
	return nil
}

// kernel measures channels in the kernel, on a server of its own. The others are
// there to be held against it.
func (w *world) kernel(ctx context.Context, others []*server, o options, r *report) (err error) {
	s, err := w.ready(ctx, kernel, kernelCells()[0].Allocations, o, r)
	var lacks *lacksError
	if errors.As(err, &lacks) {
		r.NoKernel = lacks.reason
		return nil
	}
	if s != nil {
		defer func() { err = errors.Join(err, w.quit(context.WithoutCancel(ctx), s)) }()
	}
	if err != nil {
		return err
	}
	for _, c := range kernelCells() {
		if !o.wants(partRelay) {
			if err := w.relay(ctx, others, c, o, r); err != nil {
				return err
			}
		}
		if err := w.relay(ctx, []*server{s}, c, o, r); err != nil {
			return err
		}
	}
	return nil
}

// ready starts a server and makes so many clients. With an error comes a server
// that started.
func (w *world) ready(ctx context.Context, name string, clients int, o options, r *report) (*server, error) {
	c, err := w.cableOf(ctx, name)
	if err != nil {
		return nil, err
	}
	s, err := w.serve(ctx, name, c, serverConfig{Allocations: clients, Answers: 1_000_000})
	if err != nil {
		return nil, err
	}
	// The first client waits until the server is up.
	if _, err := w.connect(ctx, s, 1); err != nil {
		return s, err
	}
	if err := pause(ctx, rest); err != nil {
		return s, err
	}
	before, err := s.memory()
	if err != nil {
		return s, err
	}
	made, err := w.connect(ctx, s, clients-1)
	if err != nil {
		return s, err
	}
	if err := pause(ctx, rest); err != nil {
		return s, err
	}
	after, err := s.memory()
	if err == nil && o.wants(partAllocations) && name != kernel {
		r.made(name, clients-1, made, after-before)
	}
	return s, err
}

// relay measures one cell of all servers.
func (w *world) relay(ctx context.Context, servers []*server, c cell, o options, r *report) error {
	for _, s := range servers {
		t, err := w.transfer(ctx, s, transferOrder{cell: c, Warm: o.warm, Count: o.count, Window: c.packets(), Kernel: s.name == kernel})
		if err != nil {
			return err
		}
		r.add(partRelay, c, s.name, t)
	}
	return nil
}

// peakTimes are how many times what a server relayed with a window it is offered
// without one, to find its peak.
func peakTimes() []float64 { return []float64{1.4, 2.5} }

// tooMuch is what servers are flooded with, of their peak.
const tooMuch = 3

// overload looks for the most that a server relays, and then floods it.
func (w *world) overload(ctx context.Context, s *server, o options, r *report) error {
	c := overloadCell()
	first, err := w.transfer(ctx, s, transferOrder{cell: c, Warm: o.warm, Count: o.count, Window: c.packets()})
	if err != nil {
		return err
	}
	peak := first.perSecond()
	for _, x := range peakTimes() {
		t, err := w.transfer(ctx, s, transferOrder{cell: c, Warm: o.warm, Count: o.count, Rate: x * first.perSecond(), Discard: true})
		if err != nil {
			return err
		}
		peak = max(peak, t.perSecond())
	}
	t, err := w.transfer(ctx, s, transferOrder{cell: c, Warm: o.warm, Count: o.count, Rate: tooMuch * peak, Discard: true})
	if err != nil {
		return err
	}
	r.overloaded(s.name, peak, t)
	return nil
}
