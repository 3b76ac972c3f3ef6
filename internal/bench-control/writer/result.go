// SPDX-License-Identifier: Apache-2.0

package writer

import (
	"slices"
	"time"
)

// result sums up what the clients noted within a time.
func result(took [][]time.Duration, within time.Duration) Result {
	all := slices.Concat(took...)
	if len(all) == 0 {
		return Result{}
	}
	slices.Sort(all)
	at := func(q float64) float64 {
		return all[min(len(all)-1, int(q*float64(len(all))))].Seconds() * 1000
	}
	return Result{Acked: float64(len(all)) / within.Seconds(), P50: at(.5), P99: at(.99)}
}
