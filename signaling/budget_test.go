// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/meshgate/meshgate/node/mesh"
)

// waits calls Acquire in a goroutine; the channel gives its result.
func waits(ctx context.Context, a *account, n int64) <-chan error {
	got := make(chan error, 1)
	go func() { got <- a.Acquire(ctx, n) }()
	return got
}

func pending(c <-chan error) bool {
	synctest.Wait()
	return len(c) == 0
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBudget_Levels(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name             string
		total, perCaller int64
		limit            int64
		other            string // whose session holds what is full
	}{
		{"session", 100 * mib, 100 * mib, 4 * mib, ""},
		{"caller", 100 * mib, 4 * mib, 100 * mib, "alice"},
		{"all", 4 * mib, 100 * mib, 100 * mib, "bob"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				b := newBudget(tc.total, tc.perCaller)
				a := b.account("alice", tc.limit)
				full := a
				if tc.other != "" {
					full = b.account(tc.other, 100*mib)
				}
				must(t, full.Acquire(ctx, floorMemory)) // which does not count
				must(t, full.Acquire(ctx, 4*mib-floorMemory))
				if full != a {
					must(t, full.Acquire(ctx, floorMemory))
					must(t, a.Acquire(ctx, floorMemory)) // the floor of the other is there
				}
				first, second := waits(ctx, a, 64<<10), waits(ctx, a, 64<<10)
				if !pending(first) || !pending(second) {
					t.Fatal("more than there is")
				}
				limited, stop := context.WithCancel(ctx)
				third := waits(limited, a, 64<<10)
				if !pending(third) {
					t.Fatal("more than there is")
				}
				stop()
				if err := <-third; !errors.Is(err, context.Canceled) {
					t.Fatalf("a wait ended with %v", err)
				}
				full.Release(64 << 10)
				synctest.Wait()
				if len(first)+len(second) != 1 {
					t.Fatalf("%d got the room of one", len(first)+len(second))
				}
				full.Release(64 << 10)
				must(t, <-first)
				must(t, <-second)
				cancel()
				full.close()
				a.close()
				if b.used != 0 || len(b.callers) != 0 || len(b.waiting) != 0 {
					t.Fatalf("left: %d bytes, %d callers", b.used, len(b.callers))
				}
			})
		})
	}
}

// A session whose caller is full goes on within its floor.
func TestBudget_FloorIsServedWhileOthersAreFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := newBudget(1<<20, 1<<20)
		hog, a := b.account("mallory", 1<<30), b.account("alice", 1<<30)
		must(t, hog.Acquire(ctx, floorMemory))
		must(t, hog.Acquire(ctx, 1<<20))
		must(t, a.Acquire(ctx, floorMemory))
		next := waits(ctx, a, 16<<10)
		if !pending(next) {
			t.Fatal("more than there is")
		}
		a.Release(16 << 10)
		must(t, <-next)
		for range floorChannels {
			must(t, a.open())
		}
		err := a.open()
		if !errors.Is(err, mesh.ErrExhausted) || !strings.Contains(err.Error(), "try again later") {
			t.Fatalf("a channel beyond the floor: %v", err)
		}
		hog.close()
		must(t, a.open())
		a.close()
	})
}

func TestBudget_Channels(t *testing.T) {
	b := newBudget(1<<30, 4*channelMemory)
	a, other := b.account("alice", 1<<20), b.account("alice", 1<<20)
	for range floorChannels + 4 {
		must(t, a.open())
	}
	err := a.open()
	if !errors.Is(err, mesh.ErrExhausted) || !strings.Contains(err.Error(), `the connections of "alice" hold`) {
		t.Fatalf("got %v", err)
	}
	if n, want := other.share(), int64(4*channelMemory/(floorChannels+4)); n != want {
		t.Errorf("a channel of the other may queue %d bytes, want %d", n, want)
	}
	a.leave()
	must(t, a.open())
	must(t, other.open())
	a.close()
	a.leave() // too late to count
	other.close()
	if b.used != 0 || b.channels != 0 {
		t.Fatalf("left: %d bytes, %d channels", b.used, b.channels)
	}
}

// Whatever happens, the books agree, no limit is passed, and nobody whose turn it
// is waits while there is room.
func TestBudget_Property(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		b := newBudget(4<<20, 2<<20)
		type stream struct {
			a   *account
			n   int64
			got <-chan error
		}
		var accounts []*account
		for i := range 12 {
			accounts = append(accounts, b.account(string(rune('a'+i/3)), 1<<20))
		}
		var streams []stream
		ctx, cancel := context.WithCancel(context.Background())
		for range 4000 {
			synctest.Wait()
			b.mu.Lock()
			var used int64
			for _, a := range accounts {
				used += a.counted + a.paid*channelMemory
				if a.held > 1<<20 || a.held-a.counted > floorMemory {
					t.Errorf("a session holds %d, %d of them uncounted", a.held, a.held-a.counted)
				}
				if len(a.waiters) == 0 {
					continue
				}
				switch q := a.room(a.waiters[0].n); {
				case a.queue == nil && q != &b.full:
					t.Error("one waits for its own session, which has room")
				case a.queue != nil && (*a.queue)[0] == a && q != a.queue:
					t.Error("the first of a queue waits though there is room")
				}
			}
			for name, h := range b.callers {
				if h.used > 2<<20 {
					t.Errorf("caller %s holds %d", name, h.used)
				}
			}
			if used != b.used || used > 4<<20 {
				t.Errorf("%d bytes in the books, %d held", b.used, used)
			}
			b.mu.Unlock()
			if t.Failed() {
				break
			}
			a := accounts[random.IntN(len(accounts))]
			switch random.IntN(8) {
			case 0:
				_ = a.open()
			case 1:
				if a.channels > 0 {
					a.leave()
				}
			case 2, 3, 4, 5:
				n := int64(1 + random.IntN(256<<10))
				streams = append(streams, stream{a, n, waits(ctx, a, n)})
			default:
				for i, s := range streams {
					if len(s.got) == 1 {
						s.a.Release(s.n)
						streams = append(streams[:i], streams[i+1:]...)
						break
					}
				}
			}
		}
		cancel()
		for _, s := range streams {
			if <-s.got == nil {
				s.a.Release(s.n)
			}
		}
		for _, a := range accounts {
			a.close()
		}
		if b.used != 0 || len(b.callers) != 0 || len(b.waiting) != 0 {
			t.Errorf("left: %d bytes, %d callers, %d waiting", b.used, len(b.callers), len(b.waiting))
		}
	})
}

func TestParseLimit(t *testing.T) {
	for text, want := range map[string]int64{
		"max\n": math.MaxInt64, "": math.MaxInt64, "-1": math.MaxInt64, "0": math.MaxInt64,
		"9223372036854775807": math.MaxInt64, "  2048": 2 << 20, "1x": math.MaxInt64,
	} {
		if got := parseLimit([]byte(text), 1<<10); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
	if n := availableMemory(); n < 64<<20 {
		t.Errorf("%d bytes of memory", n)
	}
}
