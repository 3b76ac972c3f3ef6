// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/store"
)

func TestBatchValidate(t *testing.T) {
	put := func(key, value string, ttl time.Duration) store.Batch {
		return store.Batch{Ops: []store.Op{{Key: key, Value: []byte(value), TTL: ttl}}}
	}
	many := store.Batch{Ops: make([]store.Op, store.MaxOps+1)}
	for i := range many.Ops {
		many.Ops[i].Key = "k"
	}
	tests := []struct {
		name  string
		batch store.Batch
		want  string // part of the error; empty is none
	}{
		{"put", put("k", "v", 0), ""},
		{"empty value", put("k", "", time.Second), ""},
		{"binary value", put("k", "\xff\x00", 0), ""},
		{"longest key", put(strings.Repeat("k", store.MaxKey), "", 0), ""},
		{"longest ttl", put("k", "v", store.MaxTTL), ""},
		{"delete", store.Batch{Ops: []store.Op{{Key: "k", Delete: true}}}, ""},
		{"no operations", store.Batch{If: []store.Condition{{Key: "k"}}}, "no operations"},
		{"too many operations", many, "more than"},
		{"empty key", put("", "v", 0), "empty"},
		{"key too long", put(strings.Repeat("k", store.MaxKey+1), "", 0), "a key has"},
		{"key not UTF-8", put("\xff", "", 0), "no text"},
		{"key with NUL", put("a\x00b", "", 0), "no text"},
		{"negative ttl", put("k", "v", -1), "time to live"},
		{"endless ttl", put("k", "v", store.MaxTTL+1), "time to live"},
		{"delete with value", store.Batch{Ops: []store.Op{{Key: "k", Delete: true, Value: []byte("v")}}}, "removal"},
		{"delete with ttl", store.Batch{Ops: []store.Op{{Key: "k", Delete: true, TTL: 1}}}, "removal"},
		{"bad condition", store.Batch{If: []store.Condition{{}}, Ops: []store.Op{{Key: "k"}}}, "empty"},
		{"too large", put("k", strings.Repeat("v", store.MaxBatch), 0), "bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.batch.Validate()
			if tt.want == "" {
				if err != nil {
					t.Fatalf("got %v, want no error", err)
				}
				return
			}
			if !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want ErrInvalid with %q", err, tt.want)
			}
		})
	}
}

func TestNotLeaderError(t *testing.T) {
	var err error = &store.NotLeaderError{Leader: "b"}
	if !errors.Is(err, store.ErrNotLeader) || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("got %v, want an ErrNotLeader that names b", err)
	}
	if err = (&store.NotLeaderError{}); !strings.Contains(err.Error(), "no leader") {
		t.Errorf("got %v, want it to say that there is no leader", err)
	}
}
