// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

// inForce is the snapshot that the data plane follows. The zero value is ready.
type inForce struct {
	mu      sync.Mutex     // guards the fields below
	latest  *mesh.Snapshot // nil before the first
	changed chan struct{}  // closed and replaced at every set; nil while nobody waits
}

func (f *inForce) set(s *mesh.Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.latest = s
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// wait blocks until the data plane follows a snapshot with at least version, or
// ctx ends.
func (f *inForce) wait(ctx context.Context, version uint64) error {
	for {
		f.mu.Lock()
		if f.latest != nil && f.latest.Version >= version {
			f.mu.Unlock()
			return nil
		}
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
