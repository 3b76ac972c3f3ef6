// SPDX-License-Identifier: Apache-2.0

package core

import "time"

// AskID names a question of an AskAccount action.
type AskID uint64

// pending is a request of a client whose account is being asked for.
type pending struct {
	id    AskID
	key   pendingKey
	flow  Flow
	bytes []byte
	timer timer
}

// pendingKey tells a request from its repetitions.
type pendingKey struct {
	flow        flowKey
	transaction [12]byte
}

// maxPendingBytes is the largest request that is kept: some hundred bytes are
// credentials, the rest is peers.
const maxPendingBytes = 2048

// questions are the requests that wait for an account.
type questions struct {
	byID    map[AskID]*pending
	byKey   map[pendingKey]AskID
	last    AskID
	verdict *verdict // about the request at hand; nil: the Authenticator knows
}

// ask keeps r until the driver says whose username it is. What is beyond the
// bounds is dropped, as if the network had lost it.
func (c *Core) ask(r *request, username []byte) {
	key := pendingKey{flow: r.flow.key(), transaction: r.msg.transaction}
	switch {
	case c.waiting.byKey[key] != 0: // a repetition
		return
	case len(c.waiting.byID) >= c.cfg.Limits.Pending || len(r.msg.raw) > maxPendingBytes:
		c.drop(DropUnanswered)
		return
	}
	c.waiting.last++
	p := &pending{id: c.waiting.last, key: key, flow: r.flow, bytes: append([]byte(nil), r.msg.raw...)}
	p.timer.owner = p
	c.waiting.byKey[key], c.waiting.byID[p.id] = p.id, p
	c.wake(&p.timer, r.now+int64(openPatience))
	r.out.add(Action{Kind: AskAccount, Ask: p.id, Data: append([]byte(nil), username...)})
}

// Verdict answers an AskAccount action: the account of its username, and false
// when there is none. The request that waited for it goes on.
func (c *Core) Verdict(now time.Time, id AskID, account Account, ok bool, out *Output) {
	p := c.waiting.byID[id]
	if p == nil {
		return
	}
	c.stop(&p.timer)
	c.forgetPending(p)
	c.waiting.verdict = &verdict{account: account, ok: ok}
	c.FromClient(now, p.flow, p.bytes, out)
	c.waiting.verdict = nil
}

// verdict is what is known about the account of the request at hand.
type verdict struct {
	account Account
	ok      bool
}

// due forgets a request: its client does not wait any more.
func (p *pending) due(c *Core, _ int64, _ *Output) {
	c.drop(DropUnanswered)
	c.forgetPending(p)
}

func (c *Core) forgetPending(p *pending) {
	delete(c.waiting.byID, p.id)
	delete(c.waiting.byKey, p.key)
}

// forgetFlow forgets the requests of a stream that has ended.
func (c *Core) forgetFlow(k flowKey) {
	for _, p := range c.waiting.byID {
		if p.key.flow == k {
			c.stop(&p.timer)
			c.forgetPending(p)
		}
	}
}
