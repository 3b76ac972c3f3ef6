// SPDX-License-Identifier: Apache-2.0

package gateway

// Share is what connections that anybody may open take of the files that a
// process may have open. What is left is for those that a gateway cannot do
// without: other gateways, which come through the same port, the state on disk,
// and what it dials itself. ShareOf makes one.
type Share struct {
	// Connections is for Limits.Connections of the public port.
	Connections int
	// sorted and greeted are of all networks together.
	sorted, greeted, queued int
}

const (
	// maxConnections is how many connections a listener keeps.
	maxConnections = 16384
	// minPlaces is the least of each kind, with however few files.
	minPlaces = 16
)

// ShareOf divides files, of which the public port gets less than a half: a
// quarter for the connections that are served, a sixteenth for each of those that
// have not said yet what they want, that say that they are gateways, and that
// wait to be accepted. 0 files are unlimited.
func ShareOf(files uint64) Share {
	part := func(most int, of uint64) int {
		if files == 0 {
			return most
		}
		return max(int(min(files/of, uint64(most))), minPlaces)
	}
	return Share{
		Connections: part(maxConnections, 4),
		sorted:      part(maxSortedAll, 16), greeted: part(maxGreetedAll, 16), queued: part(maxQueued, 16),
	}
}
