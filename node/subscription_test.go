// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// shaken counts the handshakes with each peer, of which one makes a session a
// moment later, unless made is 0.
type shaken struct {
	made int

	mu    sync.Mutex
	peers map[mesh.WireGuardKey]int
	stats mesh.InterfaceStats
}

func (s *shaken) Handshake(key mesh.WireGuardKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[key]++; s.peers[key] == s.made {
		s.stats.Peers = []mesh.PeerStats{{PublicKey: key, LastHandshake: time.Now().Add(time.Millisecond)}}
	}
}

func (s *shaken) Stats() (mesh.InterfaceStats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats, nil
}

// slowGateway answers a subscription after a while, and says when it was asked.
type slowGateway struct {
	*fakeGateway
	after time.Duration // 0: never
	asked chan time.Time
}

func (g *slowGateway) SubscribePeers(ctx context.Context, id string, after uint64, each func(*v1.PeerConfigurations) error) error {
	g.asked <- time.Now()
	first := make(<-chan time.Time)
	if g.after > 0 {
		first = time.After(g.after)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-first:
	}
	return g.fakeGateway.SubscribePeers(ctx, id, after, each)
}

// subscriber is a follower that has joined at g and has not applied that yet.
func subscriber(t *testing.T, g *slowGateway) (f *follower, asks *shaken) {
	t.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	f, err = newFollower(
		&Node{cfg: Config{ID: "nas", Key: key}, log: slog.New(slog.DiscardHandler), ready: make(chan struct{})},
		Follow{
			Public: g, Mesh: func(netip.AddrPort) Gateway { return g },
			Refused: func(error) bool { return false }, Removed: func(error) bool { return false },
		})
	if err != nil {
		t.Fatal(err)
	}
	asks = &shaken{peers: map[mesh.WireGuardKey]int{}}
	f.sessions = asks
	if err := f.publish(g.answer); err != nil {
		t.Fatal(err)
	}
	return f, asks
}

// The way to the gateway is in the plan: a call before it is in force goes
// nowhere, and costs a retry of WireGuard's.
func TestSubscribe_WaitsForThePlan(t *testing.T) {
	const never = -1
	for name, tt := range map[string]struct {
		ready, inForce time.Duration // after which the first plan, and the latest, are applied
		want           time.Duration
	}{
		"at once":                      {0, 0, 0},
		"the first takes its time":     {time.Hour, time.Hour, time.Hour},
		"a later one comes soon":       {0, time.Second, time.Second},
		"a later one fails":            {0, never, settleTimeout},
		"so does the one after a long": {time.Minute, never, time.Minute + settleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &slowGateway{fakeGateway: newFakeGateway(t), asked: make(chan time.Time, 1)}
				f, _ := subscriber(t, g)
				before := *f.latest
				before.Version--
				f.node.inForce.set(&before)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				started := time.Now()
				time.AfterFunc(tt.ready, func() { close(f.node.ready) })
				if tt.inForce != never {
					time.AfterFunc(tt.inForce, func() { f.node.inForce.set(f.latest) })
				}
				go func() {
					_, err := f.subscribe(ctx)
					ended <- err
				}()
				if took := (<-g.asked).Sub(started); took != tt.want {
					t.Errorf("the gateway was called after %s, want %s", took, tt.want)
				}
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("it ends with %v", err)
				}
			})
		})
	}
}

// A node that ends does not wait for a plan.
func TestSubscribe_EndsWithTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := subscriber(t, &slowGateway{fakeGateway: newFakeGateway(t)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		started := time.Now()
		if alive, err := f.subscribe(ctx); alive || !errors.Is(err, context.DeadlineExceeded) || time.Since(started) != time.Second {
			t.Errorf("after %s: %v, %v", time.Since(started), alive, err)
		}
	})
}

// The gateway may have started anew, and knows the session no more: the node asks
// for another, until it hears the gateway or gives it up.
func TestSubscribe_AsksForANewSessionUntilItHears(t *testing.T) {
	for name, tt := range map[string]struct {
		after time.Duration // of the first word
		alive bool
		want  int // handshakes: after 0, 0.25, 0.75 and 1.75 s, then each 2 s
		// made is which handshake makes a session; 0: none.
		made int
		// failed are the rounds before.
		failed int
	}{
		"heard at once":           {after: time.Millisecond, alive: true, want: 1},
		"heard later":             {after: 5 * time.Second, alive: true, want: 5},
		"heard by no one":         {want: 4 + int((subscribeGrace-1750*time.Millisecond)/shakeEach)},
		"a session, but no word":  {want: 2, made: 2},
		"a session, and a word":   {after: 5 * time.Second, alive: true, want: 3, made: 3},
		"heard in the second":     {after: 10 * time.Second, alive: true, want: 4, failed: 1}, // after 0, 1, 3 and 7 s
		"not in the third":        {want: 3, failed: 2},                                       // after 0, 4 and 12 s
		"not in the fourth":       {want: 2, failed: 3},                                       // after 0 and 8 s
		"not in the one in a day": {want: 2, failed: 4000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &slowGateway{fakeGateway: newFakeGateway(t), after: tt.after, asked: make(chan time.Time, 1)}
				f, asks := subscriber(t, g)
				asks.made, f.failed = tt.made, tt.failed
				close(f.node.ready)
				f.node.inForce.set(f.latest)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				started := time.Now()
				alive, err := f.subscribe(ctx)
				if alive != tt.alive || err == nil {
					t.Errorf("alive %v, %v", alive, err)
				}
				if took := time.Since(started); !alive && (took != subscribeGrace || !errors.Is(err, mesh.ErrUnavailable)) {
					t.Errorf("given up after %s: %v", took, err)
				}
				gate := f.latest.Node("gate").PublicKey.WireGuard()
				if len(asks.peers) != 1 || asks.peers[gate] != tt.want {
					t.Errorf("asked for sessions with %v, want %d with the gateway", asks.peers, tt.want)
				}
			})
		})
	}
}
