// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"errors"
)

// MaxFrame is the size of the largest frame on a stream: a STUN message.
// ChannelData is at most 65540 bytes long with header and padding.
const MaxFrame = headerLen + maxBody

// ErrNotTURN says that a stream carries something else than STUN messages and
// ChannelData. There is no way to find the next frame: close the stream.
var ErrNotTURN = errors.New("neither a STUN message nor ChannelData")

// Frame finds out how long the frame is with which b, bytes of a stream, begins
// (RFC 8656 section 3.1 and 12.5). It returns 0 when b is too short to say so;
// the frame may be longer than b. It reads no more than 8 bytes, and fails with
// ErrNotTURN at the first of them that fits no frame.
func Frame(b []byte) (int, error) {
	switch {
	case len(b) == 0:
		return 0, nil
	case b[0] < 0x40:
		return stunFrame(b)
	case b[0] >= byte(minChannel>>8) && b[0] <= byte(maxChannel>>8):
		if len(b) < channelHeader {
			return 0, nil
		}
		return channelHeader + padded(int(binary.BigEndian.Uint16(b[2:]))), nil
	default:
		return 0, ErrNotTURN
	}
}

func stunFrame(b []byte) (int, error) {
	cookie := [4]byte{magicCookie >> 24, magicCookie >> 16 & 0xFF, magicCookie >> 8 & 0xFF, magicCookie & 0xFF}
	for i := 4; i < min(len(b), 8); i++ {
		if b[i] != cookie[i-4] {
			return 0, ErrNotTURN
		}
	}
	if len(b) >= 4 && b[3]%4 != 0 {
		return 0, ErrNotTURN
	}
	if len(b) < 8 {
		return 0, nil
	}
	return headerLen + int(binary.BigEndian.Uint16(b[2:])), nil
}

// ShardOf returns the shard that a STUN request asks for by a reservation token
// or a connection id (Config.Shard). Only there can the request be served; the
// driver may carry it over together with the client's flow. It is false for
// every other packet. ShardOf decodes the whole packet: ask it about packets of
// clients that have no allocation.
func ShardOf(packet []byte) (uint8, bool) {
	var m message
	if !m.decode(packet) || m.class != classRequest || m.malformed {
		return 0, false
	}
	switch {
	case m.method == methodAllocate && m.has&hasToken != 0:
		return m.token[0], true
	case m.method == methodConnectionBind && m.has&hasConnection != 0:
		return uint8(m.connection >> 24), true
	default:
		return 0, false
	}
}
