// SPDX-License-Identifier: Apache-2.0

// Package store is the contract of the replicated key/value state: the only
// path by which the state of a mesh changes.
//
// Every change is a Batch, applied as a whole or not at all, and moves the
// state to a new version. A version is a number that only grows; it names the
// same state on every replica and after every restart.
//
// store/storetest has an in-memory implementation and the conformance suite
// that every implementation passes.
package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
	"unicode/utf8"
)

// Errors of every implementation. More may be wrapped around them.
var (
	// ErrNotFound says that the key does not exist.
	ErrNotFound = errors.New("key not found")
	// ErrConflict says that a condition of the batch does not hold. Nothing
	// was changed; read again and decide again.
	ErrConflict = errors.New("conflicting change")
	// ErrNotLeader says that another replica takes changes and linearizable
	// reads; it comes as a *NotLeaderError. Nothing was changed.
	ErrNotLeader = errors.New("not the leader")
	// ErrUncertain says that it is unknown whether the batch was or will be
	// applied: the answer did not arrive. Only a read can tell.
	ErrUncertain = errors.New("outcome unknown")
	// ErrCompacted says that a watch asked for changes that are no longer
	// kept. List again and watch from the version of that list.
	ErrCompacted = errors.New("changes no longer kept")
	// ErrInvalid says that a batch can never be accepted.
	ErrInvalid = errors.New("invalid batch")
	// ErrFull says that there is no room for the change; reads go on.
	ErrFull = errors.New("no space left for changes")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("store is closed")
)

// NotLeaderError is an ErrNotLeader that knows who leads.
type NotLeaderError struct {
	// Leader is the id of the leading replica; empty while there is none.
	Leader string
}

// Error names the leader.
func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return ErrNotLeader.Error() + ": no leader is known"
	}
	return fmt.Sprintf("%v: %q is", ErrNotLeader, e.Leader)
}

// Is makes errors.Is(err, ErrNotLeader) true.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// Store is a replicated, ordered map of keys to values. All methods may be
// called by many goroutines at a time.
type Store interface {
	// Get returns the entry of a key as this replica knows it, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)

	// List returns the entries whose keys start with prefix, in byte order of
	// their keys, and the version of the state that they were read from. The
	// empty prefix lists everything.
	List(ctx context.Context, prefix string) ([]Entry, uint64, error)

	// Page returns the first entries, limit of them or fewer, of those whose
	// keys start with prefix and come after the key after in byte order, and
	// the version of the state that they were read from. An empty after begins
	// at the first; limit is 1 or more. Fewer than limit entries are the last.
	Page(ctx context.Context, prefix, after string, limit int) ([]Entry, uint64, error)

	// Apply makes the batch happen as a whole and returns the version of the
	// state after it. When it returns nil, the change is durable and visible
	// to Get, List and Watch of this replica. A batch that changes nothing,
	// such as the removal of an absent key, makes no new version.
	//
	// With ErrConflict it returns the version at which the batch was refused.
	// When ctx ends first the error wraps both its cause and ErrUncertain.
	Apply(ctx context.Context, batch Batch) (uint64, error)

	// Watch yields every change after the version after that touches keys
	// starting with prefix: in order, each once, each whole batch as one
	// Change. It ends with an error, which is ctx's own, ErrCompacted when
	// the reader was too slow or the version is too old, or ErrClosed. A slow
	// reader holds up nobody.
	Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[Change, error]

	// Sync returns once this replica holds every change that was acknowledged
	// to anyone before the call: a Get, List or Version after it is
	// linearizable. It waits while there is no leader.
	Sync(ctx context.Context) error
}

// Entry is a key with its value.
type Entry struct {
	Key string
	// Value is shared with other readers: nobody changes it.
	Value []byte
	// Version is the version of the state that wrote the entry; never 0.
	Version uint64
	// ExpiresAt is when the entry is to be removed; zero is never. The entry
	// stays visible until its removal is a change of the state like any other.
	ExpiresAt time.Time
}

// Change is what one batch did to the keys of a watch.
type Change struct {
	// Version is the version of the state after the batch.
	Version uint64
	// Events are in the order of the batch's operations; never empty.
	Events []Event
}

// Event is what happened to one key.
type Event struct {
	// Entry is the entry as written. Of a removal it has the key and the
	// version only.
	Entry
	// Deleted is true for a removal, by an operation or because of its age.
	Deleted bool
}

// Batch is a change: if every condition holds, all operations happen in
// order; else none does.
type Batch struct {
	If  []Condition
	Ops []Op
}

// Condition is what a batch expects of a key before its first operation.
type Condition struct {
	Key string
	// Version is the Version of the key's Entry; 0 when it must not exist.
	Version uint64
}

// Op writes or removes one key.
type Op struct {
	Key   string
	Value []byte
	// TTL is how long the value lives; 0 is for ever.
	TTL time.Duration
	// Delete removes the key; that it does not exist is no error. Value and
	// TTL must be empty then.
	Delete bool
}

// Limits of a batch.
const (
	// MaxKey is the longest key, in bytes.
	MaxKey = 4 << 10
	// MaxOps is the largest number of operations and of conditions of a batch.
	MaxOps = 1 << 14
	// MaxBatch is the largest sum of the sizes of a batch's keys and values,
	// in bytes.
	MaxBatch = 4 << 20
	// MaxTTL is the longest time to live.
	MaxTTL = 100 * 365 * 24 * time.Hour
)

// Validate says whether the batch may be given to Apply; the error wraps
// ErrInvalid.
func (b Batch) Validate() error {
	if len(b.Ops) == 0 {
		return fmt.Errorf("%w: it has no operations", ErrInvalid)
	}
	if len(b.Ops) > MaxOps || len(b.If) > MaxOps {
		return fmt.Errorf("%w: it has more than %d operations or conditions", ErrInvalid, MaxOps)
	}
	size := 0
	for _, c := range b.If {
		if err := ValidateKey(c.Key); err != nil {
			return err
		}
		size += len(c.Key)
	}
	for _, op := range b.Ops {
		if err := op.validate(); err != nil {
			return err
		}
		size += len(op.Key) + len(op.Value)
	}
	if size > MaxBatch {
		return fmt.Errorf("%w: its keys and values have %d bytes, the most is %d", ErrInvalid, size, MaxBatch)
	}
	return nil
}

func (op Op) validate() error {
	if err := ValidateKey(op.Key); err != nil {
		return err
	}
	switch {
	case op.Delete && (len(op.Value) > 0 || op.TTL != 0):
		return fmt.Errorf("%w: removal of key %q has a value or a time to live", ErrInvalid, op.Key)
	case op.TTL < 0 || op.TTL > MaxTTL:
		return fmt.Errorf("%w: time to live %v of key %q is not between 0 and %v", ErrInvalid, op.TTL, op.Key, MaxTTL)
	}
	return nil
}

// ValidateKey says whether a state may hold the key; the error wraps ErrInvalid.
func ValidateKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: a key is empty", ErrInvalid)
	case len(key) > MaxKey:
		return fmt.Errorf("%w: a key has %d bytes, the most is %d", ErrInvalid, len(key), MaxKey)
	case !utf8.ValidString(key) || strings.ContainsRune(key, 0):
		return fmt.Errorf("%w: key %q is no text", ErrInvalid, key)
	}
	return nil
}
