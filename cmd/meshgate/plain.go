// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
)

// changeName is how a gateway names a change, after the words of this program for
// the same: put groups staff: put group "staff": ...
var changeName = regexp.MustCompile(`((?:^|: )(?:put|delete) [a-z]+ [^:]*: )(?:put|delete) [a-zA-Z ]+ "[^"]*"(?: to "[^"]*")?: `)

// action is how a gateway names what a role grants.
var action = regexp.MustCompile(`VERB_([A-Z]+) on RESOURCE_([A-Z_]+)`)

// lists are the calls that a gateway advises, and the commands that make them.
var lists = strings.NewReplacer(
	"v1.Mesh/ListNodes names those that are", "meshgate get nodes lists those that are",
	"choose one that ListRoles shows", "choose one that meshgate get roles shows",
)

// plain is a message of a gateway in the words of the command line: each thing is
// said once, and what a role grants is spelled as put roles takes it.
func plain(text string) string {
	text = changeName.ReplaceAllString(text, "$1")
	text = action.ReplaceAllStringFunc(text, func(s string) string {
		m := action.FindStringSubmatch(s)
		return short(m[1], "") + " on " + short(m[2], "")
	})
	parts := strings.Split(lists.Replace(text), ": ")
	kept := parts[:1]
	for _, part := range parts[1:] {
		if strings.ReplaceAll(kept[len(kept)-1], "_", " ") != strings.ReplaceAll(part, "_", " ") {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, ": ")
}
