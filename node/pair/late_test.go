// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"testing"
	"time"
)

func TestLate_IsPatientWithABusyHost(t *testing.T) {
	const ms = time.Millisecond
	for name, tt := range map[string]struct {
		turns []time.Duration
		want  time.Duration
	}{
		"no turn yet":         {nil, 700 * ms},
		"an idle host":        {[]time.Duration{0, 0}, 700 * ms},
		"a busy one":          {[]time.Duration{100 * ms}, 1100 * ms},
		"it was busier":       {[]time.Duration{400 * ms, 10 * ms}, 1900 * ms},
		"it was before":       {[]time.Duration{400 * ms, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 700*ms + 4*1268490},
		"it stood still":      {[]time.Duration{time.Hour}, 4700 * ms},
		"a turn came early":   {[]time.Duration{-time.Second}, 700 * ms},
		"and one late before": {[]time.Duration{100 * ms, -time.Second}, 1000 * ms},
	} {
		var l late
		for _, by := range tt.turns {
			l.saw(by)
		}
		if got := l.patience(silentAfter); (got - tt.want).Abs() > ms {
			t.Errorf("%s: waits %s, want %s", name, got, tt.want)
		}
	}
}
