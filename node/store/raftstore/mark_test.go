// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"testing"
)

func FuzzDecodeMark(f *testing.F) {
	f.Add(encodeMark(1))
	f.Add([]byte(markMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		index, err := decodeMark(data)
		if err == nil && !bytes.Equal(encodeMark(index), data) || err != nil && index != 0 {
			t.Errorf("%x was read as %d, %v", data, index, err)
		}
	})
}

// The mark never goes back: a replica that starts from its last snapshot has
// applied less than it knows to be committed.
func TestMark_OnlyRises(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct{ raise, want uint64 }{{0, 0}, {7, 7}, {3, 7}, {8, 8}, {0, 8}} {
		m, err := openMark(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.raise(step.raise); err != nil {
			t.Fatal(err)
		}
		if got := m.at(); got != step.want {
			t.Errorf("raised to %d: at %d, want %d", step.raise, got, step.want)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
