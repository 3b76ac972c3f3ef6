// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/internal/child"
)

// measure measures one way once: a TCP stream, then datagrams.
func (y *way) measure(ctx context.Context, w *world, o options, r *report) error {
	to := netip.AddrPortFrom(y.to, w.port)
	before, err := y.cpu()
	if err != nil {
		return err
	}
	begin := time.Now()
	_, got, err := w.transfer(ctx, y.from, order{To: to, Warm: o.warm, Count: o.count})
	if err != nil {
		return err
	}
	after, err := y.cpu()
	if err != nil {
		return err
	}
	carried := got.Rate / 8 * time.Since(begin).Seconds() // bytes, nearly
	sent, arrived, err := w.transfer(ctx, y.from, order{UDP: true, To: to, Count: o.count, Rate: o.datagrams})
	if err != nil {
		return err
	}
	rss, err := y.rss()
	if err != nil {
		return err
	}
	r.add(y.name, one{
		rate: got.Rate / 1e6, cpu: (after - before).Seconds() / (carried / 1e9),
		loss: 1 - float64(arrived.Datagrams)/float64(max(sent.Datagrams, 1)), sent: sent.Rate / 1e6, rss: float64(rss) / 1e6,
	})
	return nil
}

// transfer has the right side receive what from sends.
func (w *world) transfer(ctx context.Context, from *child.Process, o order) (sent, arrived outcome, err error) {
	receive := o
	receive.Receive = true
	if err := w.right.Send(receive); err != nil {
		return sent, arrived, err
	}
	if err := from.Send(o); err != nil {
		return sent, arrived, err
	}
	if err := from.Receive(ctx, &sent); err != nil {
		return sent, arrived, err
	}
	if sent.Error != "" {
		return sent, arrived, errors.New(sent.Error)
	}
	if err := w.right.Receive(ctx, &arrived); err != nil {
		return sent, arrived, err
	}
	if arrived.Error != "" {
		return sent, arrived, errors.New(arrived.Error)
	}
	return sent, arrived, nil
}

// cpu is what all tunnels of the way have used.
func (y *way) cpu() (sum time.Duration, err error) {
	for _, p := range y.tunnels {
		d, err := child.CPU(p)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// rss is what the larger of the two tunnels holds resident.
func (y *way) rss() (most int64, err error) {
	for _, p := range y.tunnels {
		now, _, err := child.RSS(p)
		if err != nil {
			return 0, err
		}
		most = max(most, now)
	}
	return most, nil
}
