// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/binary"
	"slices"
	"time"
)

// transaction is a request that waits for its response.
type transaction struct {
	id     txID
	method uint16
	peer   *peer // of CreatePermission and ChannelBind

	raw   message
	key   []byte // that signs it; nil for none
	first time.Time
	due   time.Time     // of the next retransmission, or of giving up
	wait  time.Duration // from the last one to due
	sends int

	logins int  // how often the server wanted another nonce
	denied bool // the server has refused the credential once, under an older nonce
	hint   int  // the code of a refusal that nobody signed
}

// start sends a new request, t.
func (c *core) start(t *transaction, now time.Time) {
	c.transactions = append(c.transactions, t)
	c.compose(t, now)
}

// compose writes t under a new id, with the credential and nonce of now, and sends it.
func (c *core) compose(t *transaction, now time.Time) {
	t.id, t.key = newTxID(), c.key
	m := newMessage(t.method, t.id)
	switch t.method {
	case methodAllocate:
		m = m.add(attrRequestedTransport, []byte{transportUDP, 0, 0, 0})
		if c.family != 0 {
			m = m.add(attrAddressFamily, []byte{c.family, 0, 0, 0})
		}
	case methodRefresh:
		if c.state == closing {
			m = m.add(attrLifetime, []byte{0, 0, 0, 0})
		}
		if c.family != 0 {
			m = m.add(attrAddressFamily, []byte{c.family, 0, 0, 0})
		}
	case methodCreatePermission:
		m = m.addPeer(t.peer.addr)
	case methodChannelBind:
		m = m.add(attrChannelNumber, binary.BigEndian.AppendUint32(nil, uint32(t.peer.channel)<<16))
		m = m.addPeer(t.peer.addr)
	}
	if t.key != nil {
		m = m.add(attrUsername, []byte(c.username)).add(attrRealm, c.realm).add(attrNonce, c.nonce).sign(t.key)
	}
	t.raw, t.first, t.sends, t.hint = m, now, 1, 0
	t.wait = firstRTO
	if c.stream {
		t.wait = streamWait
	}
	t.due = now.Add(t.wait)
	c.send(m, now)
}

func (c *core) send(m message, now time.Time) {
	c.out = append(c.out, m)
	c.woken = true
	c.wrote(now)
}

// resend repeats t, or gives it up when it was repeated often enough.
func (c *core) resend(t *transaction, now time.Time) {
	if c.stream || t.sends == maxSends || t.hint != 0 && t.method == methodAllocate {
		c.giveUp(t, now)
		return
	}
	t.sends++
	t.wait *= 2
	if t.sends == maxSends {
		t.wait = lastWait
	}
	t.due = now.Add(t.wait)
	c.send(t.raw, now)
}

// giveUp ends t without a response. What the allocation hangs on takes it along.
func (c *core) giveUp(t *transaction, now time.Time) {
	if !c.forget(t) {
		return
	}
	err := ErrTimeout
	if t.hint != 0 {
		err = refusal(t.method, t.hint)
	}
	switch t.method {
	case methodAllocate, methodRefresh:
		c.end(err)
	default:
		c.deny(t, err, now)
	}
}

// forget takes t out of the transactions; false when it is none of them any more.
func (c *core) forget(t *transaction) bool {
	i := slices.Index(c.transactions, t)
	if i < 0 {
		return false
	}
	c.transactions = slices.Delete(c.transactions, i, i+1)
	return true
}

// receiveResponse takes what may be the response to a request. It believes a
// refusal for want of credentials as it is, and everything else under the key
// of the request alone (RFC 8489 section 9.2.5).
func (c *core) receiveResponse(m message, now time.Time) {
	class := m.kind() & classMask
	id := m.transaction()
	i := slices.IndexFunc(c.transactions, func(t *transaction) bool { return t.id == id })
	if i < 0 && m.kind() == methodRefresh|classError && id == (txID{}) && m.code() == 437 {
		c.hinted(now)
		return
	}
	if i < 0 || class != classSuccess && class != classError || m.kind()&^classMask != c.transactions[i].method {
		return
	}
	t := c.transactions[i]
	present, valid := m.signed(t.key)
	code := m.code()
	switch {
	case t.key != nil && present && !valid:
		return // forged, or garbled on its way
	case class == classSuccess && t.key != nil && !present:
		return
	case class == classError && (code == 401 || code == 438):
		c.heard()
		c.login(t, m, code, now)
	case class == classError && t.key != nil && !present && code != 400:
		c.heard()
		c.noteHint(t, code, now)
	case class == classError && code == codeAlternate && t.method == methodAllocate && t.key != nil: // which has signed it
		c.heard()
		c.forget(t)
		c.end(sentOn(m))
	case class == classError:
		c.heard()
		c.forget(t)
		c.refuse(t, code, now)
	default:
		c.heard()
		c.forget(t)
		c.succeed(t, m, now)
	}
}

// noteAlternate takes in that m, success of a Refresh, names another server: those of
// package turn do so while they drain.
func (c *core) noteAlternate(m message) {
	if !c.draining && m.alternate().at.IsValid() {
		c.draining, c.turned = true, true
	}
}

// hinted takes in that somebody says that there is no allocation: servers of
// package turn do when they get data without one, as after they have started anew,
// and when they begin to drain.
// Anybody may have said so, so that the server is asked, and that now and then.
func (c *core) hinted(now time.Time) {
	if c.state == standing && now.Sub(c.asked) >= hintedEvery {
		c.asked = now
		c.check(now)
	}
}

// noteHint keeps a refusal that nobody signed: it is the best explanation if
// no better answer comes, which for an allocation that is waited for is to be soon.
func (c *core) noteHint(t *transaction, code int, now time.Time) {
	if t.hint != 0 || code == 0 {
		return
	}
	t.hint = code
	if t.method == methodAllocate {
		t.due = now.Add(hintWait)
		c.woken = true
	}
}

// login sends t again under the realm and nonce of challenge m. A credential
// that is refused twice, or by a server that gives no nonce, is refused.
func (c *core) login(t *transaction, m message, code int, now time.Time) {
	nonce, ok := m.text(attrNonce)
	realm, hasRealm := m.text(attrRealm)
	if !hasRealm {
		realm, hasRealm = c.realm, c.realm != nil // 438 of some servers leaves it out
	}
	current := string(t.key) == string(c.key)
	refused := code == 401 && t.key != nil && current && t.denied
	forsaken := t.method == methodAllocate && c.unwanted != nil
	if !ok || !hasRealm || refused || c.username == "" || t.logins == maxLogins || forsaken {
		c.forget(t)
		c.refuse(t, 401, now)
		return
	}
	if code == 401 && t.key != nil && current {
		t.denied = true
	}
	t.logins++
	if string(realm) != string(c.realm) || c.key == nil {
		c.realm, c.key = realm, longTermKey(c.username, string(realm), c.password)
	}
	c.nonce = nonce
	c.compose(t, now)
}

// refuse takes in that the server refuses t with code, which is 0 when it gave none.
func (c *core) refuse(t *transaction, code int, now time.Time) {
	err := refusal(t.method, code)
	credential := code == 401 || code == 441 || code == 400 && t.method == methodRefresh
	switch {
	case c.state == closing, t.method == methodAllocate, code == 437:
		c.end(err)
	case credential && string(t.key) != string(c.key):
		c.start(&transaction{method: t.method, peer: t.peer}, now) // there is a newer one
	case credential:
		c.rejected = err
		c.deny(t, err, now)
	case t.method != methodRefresh:
		c.deny(t, err, now)
	} // a Refresh is tried again in retryInterval, as long as the allocation lasts
}

// succeed takes in the success of t.
func (c *core) succeed(t *transaction, m message, now time.Time) {
	switch t.method {
	case methodAllocate:
		c.allocated(t, m, now)
	case methodRefresh:
		switch life, ok := m.number(attrLifetime); {
		case c.state == closing, ok && life == 0:
			c.end(ErrLost)
		default:
			c.extend(life, ok, t.first)
			c.noteAlternate(m)
		}
	case methodCreatePermission:
		c.permit(t.peer, t.first, now)
	case methodChannelBind:
		c.bind(t.peer, t.first, now)
	}
}

// allocated takes in what the server has given, if it makes sense.
func (c *core) allocated(t *transaction, m message, now time.Time) {
	relayed, mapped := m.address(attrXORRelayedAddress), m.address(attrXORMappedAddress)
	life, ok := m.number(attrLifetime)
	addr := relayed.Addr()
	switch {
	case !addr.IsValid(), addr.IsUnspecified(), addr.IsMulticast(), relayed.Port() == 0, ok && life == 0:
		c.end(refusal(t.method, 0))
	case c.family == familyIPv6 && !addr.Is6(), c.family == familyIPv4 && !addr.Is4():
		c.end(refusal(t.method, 440)) // some servers take no notice of the family
	default:
		c.state, c.relayed, c.mapped, c.turned = standing, relayed, mapped, c.unwanted == nil
		c.extend(life, ok, t.first)
		if c.unwanted != nil {
			c.close(now)
		}
	}
}

// extend notes a lifetime that began at start at the latest.
func (c *core) extend(seconds uint32, ok bool, start time.Time) {
	life := defaultLife
	if ok {
		life = min(time.Duration(seconds)*time.Second, maxLife)
	}
	c.expires, c.refreshAt = start.Add(life), start.Add(life*3/4)
	c.woken = true
}
