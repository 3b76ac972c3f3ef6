// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// laggingNode knows an old state until it is asked for all that was acknowledged.
type laggingNode struct {
	*stateNode
	known atomic.Pointer[mesh.Snapshot]
	asked atomic.Int32
}

func (n *laggingNode) Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	if s := n.known.Load(); s != nil && s.Version > after {
		return s, nil
	}
	return n.stateNode.Wait(ctx, after)
}

func (n *laggingNode) Sync(ctx context.Context) (*mesh.Snapshot, error) {
	n.asked.Add(1)
	n.known.Store(nil)
	return n.stateNode.Sync(ctx)
}

// lag makes the node know nothing of what change does.
func (n *laggingNode) lag(change func()) {
	n.known.Store(n.registry.Snapshot())
	change()
}

func serveLagging(t *testing.T) (*served, *laggingNode) {
	n := &laggingNode{stateNode: newStateNode(t)}
	return serve(t, func(c *Config) { c.Node = n }), n
}

func (n *laggingNode) value(t *testing.T, key string) string {
	t.Helper()
	e, err := n.keys.Get(t.Context(), key)
	if errors.Is(err, store.ErrNotFound) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(e.Value)
}

// A key is published by what the gateway knows, without a question to the others,
// and never by what is no longer so.
func TestPublish_IsDecidedByWhatHoldsWhenItIsWritten(t *testing.T) {
	may := func(keys ...string) mesh.Rule {
		return allow(v1.RuleResource_RESOURCE_PUBSUB, v1.RuleVerb_VERB_PUT, keys...)
	}
	for name, tt := range map[string]struct {
		before, meanwhile []mesh.Rule // what the caller may do; the last at another gateway
		want              connect.Code
		asked             int32
	}{
		"nothing changed":    {before: []mesh.Rule{may("app")}, want: codeOK},
		"taken elsewhere":    {before: []mesh.Rule{may("app")}, meanwhile: []mesh.Rule{may("other")}, want: connect.CodePermissionDenied, asked: 1},
		"given elsewhere":    {before: []mesh.Rule{may("other")}, meanwhile: []mesh.Rule{may("app")}, want: codeOK, asked: 1},
		"another change":     {before: []mesh.Rule{may("app")}, meanwhile: []mesh.Rule{may("app"), may("more")}, want: codeOK, asked: 1},
		"never allowed":      {before: []mesh.Rule{may("other")}, want: connect.CodePermissionDenied, asked: 1},
		"taken in two steps": {before: []mesh.Rule{may("app"), may("b")}, meanwhile: []mesh.Rule{may("b")}, want: connect.CodePermissionDenied, asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s, n := serveLagging(t)
			n.grant(t, "viewer", tt.before...)
			n.lag(func() {
				if tt.meanwhile != nil {
					n.grant(t, "viewer", tt.meanwhile...)
				}
			})
			asked := n.asked.Load()
			err := s.as(t, "viewer", v1connect.StorageQueryServicePublishProcedure, &v1.PublishRequest{Key: "app", Value: "x"})
			wantCode(t, err, tt.want, "")
			if got := n.asked.Load() - asked; got != tt.asked {
				t.Errorf("the others were asked %d times, want %d", got, tt.asked)
			}
			want := map[bool]string{true: "x"}[tt.want == codeOK]
			if got := n.value(t, "app"); got != want {
				t.Errorf("the key is %q, want %q", got, want)
			}
		})
	}
}

// While the mesh changes all the time, what the gateway knows is not tried: each
// try is an entry of the log.
func TestPublish_AsksAtOnceAfterAConflict(t *testing.T) {
	s, n := serveLagging(t)
	publish := func() {
		wantCode(t, s.as(t, "admin", v1connect.StorageQueryServicePublishProcedure, &v1.PublishRequest{Key: "app", Value: "x"}), codeOK, "")
	}
	n.lag(func() { n.grant(t, "viewer", allow(v1.RuleResource_RESOURCE_EDGES, v1.RuleVerb_VERB_GET)) })
	publish()
	publish()
	if got := n.asked.Load(); got != 2 {
		t.Errorf("the others were asked %d times, want 2", got)
	}
	s.quiet.Store(0)
	publish()
	if got := n.asked.Load(); got != 2 {
		t.Errorf("after the pause: the others were asked %d times, want 2", got)
	}
}

// vagueNode writes, but does not know it.
type vagueNode struct {
	*stateNode
	published atomic.Int32
}

func (n *vagueNode) Publish(context.Context, string, []byte, time.Duration, *mesh.Snapshot) error {
	n.published.Add(1)
	return fmt.Errorf("publish: %w: %w", store.ErrUncertain, context.DeadlineExceeded)
}

// What may have been written is not written again: others may have changed it
// meanwhile.
func TestPublish_IsNotRepeatedWhenNobodyKnows(t *testing.T) {
	n := &vagueNode{stateNode: newStateNode(t)}
	s := serve(t, func(c *Config) { c.Node = n })
	if err := s.as(t, "admin", v1connect.StorageQueryServicePublishProcedure, &v1.PublishRequest{Key: "app", Value: "x"}); err == nil {
		t.Error("no error")
	}
	if got := n.published.Load(); got != 1 {
		t.Errorf("published %d times", got)
	}
}
