// SPDX-License-Identifier: Apache-2.0

// Package sample says what many measurements of one thing amount to.
package sample

import (
	"math"
	"slices"
)

// Quantile is the smallest value that is not exceeded by the part q of all;
// for the median of an even number, the middle of the two. Of none it is NaN.
func Quantile(list []float64, q float64) float64 {
	if len(list) == 0 {
		return math.NaN()
	}
	list = slices.Sorted(slices.Values(list))
	if q == .5 && len(list)%2 == 0 {
		return (list[len(list)/2-1] + list[len(list)/2]) / 2
	}
	return list[max(0, int(math.Ceil(q*float64(len(list))))-1)]
}

// Median is the middle one of all.
func Median(list []float64) float64 { return Quantile(list, .5) }
