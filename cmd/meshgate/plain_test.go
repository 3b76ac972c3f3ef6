// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestPlain_SaysEachThingOnce(t *testing.T) {
	for text, want := range map[string]string{
		"get groups: unavailable: unavailable: unavailable: no leader":                 "get groups: unavailable: no leader",
		"x: not_found: not found: no node":                                             "x: not_found: no node",
		`put groups all: put group "all": invalid argument: subjects: name one`:        "put groups all: invalid argument: subjects: name one",
		`put edges a to b: put edge "a" to "b": failed precondition: source: x`:        "put edges a to b: failed precondition: source: x",
		`put networkacls web: put network ACL "web": failed precondition: y`:           "put networkacls web: failed precondition: y",
		`delete roles mesh-admin: delete role "mesh-admin": role "mesh-admin" is part`: `delete roles mesh-admin: role "mesh-admin" is part`,
		`no role that grants VERB_PUT on RESOURCE_NETWORK_ACLS "web"`:                  `no role that grants put on networkacls "web"`,
		"no role that grants VERB_ALL on RESOURCE_ALL":                                 "no role that grants * on *",
		"restore x: put it there: as it was":                                           "restore x: put it there: as it was",
		"":                                                                             "",
	} {
		if got := plain(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
