// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"io"
	"testing"
)

func FuzzParseControl(f *testing.F) {
	f.Add([]byte(`{"type":"open","window":1048576}`))
	f.Add([]byte(`{"type":"error","code":"permission_denied","message":"no","channel":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseControl(b)
		if err != nil {
			return
		}
		if c.Bytes < 0 || c.Window < 0 {
			t.Fatalf("%+v", c)
		}
		if _, err := ParseControl(c.Encode()); err != nil && len(b) < MaxControlSize/8 {
			t.Fatalf("%q became %q: %v", b, c.Encode(), err)
		}
	})
}

// A stream survives any sequence of messages: it ends, and holds no more than
// its window until then. The input is read as messages: one byte of length,
// one bit of which says text.
func FuzzStream(f *testing.F) {
	f.Add([]byte("\x03abc\x8f{\"type\":\"fin\"}\x01x"), true)
	f.Add([]byte("\x9d{\"type\":\"window\",\"bytes\":9999}\x9c{\"type\":\"reset\",\"code\":\"x\"}"), false)
	f.Fuzz(func(t *testing.T, input []byte, server bool) {
		ch, b := newPipe()
		s := NewStream(context.Background(), b, StreamConfig{Server: server})
		_, _ = s.Write([]byte("something"))
		for len(input) > 0 {
			n := min(int(input[0]&0x7f), len(input)-1)
			_ = ch.WriteMessage(input[1:1+n], input[0]&0x80 != 0)
			input = input[1+n:]
		}
		_ = ch.Close()
		<-s.Done()
		s.mu.Lock()
		held := s.in.size
		s.mu.Unlock()
		if held > Window {
			t.Fatalf("holds %d bytes", held)
		}
		_, _ = io.Copy(io.Discard, s)
		_ = s.Close()
	})
}
