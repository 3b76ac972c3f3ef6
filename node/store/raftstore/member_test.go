// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// describe writes members as "a* b c? o-": the leader, voters, one that the
// leader has not heard from, and an observer.
func describe(members []raftstore.Replica) string {
	var parts []string
	for _, m := range members {
		s := m.ID
		if m.Leader {
			s += "*"
		}
		if !m.Voter {
			s += "-"
		}
		if !m.Known {
			s += "?"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " ")
}

// wantMembers waits until every replica says the same of the cluster; "*" of
// the leader is left out.
func (c *cluster) wantMembers(want string) {
	c.t.Helper()
	for id, s := range c.replicas {
		got := ""
		c.until("replica "+id+" sees "+want, func() bool {
			got = strings.ReplaceAll(describe(s.Members(c.ctx())), "*", "")
			return got == want
		})
	}
}

func TestMembers_ChangeFromAnyReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		c.wantMembers("a b c")
		c.open("o", true)
		steps := []struct {
			name string
			do   func(ctx context.Context, s *raftstore.Store) error
			want string
		}{
			{"add an observer", func(ctx context.Context, s *raftstore.Store) error { return s.AddObserver(ctx, "o", address("o")) }, "a b c o-"},
			{"again", func(ctx context.Context, s *raftstore.Store) error { return s.AddObserver(ctx, "o", address("o")) }, "a b c o-"},
			{"promote", func(ctx context.Context, s *raftstore.Store) error { return s.Promote(ctx, "o") }, "a b c o"},
			{"demote", func(ctx context.Context, s *raftstore.Store) error { return s.Demote(ctx, "o") }, "a b c o-"},
			{"add as a voter", func(ctx context.Context, s *raftstore.Store) error { return s.AddVoter(ctx, "o", address("o")) }, "a b c o"},
			{"demote the leader", func(ctx context.Context, s *raftstore.Store) error {
				leader, _ := s.Leader()
				if err := s.Demote(ctx, leader); err != nil {
					return err
				}
				return s.Promote(ctx, leader)
			}, "a b c o"},
			{"transfer", func(ctx context.Context, s *raftstore.Store) error {
				if err := s.Transfer(ctx, "b"); err != nil {
					return err
				}
				return s.Transfer(ctx, "b")
			}, "a b c o"},
		}
		for _, step := range steps {
			_, s := c.follower()
			ctx, changed := c.ctx(), s.Changed()
			if err := step.do(c.ctx(), s); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			c.wantMembers(step.want)
			if step.name != "again" && step.name != "transfer" {
				select {
				case <-changed:
				case <-ctx.Done():
					t.Fatalf("%s: nobody was told", step.name)
				}
			}
		}
		if id, _ := c.leader(); id != "b" {
			t.Errorf("leader is %q, want b", id)
		}
		put(t, c.replicas["o"], store.Op{Key: "k"})
		for _, m := range c.replicas["a"].Members(t.Context()) {
			if m.Lag > 0 && m.Voter && m.Leader || m.Stored == 0 || m.LastContact > time.Second || m.Address != address(m.ID) {
				t.Errorf("member %+v, want it in touch", m)
			}
		}
	})
}

func TestMembers_RefusesWhatIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		c.open("o", true)
		alone := c.openAt("lone", "lone:1", false)
		c.sync(alone)
		if err := c.replicas["a"].AddObserver(c.ctx(), "o", address("o")); err != nil {
			t.Fatal(err)
		}
		delete(c.replicas, "lone")
		_, s := c.follower()
		tests := []struct {
			name string
			do   func(ctx context.Context) error
			want error
			says string
		}{
			{"no id", func(ctx context.Context) error { return s.Remove(ctx, "") }, store.ErrInvalid, "no replica is named"},
			{"no address", func(ctx context.Context) error { return s.AddVoter(ctx, "x", "") }, store.ErrInvalid, "no address"},
			{"remove a stranger", func(ctx context.Context) error { return s.Remove(ctx, "x") }, raftstore.ErrNotMember, `"x"`},
			{"promote a stranger", func(ctx context.Context) error { return s.Promote(ctx, "x") }, raftstore.ErrNotMember, `"x"`},
			{"demote a stranger", func(ctx context.Context) error { return s.Demote(ctx, "x") }, raftstore.ErrNotMember, `"x"`},
			{"transfer to a stranger", func(ctx context.Context) error { return s.Transfer(ctx, "x") }, raftstore.ErrNotMember, `"x"`},
			{"transfer to an observer", func(ctx context.Context) error { return s.Transfer(ctx, "o") }, store.ErrInvalid, "promote it first"},
			{"add a voter as an observer", func(ctx context.Context) error { return s.AddObserver(ctx, "a", address("a")) }, store.ErrInvalid, "demote it instead"},
			{"add one of another cluster", func(ctx context.Context) error { return s.AddVoter(ctx, "lone", "lone:1") }, raftstore.ErrOtherCluster, ""},
			{"add one at the address of another", func(ctx context.Context) error { return s.AddVoter(ctx, "x", address("o")) }, nil, "nobody of that name"},
			{"remove the last voter", func(ctx context.Context) error { return alone.Remove(ctx, "lone") }, raftstore.ErrUnsafe, "no voter would remain"},
			{"demote the last voter", func(ctx context.Context) error { return alone.Demote(ctx, "lone") }, raftstore.ErrUnsafe, "no voter would remain"},
			{"transfer to nobody", func(ctx context.Context) error { return alone.Transfer(ctx, "") }, raftstore.ErrUnsafe, "no other voter"},
		}
		for _, tt := range tests {
			err := tt.do(c.ctx())
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: got %v, want %v that says %q", tt.name, err, tt.want, tt.says)
			}
			if errors.Is(err, store.ErrUncertain) {
				t.Errorf("%s: %v leaves the outcome open", tt.name, err)
			}
		}
		c.wantMembers("a b c o-")
	})
}

// TestMembers_KeepsTheQuorum has one of three voters dead: no other may go.
func TestMembers_KeepsTheQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, t.TempDir(), "a", "b", "c")
		c.kill("c")
		_, s := c.follower()
		c.until("c is missed", func() bool {
			return slices.ContainsFunc(s.Members(c.ctx()), func(m raftstore.Replica) bool { return m.LastContact > 2*time.Second })
		})
		for _, id := range []string{"a", "b"} {
			for verb, err := range map[string]error{"remove": s.Remove(c.ctx(), id), "demote": s.Demote(c.ctx(), id)} {
				if !errors.Is(err, raftstore.ErrUnsafe) || !strings.Contains(err.Error(), `"c"`) {
					t.Errorf("%s %s: got %v, want ErrUnsafe that names c", verb, id, err)
				}
			}
		}
		if err := s.Transfer(c.ctx(), "c"); !errors.Is(err, raftstore.ErrUnsafe) {
			t.Errorf("transfer to the dead: got %v, want ErrUnsafe", err)
		}
		if err := s.Remove(c.ctx(), "c"); err != nil {
			t.Errorf("remove the dead: %v", err)
		}
		c.wantMembers("a b")
	})
}

// TestMembers_WithoutAMajority asks the one that is left of three: it says who
// is there.
func TestMembers_WithoutAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, t.TempDir(), "a", "b", "c")
		said := func() (text string) {
			for _, m := range c.replicas["a"].Members(c.ctx()) {
				if m.Known || m.Leader {
					return ""
				}
				text += fmt.Sprintf("%s:%v ", m.ID, m.Answers)
			}
			return text
		}
		c.kill("b")
		c.kill("c")
		c.until("a is alone", func() bool { return said() == "a:true b:false c:false " })
		if leader, _ := c.replicas["a"].Leader(); leader != "" {
			t.Errorf("%q leads without a majority", leader)
		}
	})
}

// TestMembers_ChangesWaitForANewLeader demotes the leader: the next one, which makes
// the change, has not heard from everybody when it begins.
func TestMembers_ChangesWaitForANewLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		old, s := c.leader()
		var others []string
		for id := range c.replicas {
			if id != old {
				others = append(others, id)
			}
		}
		c.hub.Part(others[:1], others[1:])
		over := c.replicas[others[0]].Changed()
		done := make(chan error, 1)
		go func() { done <- s.Demote(c.ctx(), old) }()
		<-over // another one leads
		for range 20 {
			c.pause(c.ctx())
		}
		select {
		case err := <-done:
			t.Fatalf("done while the new leader cannot reach the third: %v", err)
		default:
		}
		c.hub.Heal()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if now, _ := c.leader(); now == old {
			t.Errorf("%s still leads", old)
		}
	})
}

// TestMembers_CutOffFromTheLeader asks one that does not hear the leader which the
// others have: it says so.
func TestMembers_CutOffFromTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		leader, _ := c.leader()
		id, s := c.follower()
		c.hub.Cut(leader, id)
		var heard string
		c.until("it hears nobody", func() bool { now, _ := s.Leader(); return now == "" })
		for _, m := range s.Members(c.ctx()) {
			if m.ID != id && m.ID != leader && m.Answers && !m.Known {
				heard = m.Hears
			}
		}
		if heard != leader {
			t.Errorf("the other one hears %q, want %q", heard, leader)
		}
	})
}

// TestConfigured_AsksNobody has it answer at once, with a leader and on a replica
// that is cut off.
func TestConfigured_AsksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		if err := c.replicas["a"].Demote(c.ctx(), "c"); err != nil {
			t.Fatal(err)
		}
		if err := c.replicas["a"].Transfer(c.ctx(), "a"); err != nil {
			t.Fatal(err)
		}
		for _, s := range c.replicas {
			c.sync(s)
		}
		want := func(when, leader string) {
			t.Helper()
			start := time.Now()
			for id, s := range c.replicas {
				var members []raftstore.Replica
				for _, of := range []string{"a", "b", "c"} {
					members = append(members, raftstore.Replica{ID: of, Address: address(of), Voter: of != "c", Leader: of == leader})
				}
				if diff := cmp.Diff(members, s.Configured()); diff != "" {
					t.Errorf("%s, on %s (-want +got):\n%s", when, id, diff)
				}
			}
			if took := time.Since(start); took != 0 {
				t.Errorf("%s it took %v, want no time", when, took)
			}
		}
		want("with a leader", "a")
		c.hub.Part([]string{"b"}, []string{"a", "c"})
		c.until("nobody leads", func() bool {
			return !slices.ContainsFunc([]string{"a", "b", "c"}, func(id string) bool { leader, _ := c.replicas[id].Leader(); return leader != "" })
		})
		want("without a leader", "")
	})
}

// TestRemoved_LearnsOfIt removes replicas while they are there and while they
// are away: both find out, and the rest goes on.
func TestRemoved_LearnsOfIt(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%v", away), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, dir, "a", "b", "c")
				gone := c.replicas["c"]
				if away {
					c.kill("c")
					c.hub.Heal()
				}
				if err := c.replicas["a"].Remove(c.ctx(), "c"); err != nil {
					t.Fatal(err)
				}
				if away {
					gone = c.open("c", false)
				}
				delete(c.replicas, "c")
				c.wantMembers("a b")
				<-gone.Failed()
				if err := gone.Err(); !errors.Is(err, raftstore.ErrRemoved) {
					t.Errorf("the removed one failed with %v, want ErrRemoved", err)
				}
				put(t, c.replicas["b"], store.Op{Key: "k"})
				if err := gone.Close(); err != nil {
					t.Fatal(err)
				}
				// It comes back with an empty directory.
				if err := os.RemoveAll(filepath.Join(dir, "c")); err != nil {
					t.Fatal(err)
				}
				s := c.open("c", true)
				if err := c.replicas["b"].AddVoter(c.ctx(), "c", address("c")); err != nil {
					t.Fatal(err)
				}
				c.wantMembers("a b c")
				put(t, s, store.Op{Key: "again"})
			})
		})
	}
}

// TestDiskLoss_RejoinsWithTheSameID loses the disk of a voter. Until it is
// added again it has no vote: with one more voter away there is no leader.
func TestDiskLoss_RejoinsWithTheSameID(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		_, s := c.leader()
		fill(t, s)
		lost, _ := c.follower()
		c.kill(lost)
		if err := os.RemoveAll(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
		c.hub.Heal()
		blank := c.open(lost, true)
		short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := blank.Sync(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a blank replica synced with %v before it was added again", err)
		}
		put(t, s, store.Op{Key: "meanwhile"})

		other := "a"
		for id := range c.replicas {
			if _, self := c.replicas[id].Leader(); !self && id != lost {
				other = id
			}
		}
		c.hub.Part([]string{other}, []string{"a", "b", "c"})
		short, cancel = context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := s.Apply(short, store.Batch{Ops: []store.Op{{Key: "minority"}}}); err == nil {
			t.Error("one voter and a blank one acknowledged a write")
		}
		c.hub.Heal()

		_, s = c.leader()
		if err := s.AddVoter(c.ctx(), lost, address(lost)); err != nil {
			t.Fatal(err)
		}
		c.wantMembers("a b c")
		c.sync(blank)
		if want, got := list(t, s), list(t, blank); len(want) != len(got) {
			t.Errorf("it has %d entries, want %d", len(got), len(want))
		}
	})
}

// TestAddressChange restarts replicas at other addresses, the leader too.
func TestAddressChange_IsTold(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		for _, pick := range []func() (string, *raftstore.Store){c.follower, c.leader} {
			id, s := pick()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = c.openAt(id, id+":2", false)
			c.sync(s)
			c.until("the others know the new address", func() bool {
				return slices.ContainsFunc(s.Members(c.ctx()), func(m raftstore.Replica) bool { return m.ID == id && m.Address == id+":2" })
			})
			put(t, s, store.Op{Key: "k" + id})
		}
	})
}

// TestAddressChange_OfALoneVoter gives a replica that was alone a network.
func TestAddressChange_OfALoneVoter(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, raftstore.Config{Dir: filepath.Join(dir, "a"), ID: "a"})
		fill(t, s)
		closeNow(t, s)
		c := newCluster(t, dir, "a", "b", "c")
		c.until("it has its address", func() bool {
			return slices.ContainsFunc(c.replicas["b"].Members(c.ctx()), func(m raftstore.Replica) bool { return m.ID == "a" && m.Address == "a:1" })
		})
		c.sync(c.replicas["c"])
		if n := len(list(t, c.replicas["c"])); n == 0 {
			t.Error("the others have nothing of what it held")
		}
	})
}

// TestStrangers_AreRefused has replicas dial whose cluster is another one.
func TestStrangers_AreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		c := newClusterOf(t, "", func(cfg *raftstore.Config) {
			if cfg.ID == "a" {
				cfg.Registerer = registry
			}
		}, "a")
		stranger := c.hub.Endpoint("x", "x:1")
		for _, first := range []string{"R", "C", "Z", ""} {
			conn, err := stranger.Dial(c.ctx(), "a", address("a"))
			if err != nil {
				t.Fatal(err)
			}
			// A kind and an empty hello.
			if _, err := conn.Write([]byte(first + "\x00\x00\x00\x00")); err != nil {
				t.Fatal(err)
			}
			for buf := make([]byte, 4096); err == nil; {
				_, err = conn.Read(buf)
			}
			_ = conn.Close()
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		refused := 0.0
		for _, f := range families {
			if f.GetName() == "meshgate_store_streams_refused_total" {
				for _, m := range f.GetMetric() {
					refused += m.GetCounter().GetValue()
				}
			}
		}
		if refused != 4 {
			t.Errorf("counted %v refusals, want 4", refused)
		}
	})
}

// TestStrangers_AreBounded opens streams without saying anything.
func TestStrangers_AreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a")
		stranger := c.hub.Endpoint("x", "x:1")
		ended := make(chan struct{}, 100)
		for range 100 {
			conn, err := stranger.Dial(c.ctx(), "a", address("a"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go func() {
				_, _ = conn.Read(make([]byte, 1))
				ended <- struct{}{}
			}()
		}
		start := time.Now()
		for range 68 {
			<-ended
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("all beyond 32 streams are closed after %v, want at once", took)
		}
		for range 32 {
			<-ended
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("the silent ones are closed after %v, want 5 s", took)
		}
	})
}

// TestSlowFollower_GetsASnapshot has a follower miss more than the log keeps.
func TestSlowFollower_GetsASnapshot(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newClusterOf(t, dir, func(cfg *raftstore.Config) { cfg.TrailingLogs = 10 }, "a", "b", "c")
		id, s := c.follower()
		c.hub.Part([]string{id}, []string{"a", "b", "c"})
		_, leader := c.leader()
		for range 3 {
			fill(t, leader)
		}
		for _, r := range c.replicas {
			if r != s {
				if err := r.Snapshot(); err != nil {
					t.Fatal(err)
				}
			}
		}
		put(t, leader, store.Op{Key: "after the snapshot"})
		c.hub.Heal()
		c.sync(s)
		if want, got := list(t, leader), list(t, s); len(want) != len(got) || s.Version() != leader.Version() {
			t.Errorf("it has %d entries at %d, want %d at %d", len(got), s.Version(), len(want), leader.Version())
		}
		for _, err := range s.Watch(t.Context(), "", 1) {
			if !errors.Is(err, store.ErrCompacted) {
				t.Errorf("a watch from before: got %v, want ErrCompacted", err)
			}
			break
		}
		put(t, s, store.Op{Key: "by the slow one"})
		c.kill(id)
		c.hub.Heal()
		c.sync(c.open(id, false))
	})
}

// TestDead_AreReplacedAndRemoved runs the rule of DESIGN.md in a cluster: of
// five voters two die; of three, one is replaced by an observer.
func TestDead_AreReplacedAndRemoved(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newClusterOf(t, dir, func(cfg *raftstore.Config) { cfg.DeadAfter = 10 * time.Second }, "a", "b", "c", "d", "e")
		c.kill("e")
		<-time.After(2 * time.Minute)
		c.wantMembers("a b c d e")
		c.kill("d")
		c.wantMembers("a b c")
		c.open("o", true)
		if err := c.replicas["a"].AddObserver(c.ctx(), "o", address("o")); err != nil {
			t.Fatal(err)
		}
		c.kill("c")
		c.wantMembers("a b o")
		c.kill("b")
		<-time.After(2 * time.Minute)
		c.wantMembers("a b o")
	})
}
