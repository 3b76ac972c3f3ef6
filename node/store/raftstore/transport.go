// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// rpcTimeout bounds a call of raft; that of a snapshot grows with its size.
	rpcTimeout = 2 * time.Second
	// streamPool is how many idle streams to one replica raft keeps.
	streamPool = 4
	// noticeRetry is the pause after a notice of a commit that failed, and
	// noticeTries how often it is sent: raft says it again by itself.
	noticeRetry = 5 * time.Millisecond
	noticeTries = 5
	// noticeDelay is how long a commit may wait for the next entries, which tell
	// of it on their way, where nobody waits for it: as long as one who writes
	// one thing after the other takes to begin with the next.
	noticeDelay = 2 * time.Millisecond
)

// transport is raft's network transport, with some things that raft keeps to
// itself or does not do: it knows what each replica has stored and when it was
// last heard from; it tells followers of a commit soon, and at once where it is
// waited for, while raft would wait for its next message to them; and it lets
// entries be sent while they are on their way to the own disk.
type transport struct {
	*raft.NetworkTransport
	streams *streams
	self    raft.ServerID
	address raft.ServerAddress
	// await waits until the own log has an entry on disk; nil: it always has.
	await func(index uint64, closing <-chan struct{}) error
	// order counts requests: clocks may stand still or jump.
	order atomic.Uint64

	mu    sync.Mutex // guards the fields below
	peers map[raft.ServerID]*progress
	// moved is closed and replaced when a replica was heard from.
	moved chan struct{}
	// commit is the newest one that followers should hear of, and late is when
	// those are told of it that heard of it by no other way.
	commit commitMark
	late   time.Time
	// reminder calls remind when it is late; nil: nothing was committed yet.
	reminder *time.Timer
	closed   bool
	wg       sync.WaitGroup
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

// progress is what is known of another replica while this one leads.
type progress struct {
	address raft.ServerAddress
	// heard is when it last answered, and missed, before it ever did, when it was
	// first looked for.
	heard, missed time.Time
	// owes is since when it is sent entries or snapshots, while it is in reach, of
	// which it took none; zero: it took what it was sent last. loads is since when a
	// snapshot is on its way to it, which takes its time; zero: there is none.
	owes, loads time.Time
	// voted is when it last answered a request for its vote, whatever it said.
	voted time.Time
	// term and asked are those of the newest request in which it accepted this
	// replica as the leader.
	term, asked uint64
	// stored is the last entry that it is known to hold in stored's term.
	stored uint64
	// told is the last commit that it was told of, and wanted the last one that
	// somebody at the replica waits for.
	told, wanted uint64
	// tells is the commit that the entries which are on their way tell it of; 0:
	// there are none.
	tells uint64
	// telling is true while a goroutine tells it of commits.
	telling bool
}

// commitMark names a committed entry of a term in which this replica leads.
type commitMark struct{ term, index uint64 }

func newTransport(streams *streams, address string, logger hclog.Logger) *transport {
	return &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:  raftLayer{streams, address},
			Logger:  logger,
			MaxPool: streamPool,
			Timeout: rpcTimeout,
		}),
		streams: streams,
		self:    raft.ServerID(streams.self),
		address: raft.ServerAddress(address),
		peers:   map[raft.ServerID]*progress{},
		moved:   make(chan struct{}),
	}
}

// LocalAddr implements raft.Transport.
func (t *transport) LocalAddr() raft.ServerAddress { return t.address }

// EncodePeer implements raft.Transport.
func (*transport) EncodePeer(_ raft.ServerID, address raft.ServerAddress) []byte {
	return []byte(address)
}

// AppendEntriesPipeline implements raft.Transport. Batches of entries carry
// the load better than several requests on their way, as raft's authors found.
func (*transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries implements raft.Transport. Raft counts an entry as stored here
// from the time it is sent, see guardedLog: that another replica has it is said
// when both have it.
func (t *transport) AppendEntries(id raft.ServerID, address raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent, start := t.order.Add(1), time.Now()
	t.departs(id, req, start)
	if err := t.NetworkTransport.AppendEntries(id, target(id, address), req, resp); err != nil {
		t.failed(id, req, start)
		return err
	}
	t.answered(id, address, sent, req, resp)
	if n := len(req.Entries); n > 0 && resp.Success && t.await != nil {
		return t.await(req.Entries[n-1].Index, t.streams.ctx.Done())
	}
	return nil
}

// departs notes that entries are sent to a replica at a time, and what they tell it
// of.
func (t *transport) departs(id raft.ServerID, req *raft.AppendEntriesRequest, at time.Time) {
	if len(req.Entries) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil {
		return
	}
	if p.owes.IsZero() {
		p.owes = at
	}
	if req.Term == p.term {
		p.tells = req.LeaderCommitIndex
	}
}

// failed notes that nobody knows whether a replica got a request that was sent at
// start.
func (t *transport) failed(id raft.ServerID, req *raft.AppendEntriesRequest, start time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[id]; p != nil {
		p.arrived(req)
		p.lost(start)
		t.tellLocked(id, p)
	}
}

// lost notes that what was sent at start did not arrive, or no answer did. Who was
// not heard from meanwhile is out of reach, and owes nothing.
func (p *progress) lost(start time.Time) {
	if !p.heard.After(start) {
		p.owes = time.Time{}
	}
}

// idle is since when a replica takes none of what it is sent by one that leads since
// led, for at least limit, as when its disk is full; zero when it does. Its
// heartbeats say nothing of that.
func (p *progress) idle(led time.Time, limit time.Duration) time.Time {
	until, since := p.loads, latest(p.owes, led)
	if until.IsZero() {
		until = time.Now()
	}
	if p.owes.IsZero() || until.Sub(since) < limit {
		return time.Time{}
	}
	return since
}

// arrived notes that a request is not on its way any more.
func (p *progress) arrived(req *raft.AppendEntriesRequest) {
	if len(req.Entries) > 0 {
		p.tells = 0
	}
}

// answered notes what an answer says of a replica.
func (t *transport) answered(id raft.ServerID, address raft.ServerAddress, sent uint64, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peerLocked(id)
	p.address = address
	p.heard = time.Now()
	p.arrived(req)
	if !resp.Success || resp.Term != req.Term {
		t.moved = renew(t.moved)
		return
	}
	if req.Term > p.term {
		p.term, p.asked, p.stored, p.told, p.owes = req.Term, sent, 0, 0, time.Time{}
	} else if req.Term == p.term {
		p.asked = max(p.asked, sent)
	}
	if len(req.Entries) > 0 {
		p.owes = time.Time{}
	}
	if req.Term == p.term {
		last := req.PrevLogEntry + uint64(len(req.Entries))
		p.stored = max(p.stored, last)
		p.told = max(p.told, min(req.LeaderCommitIndex, last))
	}
	t.moved = renew(t.moved)
	t.tellLocked(id, p)
}

func (t *transport) peerLocked(id raft.ServerID) *progress {
	p, ok := t.peers[id]
	if !ok {
		p = &progress{}
		t.peers[id] = p
	}
	return p
}

// renew wakes whoever waits for c and returns a channel for the next time.
func renew(c chan struct{}) chan struct{} {
	close(c)
	return make(chan struct{})
}

// committed has the followers hear of an entry that this replica proposed in
// a term and that was committed in it: where it is waited for at once, elsewhere
// with the next entries or after noticeDelay.
func (t *transport) committed(term, index uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	if term > t.commit.term || term == t.commit.term && index > t.commit.index {
		t.commit, t.late = commitMark{term, index}, time.Now().Add(noticeDelay)
		if t.reminder == nil {
			t.reminder = time.AfterFunc(noticeDelay, t.remind)
		} else {
			t.reminder.Reset(noticeDelay)
		}
	}
	t.tellAllLocked()
}

// remind tells of a commit after which no entries came.
func (t *transport) remind() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tellAllLocked()
}

// hasten has a replica hear at once that an entry is committed: somebody there
// waits for it.
func (t *transport) hasten(id raft.ServerID, index uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.peers[id]; ok {
		p.wanted = max(p.wanted, index)
		t.tellLocked(id, p)
	}
}

func (t *transport) tellAllLocked() {
	for id, p := range t.peers {
		t.tellLocked(id, p)
	}
}

// tellLocked starts to tell a replica of the newest commit, unless it knows,
// does not hold the entry yet, is being told or need not know yet: the reminder,
// or what is on its way, comes back to it.
func (t *transport) tellLocked(id raft.ServerID, p *progress) {
	if t.closed || p.telling || !t.dueLocked(p) {
		return
	}
	p.telling = true
	t.wg.Go(func() { t.tell(id, p) })
}

func (t *transport) dueLocked(p *progress) bool {
	if p.term != t.commit.term || p.told >= t.commit.index || p.stored < t.commit.index {
		return false
	}
	return p.told < p.wanted || p.tells < t.commit.index && !time.Now().Before(t.late)
}

// tell sends the newest commit to a replica until it knows, a few times at
// most: the next answer of the replica makes another attempt. What it sends is
// what raft itself would: no entries, behind one that the replica holds.
func (t *transport) tell(id raft.ServerID, p *progress) {
	for tries := noticeTries; ; tries-- {
		t.mu.Lock()
		// A replica that was removed meanwhile has another progress, or none.
		if t.closed || tries == 0 || t.peers[id] != p || !t.dueLocked(p) {
			p.telling = false
			t.mu.Unlock()
			return
		}
		mark, address := t.commit, p.address
		t.mu.Unlock()
		req := &raft.AppendEntriesRequest{
			RPCHeader:         raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(t.self), Addr: []byte(t.address)},
			Term:              mark.term,
			PrevLogEntry:      mark.index,
			PrevLogTerm:       mark.term,
			LeaderCommitIndex: mark.index,
		}
		var resp raft.AppendEntriesResponse
		if err := t.AppendEntries(id, address, req, &resp); err != nil || !resp.Success {
			pause(t.streams.ctx, noticeRetry)
		}
	}
}

// since returns the replicas that accepted this one as the leader of a term
// in a request sent after start, which is of now, and a channel that is closed
// when there may be more.
func (t *transport) since(term, start uint64) (map[raft.ServerID]bool, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := map[raft.ServerID]bool{}
	for id, p := range t.peers {
		if p.term == term && p.asked > start {
			ids[id] = true
		}
	}
	return ids, t.moved
}

// now returns a moment in the order of requests.
func (t *transport) now() uint64 { return t.order.Add(1) }

// known returns a copy of what is known of a replica.
func (t *transport) known(id raft.ServerID) (progress, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.peers[id]
	if !ok {
		return progress{}, false
	}
	return *p, true
}

// expect starts the time of a replica that was not heard from yet.
func (t *transport) expect(id raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peerLocked(id); p.heard.IsZero() {
		p.heard = time.Now()
	}
}

// notice starts the time for which a replica is missed that was never heard from, and
// returns what is known of it.
func (t *transport) notice(id raft.ServerID) progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peerLocked(id)
	if p.missed.IsZero() && p.heard.IsZero() {
		p.missed = time.Now()
	}
	return *p
}

// changed is closed when a replica was heard from.
func (t *transport) changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.moved
}

// forget drops what is known of replicas for which keep is false.
func (t *transport) forget(keep func(id raft.ServerID) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.peers {
		if !keep(id) {
			delete(t.peers, id)
		}
	}
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, address raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.canvassed(id, t.NetworkTransport.RequestVote(id, target(id, address), req, resp))
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, address raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.canvassed(id, t.NetworkTransport.RequestPreVote(id, target(id, address), req, resp))
}

// canvassed notes that a replica was asked for its vote, which ended with err.
func (t *transport) canvassed(id raft.ServerID, err error) error {
	if err == nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.peerLocked(id).voted = time.Now()
	}
	return err
}

// InstallSnapshot implements raft.Transport.
func (t *transport) InstallSnapshot(id raft.ServerID, address raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	start := time.Now()
	t.mu.Lock()
	p := t.peerLocked(id)
	if p.loads = start; p.owes.IsZero() {
		p.owes = start
	}
	t.mu.Unlock()
	err := t.NetworkTransport.InstallSnapshot(id, target(id, address), req, resp, data)
	t.mu.Lock()
	defer t.mu.Unlock()
	p.loads = time.Time{}
	if err != nil {
		p.lost(start)
	}
	if err == nil && resp.Success {
		p = t.peerLocked(id)
		p.heard, p.owes = time.Now(), time.Time{}
		if p.term == req.Term {
			p.stored = max(p.stored, req.LastLogIndex)
		}
		t.moved = renew(t.moved)
	}
	return err
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, address raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.NetworkTransport.TimeoutNow(id, target(id, address), req, resp)
}

// stop begins Close: it takes and sends nothing any more.
func (t *transport) stop() {
	t.mu.Lock()
	t.closed = true
	if t.reminder != nil {
		t.reminder.Stop()
	}
	t.mu.Unlock()
	_ = t.NetworkTransport.Close() // it has no way to fail
}

// Close implements raft.WithClose. The streams were closed before.
func (t *transport) Close() error {
	t.stop()
	t.wg.Wait()
	return nil
}
