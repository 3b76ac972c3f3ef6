// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/member"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// purgeMesh has the gateways gw1 to gw3, and the nodes of a map behind each.
func purgeMesh(t *testing.T, nodes map[mesh.NodeID][]mesh.NodeID) (s *mesh.Snapshot, keys map[mesh.NodeID]mesh.WireGuardKey) {
	t.Helper()
	s, keys = &mesh.Snapshot{}, map[mesh.NodeID]mesh.WireGuardKey{}
	add := func(id mesh.NodeID, features ...v1.Feature) {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		n := &mesh.Node{ID: id, PublicKey: key.Public(), JoinedAt: purgeNow.Add(-1000 * time.Hour)}
		for _, f := range features {
			n.Features = append(n.Features, mesh.Feature{Kind: f, Port: 8443})
		}
		s.Nodes, keys[id] = s.Nodes.With(n), n.PublicKey.WireGuard()
	}
	for _, gate := range []mesh.NodeID{"gw1", "gw2", "gw3"} {
		add(gate, v1.Feature_NODES, v1.Feature_MEMBERSHIP)
		for _, id := range nodes[gate] {
			add(id, v1.Feature_NODES)
			s.Edges = s.Edges.With(mesh.Edge{Source: gate, Target: id, Weight: 1})
		}
	}
	add("phone") // a stock WireGuard peer
	s.Edges = s.Edges.With(mesh.Edge{Source: "gw1", Target: "phone", Weight: 1})
	return s, keys
}

var purgeNow = time.Unix(1_700_000_000, 0)

func TestPurge_Judges(t *testing.T) {
	behind := map[mesh.NodeID][]mesh.NodeID{"gw1": {"nas"}, "gw2": {"cam"}, "gw3": {"tv"}}
	all := map[mesh.NodeID]bool{"gw1": true, "gw2": true, "gw3": true}
	ago := func(d time.Duration) time.Time { return purgeNow.Add(-d) }
	ids := func(list ...mesh.NodeID) []mesh.NodeID { return list }
	for name, tt := range map[string]struct {
		self   mesh.NodeID
		shaken map[mesh.NodeID]time.Time
		silent map[mesh.NodeID]time.Time // noted
		alive  map[mesh.NodeID]bool
		leads  bool

		misses, heard, purges []mesh.NodeID
	}{
		"its own are heard":            {self: "gw1", shaken: map[mesh.NodeID]time.Time{"nas": ago(time.Minute)}, alive: all},
		"one of its own is silent":     {self: "gw1", shaken: map[mesh.NodeID]time.Time{"nas": ago(time.Hour)}, alive: all, misses: ids("nas")},
		"one that was never heard":     {self: "gw1", alive: all, misses: ids("nas")},
		"noted before":                 {self: "gw1", silent: map[mesh.NodeID]time.Time{"nas": ago(time.Hour)}, alive: all},
		"back again":                   {self: "gw1", shaken: map[mesh.NodeID]time.Time{"nas": ago(time.Minute)}, silent: map[mesh.NodeID]time.Time{"nas": ago(99 * time.Hour)}, alive: all, leads: true, heard: ids("nas")},
		"the leader leaves others be":  {self: "gw3", shaken: map[mesh.NodeID]time.Time{"tv": ago(0)}, alive: all, leads: true},
		"but not those of a dead one":  {self: "gw3", shaken: map[mesh.NodeID]time.Time{"tv": ago(0)}, alive: map[mesh.NodeID]bool{"gw2": true}, leads: true, misses: ids("nas")},
		"which a follower leaves, too": {self: "gw3", shaken: map[mesh.NodeID]time.Time{"tv": ago(0)}, alive: map[mesh.NodeID]bool{"gw2": true}},
		"gone for long":                {self: "gw2", shaken: map[mesh.NodeID]time.Time{"cam": ago(0)}, silent: map[mesh.NodeID]time.Time{"nas": ago(24 * time.Hour)}, alive: all, leads: true, purges: ids("nas")},
		"gone, and it does not lead":   {self: "gw2", shaken: map[mesh.NodeID]time.Time{"cam": ago(0)}, silent: map[mesh.NodeID]time.Time{"nas": ago(24 * time.Hour)}, alive: all},
		"gone, but not for so long":    {self: "gw2", shaken: map[mesh.NodeID]time.Time{"cam": ago(0)}, silent: map[mesh.NodeID]time.Time{"nas": ago(24*time.Hour - time.Second)}, alive: all, leads: true},
	} {
		s, keys := purgeMesh(t, behind)
		s.Silent, s.Watched, s.Missed = tt.silent, 1000*time.Hour, map[mesh.NodeID]time.Duration{}
		for id := range tt.silent {
			s.Missed[id] = 0
		}
		handshakes := map[mesh.WireGuardKey]time.Time{}
		for id, at := range tt.shaken {
			handshakes[keys[id]] = at
		}
		p := Purge{After: 24 * time.Hour}
		v := p.judge(s, tt.self, &ears{due: true, handshakes: handshakes}, tt.alive, tt.leads, purgeNow)
		misses := slices.Sorted(maps.Keys(v.silent))
		if !slices.Equal(misses, tt.misses) || !slices.Equal(v.heard, tt.heard) || !slices.Equal(v.purge, tt.purges) {
			t.Errorf("%s: misses %v, hears %v, purges %v", name, misses, v.heard, v.purge)
		}
		for id, since := range v.silent {
			if !since.Equal(ago(silentAfter)) {
				t.Errorf("%s: %s silent since %s", name, id, since)
			}
		}
	}
}

// A fault that makes all seem gone takes its time.
func TestPurge_IsBounded(t *testing.T) {
	var many []mesh.NodeID
	silent := map[mesh.NodeID]time.Time{}
	for i := range 100 {
		id := mesh.NodeID("n" + time.Duration(i).String())
		many = append(many, id)
		silent[id] = purgeNow.Add(-99 * time.Hour)
	}
	s, _ := purgeMesh(t, map[mesh.NodeID][]mesh.NodeID{"gw1": many})
	s.Silent, s.Watched, s.Missed = silent, 1000*time.Hour, map[mesh.NodeID]time.Duration{}
	for id := range silent {
		s.Missed[id] = 0
	}
	p := Purge{After: time.Hour}
	if v := p.judge(s, "gw1", &ears{due: true}, nil, true, purgeNow); len(v.purge) != maxPurge {
		t.Errorf("%d nodes at once", len(v.purge))
	}
	// In between, only rivals are looked at.
	e := &ears{rivals: map[mesh.NodeID]bool{many[0]: true}}
	if v := p.judge(s, "gw1", e, nil, true, purgeNow); len(v.purge)+len(v.silent) > 0 {
		t.Errorf("between due looks: %v", v)
	}
}

// deafEar has heard no peer yet; it counts how often it was asked.
type deafEar struct {
	mu    sync.Mutex
	asked int
}

func (e *deafEar) Stats() (mesh.InterfaceStats, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked++
	return mesh.InterfaceStats{}, nil
}

func (e *deafEar) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked
}

// purging is a gateway "gw" that hears nobody and looks for silent members until
// end, and the member "nas".
type purging struct {
	*holder
	ctx   context.Context
	heard *deafEar
	log   bytes.Buffer
	// off is by how much the clock of the host is wrong.
	off atomic.Int64
	end func()
}

// newPurging starts one, in a bubble.
func newPurging(t *testing.T, purge Purge) *purging {
	t.Helper()
	p := &purging{heard: &deafEar{}}
	ctx, cancel := context.WithCancel(t.Context())
	p.ctx = ctx
	log := slog.New(slog.NewTextHandler(&p.log, nil))
	r := registry.New(storetest.New(), log)
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	<-r.Ready()
	key := func() mesh.PublicKey {
		k, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	members, err := member.New(member.Config{Registry: r, Self: "gw", AllowUnproven: true, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Bootstrap(ctx, registry.Bootstrap{Self: mesh.Node{ID: "gw", PublicKey: key()}}); err != nil {
		t.Fatal(err)
	}
	nas := mesh.Node{ID: "nas", PublicKey: key(), Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}}
	if _, err := members.Join(ctx, mesh.JoinRequest{Node: nas, AssignIPv4: true}); err != nil {
		t.Fatal(err)
	}
	p.holder = &holder{
		Members: members, registry: r, ear: p.heard, cfg: Hold{Purge: purge},
		node:  &Node{cfg: Config{ID: "gw"}, log: log, opened: time.Now()},
		clock: func() time.Time { return time.Now().Add(time.Duration(p.off.Load())) },
	}
	purged := make(chan error, 1)
	p.end = func() {
		cancel()
		if err := <-purged; !errors.Is(err, context.Canceled) {
			t.Errorf("it ends with %v", err)
		}
		if err := <-ran; err != nil {
			t.Errorf("the registry: %v", err)
		}
	}
	go func() { purged <- p.purge(ctx) }()
	return p
}

// pass lets time pass, and tells whether nas is a member still.
func (p *purging) pass(d time.Duration) bool {
	<-time.After(d)
	synctest.Wait()
	return p.registry.Snapshot().Node("nas") != nil
}

// A gateway that has just started has heard nobody: that is no news of anybody.
func TestPurge_NotesNobodyRightAfterAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPurging(t, Purge{After: time.Hour})
		defer p.end()
		started := time.Now()
		p.pass(silentAfter - time.Second)
		if n := len(p.registry.Snapshot().Silent); n != 0 || p.heard.count() != 0 {
			t.Errorf("%d nodes are noted %s after the start, and WireGuard was asked %d times", n, time.Since(started), p.heard.count())
		}
		p.pass(lookEach)
		if since, ok := p.registry.Snapshot().Silent["nas"]; !ok || since.Before(started) {
			t.Errorf("after %s nas is silent since %s (%v)", time.Since(started), since, ok)
		}
		if !p.pass(time.Hour - 2*lookEach) {
			t.Error("it is gone before an hour is over")
		}
		if p.pass(2*watchEach + 3*lookEach) {
			t.Error("after more than an hour it is a member")
		}
	})
}

// A clock that is set, here or at the gateway that missed a node, removes nobody:
// only time that passed does, while somebody led.
func TestPurge_BelievesNoClockThatIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const after = 24 * time.Hour
		var leads atomic.Bool
		leads.Store(true)
		p := newPurging(t, Purge{After: after, Leads: leads.Load})
		defer p.end()
		p.pass(silentAfter + lookEach)
		p.off.Store(int64(100 * after))
		if !p.pass(2 * lookEach) {
			t.Fatal("it is gone since the clock was set forward")
		}
		if !strings.Contains(p.log.String(), "level=WARN msg=\"the clock of this gateway was set") || !strings.Contains(p.log.String(), "by=2400h0m0s") {
			t.Errorf("the log says nothing of the clock:\n%s", &p.log)
		}
		p.off.Store(0)
		p.pass(2 * lookEach)
		err := p.Note(p.ctx, nil, []mesh.NodeID{"nas"})
		if err == nil { // as by a gateway that has no clock of its own
			err = p.Note(p.ctx, map[mesh.NodeID]time.Time{"nas": time.Unix(0, 0)}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		noted := time.Now()
		if !p.pass(after / 2) {
			t.Fatal("it is gone since a gateway with a wrong clock missed it")
		}
		leads.Store(false)
		p.pass(after)
		leads.Store(true)
		if !p.pass(after / 4) {
			t.Fatal("it is gone, though nobody led for a time")
		}
		if p.pass(after/4 + 3*watchEach) {
			t.Errorf("it is a member %s later", time.Since(noted))
		}
	})
}
