// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// What a client asks of a replica.
const (
	verbGet      = "get"      // linearizable
	verbPut      = "put"      // also a removal; with a condition if Swap is set
	verbLeader   = "leader"   // who leads, as far as the replica knows
	verbTransfer = "transfer" // make Key lead
	verbAdd      = "add"      // make Key, at address Value, a voter
)

// How a replica answers.
const (
	statusOK       = "ok"
	statusConflict = "conflict" // the condition did not hold
	statusRefused  = "refused"  // surely not done
	statusUnknown  = "unknown"  // perhaps done
)

// request is one line from a client; one at a time is under way on a connection.
type request struct {
	Verb   string        `json:"verb"`
	Key    string        `json:"key,omitempty"`
	Value  string        `json:"value,omitempty"`
	Delete bool          `json:"delete,omitempty"`
	Swap   bool          `json:"swap,omitempty"`
	If     uint64        `json:"if,omitempty"` // version with Swap; 0: absent
	Within time.Duration `json:"within"`       // nanoseconds
}

// response is the line that answers it.
type response struct {
	Status  string `json:"status"`
	Value   string `json:"value,omitempty"`
	Version uint64 `json:"version,omitempty"`
	Error   string `json:"error,omitempty"`
}

const (
	// dialWait bounds how long a client waits for a connection.
	dialWait = 500 * time.Millisecond
	// grace is what an answer may take beyond what the replica was given.
	grace = 300 * time.Millisecond
	// maxLine bounds a request, in bytes.
	maxLine = 64 << 10
)

// link is a client's connection to one replica, dialled when it is needed. It
// is for one goroutine.
type link struct {
	address string
	conn    net.Conn
	lines   *bufio.Reader
}

// notSentError says that a request did not leave.
type notSentError struct{ cause error }

func (e notSentError) Error() string { return "not sent: " + e.cause.Error() }

// ask makes one request. After an error that is no notSentError the outcome is
// unknown.
func (l *link) ask(r request) (response, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return response{}, notSentError{err}
	}
	if l.conn == nil {
		conn, err := net.DialTimeout("tcp", l.address, dialWait)
		if err != nil {
			return response{}, notSentError{err}
		}
		l.conn, l.lines = conn, bufio.NewReader(conn)
	}
	answer, err := l.exchange(append(raw, '\n'), r.Within+grace)
	if err != nil {
		l.close()
	}
	return answer, err
}

func (l *link) exchange(line []byte, within time.Duration) (r response, err error) {
	if err := l.conn.SetDeadline(time.Now().Add(within)); err != nil {
		return r, err
	}
	if _, err := l.conn.Write(line); err != nil {
		return r, err // half of it may have left
	}
	raw, err := l.lines.ReadBytes('\n')
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("answer %q: %w", raw, err)
	}
	return r, nil
}

func (l *link) close() {
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
	}
}
