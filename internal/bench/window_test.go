// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

func TestMeter_CountsTheWindowAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meter{window: window{Warm: time.Second, Count: 2 * time.Second}}
		// 1000 bytes each 100 ms, after a beginning that is ten times as fast.
		for i := range 10 {
			if m.add(10_000) {
				t.Fatalf("over at the beginning, after %d", i)
			}
			<-time.After(100 * time.Millisecond)
		}
		over := false
		for i := 0; !over; i++ {
			if over = m.add(1000); i > 20 {
				t.Fatal("never over")
			}
			<-time.After(100 * time.Millisecond)
		}
		if !m.add(1 << 30) {
			t.Error("not over any more")
		}
		if rate, err := m.rate(); err != nil || math.Abs(rate-10_000) > 1 {
			t.Errorf("%f bytes per second, %v", rate, err)
		}
	})
}

func TestMeter_StallHasARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meter{window: window{Count: time.Second}}
		m.add(1)
		m.add(1)
		<-time.After(10 * time.Second)
		if !m.add(100) {
			t.Error("not over")
		}
		if rate, err := m.rate(); err != nil || rate != 10 {
			t.Errorf("%f bytes per second, %v", rate, err)
		}
	})
}

func TestMeter_NothingHasNone(t *testing.T) {
	m := meter{window: window{Warm: time.Second, Count: time.Second}}
	m.add(1)
	if _, err := m.result().get(); err == nil {
		t.Error("one byte has a rate")
	}
}
