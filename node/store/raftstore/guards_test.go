// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// desert is a Network with nobody else on it.
type desert struct {
	once   sync.Once
	closed chan struct{}
}

func newDesert() *desert { return &desert{closed: make(chan struct{})} }

// Accept implements Network.
func (d *desert) Accept() (net.Conn, string, error) {
	<-d.closed
	return nil, "", net.ErrClosed
}

// Dial implements Network.
func (*desert) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nobody is there")
}

// Close implements Network.
func (d *desert) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// openBlank opens a replica that waits to be let in.
func openBlank(t *testing.T) *Store {
	t.Helper()
	s, _, err := OpenFaulty(Config{
		ID: "gw", Address: "gw:1", Network: newDesert(), Join: true, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openWith opens a leader with observers that never answer.
func openWith(t *testing.T, observers ...string) *Store {
	t.Helper()
	s, _ := openFaulty(t, "")
	for _, id := range observers {
		if err := s.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id+":1"), 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// show has a leader believe that a replica answered it.
func (s *Store) show(id raft.ServerID, is progress) {
	s.transport.mu.Lock()
	defer s.transport.mu.Unlock()
	s.transport.peers[id] = &is
	s.transport.moved = renew(s.transport.moved)
}

// TestMayOpen is about who may open which stream at a replica: one that waits to
// be let in, one that was and has heard of no member yet, and a member.
func TestMayOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		member := openWith(t, "b")
		defer member.Close()
		own := member.identity.cluster()
		blank, admitted := openBlank(t), openBlank(t)
		defer blank.Close()
		defer admitted.Close()
		if err := admitted.identity.join(own, admitted.identity.nonce); err != nil {
			t.Fatal(err)
		}
		other := bytes.Repeat([]byte{1}, clusterIDSize)
		for _, tt := range []struct {
			name    string
			at      *Store
			kinds   string
			peer    string
			cluster []byte
			want    error
		}{
			{"a member", member, "RC", "b", own, nil},
			{"a member that lost its disk", member, "RC", "b", nil, ErrNotMember},
			{"a member of another cluster", member, "RC", "b", other, ErrOtherCluster},
			{"a stranger", member, "RC", "x", nil, ErrNotMember},
			{"a stranger that knows the cluster", member, "RC", "x", own, ErrNotMember},
			{"a stranger of another cluster", member, "RC", "x", other, ErrOtherCluster},
			{"a call at one that waits", blank, "C", "b", own, nil},
			{"a call of a stranger at one that waits", blank, "C", "x", nil, nil},
			{"raft at one that waits", blank, "R", "b", own, ErrNotMember},
			{"raft of a stranger at one that waits", blank, "R", "x", nil, ErrNotMember},
			{"one that was let in is told of members", admitted, "RC", "b", own, nil},
			{"one that was let in is told by a stranger", admitted, "RC", "x", nil, ErrNotMember},
			{"one that was let in is told by another cluster", admitted, "RC", "b", other, ErrOtherCluster},
			{"another kind", member, "Z\x00", "b", own, store.ErrInvalid},
			{"another kind at one that waits", blank, "Z\x00", "b", own, store.ErrInvalid},
		} {
			for _, kind := range []byte(tt.kinds) {
				if err := tt.at.mayOpen(kind, tt.peer, &pb.ReplicaHello{To: "gw", Cluster: tt.cluster}); !errors.Is(err, tt.want) {
					t.Errorf("%s, kind %q: got %v, want %v", tt.name, kind, err, tt.want)
				}
				err := tt.at.mayOpen(kind, tt.peer, &pb.ReplicaHello{To: "b", Cluster: tt.cluster})
				if !errors.Is(err, store.ErrInvalid) {
					t.Errorf("%s, kind %q, for another replica: got %v, want %v", tt.name, kind, err, store.ErrInvalid)
				}
			}
		}
	})
}

// TestMove_OnlyOneself has replicas ask a leader for the address of a replica to
// be changed.
func TestMove_OnlyOneself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, "b", "c")
		defer s.Close()
		move := &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Change{
			Change: &pb.ReplicaChange{Action: pb.ReplicaAction_REPLICA_ACTION_MOVE, Id: "b", Address: "b:2"},
		}}
		for _, tt := range []struct{ peer, address string }{
			{"c", "b:1"},
			{"gw", "b:1"},
			{"x", "b:1"},
			{"b", "b:2"},
		} {
			err := errorOf(s.answer(t.Context(), move, tt.peer).GetStatus())
			if allowed := tt.peer == "b"; allowed != (err == nil) || !allowed && !errors.Is(err, store.ErrInvalid) {
				t.Errorf("asked by %q: got %v", tt.peer, err)
			}
			if b, _ := find(s.servers(), "b"); string(b.Address) != tt.address {
				t.Errorf("asked by %q: b is at %q, want %q", tt.peer, b.Address, tt.address)
			}
		}
	})
}

// TestAdmit_OnlyAsProbed lets replicas in.
func TestAdmit_OnlyAsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openBlank(t)
		defer s.Close()
		id := func(b byte) []byte { return bytes.Repeat([]byte{b}, clusterIDSize) }
		_, nonce := s.identity.probe()
		for _, tt := range []struct {
			name           string
			cluster, nonce []byte
			want           error
			is             []byte // the cluster that it belongs to from then on
		}{
			{"no cluster", nil, nonce, store.ErrInvalid, nil},
			{"half a cluster", id(1)[1:], nonce, store.ErrInvalid, nil},
			{"nobody probed it", id(1), nil, store.ErrInvalid, nil},
			{"it started again since", id(1), id(9), store.ErrInvalid, nil},
			{"as probed", id(1), nonce, nil, id(1)},
			{"again", id(1), nonce, nil, id(1)},
			{"again, and it started again since", id(1), id(9), store.ErrInvalid, id(1)},
			{"to another cluster", id(2), nonce, ErrOtherCluster, id(1)},
		} {
			err := s.admit(&pb.ReplicaAdmit{Cluster: tt.cluster, Nonce: tt.nonce})
			if !errors.Is(err, tt.want) || !bytes.Equal(s.identity.cluster(), tt.is) {
				t.Errorf("%s: got %v and cluster %x, want %v and %x", tt.name, err, s.identity.cluster(), tt.want, tt.is)
			}
		}
	})
}

// TestCaughtUp_WaitsForAllOfIt has a replica come closer to what its leader had
// when it was asked for.
func TestCaughtUp_WaitsForAllOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, "b")
		defer s.Close()
		term, last := s.role.Load().term, s.raft.LastIndex()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ask := func() <-chan error {
			done := make(chan error, 1)
			go func() { done <- s.caughtUp(ctx, "b") }()
			synctest.Wait()
			return done
		}
		done := ask()
		if _, err := s.Apply(t.Context(), batch("later")); err != nil {
			t.Fatal(err)
		}
		for _, is := range []progress{{}, {term: term}, {term: term, stored: last - 1}, {term: term - 1, stored: last}} {
			s.show("b", is)
			synctest.Wait()
			select {
			case err := <-done:
				t.Fatalf("it is done with %v when the replica has %d of term %d, want %d of term %d", err, is.stored, is.term, last, term)
			default:
			}
		}
		s.show("b", progress{term: term, stored: last})
		if err := <-done; err != nil {
			t.Error(err)
		}

		done = ask() // now it lacks what was written since
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the end of the wait", err)
		}
	})
}

// TestPromote_KeepsTheQuorum gives no vote to a replica that has all and went
// away since: of two voters both are needed.
func TestPromote_KeepsTheQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, "b")
		defer s.Close()
		s.show("b", progress{term: s.role.Load().term, stored: s.raft.LastIndex(), heard: time.Now()})
		<-time.After(2 * s.election)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.promote(ctx, "b"); !errors.Is(err, ErrUnsafe) {
			t.Errorf("got %v, want ErrUnsafe", err)
		}
		if b, _ := find(s.servers(), "b"); b.Suffrage != raft.Nonvoter {
			t.Errorf("it is a %v, want an observer", b.Suffrage)
		}
	})
}

// TestRemoved_LosesItsStreams removes one of the replicas that hold streams open.
func TestRemoved_LosesItsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, "b", "c")
		defer s.Close()
		ended := map[string]chan error{}
		for _, peer := range []string{"", "b", "c"} { // "" is one that this replica opened
			near, far := net.Pipe()
			defer near.Close()
			defer far.Close()
			if _, err := s.streams.track(far, peer); err != nil {
				t.Fatal(err)
			}
			ended[peer] = make(chan error, 1)
			go func() {
				_, err := near.Read(make([]byte, 1))
				ended[peer] <- err
			}()
		}
		if err := s.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * s.election)
		synctest.Wait()
		for peer, want := range map[string]bool{"": false, "b": false, "c": true} {
			select {
			case err := <-ended[peer]:
				if !want || !errors.Is(err, io.EOF) {
					t.Errorf("the stream of %q ended with %v", peer, err)
				}
			default:
				if want {
					t.Errorf("the stream of %q is still open", peer)
				}
			}
		}
	})
}
