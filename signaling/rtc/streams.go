// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/sctp"
)

// pion's association hands out a stream that the other side used first over a
// channel of 16, and forgets a stream the moment it is reset. That is too late
// for v1 clients, which may open a channel, write to it and close it before
// the message that announces it has been read: its data would be gone. So this
// package looks into each packet before the association does, and makes the
// streams that the packet is about itself.

// maxUnclaimed is how many streams may wait for the owner of a peer. A client
// that uses more at once is none.
const maxUnclaimed = 1024

// streams are the SCTP streams of a peer. The lock of the Peer guards it.
type streams struct {
	assoc *sctp.Association // nil before it stands
	// current is the stream of each id that is in use.
	current map[uint16]*sctp.Stream
	// claimed are those of current that are a Channel of Negotiated.
	claimed map[*sctp.Stream]struct{}
	// unclaimed are the streams that the other side used first, in that order,
	// until they are opened, claimed or reset.
	unclaimed []*Incoming
	// accepted is how many of unclaimed Accept has returned.
	accepted int
}

// SCTP chunk types (RFC 9260 section 3.2, RFC 8260 section 2.1).
const (
	sctpHeader    = 12
	chunkData     = 0
	chunkIData    = 64
	chunkCookieE  = 10
	chunkCookieA  = 11
	minDataLength = 12 // of a data chunk, up to and with its stream id and two bytes more
)

// dataChunks calls f with the TSN and stream of each data chunk in an SCTP
// packet. It stops at the first malformed chunk, and at one of the handshake.
func dataChunks(packet []byte, f func(tsn uint32, id uint16)) {
	if len(packet) < sctpHeader {
		return
	}
	for rest := packet[sctpHeader:]; len(rest) >= 4; {
		n := int(binary.BigEndian.Uint16(rest[2:]))
		if n < 4 || n > len(rest) {
			return
		}
		switch rest[0] {
		case chunkCookieE, chunkCookieA:
			return
		case chunkData, chunkIData:
			if n >= minDataLength {
				f(binary.BigEndian.Uint32(rest[4:]), binary.BigEndian.Uint16(rest[8:]))
			}
		}
		rest = rest[min((n+3)&^3, len(rest)):]
	}
}

// inspect sees each inbound packet before the association does, in its reading
// goroutine. The association holds none of its locks meanwhile. Data that is
// bundled with the handshake is left to accept, and so is what was sent again:
// it may be a copy, for a stream that is over.
func (p *Peer) inspect(packet []byte) {
	dataChunks(packet, func(tsn uint32, id uint16) {
		if !p.stands() || p.anyTSN && int32(tsn-p.lastTSN) <= 0 {
			return
		}
		p.anyTSN, p.lastTSN = true, tsn
		p.use(id)
	})
}

// associationWait is how long the first data waits for the association. It
// comes after the handshake, so the association is about to be returned; or
// the end of the handshake was lost, and then the packet has to go on.
const associationWait = 20 * time.Millisecond

// stands says whether the association is known. It is for inspect.
func (p *Peer) stands() bool {
	select {
	case <-p.associated:
		return true
	default:
	}
	if p.waited {
		return false
	}
	p.waited = true
	timer := time.NewTimer(associationWait)
	defer timer.Stop()
	select {
	case <-p.associated:
		return true
	case <-p.closing:
	case <-timer.C:
	}
	return false
}

// use makes the stream id known, because data for it is about to arrive.
func (p *Peer) use(id uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.streams.assoc.OpenStream(id, sctp.PayloadTypeUnknown)
	if err != nil || s == nil {
		return
	}
	p.found(s)
}

// found notes a stream that the other side used. The caller holds mu.
func (p *Peer) found(s *sctp.Stream) {
	id := s.StreamIdentifier()
	if p.streams.current[id] == s {
		return
	}
	p.streams.current[id] = s
	if len(p.streams.unclaimed) == maxUnclaimed {
		go p.shut(errTooManyStreams) // which takes mu
		return
	}
	p.streams.unclaimed = append(p.streams.unclaimed, &Incoming{peer: p, stream: s})
	select {
	case p.arrived <- struct{}{}:
	default:
	}
}

// accept takes what the association made itself, until it ends.
func (p *Peer) accept(assoc *sctp.Association) error {
	for {
		s, err := assoc.AcceptStream()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFailed, err)
		}
		p.mu.Lock()
		p.found(s)
		p.mu.Unlock()
	}
}

// Accept returns the next stream that the other side used first and that
// Negotiated has not claimed yet.
func (p *Peer) Accept(ctx context.Context) (*Incoming, error) {
	for {
		p.mu.Lock()
		if st := &p.streams; st.accepted < len(st.unclaimed) {
			in := st.unclaimed[st.accepted]
			st.accepted++
			p.mu.Unlock()
			return in, nil
		}
		p.mu.Unlock()
		select {
		case <-p.arrived:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.closing:
			return nil, io.EOF
		}
	}
}

// take removes a stream from the unclaimed and says whether it was one. The
// caller holds mu.
func (p *Peer) take(in *Incoming) bool {
	st := &p.streams
	i := slices.Index(st.unclaimed, in)
	if i < 0 {
		return false
	}
	st.unclaimed = slices.Delete(st.unclaimed, i, i+1)
	if i < st.accepted {
		st.accepted--
	}
	return true
}

// forget drops a stream that the other side has reset.
func (p *Peer) forget(s *sctp.Stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.streams.claimed, s)
	if id := s.StreamIdentifier(); p.streams.current[id] == s {
		delete(p.streams.current, id)
	}
}

// Negotiated is the channel with c.ID that both sides agreed on outside the
// connection. What arrived on it before the call is still there, even if the
// other side has closed it since. It fails with ErrInUse while an earlier
// channel of that id has not ended.
func (p *Peer) Negotiated(c ChannelConfig) (*Channel, error) {
	s, err := p.claim(c.ID)
	if err != nil {
		return nil, err
	}
	s.SetDefaultPayloadType(sctp.PayloadTypeWebRTCBinary)
	dc, err := datachannel.Client(s, c.dcep(p, true))
	if err != nil {
		p.forget(s)
		return nil, err
	}
	return newChannel(p, dc, s), nil
}

// claim returns the oldest unclaimed stream of an id, or else a new one.
func (p *Peer) claim(id uint16) (*sctp.Stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.streams
	if st.assoc == nil {
		return nil, errNotConnected
	}
	for _, in := range st.unclaimed {
		if in.stream.StreamIdentifier() == id {
			p.take(in)
			st.claimed[in.stream] = struct{}{}
			return in.stream, nil
		}
	}
	s, err := st.assoc.OpenStream(id, sctp.PayloadTypeWebRTCBinary)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, errNotConnected
	}
	if _, again := st.claimed[s]; again {
		return nil, fmt.Errorf("channel %d: %w", id, ErrInUse)
	}
	st.current[id] = s
	st.claimed[s] = struct{}{}
	return s, nil
}

// Open opens a channel in-band with c.ID, which must be free and of our
// parity (see FirstID).
func (p *Peer) Open(c ChannelConfig) (*Channel, error) {
	s, err := p.claim(c.ID)
	if err != nil {
		return nil, err
	}
	dc, err := datachannel.Client(s, c.dcep(p, false))
	if err != nil {
		p.forget(s)
		return nil, err
	}
	return newChannel(p, dc, s), nil
}

// Live is the number of channels that the other side has not closed, or that
// it closed and we did not read to the end. Channels that only this side has
// closed count: SCTP still holds them.
func (p *Peer) Live() int { return int(p.live.Load()) }

var errTooManyStreams = errors.New("more streams than anybody asked for")
