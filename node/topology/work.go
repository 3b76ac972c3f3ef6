// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// maxNotes bounds the notes of all views that are kept: some 50 MB.
	maxNotes = 1 << 17
	// minLog is how far behind a view may be, in changes of the graph, which are
	// more in a large one; see maxLog.
	minLog = 4096
	// maxIdle is after how many moves a view that nobody asks for gives way.
	maxIdle = 16
)

// work is what planners have worked out. It stands at one snapshot and moves to
// another when a plan for that is asked for. The zero value is ready for use.
type work struct {
	mu    sync.Mutex // guards all below
	graph *graph
	views map[viewKey]*view
	// notes counts those of all views.
	notes int
	// near are the near views, nearNotes counts their paths.
	near      map[*vertex]*near
	nearNotes int
	// log are the last moves of the graph, of which the first has number base.
	log     []*delta
	logSize int
	base    int
}

// viewKey tells whose view it is.
type viewKey struct {
	root   *vertex
	viewer class
	lone   bool
}

// plan plans for a node of s that has a key. It returns false for a snapshot
// that is older and has other ACLs: moving to it and back would cost everybody
// all work.
func (w *work) plan(s *mesh.Snapshot, self mesh.NodeID) (mesh.Plan, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.graph != nil && !w.graph.fits(s) && s.Version < w.graph.at.Version {
		return mesh.Plan{}, false
	}
	w.moveTo(s)
	start := w.graph.vertices.get(self)
	return w.withStanding(w.planOf(s, start), start), true
}

// planOf plans for a vertex, without pairs.
func (w *work) planOf(s *mesh.Snapshot, start *vertex) mesh.Plan {
	if gate := w.gateOf(start); gate != nil {
		return w.view(viewKey{root: gate, viewer: start.class, lone: true}, start.node).leafPlan(s, start)
	}
	if plan, ok := w.nearPlan(start); ok {
		return plan
	}
	return w.view(viewKey{root: start, viewer: start.class}, start.node).plan
}

// keepUp is Planner.KeepUp.
func (w *work) keepUp(s *mesh.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.graph == nil || s.Version <= w.graph.at.Version || !w.graph.fits(s) {
		return // nobody has planned yet, somebody is ahead, or all begins anew
	}
	w.moveTo(s)
}

// gateOf returns the only neighbour of a vertex that has one only and forwards
// to no network itself; else nil.
func (w *work) gateOf(v *vertex) *vertex {
	if len(w.graph.offers[v.id]) > 0 {
		return nil
	}
	var gate *vertex
	for _, l := range v.links {
		to := w.graph.vertices.at(l.to)
		if !w.graph.rules.connects(v.class, to.class) {
			continue
		}
		if gate != nil {
			return nil
		}
		gate = to
	}
	return gate
}

// adopt takes over new ACLs and groups if they make no difference, so that the
// graph fits s.
func (w *work) adopt(s *mesh.Snapshot) {
	if w.graph == nil || w.graph.rules.fit(s) {
		return
	}
	if r, ok := w.graph.alike(s); ok {
		w.graph.rules = r
	}
}

// moveTo makes the graph that of s.
func (w *work) moveTo(s *mesh.Snapshot) {
	w.adopt(s)
	switch {
	case w.graph == nil || !w.graph.near(s):
		r := newRules(s)
		if w.graph != nil && w.graph.rules.fit(s) {
			r = w.graph.rules
		}
		w.graph = newGraph(s, r)
		w.clear()
		return
	case !w.graph.fits(s):
		w.graph.move(s)
		w.graph.judge()
		w.clear()
		return
	}
	if w.graph.at == s {
		return
	}
	d := w.graph.move(s)
	w.log, w.logSize = append(w.log, d), w.logSize+d.size()
	for most := w.maxLog(); len(w.log) > 0 && (w.logSize > most || len(w.log) > most); {
		w.logSize -= w.log[0].size()
		w.log[0] = nil
		w.log = w.log[1:]
		w.base++
	}
	for key, v := range w.views {
		if key.root.gone() || v.gen < w.base {
			w.drop(key)
		}
	}
	for v, n := range w.near {
		if v.gone() || n.gen < w.base {
			w.forget(v)
		}
	}
}

// maxLog bounds how far behind a view may be. One that is further behind begins
// anew: to find a path and what it leads to costs more than to follow two changes.
func (w *work) maxLog() int { return max(minLog, 2*w.graph.vertices.len()) }

// clear forgets everything but the graph.
func (w *work) clear() {
	w.views = make(map[viewKey]*view)
	w.near, w.nearNotes = make(map[*vertex]*near), 0
	w.log, w.logSize, w.notes = nil, 0, 0
	w.base = 0
}

func (w *work) drop(key viewKey) {
	w.notes -= len(w.views[key].notes)
	delete(w.views, key)
}

// view returns a view that is up to date. as is the viewer.
func (w *work) view(key viewKey, as *mesh.Node) *view {
	now := w.base + len(w.log)
	v := w.views[key]
	if v != nil {
		w.notes -= len(v.notes)
		if deltas := w.log[v.gen-w.base:]; v.resets(deltas) {
			v = nil
		} else if len(deltas) > 0 {
			v.follow(deltas, now)
		}
	}
	if v == nil {
		v = newView(w.graph, key, as)
		v.movedFrom = now
	}
	v.gen, v.used = now, now
	w.views[key] = v
	w.notes += len(v.notes)
	w.makeRoom(key)
	return v
}

// makeRoom lets go of views that nobody asks for any more when there are too
// many, or else of the one that was made last: of those that are asked for in
// turn, some stay.
func (w *work) makeRoom(last viewKey) {
	if w.notes <= maxNotes {
		return
	}
	for key, v := range w.views {
		if v.used+maxIdle < w.base+len(w.log) {
			w.drop(key)
		}
	}
	if w.notes > maxNotes {
		w.drop(last)
	}
}

// resets reports whether deltas leave nothing of the view.
func (w *view) resets(deltas []*delta) bool {
	for _, d := range deltas {
		for _, v := range d.reset {
			if v == w.root {
				return true
			}
		}
	}
	return false
}
