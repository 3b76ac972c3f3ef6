// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

func entry(key string, version uint64) *pb.StoreEntry {
	return &pb.StoreEntry{Key: key, Value: []byte("v"), Version: version}
}

func event(key string) *pb.StoreEvent { return &pb.StoreEvent{Key: key, Value: []byte("v")} }

func TestDecodeGet(t *testing.T) {
	for _, tt := range []struct {
		name string
		m    *pb.GetResponse
		want error
		text string
	}{
		{"good", &pb.GetResponse{Entry: entry("k", 5), Version: 5}, nil, ""},
		{"older than seen", &pb.GetResponse{Entry: entry("k", 3), Version: 4}, errBehind, "version 4 is less than 5"},
		{"empty", &pb.GetResponse{}, errBehind, ""},
		{"no entry", &pb.GetResponse{Version: 5}, store.ErrMalformed, "a key is empty"},
		{"other key", &pb.GetResponse{Entry: entry("x", 5), Version: 5}, store.ErrMalformed, `key "x"`},
		{"entry of the future", &pb.GetResponse{Entry: entry("k", 6), Version: 5}, store.ErrMalformed, "version 6"},
		{"entry without version", &pb.GetResponse{Entry: entry("k", 0), Version: 5}, store.ErrMalformed, "no version"},
	} {
		e, err := decodeGet(tt.m, "k", 5)
		if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) || err == nil && e.Key != "k" {
			t.Errorf("%s: got %v, %v", tt.name, e, err)
		}
	}
}

func TestListing(t *testing.T) {
	part := func(version uint64, last bool, entries ...*pb.StoreEntry) *pb.ListResponse {
		return &pb.ListResponse{Version: version, Last: last, Entries: entries}
	}
	for _, tt := range []struct {
		name  string
		parts []*pb.ListResponse
		want  error
		text  string
	}{
		{"nothing", []*pb.ListResponse{part(5, true)}, nil, ""},
		{"one part", []*pb.ListResponse{part(5, true, entry("k/b", 5), entry("k/c", 1))}, nil, ""},
		{"parts", []*pb.ListResponse{part(5, false, entry("k/b", 5)), part(5, false), part(5, true, entry("k/c", 1))}, nil, ""},
		{"older than seen", []*pb.ListResponse{part(4, true)}, errBehind, "version 4 is less than 5"},
		{"two versions", []*pb.ListResponse{part(5, false), part(6, true)}, store.ErrMalformed, "versions 5 and 6"},
		{"after the end", []*pb.ListResponse{part(5, true), part(5, true)}, store.ErrMalformed, "after the last"},
		{"not in order", []*pb.ListResponse{part(5, true, entry("k/c", 5), entry("k/b", 5))}, store.ErrMalformed, `"k/b"`},
		{"twice", []*pb.ListResponse{part(5, false, entry("k/b", 5)), part(5, true, entry("k/b", 5))}, store.ErrMalformed, `"k/b"`},
		{"before the page", []*pb.ListResponse{part(5, true, entry("k/a", 5))}, store.ErrMalformed, `"k/a"`},
		{"other prefix", []*pb.ListResponse{part(5, true, entry("x", 5))}, store.ErrMalformed, `"x"`},
		{"entry of the future", []*pb.ListResponse{part(5, true, entry("k/b", 6))}, store.ErrMalformed, "version 6"},
		{"too many", []*pb.ListResponse{part(5, false, entry("k/b", 5), entry("k/c", 5)), part(5, true, entry("k/d", 5), entry("k/e", 5))}, store.ErrMalformed, "more than 3"},
		{"bad entry", []*pb.ListResponse{part(5, true, entry("k/b\x00", 5))}, store.ErrMalformed, "no text"},
		{"no entry", []*pb.ListResponse{part(5, true, nil)}, store.ErrMalformed, "empty"},
	} {
		l := listing{prefix: "k/", after: "k/a", limit: 3, least: 5}
		var err error
		for _, p := range tt.parts {
			if err = l.add(p); err != nil {
				break
			}
		}
		if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) || err == nil && (!l.whole || l.version != 5) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}

func TestChanges(t *testing.T) {
	change := func(version uint64, more bool, events ...*pb.StoreEvent) *pb.WatchResponse {
		return &pb.WatchResponse{Version: version, More: more, Events: events}
	}
	pulse := func(version uint64) *pb.WatchResponse { return &pb.WatchResponse{Version: version} }
	for _, tt := range []struct {
		name     string
		messages []*pb.WatchResponse
		got      int // changes
		after    uint64
		want     error
		text     string
	}{
		{"pulses", []*pb.WatchResponse{pulse(5), pulse(5), pulse(7)}, 0, 7, nil, ""},
		{"changes", []*pb.WatchResponse{change(6, false, event("k/a")), pulse(6), change(9, false, event("k/a"), event("k/b"))}, 2, 9, nil, ""},
		{"parts", []*pb.WatchResponse{change(6, true, event("k/a")), change(6, false, event("k/b"))}, 1, 6, nil, ""},
		{"a part only", []*pb.WatchResponse{change(6, true, event("k/a"))}, 0, 5, nil, ""},
		{"the same again", []*pb.WatchResponse{change(5, false, event("k/a"))}, 0, 5, store.ErrMalformed, "version 5 after version 5"},
		{"twice", []*pb.WatchResponse{change(6, false, event("k/a")), change(6, false, event("k/a"))}, 1, 6, store.ErrMalformed, "version 6 after version 6"},
		{"back in time", []*pb.WatchResponse{change(9, false, event("k/a")), change(7, false, event("k/a"))}, 1, 9, store.ErrMalformed, "version 7 after"},
		{"behind a pulse", []*pb.WatchResponse{pulse(9), change(7, false, event("k/a"))}, 0, 9, store.ErrMalformed, "version 7 after"},
		{"pulse back in time", []*pb.WatchResponse{pulse(4)}, 0, 5, store.ErrMalformed, "pulse of version 4"},
		{"no version", []*pb.WatchResponse{change(0, false, event("k/a"))}, 0, 5, store.ErrMalformed, "version 0"},
		{"pulse within a change", []*pb.WatchResponse{change(6, true, event("k/a")), pulse(6)}, 0, 5, store.ErrMalformed, "within the change"},
		{"change within a change", []*pb.WatchResponse{change(6, true, event("k/a")), change(7, false, event("k/b"))}, 0, 5, store.ErrMalformed, "within that"},
		{"part without events", []*pb.WatchResponse{change(6, true)}, 0, 5, store.ErrMalformed, "without events"},
		{"other prefix", []*pb.WatchResponse{change(6, false, event("x"))}, 0, 5, store.ErrMalformed, `"x"`},
		{"bad key", []*pb.WatchResponse{change(6, false, event("k/\x00"))}, 0, 5, store.ErrMalformed, "no text"},
		{"removal with a value", []*pb.WatchResponse{change(6, false, &pb.StoreEvent{Key: "k/a", Value: []byte("v"), Deleted: true})}, 0, 5, store.ErrMalformed, "has a value"},
	} {
		c, got := changes{prefix: "k/", after: 5}, 0
		var err error
		for _, m := range tt.messages {
			var whole *store.Change
			if whole, err = c.add(m); err != nil {
				break
			}
			if whole != nil {
				got++
			}
		}
		if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) || got != tt.got || c.after != tt.after {
			t.Errorf("%s: got %d changes up to version %d, %v", tt.name, got, c.after, err)
		}
	}
}

// A change that never ends does not grow without end.
func TestChanges_AreBounded(t *testing.T) {
	c := changes{}
	value := make([]byte, 1<<20)
	for i := range 100 {
		_, err := c.add(&pb.WatchResponse{Version: 1, More: true, Events: []*pb.StoreEvent{{Key: "k", Value: value}}})
		if errors.Is(err, errTooLarge) {
			if i < 60 {
				t.Errorf("refused after %d MiB", i)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("100 MiB are kept")
}

// The bound is one of each change, however many there were before.
func TestChanges_AreBoundedOneByOne(t *testing.T) {
	c := changes{}
	value := make([]byte, 1<<20)
	for i := range uint64(100) {
		for _, more := range []bool{true, false} {
			if _, err := c.add(&pb.WatchResponse{Version: i + 1, More: more, Events: []*pb.StoreEvent{{Key: "k", Value: value}}}); err != nil {
				t.Fatalf("change %d of 2 MiB: %v", i+1, err)
			}
		}
	}
}

// delimited encodes messages one after the other.
func delimited(f *testing.F, messages ...proto.Message) []byte {
	f.Helper()
	var b bytes.Buffer
	for _, m := range messages {
		if _, err := protodelim.MarshalTo(&b, m); err != nil {
			f.Fatal(err)
		}
	}
	return b.Bytes()
}

func FuzzListing(f *testing.F) {
	f.Add("k/", "k/a", 3, uint64(5), delimited(f, &pb.ListResponse{Version: 5, Entries: []*pb.StoreEntry{entry("k/b", 5)}},
		&pb.ListResponse{Version: 5, Last: true, Entries: []*pb.StoreEntry{entry("k/c", 2)}}))
	f.Add("", "", 0, uint64(0), delimited(f, &pb.ListResponse{Last: true}))
	f.Fuzz(func(t *testing.T, prefix, after string, limit int, least uint64, raw []byte) {
		l := listing{prefix: prefix, after: after, limit: max(limit, 0), least: least}
		for r := bytes.NewReader(raw); ; {
			var m pb.ListResponse
			if protodelim.UnmarshalFrom(r, &m) != nil || l.add(&m) != nil {
				break
			}
		}
		last := after
		for _, e := range l.entries {
			if e.Key <= last || !strings.HasPrefix(e.Key, prefix) || e.Version > max(l.version, 0) || e.Version == 0 {
				t.Errorf("entry %+v after %q in a list of version %d", e, last, l.version)
			}
			last = e.Key
		}
		if limit > 0 && len(l.entries) > limit || l.begun && l.version < least {
			t.Errorf("%d entries of version %d", len(l.entries), l.version)
		}
	})
}

func FuzzChanges(f *testing.F) {
	f.Add("k/", uint64(5), delimited(f, &pb.WatchResponse{Version: 6, More: true, Events: []*pb.StoreEvent{event("k/a")}},
		&pb.WatchResponse{Version: 6, Events: []*pb.StoreEvent{{Key: "k/b", Deleted: true}}}, &pb.WatchResponse{Version: 9, Behind: true}))
	f.Fuzz(func(t *testing.T, prefix string, after uint64, raw []byte) {
		c, last := changes{prefix: prefix, after: after}, after
		for r := bytes.NewReader(raw); ; {
			var m pb.WatchResponse
			if protodelim.UnmarshalFrom(r, &m) != nil {
				return
			}
			change, err := c.add(&m)
			if err != nil {
				return
			}
			if c.after < last {
				t.Fatalf("went back from version %d to %d", last, c.after)
			}
			if change != nil {
				if change.Version <= last || change.Version != c.after || len(change.Events) == 0 {
					t.Fatalf("change %+v after version %d", change, last)
				}
				for _, e := range change.Events {
					if e.Version != change.Version || !strings.HasPrefix(e.Key, prefix) {
						t.Fatalf("event %+v in the change of version %d", e, change.Version)
					}
				}
			}
			last = c.after
		}
	})
}

func FuzzGet(f *testing.F) {
	raw, err := proto.Marshal(&pb.GetResponse{Entry: entry("k", 5), Version: 5})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("k", uint64(5), raw)
	f.Fuzz(func(t *testing.T, key string, least uint64, raw []byte) {
		var m pb.GetResponse
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		if e, err := decodeGet(&m, key, least); err == nil && (e.Key != key || e.Version == 0 || e.Version > m.GetVersion() || m.GetVersion() < least) {
			t.Errorf("%+v", e)
		}
	})
}

func TestBackoff_GrowsToItsBoundAndVaries(t *testing.T) {
	seen := map[time.Duration]bool{}
	for failures := 1; failures < 200; failures++ {
		full := backoffMax
		if failures < 7 {
			full = min(backoffMin<<(failures-1), backoffMax)
		}
		d := backoff(failures)
		if d < full/2 || d > full {
			t.Errorf("after %d failures %s, want %s to %s", failures, d, full/2, full)
		}
		seen[d] = true
	}
	if len(seen) < 100 {
		t.Errorf("%d different times of 199: no jitter", len(seen))
	}
}
