// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/v1client"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/client"
)

// right is what a caller may lose.
type right struct{ lost atomic.Bool }

func (r *right) allowed() error {
	if r.lost.Load() {
		return fmt.Errorf("%w: the token is gone", mesh.ErrUnauthenticated)
	}
	return nil
}

// startWith calls StartDataChannel of s as somebody who holds r.
func startWith(t testing.TB, s *signaling.Service, id string, r *right) clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer] {
	t.Helper()
	c := newCall[*v1.StartDataChannelRequest, *v1.DataChannelOffer](context.Background())
	caller := signaling.Caller{ID: id, Addr: netip.MustParseAddrPort("192.0.2.7:4711"), Allowed: r.allowed}
	c.serve(func(ctx context.Context, stream signaling.Stream[*v1.StartDataChannelRequest, *v1.DataChannelOffer]) error {
		return s.StartDataChannel(ctx, caller, stream)
	})
	t.Cleanup(func() {
		c.cancel()
		<-c.done
	})
	return clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer]{c}
}

// dialWith opens an in-band peer connection as somebody who holds r.
func dialWith(t testing.TB, s *signaling.Service, id string, r *right) *client.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, startWith(t, s, id, r), clientOptions())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestReview_EndsWhatIsNoLongerAllowed(t *testing.T) {
	s := newService(t, &world{}, self)
	var stolen, kept right
	address := listen(t, echo)
	thief, owner := dialWith(t, s, "alice", &stolen), dialWith(t, s, "alice", &kept)
	open := dialTCP(t, thief, address)
	if n := s.Review(); n != 0 || len(s.Sessions()) != 2 {
		t.Fatalf("%d ended for nothing", n)
	}
	stolen.lost.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// A new connection is refused before anybody reviews.
	if _, err := thief.DialContext(ctx, "tcp", address); err == nil || !strings.Contains(err.Error(), "permission_denied") || !strings.Contains(err.Error(), "the token is gone") {
		t.Errorf("a new connection: %v", err)
	}
	if n := s.Review(); n != 1 {
		t.Errorf("%d ended", n)
	}
	if _, err := io.ReadAll(open); err == nil {
		t.Error("the open connection ended in peace")
	}
	eventually(t, "the session is gone", func() bool { return len(s.Sessions()) == 1 })
	roundTrip(t, dialTCP(t, owner, address), "the other token is good")
}

// What was lost while the peer connection came about never serves.
func TestReview_LostDuringNegotiation(t *testing.T) {
	w := &world{}
	s := newService(t, w, self)
	var r right
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	call := startWith(t, s, "alice", &r)
	r.lost.Store(true)
	c, err := client.Dial(ctx, call, clientOptions())
	if err == nil {
		defer c.Close()
		if _, err = c.DialContext(ctx, "tcp", listen(t, echo)); err == nil {
			t.Error("it serves")
		}
	}
	eventually(t, "the session is gone", func() bool { return len(s.Sessions()) == 0 })
	if q := w.questions(); len(q) != 0 {
		t.Errorf("asked %q", q)
	}
}

func TestReview_PortForwardingOfV1(t *testing.T) {
	s := newService(t, &world{}, self)
	var r right
	call := startWith(t, s, "alice", &r)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := v1client.Dial(ctx, call, v1client.Config{Request: request(t, "tcp", listen(t, echo))})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange(t, mustOpen(t, c), "hello")
	r.lost.Store(true)
	if n := s.Review(); n != 1 {
		t.Errorf("%d ended", n)
	}
	eventually(t, "the session is gone", func() bool { return len(s.Sessions()) == 0 })
}

// Who is told an address in a relayed negotiation may have to reach it.
func TestRelay_TellsOfCandidates(t *testing.T) {
	var mu sync.Mutex
	told := map[string][]netip.AddrPort{}
	_, gateway := twoNodes(t, func(c *signaling.Config) {
		c.Candidate = func(user, namer string, at netip.AddrPort) {
			mu.Lock()
			defer mu.Unlock()
			if namer != map[string]string{"alice": string(other), string(other): "alice"}[user] {
				t.Errorf("%q named %v to %q", namer, at, user)
			}
			told[user] = append(told[user], at)
		}
	})
	c := dial(t, gateway, other)
	path := c.Path()
	eventually(t, "both sides were told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(told["alice"]) > 0 && len(told[string(other)]) > 0
	})
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 2 || !strings.HasSuffix(path.Remote, " "+told["alice"][0].String()) ||
		!strings.HasSuffix(path.Local, " "+told[string(other)][0].String()) {
		t.Errorf("told %v of path %+v", told, path)
	}
}
