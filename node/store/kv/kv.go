// SPDX-License-Identifier: Apache-2.0

// Package kv is the state machine behind every store that keeps its state in
// memory: an ordered map whose changes have versions, times to live and
// watchers.
//
// The machine is deterministic: it reads no clock, and two machines that were
// given the same commands are equal. Its owner, a raft log or a lock, decides
// the order of the commands and the time that each one carries.
package kv

import (
	"context"
	"fmt"
	"iter"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/google/btree"

	"github.com/meshgate/meshgate/node/store"
)

// degree of the B-trees; 32 keeps a node of entries within a few cache lines
// per step of the search.
const degree = 32

// State is the ordered map. Commands come from one goroutine at a time; reads
// and watches may run beside them. New makes one.
type State struct {
	mu      sync.RWMutex // guards the fields below
	entries *btree.BTreeG[store.Entry]
	leases  *btree.BTreeG[lease]
	version uint64
	history history
	closed  bool
	// changed is closed and replaced when there are new versions, and at the end.
	changed chan struct{}
	waits   waits
	// expiry is closed and replaced when the earliest lease may be another one.
	expiry chan struct{}
}

// lease orders the entries with a time to live by their end.
type lease struct {
	at  time.Time
	key string
}

// New returns an empty state at version 0.
func New() *State {
	s := &State{changed: make(chan struct{}), expiry: make(chan struct{})}
	s.clearLocked()
	return s
}

func (s *State) clearLocked() {
	s.entries = btree.NewG(degree, func(a, b store.Entry) bool { return a.Key < b.Key })
	s.leases = btree.NewG(degree, func(a, b lease) bool {
		if c := a.at.Compare(b.at); c != 0 {
			return c < 0
		}
		return a.key < b.key
	})
}

// Apply makes the batch happen at the given version and time, unless a
// condition fails with store.ErrConflict. It returns the version of the state
// afterwards, which is the given one if anything changed. The batch is valid
// and its values belong to the state from now on. Versions only grow.
func (s *State) Apply(version uint64, now time.Time, b store.Batch) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.tellLocked(s.version)
	return s.applyLocked(version, now, b)
}

// Expire removes every entry whose time to live has passed at now, as one
// change at the given version, and returns the version of the state after it.
func (s *State) Expire(version uint64, now time.Time) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.tellLocked(s.version)
	return s.expireLocked(version, now)
}

// Command is an Apply, or an Expire, at a version and time.
type Command struct {
	Version uint64
	At      time.Time
	Batch   store.Batch
	// Expire makes it an Expire; Batch is not looked at.
	Expire bool
}

// Result is what a command returned.
type Result struct {
	Version uint64
	Err     error
}

// Do makes commands happen, one after the other, and wakes readers and watchers
// once, after the last: they see all of them or none. It appends what each
// returned to results, in the same order.
func (s *State) Do(commands []Command, results []Result) []Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.tellLocked(s.version)
	for _, c := range commands {
		var r Result
		if c.Expire {
			r.Version = s.expireLocked(c.Version, c.At)
		} else {
			r.Version, r.Err = s.applyLocked(c.Version, c.At, c.Batch)
		}
		results = append(results, r)
	}
	return results
}

func (s *State) applyLocked(version uint64, now time.Time, b store.Batch) (uint64, error) {
	for _, c := range b.If {
		if e, _ := s.entries.Get(store.Entry{Key: c.Key}); e.Version != c.Version {
			return s.version, fmt.Errorf("%w: key %q has version %d, not %d", store.ErrConflict, c.Key, e.Version, c.Version)
		}
	}
	events := make([]store.Event, 0, len(b.Ops))
	for _, op := range b.Ops {
		if op.Delete {
			events = s.deleteLocked(events, op.Key, version)
		} else {
			events = append(events, s.putLocked(op, version, now))
		}
	}
	s.publishLocked(version, events)
	return s.version, nil
}

func (s *State) expireLocked(version uint64, now time.Time) uint64 {
	var keys []string
	s.leases.Ascend(func(l lease) bool {
		if l.at.After(now) {
			return false
		}
		keys = append(keys, l.key)
		return true
	})
	var events []store.Event
	for _, key := range keys {
		events = s.deleteLocked(events, key, version)
	}
	s.publishLocked(version, events)
	return s.version
}

func (s *State) putLocked(op store.Op, version uint64, now time.Time) store.Event {
	e := store.Entry{Key: op.Key, Value: op.Value, Version: version}
	if len(e.Value) == 0 {
		e.Value = nil // as it comes out of every encoding
	}
	if op.TTL > 0 {
		e.ExpiresAt = now.Add(op.TTL)
	}
	old, _ := s.entries.ReplaceOrInsert(e)
	s.releaseLocked(old)
	s.leaseLocked(e)
	return store.Event{Entry: e}
}

func (s *State) deleteLocked(events []store.Event, key string, version uint64) []store.Event {
	old, ok := s.entries.Delete(store.Entry{Key: key})
	if !ok {
		return events
	}
	s.releaseLocked(old)
	return append(events, store.Event{Entry: store.Entry{Key: key, Version: version}, Deleted: true})
}

func (s *State) leaseLocked(e store.Entry) {
	if e.ExpiresAt.IsZero() {
		return
	}
	s.leases.ReplaceOrInsert(lease{e.ExpiresAt, e.Key})
	if first, _ := s.leases.Min(); first.key == e.Key {
		s.expiry = renew(s.expiry)
	}
}

func (s *State) releaseLocked(e store.Entry) {
	if !e.ExpiresAt.IsZero() {
		s.leases.Delete(lease{e.ExpiresAt, e.Key})
	}
}

func (s *State) publishLocked(version uint64, events []store.Event) {
	if len(events) == 0 {
		return
	}
	s.version = version
	s.history.add(store.Change{Version: version, Events: events})
}

// tellLocked wakes who waits, if there is another version than before.
func (s *State) tellLocked(before uint64) {
	if s.version == before {
		return
	}
	s.changed = renew(s.changed)
	s.waits.wake(s.version)
}

// renew wakes whoever waits for c and returns a channel for the next time.
func renew(c chan struct{}) chan struct{} {
	close(c)
	return make(chan struct{})
}

// Get returns the entry of a key, or store.ErrNotFound.
func (s *State) Get(key string) (store.Entry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return store.Entry{}, store.ErrClosed
	}
	e, ok := s.entries.Get(store.Entry{Key: key})
	if !ok {
		return store.Entry{}, fmt.Errorf("%w: %q", store.ErrNotFound, key)
	}
	return e, nil
}

// List returns the entries whose keys start with prefix, in order, and the
// version of the state.
func (s *State) List(prefix string) ([]store.Entry, uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, 0, store.ErrClosed
	}
	var list []store.Entry
	s.entries.AscendGreaterOrEqual(store.Entry{Key: prefix}, func(e store.Entry) bool {
		if !strings.HasPrefix(e.Key, prefix) {
			return false
		}
		list = append(list, e)
		return true
	})
	return list, s.version, nil
}

// Watch is store.Store.Watch.
func (s *State) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		after := after // each use of the iterator starts anew
		for {
			changes, changed, err := s.since(after)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(store.Change{}, err)
				return
			}
			for _, c := range changes {
				after = c.Version
				if c = touching(c, prefix); len(c.Events) > 0 && !yield(c, nil) {
					return
				}
			}
			if len(changes) > 0 {
				continue // there may be more by now
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// since returns some of the changes after a version, and a channel that is
// closed when there are more.
func (s *State) since(after uint64) ([]store.Change, <-chan struct{}, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, nil, store.ErrClosed
	}
	changes, err := s.history.since(after)
	return changes, s.changed, err
}

// Wait returns once the state holds every change up to a version, or ctx's
// error, or store.ErrClosed.
func (s *State) Wait(ctx context.Context, version uint64) error {
	reached, stop := s.Reached(version)
	defer stop()
	select {
	case <-reached:
		return s.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reached returns a channel that is closed once the state holds every change up
// to a version, or when it is closed itself: Err tells. Call stop when nobody
// waits any more.
func (s *State) Reached(version uint64) (reached <-chan struct{}, stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &wait{version: version, reached: make(chan struct{})}
	if s.closed || s.version >= version {
		close(w.reached)
		return w.reached, func() {}
	}
	s.waits.add(w)
	return w.reached, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waits.remove(w)
	}
}

// Err returns store.ErrClosed after Close, else nil.
func (s *State) Err() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return store.ErrClosed
	}
	return nil
}

// touching returns the change with only the events of keys under prefix.
func touching(c store.Change, prefix string) store.Change {
	if prefix == "" {
		return c
	}
	var events []store.Event
	for _, e := range c.Events {
		if strings.HasPrefix(e.Key, prefix) {
			events = append(events, e)
		}
	}
	return store.Change{Version: c.Version, Events: events}
}

// Version returns the version of the last change.
func (s *State) Version() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.version
}

// Len returns the number of keys.
func (s *State) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entries.Len()
}

// NextExpiry returns when the earliest time to live ends, or the zero time if
// none does, and a channel that is closed when that may have changed.
func (s *State) NextExpiry() (time.Time, <-chan struct{}) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	first, _ := s.leases.Min()
	return first.at, s.expiry
}

// Freeze returns the entries of this moment, in order, and their version, at
// no cost that grows with the state. The sequence may be read beside commands.
func (s *State) Freeze() (iter.Seq[store.Entry], uint64) {
	s.mu.Lock() // not RLock: Clone marks the tree as shared
	defer s.mu.Unlock()
	frozen := s.entries.Clone()
	return func(yield func(store.Entry) bool) {
		frozen.Ascend(func(e store.Entry) bool { return yield(e) })
	}, s.version
}

// Restore replaces the state by the given entries at a version. Watchers that
// have not seen that version end with store.ErrCompacted.
func (s *State) Restore(version uint64, entries iter.Seq[store.Entry]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
	for e := range entries {
		s.entries.ReplaceOrInsert(e)
		s.leaseLocked(e)
	}
	s.version = version
	s.history = history{floor: version}
	s.changed = renew(s.changed)
	s.waits.wake(version)
	s.expiry = renew(s.expiry)
}

// Close ends all watches and reads with store.ErrClosed. It may be called
// more than once.
func (s *State) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed = renew(s.changed)
	s.waits.wake(math.MaxUint64)
}
