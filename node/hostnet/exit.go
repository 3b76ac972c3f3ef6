// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"hash/fnv"
	"net/netip"
)

// Mark is what the sockets carry on which the tunnel itself runs, so that their
// packets do not follow Config.Exit (SO_MARK). It has no bit in common with what
// kube-proxy and other users of marks have of their own.
const Mark = 0xd47

// Exit leads packets into the interface for which the main routing table has
// nothing but a default route. Networks that the host is in, and all that it has
// longer routes to, stay where they are. Packets with Mark are left alone.
type Exit struct {
	// IPv4 and IPv6 say of which version packets go into the interface. Those of
	// the other one are refused, so that none leaves the host beside the tunnel.
	IPv4, IPv6 bool
	// Beside are addresses for which packets leave beside the tunnel: the exit's own,
	// to which it takes none.
	Beside []netip.Addr
	// Block has packets refused when the interface is gone, until the next Clean.
	// Without it they take the way that they had before.
	Block bool
}

// Of the rules and tables of interfaces there is one of each for a hash of their
// names: two rules, which ask one table.
const (
	exitTables    = 0x4d470000
	exitRules     = 20000 // the priority of the first
	exitHashes    = 1 << 12
	rulesPerTable = 2
)

// exitTable is the number of the routing table for an interface.
func exitTable(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // it cannot fail
	return exitTables + int(h.Sum32()%exitHashes)
}

// ourTable reports whether a routing table may be one of exitTable.
func ourTable(table int) bool { return table >= exitTables && table < exitTables+exitHashes }

// exitPriority is that of the first rule for a table of exitTable.
func exitPriority(table int) int { return exitRules + rulesPerTable*(table-exitTables) }

// ruleTable is the table for which there is a rule with a priority; ok is false if
// there is none.
func ruleTable(priority int) (table int, ok bool) {
	table = exitTables + (priority-exitRules)/rulesPerTable
	return table, priority >= exitRules && ourTable(table)
}
