// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

// Who gives up a relay for another one tells of it as of the last one to take. Both
// sides go over to the new one, whoever decides between equals, and no packet is lost
// when the old one is closed.
func TestAgent_LeavesARelayWithoutLoss(t *testing.T) {
	for name, movers := range map[string]func(*pair) []*host{
		"who decides": func(p *pair) []*host { return []*host{p.a} },
		"who follows": func(p *pair) []*host { return []*host{p.b} },
		"both":        func(p *pair) []*host { return []*host{p.a, p.b} },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, "natPP", "natPP")
			meet(p.a, p.b)
			p.await(t, 2*time.Second, relayed(p.a, p.b))
			p.streams()
			p.w.run(20*time.Second, nil)
			start := p.w.now
			second := newServer(p.w, "203.0.113.2")
			for _, h := range movers(p) {
				h.allocate(second, path.UDP, "second")
				h.relays[0].transport = path.TLS
				h.offer()
				h.signal(1)
			}
			p.w.run(10*time.Second, nil)
			for _, h := range movers(p) {
				old := h.relays[0].addr()
				for _, at := range []*host{p.a, p.b} {
					if r, _ := at.paths.Selected(); r.To == old || at == h && r.Socket == 1 {
						t.Errorf("%s still sends over the relay that %s gives up", at.name, h.name)
					}
				}
				delete(p.s.ports, h.relays[0].port)
				if err := h.paths.SetLocal(p.w.now, 1, nil); err != nil {
					t.Fatal(err)
				}
				h.pump()
			}
			p.w.run(10*time.Second, nil)
			p.stalled(t, start, 100*time.Millisecond)
		})
	}
}
