// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"net"
	"testing"
	"testing/synctest"

	"github.com/pion/stun"
)

// Strangers who ask and do not read take no memory that clients with an allocation
// need: each of them waits for its own answers.
func TestServe_StrangersFillNoQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const strangers, each = 50, 2 << 10
		s := newServer(t, func(cfg *Config) {
			cfg.Limits.Connections, cfg.Limits.QueuedTotal = 2*strangers, 2*strangers*each
		})
		f := newShards(t, s, 1, nil)[0]
		p := newPipes()
		serve(t, s, p)
		honest, _ := p.dial(t)
		honest.channel()
		for _, method := range []stun.Method{stun.MethodBinding, stun.MethodAllocate} {
			flood := bytes.Repeat(stun.MustBuild(stun.TransactionID, stun.NewType(method, stun.ClassRequest)).Raw, 500)
			var open []net.Conn
			for range strangers {
				c, _ := p.dial(t)
				open = append(open, c)
				go c.Write(flood)
			}
			synctest.Wait()
			if n := s.Stats().Queued; n == 0 || n > strangers*each {
				t.Errorf("%v: %d bytes wait for %d strangers, want at most %d for each", method, n, strangers, each)
			}
			f.fromPeer(t, somebody, []byte("hello"))
			if got := honest.frame(); !bytes.Equal(got, channelData([]byte("hello"))) {
				t.Errorf("%v: the client got %x", method, got)
			}
			for _, c := range open {
				c.Close()
			}
			synctest.Wait()
		}
	})
}

// Who asks much at once and reads gets all answers, in their order.
func TestServe_AnswersStrangersOneAfterTheOther(t *testing.T) {
	for way, start := range dials() {
		t.Run(way, func(t *testing.T) {
			s := newServer(t, nil)
			newShards(t, s, 1, nil)
			c := start(t, s)()
			var all []byte
			var asked [][stun.TransactionIDSize]byte
			for range 5*strangeFrames + 1 {
				m := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
				all, asked = append(all, m.Raw...), append(asked, m.TransactionID)
			}
			c.send(all)
			for i, id := range asked {
				if res := c.message(); res.TransactionID != id {
					t.Fatalf("answer %d is for another question", i)
				}
			}
			c.channel() // and it can still come in
		})
	}
}
