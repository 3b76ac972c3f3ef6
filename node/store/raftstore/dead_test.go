// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"strings"
	"testing"

	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// TestBury_Rule writes replicas as "a b+ c! o- p-!": a live one, one that is
// neither live nor dead, a dead one, and observers; the first one leads.
func TestBury_Rule(t *testing.T) {
	tests := []struct{ name, replicas, want string }{
		{"all well", "a b c", ""},
		{"one of three: two are no better than three with one dead", "a b c!", ""},
		{"one of two: has no quorum anyway", "a b!", ""},
		{"one of four", "a b c d!", "remove d"},
		{"one of five", "a b c d e!", ""},
		{"two of five: the first step", "a b c d! e!", "remove e"},
		{"two of five: the second step", "a b c d!", "remove d"},
		{"two of four: no majority", "a b c! d!", ""},
		{"one of five, one just away", "a b c d+ e!", ""},
		{"two of five, one just away: no majority", "a b c+ d! e!", ""},
		{"three of seven: the first step", "a b c d e! f! g!", "remove g"},
		{"an observer takes the place", "a b c! o-", "promote o"},
		{"the observer has its vote", "a b c! o", "remove c"},
		{"an observer that is not live does not", "a b c! o-+", ""},
		{"a dead observer", "a b c o-!", "remove o"},
		{"a dead observer while there is no majority", "a b! c! o-!", "remove o"},
		{"a lone voter and a dead observer", "a o-!", "remove o"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var replicas []standing
			for part := range strings.FieldsSeq(tt.replicas) {
				replicas = append(replicas, standing{
					id: part[:1], voter: !strings.Contains(part, "-"),
					dead: strings.Contains(part, "!"), live: !strings.ContainsAny(part, "!+"),
				})
			}
			got := ""
			if next, ok := bury(replicas); ok {
				got = next.verb() + " " + next.id
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestChange_Verbs(t *testing.T) {
	if got := (change{action: pb.ReplicaAction_REPLICA_ACTION_ADD_VOTER}).verb(); got != "add voter" {
		t.Errorf("got %q", got)
	}
}
