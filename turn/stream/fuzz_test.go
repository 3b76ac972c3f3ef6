// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"io"
	"testing"
	"testing/synctest"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// FuzzFrames sends any bytes, cut anywhere, and compares what arrives at the peer
// with a reader that has all of them at once.
func FuzzFrames(f *testing.F) {
	binding := stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw
	f.Add(append(channelData([]byte("hello")), binding...), []byte{1, 2, 3})
	f.Add(append(binding, channelData(nil)...), []byte{4})
	f.Add(append(channelData(pattern(5000)), 0x40, 0, 0, 9, 1), []byte{255, 255, 7})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte{1})
	f.Fuzz(func(t *testing.T, b, cuts []byte) {
		var want [][]byte
		for rest := b; ; {
			n, err := core.Frame(rest)
			if err != nil || n == 0 || n > len(rest) {
				break
			}
			if rest[0] == 0 && rest[1] == 0x16 {
				return // a Send indication may reach a peer, too
			}
			if size := int(rest[2])<<8 | int(rest[3]); rest[0] == 0x40 && rest[1] == 0 && size <= 65507 {
				want = append(want, rest[4:4+size])
			}
			rest = rest[n:]
		}
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t, nil)
			shard := newShards(t, s, 1, nil)[0]
			p := newPipes()
			serve(t, s, p)
			c, _ := p.dial(t)
			c.channel()
			go io.Copy(io.Discard, c.r)
			for i, rest := 0, b; len(rest) > 0; i++ {
				n := len(rest)
				if len(cuts) > 0 {
					n = min(n, 1+int(cuts[i%len(cuts)]))
				}
				if _, err := c.Write(rest[:n]); err != nil {
					break
				}
				rest = rest[n:]
			}
			c.Close()
			synctest.Wait()
			if got := shard.toPeers(); !sameData(got, want) {
				t.Errorf("%v went to the peer, want %v", lengthsOf(got), lengthsOf(want))
			}
			if shard.allocations(t) != 0 || s.Stats().Connections != 0 {
				t.Error("the connection has left something")
			}
		})
	})
}
