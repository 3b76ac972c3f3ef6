// SPDX-License-Identifier: Apache-2.0

package core

import (
	"net/netip"
	"time"
)

// request is the STUN message at hand.
type request struct {
	wall   time.Time
	now    int64
	flow   Flow
	stream bool
	msg    message
	out    *Output

	fresh   bool // its nonce is good, of requests with a credential
	spent   bool // its network has had too many credentials refused
	proven  bool // signed with a key of account, over a nonce that is good
	account Account
	signer  signer
}

// FromClient handles a datagram, or one frame of a stream (Frame), that came
// from a client. packet stays the caller's; actions may point into it.
func (c *Core) FromClient(now time.Time, flow Flow, packet []byte, out *Output) {
	switch {
	case len(packet) < channelHeader || int(flow.Listener) >= len(c.cfg.Listeners):
		c.drop(DropJunk)
	case packet[0] < 0x40:
		c.message(now, flow, packet, out)
	case packet[0] <= byte(maxChannel>>8):
		c.channelData(c.at(now), &flow, packet, out)
	default:
		c.drop(DropJunk)
	}
}

func (c *Core) message(now time.Time, flow Flow, packet []byte, out *Output) {
	r := &c.req
	if !r.msg.decode(packet) {
		c.drop(DropJunk)
		return
	}
	r.wall, r.now, r.flow, r.out = now, c.at(now), flow, out
	r.stream = c.cfg.Listeners[flow.Listener].Stream
	r.proven, r.account, r.signer = false, Account{}, signer{}
	switch r.msg.class {
	case classRequest:
		c.request(r)
	case classIndication:
		c.indication(r)
	default:
		c.drop(DropJunk) // a server asks nothing: no response is for it
	}
}

// request authenticates a request and hands it to its method. The order of the
// checks is that of RFC 8489 section 6.3.
func (c *Core) request(r *request) {
	if r.msg.method == methodBinding {
		c.binding(r)
		return
	}
	handle := c.handler(r.msg.method)
	if handle == nil {
		c.drop(DropJunk)
		return
	}
	if !c.authenticate(r) {
		return
	}
	switch {
	case r.msg.unknowns > 0:
		c.failUnknown(r, r.msg.unknown[:r.msg.unknowns])
	case r.msg.malformed:
		c.fail(r, codeBadRequest)
	default:
		handle(r)
	}
}

func (c *Core) handler(m method) func(*request) {
	switch m {
	case methodAllocate:
		return c.allocate
	case methodRefresh:
		return c.refresh
	case methodCreatePermission:
		return c.createPermission
	case methodChannelBind:
		return c.channelBind
	case methodConnect:
		return c.connect
	case methodConnectionBind:
		return c.connectionBind
	default:
		return nil
	}
}

func (c *Core) indication(r *request) {
	switch r.msg.method {
	case methodSend:
		c.send(r)
	case methodBinding: // a keepalive
	default:
		c.drop(DropJunk)
	}
}

// room is how many bytes the answer to r may have: to an address that has shown
// no credential at most 2.6 times the request, so that nobody floods a third
// party in its name. A stream has shown its address.
func (r *request) room() int {
	if r.stream || r.proven {
		return headerLen + maxBody
	}
	return len(r.msg.raw) * 13 / 5
}

// reply finishes w and sends it, if it fits and is wanted. An unproven answer
// loses FINGERPRINT before it is dropped.
func (c *Core) reply(r *request, w builder) {
	print := r.msg.has&hasFingerprint != 0
	if !r.proven && !r.stream {
		if print && w.len()+attrHeader+4 > r.room() {
			print = false
		}
		size := w.len()
		if print {
			size += attrHeader + 4
		}
		if w.len() > r.room() || !c.answers(r, size) {
			w.drop()
			c.drop(DropUnanswered)
			return
		}
	}
	c.sendClient(r.flow, w.finish(r.signer, print), r.out)
}

// Answers to requests without a good credential that come from the address of a
// client with an allocation: so many a second, after a burst.
const (
	heldAnswers = 10
	heldBurst   = 50
)

// answers asks whether an address that has shown no credential gets an answer of
// size bytes. That it has an allocation says nothing of who sends in its name. But
// then an answer that is smaller than its request is worth nothing to who forges it,
// and it keeps a client that others forge in business: such is 438 to a signed
// request.
func (c *Core) answers(r *request, size int) bool {
	if c.cfg.Answer == nil {
		return true
	}
	if a := c.flows[r.flow.key()]; a != nil {
		return size < len(r.msg.raw) || a.answers(r.now)
	}
	return c.cfg.Answer(r.wall, r.flow.Client.Addr())
}

// answers takes one of the answers that strangers get who send from the client's address.
func (a *allocation) answers(now int64) bool {
	const each = int64(time.Second) / heldAnswers
	at := max(a.answered, now-(heldBurst-1)*each)
	if at > now {
		return false
	}
	a.answered = at + each
	return true
}

func (c *Core) sendClient(f Flow, data []byte, out *Output) {
	out.add(Action{Kind: SendClient, Flow: f, Data: data})
}

// success begins the success response to r.
func (c *Core) success(r *request) builder {
	w := r.out.build(r.msg.method, classSuccess, r.msg.transaction)
	if r.proven {
		c.software(w, r.msg.method)
	}
	return w
}

// software names the server in an answer about an allocation (RFC 8656 section 5) to
// who has shown a credential: to others answers are small.
func (c *Core) software(w builder, m method) {
	if c.cfg.Software != "" && (m == methodAllocate || m == methodRefresh) {
		w.text(attrSoftware, c.cfg.Software)
	}
}

// failure begins an error response to r.
func (c *Core) failure(r *request, code int) builder {
	c.stats.count(code)
	w := r.out.build(r.msg.method, classError, r.msg.transaction)
	phrase := ""
	if r.proven {
		phrase = reason(code)
	}
	w.errorCode(code, phrase)
	if r.proven {
		c.software(w, r.msg.method)
	}
	return w
}

// fail answers r with an error.
func (c *Core) fail(r *request, code int) { c.reply(r, c.failure(r, code)) }

// failUnknown answers r with 420 and the types that are not understood.
func (c *Core) failUnknown(r *request, types []uint16) {
	w := c.failure(r, codeUnknownAttribute)
	w.begin(attrUnknownAttributes, 2*len(types))
	for _, t := range types {
		w.out.arena = append(w.out.arena, byte(t>>8), byte(t))
	}
	w.pad(2 * len(types))
	c.reply(r, w)
}

// allocation returns the allocation of a flow, nil when it has none or none any more.
func (c *Core) allocation(f *Flow, now int64, out *Output) *allocation {
	a := c.flows[f.key()]
	if a == nil || a.opening != nil || c.trim(a, now, out) {
		return a
	}
	return nil
}

// Holds reports whether a flow has an allocation, or waits for one: a driver
// can be more patient with such a client than with a stranger.
func (c *Core) Holds(flow Flow) bool { return c.flows[flow.key()] != nil }

// owned returns the allocation that r, a request other than Allocate, is about.
// It answers r and returns nil when there is none for this user.
func (c *Core) owned(r *request) *allocation {
	a := c.allocation(&r.flow, r.now, r.out)
	switch {
	case a == nil || a.opening != nil:
		c.fail(r, codeMismatch)
		return nil
	case a.user != r.account.User:
		c.fail(r, codeWrongCredentials)
		return nil
	default:
		return a
	}
}

// maxDatagram is the largest payload of a datagram to an address.
func maxDatagram(a netip.Addr) int {
	if a.Is4() {
		return maxDatagram4
	}
	return maxDatagram6
}
