// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux && soak

package e2e

import "time"

const (
	manyNodes, manyPairs = 500, 100
	manyFor              = 5 * time.Minute
	manyEvery            = 5 * time.Second
	manyJoin             = 5 * time.Minute
	// manyGrowth is by how many percent the memory may grow in a third of manyFor.
	manyGrowth = 2
	// manyLinger is how many connections of nodes that have left may be there: the
	// gateway ends them with the next keepalive, after 15 s.
	manyLinger = 0
)
