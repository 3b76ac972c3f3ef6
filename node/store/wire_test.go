// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// travel encodes a message and decodes it.
func travel[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

func TestWire_RoundTrips(t *testing.T) {
	end := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	batch := store.Batch{
		If: []store.Condition{{Key: "a"}, {Key: "b", Version: 1 << 63}},
		Ops: []store.Op{
			{Key: "a", Value: []byte("\xff\x00")}, {Key: "ü", Value: []byte("v"), TTL: store.MaxTTL}, {Key: "c", Delete: true}, {Key: "d"},
		},
	}
	if diff := cmp.Diff(batch, store.BatchFromProto(travel(t, store.BatchToProto(batch)))); diff != "" {
		t.Errorf("batch (-want +got):\n%s", diff)
	}
	for _, e := range []store.Entry{
		{Key: "a", Version: 1}, {Key: "a", Value: []byte("\xff\x00"), Version: 1 << 63, ExpiresAt: end},
	} {
		got, err := store.EntryFromProto(travel(t, store.EntryToProto(e)))
		if diff := cmp.Diff(e, got); err != nil || diff != "" {
			t.Errorf("entry (-want +got): %v\n%s", err, diff)
		}
		got2, err := store.EventFromProto(travel(t, store.EventToProto(store.Event{Entry: e})), e.Version)
		if diff := cmp.Diff(store.Event{Entry: e}, got2); err != nil || diff != "" {
			t.Errorf("event (-want +got): %v\n%s", err, diff)
		}
	}
	removal := store.Event{Entry: store.Entry{Key: "a", Version: 7}, Deleted: true}
	got, err := store.EventFromProto(travel(t, store.EventToProto(removal)), 7)
	if diff := cmp.Diff(removal, got); err != nil || diff != "" {
		t.Errorf("removal (-want +got): %v\n%s", err, diff)
	}
}

func TestFault_RoundTrips(t *testing.T) {
	for _, err := range []error{
		store.ErrNotFound, store.ErrConflict, store.ErrUncertain, store.ErrCompacted, store.ErrInvalid, store.ErrFull, store.ErrClosed,
		&store.NotLeaderError{Leader: "gw-2"}, &store.NotLeaderError{},
	} {
		p := store.FaultToProto(fmt.Errorf("apply: %w", err), 7)
		if p == nil || p.GetVersion() != 7 {
			t.Fatalf("%v: fault %v", err, p)
		}
		got := store.FaultFromProto(travel(t, p))
		if !errors.Is(got, err) && got.Error() != err.Error() {
			t.Errorf("%v came out as %v", err, got)
		}
	}
	// Whatever else is said of it: what may have happened is no refusal.
	for _, err := range []error{store.ErrClosed, &store.NotLeaderError{}, store.ErrFull, context.DeadlineExceeded} {
		p := store.FaultToProto(fmt.Errorf("%w: %w", err, store.ErrUncertain), 0)
		if got := store.FaultFromProto(p); !errors.Is(got, store.ErrUncertain) {
			t.Errorf("%v and uncertain came out as %v", err, got)
		}
	}
	if p := store.FaultToProto(errors.New("other"), 7); p != nil {
		t.Errorf("an unknown error has the fault %v", p)
	}
	for _, kind := range []meshgatev1.StoreFault_Kind{0, meshgatev1.StoreFault_KIND_BEHIND, 99} {
		if err := store.FaultFromProto(&meshgatev1.StoreFault{Kind: kind}); err != nil {
			t.Errorf("kind %v is %v", kind, err)
		}
	}
}

func TestWire_BadInput(t *testing.T) {
	never := &timestamppb.Timestamp{Seconds: 1 << 60}
	zero := timestamppb.New(time.Time{})
	for want, p := range map[string]*meshgatev1.StoreEntry{
		"a key is empty":   {Version: 1},
		"a key has":        {Key: strings.Repeat("k", store.MaxKey+1), Version: 1},
		"is no text":       {Key: "a\x00", Version: 1},
		"has no version":   {Key: "a"},
		"end of key":       {Key: "a", Version: 1, ExpiresAt: never},
		"it is the zero ":  {Key: "a", Version: 1, ExpiresAt: zero},
		"a key is empty ":  nil,
		"end of key \"a\"": {Key: "a", Version: 1, ExpiresAt: &timestamppb.Timestamp{Nanos: -1}},
	} {
		if _, err := store.EntryFromProto(p); !errors.Is(err, store.ErrMalformed) || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("entry: got %v, want ErrMalformed with %q", err, want)
		}
	}
	for want, p := range map[string]*meshgatev1.StoreEvent{
		"a key is empty": {},
		"has a value":    {Key: "a", Value: []byte("v"), Deleted: true},
		"or an end":      {Key: "a", ExpiresAt: timestamppb.Now(), Deleted: true},
		"end of key":     {Key: "a", ExpiresAt: never},
	} {
		if _, err := store.EventFromProto(p, 1); !errors.Is(err, store.ErrMalformed) || !strings.Contains(err.Error(), want) {
			t.Errorf("event: got %v, want ErrMalformed with %q", err, want)
		}
	}
	for _, ttl := range []*durationpb.Duration{{Seconds: -1}, {Seconds: 1, Nanos: -1}, {Nanos: 1 << 30}, {Seconds: 1 << 60}} {
		b := store.BatchFromProto(&v1.RaftBatch{Operations: []*v1.RaftOperation{{Key: "a", Ttl: ttl}}})
		if err := b.Validate(); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("time to live %v: got %v", ttl, err)
		}
	}
}

// What is decoded is what an entry, an event or a batch may be, or nothing.
func FuzzWire(f *testing.F) {
	add := func(m proto.Message) {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	add(store.EntryToProto(store.Entry{Key: "a", Value: []byte("v"), Version: 7, ExpiresAt: time.Unix(1, 2)}))
	add(store.EventToProto(store.Event{Entry: store.Entry{Key: "a"}, Deleted: true}))
	add(store.BatchToProto(store.Batch{If: []store.Condition{{Key: "a", Version: 1}}, Ops: []store.Op{{Key: "a", TTL: time.Second}}}))
	add(&meshgatev1.StoreFault{Kind: meshgatev1.StoreFault_KIND_NOT_LEADER, Leader: "gw"})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var entry meshgatev1.StoreEntry
		if proto.Unmarshal(raw, &entry) == nil {
			if e, err := store.EntryFromProto(&entry); err == nil {
				again, err := store.EntryFromProto(store.EntryToProto(e))
				if diff := cmp.Diff(e, again); err != nil || diff != "" || e.Version == 0 || store.ValidateKey(e.Key) != nil {
					t.Errorf("%+v: %v\n%s", e, err, diff)
				}
			}
		}
		var event meshgatev1.StoreEvent
		if proto.Unmarshal(raw, &event) == nil {
			if e, err := store.EventFromProto(&event, 7); err == nil && (e.Deleted && e.Value != nil || e.Version != 7) {
				t.Errorf("%+v", e)
			}
		}
		var batch v1.RaftBatch
		if proto.Unmarshal(raw, &batch) == nil {
			b := store.BatchFromProto(&batch)
			if b.Validate() == nil && store.BatchFromProto(store.BatchToProto(b)).Validate() != nil {
				t.Errorf("%+v", b)
			}
		}
		var fault meshgatev1.StoreFault
		if proto.Unmarshal(raw, &fault) == nil {
			_ = store.FaultFromProto(&fault)
		}
	})
}
