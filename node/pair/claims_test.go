// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

// accepts is from where a node takes what another one sends.
func (n *testNode) accepts(o *testNode) []wg.Route {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.ways[o.record.PublicKey.WireGuard()]; w != nil {
		return slices.Clone(w.accepted)
	}
	return nil
}

// A node that starts in the place of another one has a pair at once, and what comes
// from there is its own.
func TestClaims_AnotherNodeInThePlaceOfOne(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		a, b := l.two()
		l.until(2*time.Second, "the pair stands", func() bool { return standing(a, b) })
		at := wg.Route{Socket: wg.NativeSocket, To: netip.AddrPortFrom(b.addr, wireguardPort)}
		if got := a.accepts(b); !slices.Contains(got, at) {
			t.Fatalf("the pair accepts %v", got)
		}
		b.stop()
		c := l.run(record(t, "cid", 3), b.addr)
		synctest.Wait()
		a.pairs.Seek(c.record.IPv4.Addr())
		l.until(2*time.Second, "the pair with the other stands", func() bool { return standing(a, c) })
		if was, is := a.accepts(b), a.accepts(c); slices.Contains(was, at) || !slices.Contains(is, at) {
			t.Errorf("the node that was there has %v, the one that is there %v", was, is)
		}
		for range 20 {
			<-time.After(5 * time.Second)
			l.talk(a, c)
			if was, is := a.accepts(b), a.accepts(c); slices.Contains(was, at) || !slices.Contains(is, at) {
				t.Fatalf("later the node that was there has %v, the one that is there %v", was, is)
			}
		}
	})
}

// Who was seen last on a route has it: not who only claims to be there, and never
// instead of a gateway at its endpoint.
func TestLink_Claims(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		gate := s.gate("gate", 9)
		home := path.Route{Socket: path.Native, To: netip.MustParseAddrPort(gate.Endpoint)}
		at := path.Route{Socket: path.Native, To: netip.MustParseAddrPort("10.0.0.7:51820")}
		only := path.Route{Socket: 4, To: at.To}
		g, _ := s.link(gateway, gate)
		ada, adas := s.link(sought, s.peer("ada", 1))
		cid, cids := s.link(sought, s.peer("cid", 3))
		list := []*link{g, ada, cid}
		for _, l := range list {
			l.tend(time.Now())
		}
		now := time.Now()
		adas.accepted, cids.accepted = []path.Route{at, home}, []path.Route{only, at}
		step := func(what string, l *link, want ...path.Route) {
			t.Helper()
			for _, o := range list {
				o.due = now.Add(time.Hour)
			}
			if l.steer(now); !slices.Equal(l.accepted, want) || !slices.Equal(l.claimed, want) {
				t.Errorf("%s: %s accepts %v, claims %v", what, l.peer.Node.ID, l.accepted, l.claimed)
			}
		}
		at1, at2 := now.Add(-2*time.Second), now.Add(-time.Second)
		step("nobody seen there", ada, at)
		step("nobody seen there", cid, only)
		cids.verified = map[path.Route]time.Time{at: at1}
		step("seen there alone", cid, only, at)
		if len(ada.accepted)+len(ada.claimed) != 0 || ada.due != now {
			t.Errorf("who had it accepts %v, claims %v, is due %v", ada.accepted, ada.claimed, ada.due)
		}
		told := len(s.ways[ada.key].accepted)
		step("not seen there", ada)
		if got := len(s.ways[ada.key].accepted); got != told {
			t.Error("the device is told of what it did itself")
		}
		adas.verified = map[path.Route]time.Time{at: at1, home: now.Add(time.Hour)}
		step("seen no later", ada)
		adas.verified[at] = at2
		step("seen later", ada, at)
		step("seen before", cid, only)
		adas.accepted = nil
		step("there no more", ada)
		step("left to it", cid, only, at)
		cid.end()
		adas.accepted = []path.Route{at}
		adas.verified = nil
		step("after its end", ada, at)
		if s.claims[home] != g || s.claims[at] != ada || len(s.claims) != 2 {
			t.Errorf("claims: %v", s.claims)
		}
		step("its own endpoint", g, home)
	})
}
