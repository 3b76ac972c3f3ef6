// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/meshgate/meshgate/internal/sample"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// subscribers times how long it takes until the last of many subscribers has a
// change that concerns all of them: a network ACL.
func (w *world) subscribers(ctx context.Context, o options, r *report) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	told := make(chan string, o.subscribers) // names of ACLs; "" for the first configuration
	failed := make(chan error, o.subscribers)
	for i := range o.subscribers {
		wg.Go(func() {
			if err := w.subscribe(ctx, nodeName(i), told); err != nil {
				failed <- err
			}
		})
	}
	wait := func(name string) error {
		for got := 0; got < o.subscribers; {
			select {
			case n := <-told:
				if n == name {
					got++
				}
			case err := <-failed:
				return err
			case <-ctx.Done():
				return fmt.Errorf("%d of %d subscribers were told: %w", got, o.subscribers, ctx.Err())
			}
		}
		return nil
	}
	if err := wait(""); err != nil {
		return err
	}
	s := fanOut{Shape: w.shape, Nodes: w.size + 1, Subscribers: o.subscribers}
	var took []float64
	for i := range o.changes {
		name := fmt.Sprintf("change-%d", i)
		start := time.Now()
		if _, err := w.api.admin.PutNetworkACL(ctx, as(admin, &v1.NetworkACL{
			Name: name, Priority: int32(100 + i), Action: v1.ACLAction_ACTION_ACCEPT,
			SourceNodes: []string{"*"}, DestinationNodes: []string{"*"},
		})); err != nil {
			return fmt.Errorf("change %d: %w", i, err)
		}
		if err := wait(name); err != nil {
			return fmt.Errorf("change %d: %w", i, err)
		}
		took = append(took, time.Since(start).Seconds()*1000)
	}
	s.P50, s.Most = sample.Median(took), slices.Max(took)
	var err error
	if s.RSS, _, err = w.gateway.RSS(); err != nil {
		return err
	}
	r.FanOuts = append(r.FanOuts, s)
	return nil
}

// subscribe tells the name of the newest ACL of each configuration that comes,
// until ctx ends.
func (w *world) subscribe(ctx context.Context, id string, told chan<- string) error {
	stream, err := w.api.membership.SubscribePeers(ctx, as(id, &v1.SubscribePeersRequest{Id: id}))
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", id, err)
	}
	defer func() { _ = stream.Close() }()
	last := ""
	for first := true; stream.Receive(); first = false {
		newest := ""
		for _, acl := range stream.Msg().GetNetworkAcls() {
			if name := acl.GetName(); len(name) > len("change-") && name[:len("change-")] == "change-" {
				newest = max(newest, name)
			}
		}
		if newest == last && !first {
			continue
		}
		last = newest
		select {
		case told <- newest:
		case <-ctx.Done():
			return nil
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("subscription of %s ended: %w", id, errors.Join(stream.Err()))
}
