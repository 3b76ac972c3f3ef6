// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// fakeReplicas notes what is asked for.
type fakeReplicas struct {
	calls  []string
	err    error
	backup []byte
}

func (r *fakeReplicas) Replicas(context.Context) []Replica {
	return []Replica{
		{ID: "gw", Address: "gw:1", Voter: true, Leader: true, Known: true},
		{ID: "gw2", Address: "gw2:1", Voter: true, Known: true, LastContact: time.Minute, Lag: 7},
		{ID: "gw3", Address: "gw3:1"},
		{ID: "gw4", Address: "gw4:1", Known: true, LastContact: time.Second, LagUnknown: true},
	}
}

func (r *fakeReplicas) Leads() bool { return true }

func (r *fakeReplicas) note(what string, id mesh.NodeID) error {
	r.calls = append(r.calls, what+" "+string(id))
	return r.err
}

func (r *fakeReplicas) Promote(_ context.Context, id mesh.NodeID) error {
	return r.note("promote", id)
}

func (r *fakeReplicas) Demote(_ context.Context, id mesh.NodeID) error { return r.note("demote", id) }

func (r *fakeReplicas) Remove(_ context.Context, id mesh.NodeID) error { return r.note("remove", id) }

func (r *fakeReplicas) Transfer(_ context.Context, id mesh.NodeID) error {
	return r.note("transfer", id)
}

func (r *fakeReplicas) BackupStale(w io.Writer) error {
	_, err := w.Write([]byte("what is known"))
	return err
}

func (r *fakeReplicas) Backup(_ context.Context, w io.Writer) error {
	for rest := r.backup; len(rest) > 0; { // in pieces that fit no part
		n := min(len(rest), backupPart/2+3)
		if _, err := w.Write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return r.err
}

// seatCalls are the calls that change a seat, by their names.
func seatCalls(c *clusterService) map[string]func(context.Context, string) error {
	return map[string]func(context.Context, string) error{
		"promote": func(ctx context.Context, id string) error {
			_, err := c.Promote(ctx, connect.NewRequest(&meshgatev1.PromoteRequest{Id: id}))
			return err
		},
		"demote": func(ctx context.Context, id string) error {
			_, err := c.Demote(ctx, connect.NewRequest(&meshgatev1.DemoteRequest{Id: id}))
			return err
		},
		"remove": func(ctx context.Context, id string) error {
			_, err := c.Remove(ctx, connect.NewRequest(&meshgatev1.RemoveRequest{Id: id}))
			return err
		},
		"transfer": func(ctx context.Context, id string) error {
			_, err := c.TransferLeadership(ctx, connect.NewRequest(&meshgatev1.TransferLeadershipRequest{Id: id}))
			return err
		},
	}
}

func TestCluster_ChangesSeats(t *testing.T) {
	for name := range seatCalls(nil) {
		r := &fakeReplicas{}
		call := seatCalls(&clusterService{state: testFake(t), replicas: r})[name]
		if err := call(t.Context(), "phone"); err != nil || strings.Join(r.calls, ",") != name+" phone" {
			t.Errorf("%s: %v, calls %q", name, err, r.calls)
		}
		r.err = mesh.ErrPrecondition
		if err := call(t.Context(), "phone"); !errors.Is(err, mesh.ErrPrecondition) {
			t.Errorf("%s that is refused: %v", name, err)
		}
		r.err = fmt.Errorf("%w: gone", mesh.ErrNotFound)
		for _, id := range []string{"phone", "nobody"} {
			err := call(t.Context(), id)
			if !errors.Is(err, mesh.ErrNotFound) || !strings.Contains(err.Error(), "meshgate cluster status") {
				t.Errorf("%s %s, which keeps no state: %v", name, id, err)
			}
			// Only who wants a node gone is told how.
			if gone := name == "remove" && id == "phone"; strings.Contains(err.Error(), "meshgate delete nodes "+id) != gone {
				t.Errorf("%s %s, which keeps no state: %v", name, id, err)
			}
		}
		for _, id := range []string{"", "../x", "leader", strings.Repeat("x", 254)} {
			r.calls = nil
			err := call(t.Context(), id)
			if name == "transfer" && id == "" {
				if len(r.calls) != 1 {
					t.Errorf("transfer to anybody: %v", err)
				}
				continue
			}
			if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), "id") || len(r.calls) > 0 {
				t.Errorf("%s %q: %v, calls %q", name, id, err, r.calls)
			}
		}
		lone := seatCalls(&clusterService{state: testFake(t)})[name]
		if err := lone(t.Context(), "phone"); !errors.Is(err, mesh.ErrUnsupported) {
			t.Errorf("%s on a node without state: %v", name, err)
		}
	}
	r := &fakeReplicas{}
	if err := seatCalls(&clusterService{state: testFake(t), replicas: r})["remove"](t.Context(), "gw"); !errors.Is(err, mesh.ErrPrecondition) || len(r.calls) > 0 {
		t.Errorf("remove the gateway that was asked: %v", err)
	}
}

func TestCluster_StatusTellsWhoIsInReach(t *testing.T) {
	res, err := (&clusterService{state: testFake(t), replicas: &fakeReplicas{}}).Status(t.Context(), nil)
	if err != nil || res.Msg.GetGatewayId() != "gw" || len(res.Msg.GetReplicas()) != 4 {
		t.Fatalf("%v, %v", res, err)
	}
	list := res.Msg.GetReplicas()
	if r := list[0]; !r.GetLeader() || !r.GetVoter() || !r.GetAlive() {
		t.Errorf("leader: %v", r)
	}
	if r := list[1]; r.GetAlive() || r.GetLag() != 7 || r.GetLastContact().AsDuration() != time.Minute {
		t.Errorf("one that was not heard of for a minute: %v", r)
	}
	if r := list[2]; r.GetAlive() || r.GetVoter() || r.LastContact != nil {
		t.Errorf("one that was never heard of: %v", r)
	}
	if r := list[3]; r.GetAlive() || !r.GetLagUnknown() || r.GetLastContact().AsDuration() != time.Second {
		t.Errorf("one that has not answered a new leader: %v", r)
	}
}

func TestCluster_TroubleSaysWhatToDo(t *testing.T) {
	voter := func(id mesh.NodeID, answers bool) Replica { return Replica{ID: id, Voter: true, Answers: answers} }
	led := func(id mesh.NodeID, room meshgatev1.Room, contact time.Duration) Replica {
		return Replica{ID: id, Voter: true, Leader: id == "gw1", Known: true, LastContact: contact, Room: room}
	}
	const enough, none = meshgatev1.Room_ROOM_ENOUGH, meshgatev1.Room_ROOM_NONE
	const gone = ", or, once that is gone for good, begin anew from what this gateway holds: meshgate backup FILE --stale, then stop all gateways, and meshgate restore FILE here"
	for name, tt := range map[string]struct {
		replicas []Replica
		want     string
	}{
		"a leader": {[]Replica{{ID: "a", Voter: true, Leader: true, Known: true}, voter("b", false)}, ""},
		"one of three": {
			[]Replica{voter("gw1", true), voter("gw2", false), voter("gw3", false), {ID: "o", Answers: true}},
			"no leader: 1 of 3 voters answer, 2 are needed, and nothing can be changed; start gw2 or gw3" + gone,
		},
		"an old leader that is silent": {
			[]Replica{voter("gw1", true), {ID: "gw2", Voter: true, Leader: true}},
			"no leader: 1 of 2 voters answer, 2 are needed, and nothing can be changed; start gw2" + gone,
		},
		"an election": {
			[]Replica{voter("gw1", true), voter("gw2", true), voter("gw3", false)},
			"no leader yet: 2 of 3 voters answer, which are enough to choose one; ask again in a few seconds",
		},
		"cut off from the leader": {
			[]Replica{voter("gw1", true), {ID: "gw2", Voter: true, Answers: true, Hears: "gw3"}, voter("gw3", false)},
			"gw3 leads, as gw2 says, but gw1 does not hear it: if that stays so for some seconds, see that gw3 and gw1 reach each other at the addresses above; ask gw2 meanwhile",
		},
		"an old leader in the ear of another one": {
			[]Replica{voter("gw1", true), {ID: "gw2", Voter: true, Answers: true, Hears: "gw1"}, voter("gw3", false)},
			"no leader yet: 2 of 3 voters answer, which are enough to choose one; ask again in a few seconds",
		},
		"one without room": {[]Replica{led("gw1", enough, 0), led("gw2", none, 0), led("gw3", enough, 0)}, ""},
		"one without room, one away": {
			[]Replica{led("gw1", enough, 0), led("gw2", none, 0), led("gw3", 0, time.Minute), {ID: "o", Known: true, Room: enough}},
			"gw1 leads, but 1 of 3 voters keep what is changed, 2 are needed, and changes wait; make room on the disk of gw2, or start gw3",
		},
	} {
		if got := trouble("gw1", tt.replicas); got != tt.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// backedUp is what arrives of a backup, of which stale says how it is asked for.
func backedUp(t *testing.T, r *fakeReplicas, stale string) ([]byte, error) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(meshgatev1connect.NewClusterHandler(&clusterService{state: testFake(t), replicas: r}))
	s := httptest.NewServer(mux)
	defer s.Close()
	req := connect.NewRequest(&meshgatev1.BackupRequest{})
	req.Header().Set(HeaderStale, stale)
	stream, err := meshgatev1connect.NewClusterClient(s.Client(), s.URL).Backup(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var got []byte
	for stream.Receive() {
		if n := len(stream.Msg().GetData()); n == 0 || n > backupPart {
			t.Errorf("a part of %d bytes", n)
		}
		got = append(got, stream.Msg().GetData()...)
	}
	return got, stream.Err()
}

func TestCluster_BackupArrivesWhole(t *testing.T) {
	for _, size := range []int{0, 1, backupPart - 1, backupPart, backupPart + 1, 5*backupPart + 17} {
		want := bytes.Repeat([]byte{1, 2, 3, 5, 7, 11, 13}, size/7+1)[:size]
		if got, err := backedUp(t, &fakeReplicas{backup: want}, "false"); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
	}
	if _, err := backedUp(t, &fakeReplicas{backup: []byte("x"), err: mesh.ErrUnavailable}, ""); err == nil {
		t.Error("a backup that broke off looks whole")
	}
}

// Without a leader a gateway still gives what it holds, to those who say so.
func TestCluster_BackupStale(t *testing.T) {
	got, err := backedUp(t, &fakeReplicas{err: mesh.ErrUnavailable}, "true")
	if err != nil || string(got) != "what is known" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A gateway of several says what it is, and who leads.
func TestStatus_OfAGatewayOfSeveral(t *testing.T) {
	for name, tt := range map[string]struct {
		servers []StorageServer
		status  v1.ClusterStatus
		leader  string
	}{
		"alone":       {nil, v1.ClusterStatus_CLUSTER_LEADER, "gw"},
		"a voter":     {[]StorageServer{{ID: "gw", Status: v1.ClusterStatus_CLUSTER_VOTER}, {ID: "gw2", Status: v1.ClusterStatus_CLUSTER_LEADER}}, v1.ClusterStatus_CLUSTER_VOTER, "gw2"},
		"no leader":   {[]StorageServer{{ID: "gw", Status: v1.ClusterStatus_CLUSTER_OBSERVER}}, v1.ClusterStatus_CLUSTER_OBSERVER, ""},
		"not of them": {[]StorageServer{{ID: "gw2", Status: v1.ClusterStatus_CLUSTER_LEADER}}, v1.ClusterStatus_CLUSTER_NODE, "gw2"},
	} {
		n := &nodeService{Config: Config{State: testFake(t)}}
		status := &v1.Status{ClusterStatus: v1.ClusterStatus_CLUSTER_LEADER, CurrentLeader: "gw"}
		if tt.servers != nil {
			n.Cluster = &fakeCluster{servers: tt.servers}
		}
		n.tellSeat(status)
		if status.GetClusterStatus() != tt.status || status.GetCurrentLeader() != tt.leader {
			t.Errorf("%s: %v", name, status)
		}
	}
}
