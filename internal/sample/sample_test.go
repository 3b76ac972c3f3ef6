// SPDX-License-Identifier: Apache-2.0

package sample

import (
	"math"
	"testing"
)

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[99-i] = float64(i + 1)
	}
	for _, tc := range []struct {
		list []float64
		q    float64
		want float64
	}{
		{[]float64{7}, .5, 7}, {[]float64{7}, .99, 7},
		{[]float64{3, 1, 2}, .5, 2}, {[]float64{4, 1, 3, 2}, .5, 2.5},
		{hundred, .5, 50.5}, {hundred, .99, 99}, {hundred, 1, 100}, {hundred, 0, 1},
	} {
		if got := Quantile(tc.list, tc.q); got != tc.want {
			t.Errorf("%v of %d values: %v, want %v", tc.q, len(tc.list), got, tc.want)
		}
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}
