// SPDX-License-Identifier: Apache-2.0

package kv

import (
	"strings"

	"github.com/meshgate/meshgate/node/store"
)

// Page is store.Store.Page.
func (s *State) Page(prefix, after string, limit int) ([]store.Entry, uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, 0, store.ErrClosed
	}
	var page []store.Entry
	s.entries.AscendGreaterOrEqual(store.Entry{Key: max(prefix, after)}, func(e store.Entry) bool {
		if len(page) >= limit || !strings.HasPrefix(e.Key, prefix) {
			return false
		}
		if e.Key != after {
			page = append(page, e)
		}
		return true
	})
	return page, s.version, nil
}
