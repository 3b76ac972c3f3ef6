// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/member"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A node for which another one can stand in is missed soon, also where nobody is
// removed, and is not removed for it.
func TestPurge_JudgesRivalsSooner(t *testing.T) {
	ago := func(d time.Duration) time.Time { return purgeNow.Add(-d) }
	for name, tt := range map[string]struct {
		public, rival, young bool
		shaken, heard        time.Duration // how long ago; 0 is never
		noted                bool
		since                time.Duration // how long it is at least silent, if it is

		misses, hears bool
	}{
		"heard just now":               {rival: true, shaken: time.Hour, heard: time.Second},
		"heard a keepalive ago":        {rival: true, shaken: time.Hour, heard: keepalive},
		"shaken hands just now":        {rival: true, shaken: time.Second, heard: time.Hour},
		"two keepalives are missing":   {rival: true, shaken: time.Hour, heard: callerSilent, misses: true},
		"found between two looks":      {rival: true, shaken: time.Hour, heard: callerSilent + rivalsEach - 1, misses: true},
		"heard before this gateway":    {rival: true, shaken: 2 * time.Hour, since: callerSilent, misses: true},
		"right after a start":          {rival: true, young: true, shaken: time.Hour, heard: callerSilent, misses: true},
		"public, which keeps no way":   {rival: true, public: true, shaken: time.Hour, heard: 2 * time.Minute},
		"public, past its session":     {rival: true, public: true, shaken: time.Hour, heard: rivalSilent, misses: true},
		"noted already":                {rival: true, shaken: time.Hour, heard: time.Hour, noted: true},
		"back":                         {rival: true, shaken: time.Hour, heard: time.Second, noted: true, hears: true},
		"another one":                  {shaken: time.Hour},
		"another one that was a rival": {shaken: time.Second, noted: true, hears: true},
	} {
		s, keys := purgeMesh(t, map[mesh.NodeID][]mesh.NodeID{"gw1": {"nas"}})
		if tt.public {
			n := *s.Node("nas")
			n.PrimaryEndpoint = "198.18.0.1"
			s.Nodes = s.Nodes.With(&n)
		}
		if tt.noted {
			s.Silent = map[mesh.NodeID]time.Time{"nas": ago(9000 * time.Hour)}
		}
		e := &ears{due: !tt.young, rivals: map[mesh.NodeID]bool{}, handshakes: map[mesh.WireGuardKey]time.Time{keys["nas"]: ago(tt.shaken)}}
		if tt.rival {
			e.rivals["nas"], e.heard = true, map[mesh.WireGuardKey]time.Time{}
		}
		if tt.rival && tt.heard > 0 {
			e.heard[keys["nas"]] = ago(tt.heard)
		}
		v := new(Purge).judge(s, "gw1", e, map[mesh.NodeID]bool{"gw1": true, "gw2": true, "gw3": true}, true, purgeNow)
		since, misses := v.silent["nas"]
		if misses && !since.Equal(ago(max(tt.heard, tt.since))) {
			t.Errorf("%s: silent since %s, want %s", name, since, ago(max(tt.heard, tt.since)))
		}
		if hears := slices.Contains(v.heard, "nas"); misses != tt.misses || hears != tt.hears || len(v.purge) > 0 {
			t.Errorf("%s: misses it: %v, hears it: %v, purges %v", name, misses, hears, v.purge)
		}
	}
}

// While nothing can be noted, the begin of a silence is not forgotten.
func TestEars_DateSilenceByTheFirstLook(t *testing.T) {
	e := &ears{rivals: map[mesh.NodeID]bool{"r1": true}, missed: map[mesh.NodeID]time.Time{}}
	look := func(due bool, silent map[mesh.NodeID]time.Time, want map[mesh.NodeID]time.Time) {
		t.Helper()
		e.due = due
		if e.first(verdict{silent: silent}); !maps.Equal(silent, want) {
			t.Errorf("silent since %v, want %v", silent, want)
		}
	}
	type times = map[mesh.NodeID]time.Time
	at := func(s int) time.Time { return purgeNow.Add(time.Duration(s) * time.Second) }
	look(true, times{"nas": at(0), "r1": at(1)}, times{"nas": at(0), "r1": at(1)})
	look(false, times{"r1": at(15)}, times{"r1": at(1)})
	look(false, times{}, times{})
	look(true, times{"nas": at(60), "r1": at(61)}, times{"nas": at(0), "r1": at(61)}) // r1 was heard meanwhile
	look(true, times{}, times{})
	look(true, times{"nas": at(120)}, times{"nas": at(120)})
}

func TestWatch_TellsWhenSomethingCame(t *testing.T) {
	s, keys := purgeMesh(t, map[mesh.NodeID][]mesh.NodeID{"gw1": {"nas", "cam", "tv"}})
	s.Silent = map[mesh.NodeID]time.Time{"cam": purgeNow}
	rivals := map[mesh.NodeID]bool{"nas": true, "cam": true, "gone": true}
	w := watch{}
	hear := func(after time.Duration, nas, cam uint64) (time.Duration, bool) {
		heard := w.hear(s, rivals, []mesh.PeerStats{
			{PublicKey: keys["nas"], ReceiveBytes: nas}, {PublicKey: keys["cam"], ReceiveBytes: cam}, {PublicKey: keys["tv"], ReceiveBytes: 1},
		}, purgeNow.Add(after))
		if len(heard) != 2 || len(w) != 2 {
			t.Fatalf("heard %v", heard)
		}
		return heard[keys["nas"]].Sub(purgeNow), !heard[keys["cam"]].IsZero()
	}
	for i, tt := range []struct {
		after    time.Duration
		nas, cam uint64
		at       time.Duration
		cams     bool
	}{
		{0, 100, 100, 0, false}, // it is not known when the bytes came; one of the two is noted as silent
		{15, 100, 100, 0, false},
		{30, 101, 100, 30, false},
		{45, 101, 132, 30, true},
		{60, 5, 132, 60, true}, // a peer made anew
	} {
		if at, cams := hear(tt.after, tt.nas, tt.cam); at != tt.at || cams != tt.cams {
			t.Errorf("%d: heard at %d (%v), want %d (%v)", i, at, cams, tt.at, tt.cams)
		}
	}
	if w.hear(s, nil, nil, purgeNow); len(w) != 0 {
		t.Errorf("kept %v", w)
	}
}

// talkingEar hears all peers but those that are quiet, more at each look.
type talkingEar struct {
	mu    sync.Mutex
	peers map[mesh.WireGuardKey]uint64
	quiet map[mesh.WireGuardKey]bool
}

func (e *talkingEar) Stats() (mesh.InterfaceStats, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var s mesh.InterfaceStats
	for key := range e.peers {
		if !e.quiet[key] {
			e.peers[key]++
		}
		s.Peers = append(s.Peers, mesh.PeerStats{PublicKey: key, ReceiveBytes: e.peers[key]})
	}
	return s, nil
}

func (e *talkingEar) hush(key mesh.WireGuardKey, quiet bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.quiet[key] = quiet
}

// Of two routers to one network, one that falls silent is noted within a minute
// and a quarter, and one that is back within a quarter of a minute, though the
// gateway removes nobody. A third node may be silent for as long as it likes.
func TestPurge_NotesRoutersThatFallSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var text bytes.Buffer // read when nobody writes any more
		log := slog.New(slog.NewTextHandler(&text, nil))
		r := registry.New(storetest.New(), log)
		ran := make(chan error, 1)
		go func() { ran <- r.Run(ctx) }()
		<-r.Ready()
		members, err := member.New(member.Config{Registry: r, Self: "gw", AllowUnproven: true, Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		key := func() mesh.PublicKey {
			k, err := mesh.GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			return k.Public()
		}
		if err := r.Bootstrap(ctx, registry.Bootstrap{Self: mesh.Node{ID: "gw", PublicKey: key()}}); err != nil {
			t.Fatal(err)
		}
		_, err = r.Update(ctx, func(tx *registry.Tx) error {
			group := mesh.Group{Name: "routers"}
			for _, id := range []string{"r1", "r2"} {
				group.Subjects = append(group.Subjects, mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: id})
			}
			return errors.Join(tx.PutGroup(group), tx.PutRoute(mesh.Route{Name: "office", Node: "group:routers", Destinations: networks("192.168.7.0/24")}))
		})
		if err != nil {
			t.Fatal(err)
		}
		ear := &talkingEar{peers: map[mesh.WireGuardKey]uint64{}, quiet: map[mesh.WireGuardKey]bool{}}
		keys := map[mesh.NodeID]mesh.WireGuardKey{}
		for _, id := range []mesh.NodeID{"r1", "r2", "nas"} {
			n := mesh.Node{ID: id, PublicKey: key(), Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}}
			req := mesh.JoinRequest{Node: n, AssignIPv4: true}
			if id != "nas" {
				req.Routes = networks("192.168.7.0/24")
			}
			if _, err := members.Join(ctx, req); err != nil {
				t.Fatal(err)
			}
			keys[id] = n.PublicKey.WireGuard()
			ear.peers[keys[id]] = 1
		}
		h := &holder{Members: members, registry: r, ear: ear, node: &Node{cfg: Config{ID: "gw"}, log: log, opened: time.Now()}}
		purged := make(chan error, 1)
		go func() { purged <- h.purge(ctx) }()
		expect := func(when string, want ...mesh.NodeID) {
			t.Helper()
			synctest.Wait()
			if got := slices.Sorted(maps.Keys(r.Snapshot().Silent)); !slices.Equal(got, want) {
				t.Errorf("%s: silent are %v, want %v", when, got, want)
			}
		}
		ear.hush(keys["nas"], true)
		<-time.After(time.Hour)
		expect("while both talk")
		ear.hush(keys["r1"], true)
		<-time.After(callerSilent - rivalsEach)
		expect("at first")
		<-time.After(2 * rivalsEach)
		expect("once keepalives are missing", "r1")
		<-time.After(24 * time.Hour)
		expect("a day later", "r1")
		ear.hush(keys["r1"], false)
		<-time.After(rivalsEach)
		expect("when it is back")
		if n := r.Snapshot().Nodes.Len(); n != 4 {
			t.Errorf("%d members are left", n)
		}
		cancel()
		if err := <-purged; !errors.Is(err, context.Canceled) {
			t.Errorf("it ends with %v", err)
		}
		if err := <-ran; err != nil {
			t.Errorf("the registry: %v", err)
		}
		for _, line := range []string{`msg="a router is not heard`, `msg="a router is heard again" peer=r1 after=24h1m`} {
			if n := strings.Count(text.String(), line); n != 1 {
				t.Errorf("the log says %s %d times:\n%s", line, n, text.String())
			}
		}
	})
}

// freshEar has just shaken hands with its peers, and with nobody else.
type freshEar []mesh.WireGuardKey

func (e freshEar) Stats() (mesh.InterfaceStats, error) {
	var s mesh.InterfaceStats
	for _, key := range e {
		s.Peers = append(s.Peers, mesh.PeerStats{PublicKey: key, LastHandshake: time.Now()})
	}
	return s, nil
}

// Of many members that are gone, no more are removed per minute where routers are
// looked at more often.
func TestPurge_IsAsSlowWithRivals(t *testing.T) {
	for name, shared := range map[string]bool{"no shared route": false, "a shared route": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { purgeMany(t, shared) })
		})
	}
}

func purgeMany(t *testing.T, shared bool) {
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.DiscardHandler)
	r := registry.New(storetest.New(), log)
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	<-r.Ready()
	members, err := member.New(member.Config{Registry: r, Self: "gw", AllowUnproven: true, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	key := func() mesh.PublicKey {
		k, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	if err := r.Bootstrap(ctx, registry.Bootstrap{Self: mesh.Node{ID: "gw", PublicKey: key()}}); err != nil {
		t.Fatal(err)
	}
	var ear freshEar
	_, err = r.Update(ctx, func(tx *registry.Tx) error {
		var errs []error
		group := mesh.Group{Name: "routers"}
		for i := range 302 {
			n := mesh.Node{ID: mesh.NodeID(fmt.Sprintf("n%03d", i)), PublicKey: key(), Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}}
			if i >= 300 {
				ear = append(ear, n.PublicKey.WireGuard())
				group.Subjects = append(group.Subjects, mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: string(n.ID)})
			}
			errs = append(errs, tx.PutNode(&n), tx.PutEdge(mesh.Edge{Source: "gw", Target: n.ID, Weight: 1}))
		}
		errs = append(errs, tx.PutGroup(group))
		if shared {
			errs = append(errs, tx.PutRoute(mesh.Route{Name: "office", Node: "group:routers", Destinations: networks("192.168.7.0/24")}))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{
		Members: members, registry: r, ear: ear, cfg: Hold{Purge: Purge{After: time.Hour}},
		node: &Node{cfg: Config{ID: "gw"}, log: log, opened: time.Now()},
	}
	purged := make(chan error, 1)
	go func() { purged <- h.purge(ctx) }()
	left := func() int { return r.Snapshot().Nodes.Len() }
	<-time.After(silentAfter + time.Hour + watchEach + lookEach - time.Second) // it looks first after silentAfter
	synctest.Wait()
	before := left()
	if before != 303 {
		t.Errorf("%d are left before they were watched for an hour", before)
	}
	for minute := range 15 {
		<-time.After(lookEach)
		synctest.Wait()
		if n := left(); before-n != maxPurge {
			t.Errorf("minute %d: %d are removed, want %d", minute, before-n, maxPurge)
		}
		before = left()
	}
	<-time.After(lookEach)
	synctest.Wait()
	if n := left(); n != 3 {
		t.Errorf("%d are left in the end, want the gateway and its two routers", n)
	}
	cancel()
	if err := <-purged; !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
	if err := <-ran; err != nil {
		t.Errorf("the registry: %v", err)
	}
}
