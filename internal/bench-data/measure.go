// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/internal/child"
)

// settleTime is how long packets may take to go the way that they have to.
const settleTime = 20 * time.Second

// measure measures one way once: a TCP stream, then datagrams.
func (y *way) measure(ctx context.Context, w *world, o options, r *report) error {
	before, err := cpu(append(y.tunnels, y.helpers...))
	if err != nil {
		return err
	}
	got, err := y.stream(ctx, w, o)
	if err != nil {
		return err
	}
	after, err := cpu(append(y.tunnels, y.helpers...))
	if err != nil {
		return err
	}
	x := one{rate: got.Rate / 1e6, cpu: (after - before).Seconds() / (float64(got.Bytes) / 1e9)}
	if !y.streams {
		sent, arrived, err := y.transfer(ctx, order{UDP: true, Count: o.count, Rate: o.datagrams})
		if err != nil {
			return err
		}
		x.loss, x.sent = 1-float64(arrived.Datagrams)/float64(max(sent.Datagrams, 1)), sent.Rate/1e6
	}
	if x.rss, x.anon, err = y.memory(); err != nil {
		return err
	}
	r.add(y.name, x)
	return nil
}

// settle waits until packets go the way that they have to: nodes that find each
// other need a moment for it.
func (y *way) settle(ctx context.Context, w *world, o options) error {
	o.warm, o.count = 0, 100*time.Millisecond
	for end := time.Now().Add(settleTime); ; {
		_, err := y.stream(ctx, w, o)
		if err == nil || !errors.Is(err, errStray) || time.Now().After(end) {
			return err
		}
	}
}

// errStray is for packets that went another way than they had to.
var errStray = errors.New("packets went another way")

// stream sends a TCP stream, and sees which way it went.
func (y *way) stream(ctx context.Context, w *world, o options) (outcome, error) {
	before, err := w.passed(ctx, y.hub)
	if err != nil {
		return outcome{}, err
	}
	_, got, err := y.transfer(ctx, order{Warm: o.warm, Count: o.count})
	if err != nil {
		return outcome{}, err
	}
	after, err := w.passed(ctx, y.hub)
	if err != nil {
		return outcome{}, err
	}
	err = y.route.check(uint64(got.Bytes), traffic{after.links - before.links, after.mesh - before.mesh})
	if err != nil && y.says != nil {
		err = fmt.Errorf("%w\n%s", err, y.says())
	}
	return got, err
}

// check says whether so many bytes went the way that they had to, by what the
// host of gateways received meanwhile. There is always a little of something
// else.
func (r route) check(carried uint64, gate traffic) error {
	little, most := carried/10, carried/10*9
	switch {
	case r == pastGate && gate.links > little, r == overRelay && gate.mesh > little:
		return fmt.Errorf("%w: of %d bytes %d passed the gateway, %d of them as packets of the mesh", errStray, carried, gate.links, gate.mesh)
	case r != pastGate && gate.links < most:
		return fmt.Errorf("%w: of %d bytes only %d passed the gateway", errStray, carried, gate.links)
	}
	return nil
}

// transfer has the receiver of the way receive what its sender sends.
func (y *way) transfer(ctx context.Context, o order) (sent, arrived outcome, err error) {
	o.To = netip.AddrPortFrom(y.to, y.at.port)
	receive := o
	receive.Receive = true
	if err := y.at.Send(receive); err != nil {
		return sent, arrived, err
	}
	if err := y.from.Send(o); err != nil {
		return sent, arrived, err
	}
	if err := y.from.Receive(ctx, &sent); err != nil {
		return sent, arrived, err
	}
	if sent.Error != "" {
		return sent, arrived, errors.New(sent.Error)
	}
	if err := y.at.Receive(ctx, &arrived); err != nil {
		return sent, arrived, err
	}
	if arrived.Error != "" {
		return sent, arrived, errors.New(arrived.Error)
	}
	return sent, arrived, nil
}

// cpu is what processes have used together.
func cpu(processes []int) (sum time.Duration, err error) {
	for _, p := range processes {
		d, err := child.CPU(p)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// memory is what the larger of the two tunnels holds resident, in MB: all, and
// what is no file.
func (y *way) memory() (rss, anon float64, err error) {
	for _, p := range y.tunnels {
		all, _, err := child.RSS(p)
		if err != nil {
			return 0, 0, err
		}
		own, err := child.Anonymous(p)
		if err != nil {
			return 0, 0, err
		}
		if now := float64(all) / 1e6; now > rss {
			rss, anon = now, float64(own)/1e6
		}
	}
	return rss, anon, nil
}
