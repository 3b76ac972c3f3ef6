// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A flood is told at once, and then once a minute with all that it was.
func TestOverflow_IsToldOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		began := time.Now()
		f := &overflow{msg: "full", log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Duration("at", a.Value.Time().Sub(began))
				}
				return a
			},
		}))}
		for range 100 { // for 90 s, a connection every 900 ms
			f.closed(limitNetwork, "192.0.2.1")
			pass(900 * time.Millisecond)
		}
		pass(10 * time.Minute)
		f.closed(limitAll, "192.0.2.2")
		pass(time.Second)
		f.closed(limitAll, "192.0.2.2")
		f.end()
		f.closed(limitAll, "192.0.2.2")
		pass(10 * time.Minute)
		want := []string{
			`at=0s level=WARN msg=full limit=network addr=192.0.2.1 n=1`,
			`at=1m0s level=WARN msg=full limit=network addr=192.0.2.1 n=66`,
			`at=2m0s level=WARN msg=full limit=network addr=192.0.2.1 n=33`,
			`at=11m30s level=WARN msg=full limit=all addr=192.0.2.2 n=1`,
		}
		if got := strings.Split(strings.TrimSpace(log.String()), "\n"); !slices.Equal(got, want) {
			t.Errorf("the log says\n%s\nwant\n%s", log.String(), strings.Join(want, "\n"))
		}
	})
}

// Who opens connections and says nothing is named in the log, by what they met;
// who is cut short is not: the internet is full of those.
func TestFront_TellsOfAFlood(t *testing.T) {
	var log lockedBuffer
	f := frontLogging(t, slog.New(slog.NewTextHandler(&log, nil)), newWaiting(2, 2), newWaiting(1, 1), maxQueued)
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", f.Listener().Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	_ = dial().Close()
	poll(t, func() bool { return f.refused.Load() == 1 })
	if log.String() != "" {
		t.Errorf("of one that went the log says %s", log.String())
	}
	for range 3 {
		defer dial().Close()
	}
	poll(t, func() bool { return f.refused.Load() == 2 })
	poll(t, func() bool { return log.String() != "" })
	if want := "limit=hellos addr=127.0.0.1 n=1"; !strings.Contains(log.String(), want) || !strings.Contains(log.String(), "the public port is flooded") {
		t.Errorf("the log says %s, want %s", log.String(), want)
	}
}

// What a flood beyond each other bound met is in the log, too, and nothing else is.
func TestFront_NamesTheLimitOfAFlood(t *testing.T) {
	for limit, c := range map[string]struct {
		streams, queued int // how many may wait
		said            func(*testing.T) []byte
	}{
		limitStreams: {2, maxQueued, streamHello},
		limitQueue:   {maxGreetedAll, 2, func(*testing.T) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }},
	} {
		t.Run(limit, func(t *testing.T) {
			var log lockedBuffer
			f := frontLogging(t, slog.New(slog.NewTextHandler(&log, nil)),
				newWaiting(maxSorted, maxSortedAll), newWaiting(c.streams, c.streams), c.queued)
			said, waits := c.said(t), func() int { return len(f.queued) }
			if limit == limitStreams {
				waits = func() int {
					f.greeted.mu.Lock()
					defer f.greeted.mu.Unlock()
					return f.greeted.all.Len()
				}
			}
			dial := func() {
				conn, err := net.Dial("tcp", f.Listener().Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
				if _, err := conn.Write(said); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 2 {
				dial()
				poll(t, func() bool { return waits() == i+1 })
			}
			if n := f.refused.Load(); n != 0 || log.String() != "" {
				t.Fatalf("up to the bound %d are refused, and the log says %s", n, log.String())
			}
			dial()
			poll(t, func() bool { return f.refused.Load() == 1 && log.String() != "" })
			if want := "limit=" + limit + " addr=127.0.0.1 n=1\n"; !strings.HasSuffix(log.String(), want) || strings.Count(log.String(), "\n") != 1 {
				t.Errorf("the log says %s, want one line with %s", log.String(), want)
			}
			if n := waits(); n != 2 {
				t.Errorf("%d wait, want no more than the bound", n)
			}
		})
	}
}
