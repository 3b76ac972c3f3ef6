// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

func TestCluster_PrintsWhatIsKnown(t *testing.T) {
	var out bytes.Buffer
	err := (&app{stdout: &out, output: "table"}).printCluster(&meshgatev1.StatusResponse{Replicas: []*meshgatev1.Replica{
		{Id: "gw1", Voter: true, Leader: true, Alive: true, LastContact: durationpb.New(0)},
		{Id: "gw2", Voter: true, LastContact: durationpb.New(1499 * time.Millisecond), Lag: 83, LagUnknown: true},
		{Id: "gw3", Voter: true, Alive: true, LastContact: durationpb.New(12345 * time.Microsecond), Lag: 2},
		{Id: "gw4", Voter: true, LastContact: durationpb.New(6*time.Minute + 49381*time.Microsecond), Lag: 9},
		{Id: "gw5"},
		{Id: "gw6", Voter: true, Alive: true, LastContact: durationpb.New(0), Room: meshgatev1.Room_ROOM_LOW},
		{Id: "gw7", Voter: true, Alive: true, LastContact: durationpb.New(0), Lag: 5, Room: meshgatev1.Room_ROOM_NONE},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"gw1 leader 0s ago 0", "gw2 voter 1s ago (out of reach) not known", "gw3 voter 12ms ago 2",
		"gw4 voter 6m0s ago (out of reach) 9", "gw5 observer not known (out of reach) not known",
		"gw6 voter 0s ago (disk full) 0", "gw7 voter 0s ago (disk full, falls behind) 5",
	} {
		found := false
		for line := range strings.Lines(out.String()) {
			found = found || strings.Join(strings.Fields(line), " ") == want
		}
		if !found {
			t.Errorf("no line %q in\n%s", want, &out)
		}
	}
}

// Voters whose copies do not count may not be lost on top of those that may.
func TestCluster_CountsVotersThatKeepNothing(t *testing.T) {
	voter := func(id string, lag uint64, room meshgatev1.Room, alive bool) *meshgatev1.Replica {
		return &meshgatev1.Replica{Id: id, Voter: true, Alive: alive, Lag: lag, Room: room}
	}
	for want, replicas := range map[string][]*meshgatev1.Replica{
		"": {voter("a", 0, meshgatev1.Room_ROOM_ENOUGH, true), voter("b", 20, meshgatev1.Room_ROOM_LOW, true), {Id: "o", Lag: 1 << 20, Alive: true}},
		"; out of reach now: a; without room on the disk: b; far behind: c, so that none more may": {
			voter("a", 9, 0, false), voter("b", 9, meshgatev1.Room_ROOM_NONE, true), voter("c", 1<<20, 0, true),
		},
		"; far behind: c, so that 1 more may": {voter("a", 0, 0, true), voter("b", 0, 0, true), voter("c", 1<<20, 0, true), voter("d", 0, 0, true), voter("e", 0, 0, true)},
	} {
		if got := lossText(&meshgatev1.StatusResponse{Replicas: replicas}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A change of the cluster that was not answered in time may have happened.
func TestCluster_SaysThatAnOutcomeIsUnknown(t *testing.T) {
	a := &app{stdout: io.Discard}
	for err, unknown := range map[error]bool{
		connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded):              true,
		connect.NewError(connect.CodeUnavailable, errors.New("leader lost: outcome unknown")): true,
		connect.NewError(connect.CodeFailedPrecondition, errors.New("could cost the quorum")): false,
	} {
		told := a.tellChange("demoted", []string{"gw1"}, err)
		if !errors.Is(told, err) || strings.Contains(told.Error(), "ask meshgate cluster status") != unknown {
			t.Errorf("%v: says %q", err, told)
		}
	}
	if err := a.tellChange("demoted", []string{"gw1"}, nil); err != nil {
		t.Error(err)
	}
}
