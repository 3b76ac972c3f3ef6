// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// ErrMalformed says that a message is not what the contract of a store could
// have made.
var ErrMalformed = errors.New("malformed message")

// BatchToProto returns a batch as it travels. Values are shared.
func BatchToProto(b Batch) *v1.RaftBatch {
	p := &v1.RaftBatch{}
	for _, c := range b.If {
		p.Conditions = append(p.Conditions, &v1.RaftCondition{Key: c.Key, Version: c.Version})
	}
	for _, op := range b.Ops {
		m := &v1.RaftOperation{Key: op.Key, Value: op.Value, Delete: op.Delete}
		if op.TTL != 0 {
			m.Ttl = durationpb.New(op.TTL)
		}
		p.Operations = append(p.Operations, m)
	}
	return p
}

// BatchFromProto is the reverse of BatchToProto. What it returns was not
// validated; a time to live that is none comes out as one that Validate refuses.
func BatchFromProto(p *v1.RaftBatch) Batch {
	var b Batch
	for _, c := range p.GetConditions() {
		b.If = append(b.If, Condition{Key: c.GetKey(), Version: c.GetVersion()})
	}
	for _, op := range p.GetOperations() {
		ttl := op.GetTtl().AsDuration()
		if op.GetTtl() != nil && op.GetTtl().CheckValid() != nil {
			ttl = -1
		}
		b.Ops = append(b.Ops, Op{Key: op.GetKey(), Value: op.GetValue(), TTL: ttl, Delete: op.GetDelete()})
	}
	return b
}

// EntryToProto returns an entry as it travels. The value is shared.
func EntryToProto(e Entry) *meshgatev1.StoreEntry {
	return &meshgatev1.StoreEntry{Key: e.Key, Value: e.Value, Version: e.Version, ExpiresAt: instant(e.ExpiresAt)}
}

// EntryFromProto is the reverse of EntryToProto; its error wraps ErrMalformed.
func EntryFromProto(p *meshgatev1.StoreEntry) (Entry, error) {
	e, err := entryOf(p.GetKey(), p.GetValue(), p.GetVersion(), p.GetExpiresAt())
	if err != nil {
		return Entry{}, fmt.Errorf("%w: entry: %w", ErrMalformed, err)
	}
	return e, nil
}

// EventToProto returns an event as it travels, without the version, which is
// that of its change. The value is shared.
func EventToProto(e Event) *meshgatev1.StoreEvent {
	return &meshgatev1.StoreEvent{Key: e.Key, Value: e.Value, ExpiresAt: instant(e.ExpiresAt), Deleted: e.Deleted}
}

// EventFromProto is the reverse of EventToProto, for an event of the change of
// that version; its error wraps ErrMalformed.
func EventFromProto(p *meshgatev1.StoreEvent, version uint64) (Event, error) {
	e, err := entryOf(p.GetKey(), p.GetValue(), version, p.GetExpiresAt())
	if err == nil && p.GetDeleted() && (len(e.Value) > 0 || !e.ExpiresAt.IsZero()) {
		err = fmt.Errorf("removal of key %q has a value or an end", e.Key)
	}
	if err != nil {
		return Event{}, fmt.Errorf("%w: event: %w", ErrMalformed, err)
	}
	return Event{Entry: e, Deleted: p.GetDeleted()}, nil
}

func entryOf(key string, value []byte, version uint64, end *timestamppb.Timestamp) (Entry, error) {
	if err := ValidateKey(key); err != nil {
		return Entry{}, err
	}
	if version == 0 {
		return Entry{}, fmt.Errorf("key %q has no version", key)
	}
	e := Entry{Key: key, Value: value, Version: version}
	if len(value) == 0 {
		e.Value = nil
	}
	if end != nil {
		if err := end.CheckValid(); err != nil {
			return Entry{}, fmt.Errorf("end of key %q: %w", key, err)
		}
		if e.ExpiresAt = end.AsTime(); e.ExpiresAt.IsZero() {
			return Entry{}, fmt.Errorf("end of key %q: it is the zero time, which stands for none", key)
		}
	}
	return e, nil
}

func instant(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// faultKind pairs an error with its kind on the wire.
type faultKind struct {
	err  error
	kind meshgatev1.StoreFault_Kind
}

// faultKinds are the errors of the contract. What is uncertain comes first:
// whatever else is wrapped beside it, the batch may have been applied.
func faultKinds() []faultKind {
	return []faultKind{
		{ErrUncertain, meshgatev1.StoreFault_KIND_UNCERTAIN},
		{ErrNotFound, meshgatev1.StoreFault_KIND_NOT_FOUND},
		{ErrConflict, meshgatev1.StoreFault_KIND_CONFLICT},
		{ErrNotLeader, meshgatev1.StoreFault_KIND_NOT_LEADER},
		{ErrCompacted, meshgatev1.StoreFault_KIND_COMPACTED},
		{ErrInvalid, meshgatev1.StoreFault_KIND_INVALID},
		{ErrFull, meshgatev1.StoreFault_KIND_FULL},
		{ErrClosed, meshgatev1.StoreFault_KIND_CLOSED},
	}
}

// FaultToProto returns an error of a store as it travels, with the version of
// the state that gave it, or nil for an error that is none of the contract's.
func FaultToProto(err error, version uint64) *meshgatev1.StoreFault {
	for _, f := range faultKinds() {
		if errors.Is(err, f.err) {
			p := &meshgatev1.StoreFault{Kind: f.kind, Version: version}
			var other *NotLeaderError
			if errors.As(err, &other) {
				p.Leader = other.Leader
			}
			return p
		}
	}
	return nil
}

// FaultFromProto is the reverse of FaultToProto: the error of the contract, or
// nil for a kind that has none.
func FaultFromProto(p *meshgatev1.StoreFault) error {
	if p.GetKind() == meshgatev1.StoreFault_KIND_NOT_LEADER {
		return &NotLeaderError{Leader: p.GetLeader()}
	}
	for _, f := range faultKinds() {
		if p.GetKind() == f.kind {
			return f.err
		}
	}
	return nil
}
