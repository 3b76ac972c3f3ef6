// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/meshgate/meshgate/internal/sample"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// subscribers times how long it takes until the last of many subscribers has a
// change that concerns all of them: another DNS server, for which each plan
// changes a little, and a network ACL, after which each plan is made anew.
func (w *world) subscribers(ctx context.Context, o options, r *report) error {
	n := min(o.subscribers, w.size)
	all := ctx
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	seen := make(chan changes, n)
	failed := make(chan error, n)
	// More at once would open a connection each.
	opening := make(chan struct{}, batch)
	for i := range n {
		wg.Go(func() {
			if err := w.subscribe(ctx, nodeName(i), opening, seen); err != nil {
				failed <- err
			}
		})
	}
	var have changes
	wait := func() error {
		slow := time.NewTimer(tooSlow)
		defer slow.Stop()
		for got := 0; got < n; {
			select {
			case c := <-seen:
				if c == have {
					got++
				}
			case err := <-failed:
				return err
			case <-slow.C:
				return errTooSlow
			case <-ctx.Done():
				return fmt.Errorf("%d of %d subscribers were told: %w", got, n, ctx.Err())
			}
		}
		return nil
	}
	late := wait() // a gateway that is too slow for the first is for the others
	if late != nil && !errors.Is(late, errTooSlow) {
		return late
	}
	for _, kind := range []struct {
		name string
		made *int
		make func(ctx context.Context, i int) error
	}{
		{changeServer, &have.servers, w.addServer}, {changeACL, &have.acls, w.addACL},
	} {
		f := fanOut{Shape: w.shape, Change: kind.name, Nodes: w.size + 1, Subscribers: n}
		before, err := w.gateway.CPU()
		if err != nil {
			return err
		}
		var took []float64
		if late != nil {
			took = append(took, tooSlow.Seconds()*milliseconds)
		}
		for i := 0; i < o.changes && late == nil; i++ {
			start := time.Now()
			*kind.made++
			if err := kind.make(ctx, i); err != nil {
				return fmt.Errorf("%s %d: %w", kind.name, i, err)
			}
			if late = wait(); late != nil && !errors.Is(late, errTooSlow) {
				return fmt.Errorf("%s %d: %w", kind.name, i, late)
			}
			took = append(took, time.Since(start).Seconds()*milliseconds)
		}
		f.P50, f.Most = sample.Median(took), slices.Max(took)
		after, err := w.gateway.CPU()
		if err != nil {
			return err
		}
		f.CPU = (after - before).Seconds() * milliseconds / float64(len(took))
		if f.RSS, _, err = w.gateway.RSS(); err != nil {
			return err
		}
		r.FanOuts = append(r.FanOuts, f)
	}
	cancel()
	return w.undo(all, have)
}

// tooSlow is when the last subscriber is not waited for any longer: nothing
// that takes so much is measured again.
const tooSlow = 30 * time.Second

var errTooSlow = errors.New("the subscribers were not told in time")

// undo takes changes back.
func (w *world) undo(ctx context.Context, made changes) error {
	for i := range made.servers {
		id := nodeName(w.size + i)
		if _, err := w.api.membership.Leave(ctx, as(id, &v1.LeaveRequest{Id: id})); err != nil {
			return fmt.Errorf("leave of %s: %w", id, err)
		}
	}
	for i := range made.acls {
		if _, err := w.api.admin.DeleteNetworkACL(ctx, as(admin, &v1.NetworkACL{Name: aclPrefix + strconv.Itoa(i)})); err != nil {
			return fmt.Errorf("remove a network ACL: %w", err)
		}
	}
	return nil
}

// Names of changes.
const (
	changeServer = "DNS server"
	changeACL    = "network ACL"
	aclPrefix    = "change-"
)

// changes counts those that were made.
type changes struct{ servers, acls int }

func (w *world) addServer(ctx context.Context, i int) error {
	req, err := w.request(ctx, w.size+i, &v1.FeaturePort{Feature: v1.Feature_MESH_DNS, Port: 53})
	if err != nil {
		return err
	}
	_, err = w.api.membership.Join(ctx, as(admin, req)) // to serve names takes a role
	return err
}

func (w *world) addACL(ctx context.Context, i int) error {
	_, err := w.api.admin.PutNetworkACL(ctx, as(admin, &v1.NetworkACL{
		Name: aclPrefix + strconv.Itoa(i), Priority: int32(100 + i), Action: v1.ACLAction_ACTION_ACCEPT,
		SourceNodes: []string{"*"}, DestinationNodes: []string{"*"},
	}))
	return err
}

// subscribe tells of each change that comes, until ctx ends. It has a place in
// opening until the first one.
func (w *world) subscribe(ctx context.Context, id string, opening chan struct{}, seen chan<- changes) error {
	opening <- struct{}{}
	leave := sync.OnceFunc(func() { <-opening })
	defer leave()
	stream, err := w.api.membership.SubscribePeers(ctx, as(id, &v1.SubscribePeersRequest{Id: id}))
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", id, err)
	}
	defer func() { _ = stream.Close() }()
	last := changes{-1, -1}
	for stream.Receive() {
		leave()
		now := changes{servers: len(stream.Msg().GetDnsServers())}
		for _, acl := range stream.Msg().GetNetworkAcls() {
			if strings.HasPrefix(acl.GetName(), aclPrefix) {
				now.acls++
			}
		}
		if now == last {
			continue
		}
		last = now
		select {
		case seen <- now:
		case <-ctx.Done():
			return nil
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("subscription of %s ended: %w", id, errors.Join(stream.Err()))
}
