// SPDX-License-Identifier: Apache-2.0

package core

import "slices"

// Flags of CHANGE-REQUEST (RFC 5780 section 7.2).
const (
	changeIP   = 0x04
	changePort = 0x02
)

// binding answers a Binding request (RFC 8489 section 12) without credentials.
// At the listeners of Config.Discovery the answer tells about them and comes
// from where CHANGE-REQUEST says (RFC 5780 section 6.1).
func (c *Core) binding(r *request) {
	m := &r.msg
	corner := slices.Index(c.cfg.Discovery, r.flow.Listener)
	if m.has&hasChange != 0 && corner < 0 {
		m.strange(attrChangeRequest)
	}
	switch {
	case m.unknowns > 0:
		c.failUnknown(r, m.unknown[:m.unknowns])
		return
	case m.malformed:
		c.fail(r, codeBadRequest)
		return
	}
	w := c.success(r)
	w.address(attrXORMappedAddress, r.flow.Client)
	if corner >= 0 {
		from := corner
		if m.change&changeIP != 0 {
			from ^= 2
		}
		if m.change&changePort != 0 {
			from ^= 1
		}
		c.discovery(r, w, from, corner^3)
		r.flow.Listener = c.cfg.Discovery[from]
	}
	c.reply(r, w)
}

// discovery adds OTHER-ADDRESS and RESPONSE-ORIGIN, as far as the answer may
// grow (request.room): a client that wants both and sends less than 36 bytes
// must send more, such as FINGERPRINT and SOFTWARE.
func (c *Core) discovery(r *request, w builder, from, other int) {
	addr := func(corner int) int {
		return attrHeader + addressLen(c.cfg.Listeners[c.cfg.Discovery[corner]].Addr.Addr())
	}
	if w.len()+addr(other) <= r.room() {
		w.plain(attrOtherAddress, c.cfg.Listeners[c.cfg.Discovery[other]].Addr)
	}
	if w.len()+addr(from) <= r.room() {
		w.plain(attrResponseOrigin, c.cfg.Listeners[c.cfg.Discovery[from]].Addr)
	}
}
