// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/sctp"
)

// The Data Channel Establishment Protocol (RFC 8832).
const (
	dcepOpen   = 0x03
	dcepAck    = 0x02
	dcepHeader = 12
	// maxDCEP is the longest opening message that is read. Labels name
	// destinations and are short.
	maxDCEP = 2 << 10
	// maxEarly is how many bytes of messages that overtook the opening message
	// are kept.
	maxEarly = 64 << 10
)

// parseOpen reads an opening message.
func parseOpen(b []byte) (*datachannel.Config, error) {
	if len(b) < dcepHeader || b[0] != dcepOpen {
		return nil, errors.New("no opening message")
	}
	label := int(binary.BigEndian.Uint16(b[8:]))
	protocol := int(binary.BigEndian.Uint16(b[10:]))
	rest := b[dcepHeader:]
	if label+protocol != len(rest) {
		return nil, errors.New("opening message with wrong lengths")
	}
	c := &datachannel.Config{
		ChannelType:          datachannel.ChannelType(b[1]),
		Priority:             binary.BigEndian.Uint16(b[2:]),
		ReliabilityParameter: binary.BigEndian.Uint32(b[4:]),
		Label:                string(rest[:label]),
		Protocol:             string(rest[label:]),
	}
	switch c.ChannelType {
	case datachannel.ChannelTypeReliable, datachannel.ChannelTypeReliableUnordered,
		datachannel.ChannelTypePartialReliableRexmit, datachannel.ChannelTypePartialReliableRexmitUnordered,
		datachannel.ChannelTypePartialReliableTimed, datachannel.ChannelTypePartialReliableTimedUnordered:
		return c, nil
	}
	return nil, fmt.Errorf("opening message with channel type 0x%02x", b[1])
}

// message is one that arrived before its channel was opened.
type message struct {
	b    []byte
	text bool
}

// Incoming is a stream that the other side used first. Nothing of it has been
// read; what arrived on it waits.
type Incoming struct {
	peer   *Peer
	stream *sctp.Stream
}

// ID is the number of the stream.
func (i *Incoming) ID() uint16 { return i.stream.StreamIdentifier() }

// Open reads the opening message of the Data Channel Establishment Protocol
// and answers it. It waits for the message to be whole, but not longer than
// the timeout. Unordered messages that overtook it are kept for ReadMessage;
// clients that wait for the answer, as they should, send none.
func (i *Incoming) Open(timeout time.Duration) (*Channel, error) {
	i.peer.mu.Lock()
	waiting := i.peer.take(i)
	i.peer.mu.Unlock()
	if !waiting {
		return nil, fmt.Errorf("channel %d: %w", i.ID(), ErrInUse)
	}
	cfg, early, err := i.readOpen(timeout)
	if err != nil {
		return nil, fmt.Errorf("open channel %d: %w", i.ID(), err)
	}
	cfg.Negotiated, cfg.LoggerFactory = true, i.peer.engine.logs // the opening is done here
	if _, err := i.stream.WriteSCTP([]byte{dcepAck}, sctp.PayloadTypeWebRTCDCEP); err != nil {
		return nil, fmt.Errorf("open channel %d: %w", i.ID(), err)
	}
	i.stream.SetDefaultPayloadType(sctp.PayloadTypeWebRTCBinary)
	dc, err := datachannel.Client(i.stream, cfg)
	if err != nil {
		return nil, fmt.Errorf("open channel %d: %w", i.ID(), err)
	}
	ch := newChannel(i.peer, dc, i.stream)
	ch.early = early
	return ch, nil
}

func (i *Incoming) readOpen(timeout time.Duration) (*datachannel.Config, []message, error) {
	_ = i.stream.SetReadDeadline(time.Now().Add(timeout))
	defer func() { _ = i.stream.SetReadDeadline(time.Time{}) }()
	var early []message
	kept, buf := 0, make([]byte, maxDCEP)
	for {
		n, ppi, err := i.stream.ReadSCTP(buf)
		if errors.Is(err, io.ErrShortBuffer) && len(buf) < maxEarly {
			buf = make([]byte, maxEarly)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if ppi == sctp.PayloadTypeWebRTCDCEP {
			cfg, err := parseOpen(buf[:n])
			return cfg, early, err
		}
		if ppi == sctp.PayloadTypeWebRTCBinaryEmpty || ppi == sctp.PayloadTypeWebRTCStringEmpty {
			n = 0
		}
		if kept += n + 64; kept > maxEarly {
			return nil, nil, errors.New("too much data before the opening message")
		}
		text := ppi == sctp.PayloadTypeWebRTCString || ppi == sctp.PayloadTypeWebRTCStringEmpty
		early = append(early, message{append([]byte(nil), buf[:n]...), text})
	}
}

// Claimed says whether Negotiated has made the stream a channel.
func (i *Incoming) Claimed() bool {
	i.peer.mu.Lock()
	defer i.peer.mu.Unlock()
	return !slices.Contains(i.peer.streams.unclaimed, i)
}

// Reset refuses the stream.
func (i *Incoming) Reset() {
	i.peer.mu.Lock()
	i.peer.take(i)
	i.peer.mu.Unlock()
	_ = i.stream.Close()
}
