// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux && !soak

package e2e

import "time"

// The short form, for every day; that of make soak is the one that counts.
const (
	manyNodes, manyPairs = 50, 10
	manyFor              = 5 * time.Second
	manyEvery            = 500 * time.Millisecond
	manyJoin             = patience
	manyGrowth           = 0 // too short to tell
	// manyLinger is how many connections of nodes that have left may be there: the
	// gateway ends them with the next keepalive, after 15 s.
	manyLinger = manyNodes
)
