// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

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
