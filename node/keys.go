// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
)

// The methods below are for raw keys of the replicated state. They know of no
// reserved keys: who calls them decides what may be read and written. A node
// that holds no state returns an error that wraps mesh.ErrUnsupported.

// Key returns the item of a key as this node knows it, or mesh.ErrNotFound.
func (n *Node) Key(ctx context.Context, key string) (mesh.Item, error) {
	if n.store == nil {
		return mesh.Item{}, errNoState
	}
	return StoredKeys{n.store}.Key(ctx, key)
}

// Keys returns, in byte order, the first items, limit of them or fewer, whose
// keys start with prefix and come after the key after; see store.Store.Page.
func (n *Node) Keys(ctx context.Context, prefix, after string, limit int) ([]mesh.Item, error) {
	if n.store == nil {
		return nil, errNoState
	}
	return StoredKeys{n.store}.Keys(ctx, prefix, after, limit)
}

// StoredKeys reads the keys of a store as a Node does.
type StoredKeys struct{ Store store.Store }

// Key is Node.Key.
func (k StoredKeys) Key(ctx context.Context, key string) (mesh.Item, error) {
	e, err := k.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return mesh.Item{}, fmt.Errorf("%w: no key %q", mesh.ErrNotFound, key)
	}
	if err != nil {
		return mesh.Item{}, registry.Translate(err)
	}
	return itemOf(e), nil
}

// Keys is Node.Keys.
func (k StoredKeys) Keys(ctx context.Context, prefix, after string, limit int) ([]mesh.Item, error) {
	entries, _, err := k.Store.Page(ctx, prefix, after, limit)
	if err != nil {
		return nil, registry.Translate(err)
	}
	items := make([]mesh.Item, len(entries))
	for i, e := range entries {
		items[i] = itemOf(e)
	}
	return items, nil
}

// Publish writes a key. A ttl of 0 is for ever. If guard is not nil, and the
// registry is not as in guard any more, nothing is written and the error wraps
// store.ErrConflict; and without a leader it waits no longer than Sync.
func (n *Node) Publish(ctx context.Context, key string, value []byte, ttl time.Duration, guard *mesh.Snapshot) error {
	if n.store == nil {
		return errNoState
	}
	b := store.Batch{Ops: []store.Op{{Key: key, Value: value, TTL: ttl}}}
	if guard != nil {
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, syncTimeout, errNoLeader)
		defer cancel()
		b.If = []store.Condition{registry.Unchanged(guard)}
	}
	_, err := n.store.Apply(ctx, b)
	if err != nil {
		if errors.Is(context.Cause(ctx), errNoLeader) && !errors.Is(err, store.ErrUncertain) {
			return errNoLeader
		}
		return fmt.Errorf("publish %q: %w", key, registry.Translate(err))
	}
	return nil
}

// WatchKeys yields every change to keys that start with prefix, from the call
// on. It ends with an error: that of ctx, or mesh.ErrExhausted when the reader
// was so slow that changes were forgotten. A slow reader holds up nobody.
func (n *Node) WatchKeys(ctx context.Context, prefix string) (iter.Seq2[mesh.Item, error], error) {
	if n.store == nil {
		return nil, errNoState
	}
	_, version, err := n.store.Page(ctx, prefix, "", 1)
	if err != nil {
		return nil, registry.Translate(err)
	}
	return func(yield func(mesh.Item, error) bool) {
		for change, err := range n.store.Watch(ctx, prefix, version) {
			if err != nil {
				yield(mesh.Item{}, watchError(err))
				return
			}
			for _, e := range change.Events {
				item := itemOf(e.Entry)
				item.Deleted = e.Deleted
				if !yield(item, nil) {
					return
				}
			}
		}
	}, nil
}

func watchError(err error) error {
	if errors.Is(err, store.ErrCompacted) {
		return fmt.Errorf("%w: the reader was too slow and has missed changes; read the keys again and subscribe anew", mesh.ErrExhausted)
	}
	return registry.Translate(err)
}

func itemOf(e store.Entry) mesh.Item { return mesh.Item{Key: e.Key, Value: e.Value} }
