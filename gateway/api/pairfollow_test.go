// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// pairState is a state whose Wait returns what it has when that is newer.
type pairState struct {
	fake
	newer chan *mesh.Snapshot
}

func (p *pairState) Wait(ctx context.Context, version uint64) (*mesh.Snapshot, error) {
	for {
		if p.snap.Version > version {
			return p.snap, nil
		}
		select {
		case p.snap = <-p.newer:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A client asks no faster than has been said, and nothing is read of it after its
// stream has ended.
func TestPairFollower_ReceivesAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); synctest.Wait() }()
		left, calls := 4, 0
		many := make([]string, maxWanted)
		out := new(pairFollower).receive(ctx, func() (*meshgatev1.FollowPairsRequest, error) {
			if calls++; left == 0 {
				return nil, io.EOF
			}
			left--
			return &meshgatev1.FollowPairsRequest{Add: many[1:], Drop: many}, nil
		})
		began := time.Now()
		for i := range 4 {
			if r := <-out; r.err != nil || len(r.message.GetDrop()) != maxWanted {
				t.Fatalf("message %d: %v", i, r.err)
			}
			// The first is what may come at once; the others take its time each.
			if took, want := time.Since(began), time.Duration(i)*2*maxWanted*time.Second/wantedRate; took.Round(time.Millisecond) != want {
				t.Errorf("message %d after %s, want %s", i, took, want)
			}
		}
		if r := <-out; !errors.Is(r.err, io.EOF) {
			t.Errorf("the end: %v", r.err)
		}
		synctest.Wait()
		if calls != 5 {
			t.Errorf("received %d times", calls)
		}
	})
}

// A call ends when its context, the state, the client or a message does, and goes on
// after the client's half-close.
func TestPairFollower_RunEnds(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		request *pairRequest
		closed  bool // what tells of newer states
		send    error
		want    error
	}{
		"the client breaks off": {request: &pairRequest{err: broken}, want: broken},
		"a bad message":         {request: &pairRequest{message: &meshgatev1.FollowPairsRequest{NodeId: "desk"}}, want: mesh.ErrInvalid},
		"the state is closed":   {closed: true, want: mesh.ErrUnavailable},
		"nobody reads":          {send: broken, want: broken},
		"a half-close":          {request: &pairRequest{err: io.EOF}},
		"a question":            {request: &pairRequest{message: &meshgatev1.FollowPairsRequest{Add: []string{"gw"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				state := &pairState{fake: *testFake(t)}
				f := &pairFollower{id: "phone", wanted: make(map[string]*wanted), service: &pairsService{
					plans: &countedPlans{}, membership: &membershipService{state: state},
				}}
				ctx, cancel := context.WithCancel(t.Context())
				requests, newer, ended, sent := make(chan pairRequest), make(chan *mesh.Snapshot), make(chan error, 1), 0
				go func() {
					ended <- f.run(ctx, state.snap, requests, newer, func(*meshgatev1.FollowPairsResponse) error { sent++; return c.send })
				}()
				synctest.Wait()
				if c.request != nil {
					requests <- *c.request
				}
				if c.closed {
					close(newer)
				}
				synctest.Wait()
				want, messages := c.want, 1
				if want == nil { // it goes on, by a newer state
					next := *state.snap
					next.Version, next.ACLs = next.Version+1, nil
					state.snap = &next
					newer <- &next
					synctest.Wait()
					cancel()
					want = context.Canceled
					messages += len(f.wanted)
				}
				if err := <-ended; !errors.Is(err, want) || sent != messages {
					t.Errorf("ended with %v after %d messages", err, sent)
				}
				cancel()
			})
		})
	}
}

// Each newer state is told of once, however long none comes.
func TestPairsService_FollowsTheState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := &pairState{fake: *testFake(t), newer: make(chan *mesh.Snapshot)}
		p := &pairsService{membership: &membershipService{state: state}}
		ctx, cancel := context.WithCancel(t.Context())
		told := 0
		over := make(chan struct{})
		out := p.follow(ctx, state.snap.Version)
		go func() {
			defer close(over)
			for range out {
				told++
			}
		}()
		for i := range 3 {
			<-time.After(time.Minute)
			synctest.Wait()
			if told != i {
				t.Errorf("told %d times of %d states", told, i)
			}
			next := *state.snap
			next.Version++
			state.newer <- &next
		}
		<-time.After(time.Minute)
		cancel()
		<-over
		if told != 3 {
			t.Errorf("told %d times of 3 states", told)
		}
	})
}

// Credentials are made anew when half of the time of the first that ends is over, and
// not too often.
func TestPairFollower_MintsInTime(t *testing.T) {
	for name, c := range map[string]struct {
		ends []time.Duration // zero: never
		want time.Duration   // zero: never
	}{
		"none":             {nil, 0},
		"one that stays":   {[]time.Duration{0}, 0},
		"one":              {[]time.Duration{10 * time.Minute}, 5 * time.Minute},
		"the first is it":  {[]time.Duration{10 * time.Minute, 20 * time.Minute}, 5 * time.Minute},
		"the last is it":   {[]time.Duration{0, 20 * time.Minute, 10 * time.Minute}, 5 * time.Minute},
		"not so soon":      {[]time.Duration{20 * time.Second}, minServersAge},
		"one that is over": {[]time.Duration{-time.Minute}, minServersAge},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var users []string
				ends := c.ends
				f := &pairFollower{id: "phone", service: &pairsService{servers: func(_ context.Context, user string) (list []*v1.ICEServer) {
					users = append(users, user)
					for i, d := range ends {
						s := &v1.ICEServer{Urls: []string{fmt.Sprint("turn:", i)}}
						if d != 0 {
							s.ExpiresAt = timestamppb.New(time.Now().Add(d))
						}
						list = append(list, s)
					}
					return list
				}}}
				f.mint(t.Context())
				if len(f.servers) != len(c.ends) || len(users) != 1 || users[0] != "phone" || (f.renew == nil) != (c.want == 0) {
					t.Fatalf("made %v for %v; again: %v", f.servers, users, f.renew != nil)
				}
				if c.want == 0 {
					return
				}
				select {
				case <-f.renew:
					t.Error("made anew at once")
				case <-time.After(c.want - time.Millisecond):
				}
				synctest.Wait()
				select {
				case <-f.renew:
				case <-time.After(time.Millisecond):
					<-f.renew
				}
				ends = nil // there is no server any more
				if f.mint(t.Context()); f.renew != nil || len(f.servers) != 0 {
					t.Error("what is not there is made anew again")
				}
			})
		})
	}
}
