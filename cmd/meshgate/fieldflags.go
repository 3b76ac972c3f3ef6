// SPDX-License-Identifier: Apache-2.0

package main

import (
	"regexp"
	"strings"
)

// fieldFlags are the fields of the API that commands set by flags, as messages of
// a gateway name them, and the flags. It is the only table of them: a command that
// gets such flags gets a row.
func fieldFlags() map[string][]string {
	const subjects, who = ": subjects: ", ": --node, --user or --group: "
	node := []string{
		": id: ", ": --id: ", ": public_key: ", ": the key in --data-dir: ",
		": primary_endpoint: ", ": --public-address: ", ": wireguard_endpoints: ", ": --public-address: ",
		": routes: ", ": --routes: ", ": services: ", ": --expose: ",
	}
	return map[string][]string{
		"join": append([]string{": zone_awareness_id: ", ": --zone: "}, node...),
		"up": append([]string{
			": as_voter: ", ": --cluster.role: ", ": as_observer: ", ": --cluster.role: ", ": admin: ", ": --mesh.admin: ",
			": ipv4: ", ": --mesh.ipv4-network: ",
		}, node...),
		"put roles": {
			"rules: [0]: resource_names: ", "--resource-name: ", "rules: [0]: verbs: ", "--verb: ", "rules: [0]: resources: ", "--resource: ",
		},
		"put rolebindings": {": role: ", ": --role: ", subjects, who},
		"put groups":       {subjects, who},
		"put networkacls": {
			"source_nodes", "--src-node", "destination_nodes", "--dst-node", "source_cidrs", "--src-cidr", "destination_cidrs", "--dst-cidr",
			": protocols: ", ": --protocol: ", ": ports: ", ": --port: ", "protocols and ports are", "--protocol and --port are",
			": priority: ", ": --priority: ",
		},
		"put routes": {"destination_cidrs: ", "--cidr: ", "next_hop_node: ", "--next-hop: ", ": node: ", ": --node: "},
		// An edge has no direction.
		"put edges": {": source: ", ": --from or --to: ", ": target: ", ": --from or --to: ", ": weight: ", ": --weight: "},
	}
}

// flagged is err, whose text names the flags of a command in the place of fields;
// nil stays nil.
func flagged(command string, err error) error {
	if err == nil {
		return nil
	}
	return renamed{err, strings.NewReplacer(fieldFlags()[command]...)}
}

// renamed is an error whose text names flags in the place of fields. It has
// values, so that their place in a list is left out.
type renamed struct {
	error
	flags *strings.Replacer
}

// flagPlace is the place of a value in the list of a flag.
var flagPlace = regexp.MustCompile(`(--[a-z.-]+: )\[[0-9]+\]: `)

func (e renamed) Error() string {
	return flagPlace.ReplaceAllString(e.flags.Replace(e.error.Error()), "$1")
}

func (e renamed) Unwrap() error { return e.error }
