// SPDX-License-Identifier: Apache-2.0

package writer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fake takes a time for each write.
type fake struct {
	took time.Duration
	err  error

	mu   sync.Mutex // guards the fields below
	at   map[int]int
	size int
}

func (f *fake) Leader(context.Context) (int, error) { return 2, nil }
func (f *fake) Members() int                        { return 3 }

func (f *fake) Put(_ context.Context, member int, _, value string) error {
	time.Sleep(f.took)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at[member]++
	f.size = len(value)
	return f.err
}

func serve(t *testing.T, f *fake, orders ...Order) []Result {
	t.Helper()
	f.at = map[int]int{}
	var in, out bytes.Buffer
	for _, o := range orders {
		if err := json.NewEncoder(&in).Encode(o); err != nil {
			t.Fatal(err)
		}
	}
	if err := Serve(t.Context(), &in, &out, f, 100); err != nil {
		t.Fatal(err)
	}
	answers := json.NewDecoder(&out)
	var ready bool
	if err := answers.Decode(&ready); err != nil || !ready {
		t.Fatalf("ready is %v, %v", ready, err)
	}
	var results []Result
	for range orders {
		var r Result
		if err := answers.Decode(&r); err != nil {
			t.Fatal(err)
		}
		results = append(results, r)
	}
	return results
}

func TestServe_CountsWhatIsAcknowledgedInTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{took: 10 * time.Millisecond}
		all := serve(t, f, Order{Clients: 1, Warm: 105 * time.Millisecond, Count: time.Second}, Order{Clients: 4, Warm: 105 * time.Millisecond, Count: time.Second})
		want := []Result{{Acked: 100, P50: 10, P99: 10}, {Acked: 400, P50: 10, P99: 10}}
		for i, r := range all {
			if r != want[i] {
				t.Errorf("%d: %+v, want %+v", i, r, want[i])
			}
		}
		if f.size != 100 {
			t.Errorf("a value has %d bytes, want 100", f.size)
		}
		// One client writes at the leader; of four, two do.
		if f.at[2] <= f.at[0] || f.at[0] == 0 || f.at[0] != f.at[1] {
			t.Errorf("writes by member: %v", f.at)
		}
	})
}

func TestServe_TellsWhyThereIsNoResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{took: time.Millisecond, err: errors.New("no quorum")}
		all := serve(t, f, Order{Clients: 2, Count: time.Second}, Order{})
		if !strings.Contains(all[0].Error, "no quorum") || all[1].Error == "" {
			t.Errorf("%+v", all)
		}
	})
}
