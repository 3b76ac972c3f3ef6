// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// DatagramConfig says how Datagrams works.
type DatagramConfig struct {
	// Idle ends the channel after so much time without a datagram; 0 means 5 min.
	Idle time.Duration
	// Queue is how many bytes may wait to be sent to the channel before
	// datagrams are dropped; 0 means 256 KiB.
	Queue int
	// MaxMessage is the largest message that the other side takes.
	MaxMessage int
	Count      Counter
}

const (
	maxDatagram      = 64 << 10
	defaultIdle      = 5 * time.Minute
	defaultDatagrams = 256 << 10
	maxFailures      = 16
)

// Reasons for which a Counter is told of drops.
const (
	DropSlow    = "slow_reader"
	DropTooBig  = "too_big"
	DropRefused = "refused"
	DropFrame   = "not_wireguard"
	DropRate    = "rate"
)

// Datagrams carries datagrams between a channel and a connected UDP socket,
// one message for one datagram, until one of them ends or both are idle. It
// never waits for a slow side: it drops. It closes both.
func Datagrams(ch Channel, conn net.Conn, cfg DatagramConfig) {
	if cfg.Idle == 0 {
		cfg.Idle = defaultIdle
	}
	if cfg.Queue == 0 {
		cfg.Queue = defaultDatagrams
	}
	var active atomic.Int64 // when something passed last
	active.Store(time.Now().UnixNano())
	var wg sync.WaitGroup
	wg.Go(func() {
		datagramsUp(ch, conn, &active, cfg)
		_ = conn.Close() // ends the other direction
	})
	datagramsDown(ch, conn, &active, cfg)
	_ = ch.Close()
	_ = ch.SetReadDeadline(time.Now().Add(closeWait))
	_ = conn.Close()
	wg.Wait()
}

func datagramsUp(ch Channel, conn net.Conn, active *atomic.Int64, cfg DatagramConfig) {
	r := newMessageReader(ch)
	for {
		message, text, err := r.next()
		if err != nil {
			return
		}
		if text && len(message) > 0 && message[0] == '{' {
			continue // a control message; udp channels know none
		}
		if len(message) > maxDatagram {
			cfg.Count.drop(DropTooBig)
			continue
		}
		active.Store(time.Now().UnixNano())
		// Write errors are the network's: nobody listens, no route, too big.
		if n, err := conn.Write(message); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			cfg.Count.drop(DropRefused)
		} else {
			cfg.Count.up(n)
		}
	}
}

func datagramsDown(ch Channel, conn net.Conn, active *atomic.Int64, cfg DatagramConfig) {
	buf := make([]byte, maxDatagram)
	failures := 0 // in a row
	for {
		idle := time.Since(time.Unix(0, active.Load()))
		if idle >= cfg.Idle {
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(cfg.Idle - idle))
		n, err := conn.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil && (errors.Is(err, net.ErrClosed) || failures == maxFailures):
			return
		case err != nil: // an ICMP error for an earlier datagram is told by a later read
			failures++
			cfg.Count.drop(DropRefused)
			continue
		}
		failures = 0
		active.Store(time.Now().UnixNano())
		switch {
		case cfg.MaxMessage > 0 && n > cfg.MaxMessage:
			cfg.Count.drop(DropTooBig)
		case ch.Buffered() > cfg.Queue:
			cfg.Count.drop(DropSlow)
		case ch.WriteMessage(buf[:n], false) != nil:
			return
		default:
			cfg.Count.down(n)
		}
	}
}
