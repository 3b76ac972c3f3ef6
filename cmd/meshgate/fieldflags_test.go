// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
)

// Every flag that an error may name is one of its command.
func TestFieldFlags_AreThere(t *testing.T) {
	root := newRoot(io.Discard, io.Discard)
	named := regexp.MustCompile(`--([a-z.0-9-]+)`)
	for command, pairs := range fieldFlags() {
		cmd, rest, err := root.Find(strings.Fields(command))
		if err != nil || len(rest) > 0 || len(pairs)%2 != 0 {
			t.Fatalf("%s: no command, or half a pair: %v", command, err)
		}
		for i := 1; i < len(pairs); i += 2 {
			for _, m := range named.FindAllStringSubmatch(pairs[i], -1) {
				if cmd.Flags().Lookup(m[1]) == nil {
					t.Errorf("%s has no flag --%s", command, m[1])
				}
			}
		}
	}
}

// What a gateway says of a field is said of the flag.
func TestFlagged(t *testing.T) {
	for _, tt := range []struct{ command, said, want string }{
		{"join", "join: invalid argument: routes: 0.0.0.0/1 would carry all", "join: invalid argument: --routes: 0.0.0.0/1 would carry all"},
		{"join", "join: already exists: public_key: the id is bound to another key", "join: already exists: the key in --data-dir: the id is bound to another key"},
		{"join", "join: invalid argument: primary_endpoint: 127.0.0.1 means", "join: invalid argument: --public-address: 127.0.0.1 means"},
		{"join", "join: invalid argument: zone_awareness_id: it is too long", "join: invalid argument: --zone: it is too long"},
		{"up", "update own record: invalid argument: routes: 10.0.0.0/7 would", "update own record: invalid argument: --routes: 10.0.0.0/7 would"},
		{"up", "take a seat: invalid argument: as_voter: node \"gw2\" is", "take a seat: invalid argument: --cluster.role: node \"gw2\" is"},
		{"put groups", "put groups x: invalid argument: subjects: [3]: name: too long", "put groups x: invalid argument: --node, --user or --group: name: too long"},
		{"put edges", "put edges a to b: invalid argument: weight: -1 is below 0", "put edges a to b: invalid argument: --weight: -1 is below 0"},
	} {
		err := errors.New(tt.said)
		got := flagged(tt.command, err)
		if got.Error() != tt.want || !errors.Is(got, err) {
			t.Errorf("%s: %q, want %q", tt.command, got, tt.want)
		}
	}
	if err := flagged("join", nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}
