// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
)

// MaxControlSize is the largest control message.
const MaxControlSize = 16 << 10

// Protocol is the subprotocol that in-band channels name.
const Protocol = "meshgate.1"

// Types of control messages of "meshgate.1".
const (
	TypeOpen    = "open"    // server: the connection stands
	TypeError   = "error"   // server: it does not
	TypeWindow  = "window"  // bytes were consumed
	TypeFin     = "fin"     // no more bytes in this direction
	TypeReset   = "reset"   // the connection is broken
	TypePing    = "ping"    // control channel, either side
	TypePong    = "pong"    // its answer
	TypeRenew   = "renew"   // server: use a new peer connection from now on
	TypeGoodbye = "goodbye" // server: the peer connection ends now
)

// Control is a text message of the in-band protocol: in a stream's own
// channel, or in the control channel. Unknown types and fields are ignored.
type Control struct {
	Type string `json:"type"`
	// Window is the initial window that "open" confirms.
	Window int `json:"window,omitempty"`
	// Bytes is by how much a window grows.
	Bytes int `json:"bytes,omitempty"`
	// Code and Message say what went wrong, Code as one of the rpc codes in
	// snake case.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	// ID pairs ping and pong.
	ID int64 `json:"id,omitempty"`
	// Channel is the udp channel that a message in the control channel is about.
	Channel *uint16 `json:"channel,omitempty"`
}

// Encode returns the message as it is sent.
func (c Control) Encode() []byte {
	b, err := json.Marshal(c)
	if err != nil {
		return []byte("{}") // cannot happen: strings and numbers only
	}
	return b
}

// ParseControl reads a text message.
func ParseControl(b []byte) (Control, error) {
	var c Control
	if len(b) > MaxControlSize {
		return c, fmt.Errorf("control message of %d bytes, at most %d", len(b), MaxControlSize)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, errors.New("control message is no JSON object")
	}
	if c.Bytes < 0 || c.Window < 0 {
		return c, errors.New("control message with a negative number")
	}
	return c, nil
}

// Error is a failure that the other side named.
type Error struct {
	// Code is an rpc code in snake case, such as "permission_denied".
	Code string
	// Message is for people.
	Message string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code
	}
	return e.Message + " (" + e.Code + ")"
}

// Codes that this package uses itself.
const (
	CodeCanceled  = "canceled"
	CodeInvalid   = "invalid_argument"
	CodeExhausted = "resource_exhausted"
	CodeBroken    = "unavailable"
)
