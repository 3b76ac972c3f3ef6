// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"time"
)

const (
	// floodRate is that of a flood, in packets per second.
	floodRate = 100_000
	// floodStep is how long the load floods until it tells what happened.
	floodStep = time.Second
	// steady is the most that existing allocations relay meanwhile, in packets per
	// second; it is half of what they could if that is less.
	steady = 200_000
	// triesOfFlood is how often it is measured how much that is.
	triesOfFlood = 3
)

// floodCell is what existing allocations relay during a flood. There are as many
// as a network gets at once from a server with its default limits.
func floodCell() cell { return cell{Size: small, Allocations: 20, Burst: bursty} }

// underFlood tells what a flood does to our server, which has its default limits.
type underFlood struct {
	flooded
	Seconds float64 `json:"seconds"`
	// Worst is the kind of packet that has the greatest Factor of bytes out for
	// each byte in.
	Worst  string  `json:"worst"`
	Factor float64 `json:"factor"`
	// Wanted is the rate that existing allocations are to have, Offered what the
	// load sent of that during the flood, and Kept what was relayed of it, beside
	// what was without a flood. In packets per second, and as parts.
	Wanted  float64 `json:"wanted"`
	Offered float64 `json:"offered"`
	Kept    float64 `json:"kept"`
	// Memory is what is resident before, and Growth by how much it was more
	// at the most, in bytes.
	Memory int64 `json:"memory"`
	Growth int64 `json:"growth"`
	// CPU is that of the server, of one processor.
	CPU float64 `json:"cpu"`
}

// flood floods a server of its own.
func (w *world) flood(ctx context.Context, o options) (u *underFlood, err error) {
	const name = "flooded"
	c, err := w.cableOf(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := w.openToForged(ctx, c); err != nil {
		return nil, err
	}
	s, err := w.serve(ctx, meshgate, c, serverConfig{Allocations: floodCell().Allocations})
	if err != nil {
		return nil, err
	}
	s.name = name
	defer func() { err = errors.Join(err, w.quit(context.WithoutCancel(ctx), s)) }()
	if _, err := w.connect(ctx, s, floodCell().Allocations); err != nil {
		return nil, err
	}
	quiet := transferOrder{cell: floodCell(), Warm: o.warm, Count: o.count, Window: floodCell().packets()}
	could := 0.0
	for range triesOfFlood {
		t, err := w.transfer(ctx, s, quiet)
		if err != nil {
			return nil, err
		}
		could = max(could, t.perSecond())
	}
	quiet.Window, quiet.Rate, quiet.Count = 0, min(steady, could/2), min(floodStep, o.flood)
	before, err := w.transfer(ctx, s, quiet)
	if err != nil {
		return nil, err
	}
	u = &underFlood{Wanted: quiet.Rate}
	if u.Memory, err = s.memory(); err != nil {
		return nil, err
	}
	return u, u.endure(ctx, w, s, quiet, before, o.flood)
}

// endure is the flood itself, in steps.
func (u *underFlood) endure(ctx context.Context, w *world, s *server, quiet transferOrder, before transferred, length time.Duration) error {
	quiet.Warm, quiet.PID = 0, s.pid
	var all transferred
	for ; u.Seconds < length.Seconds(); u.Seconds += quiet.Count.Seconds() {
		r, err := w.tell(ctx, order{Server: s.name, Flood: &floodOrder{transferOrder: quiet, At: s.login.At, Packets: floodRate}})
		if err != nil {
			return s.blame(err)
		}
		u.add(r.Flooded)
		all.Sent += r.Transferred.Sent
		all.Delivered += r.Transferred.Delivered + r.Transferred.Late
		all.Took += r.Transferred.Took
		all.CPU += r.Transferred.CPU
		now, err := s.memory()
		if err != nil {
			return err
		}
		u.Growth = max(u.Growth, now-u.Memory)
	}
	u.Worst, u.Factor = u.worst()
	u.CPU = all.CPU.Seconds() / all.Took.Seconds()
	u.Offered = all.offered() / quiet.Rate
	u.Kept = (1 - all.loss()) / max(1-before.loss(), enough)
	return nil
}
