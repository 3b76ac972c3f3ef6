// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipeEnd is one end of a data channel in memory. Messages stay "buffered"
// until the other end reads them, as if the network were as slow as its reader.
type pipeEnd struct {
	mu       sync.Mutex
	queue    []pipeMessage // to be read at this end
	queued   int
	closed   bool // no more messages will come
	deadline time.Time
	timer    *time.Timer
	level    int
	low      chan struct{}
	wake     *sync.Cond
	other    *pipeEnd
	shut     bool // this end called Close
}

type pipeMessage struct {
	b    []byte
	text bool
}

func newPipe() (*pipeEnd, *pipeEnd) {
	a, b := &pipeEnd{low: make(chan struct{}, 1)}, &pipeEnd{low: make(chan struct{}, 1)}
	a.wake, b.wake = sync.NewCond(&a.mu), sync.NewCond(&b.mu)
	a.other, b.other = b, a
	return a, b
}

func (p *pipeEnd) ReadMessage(b []byte) (int, bool, error) {
	p.mu.Lock()
	for {
		switch {
		case len(p.queue) > 0:
			m := p.queue[0]
			if len(m.b) > len(b) {
				p.mu.Unlock()
				return 0, false, io.ErrShortBuffer
			}
			p.queue = p.queue[1:]
			before := p.queued
			p.queued -= len(m.b)
			after := p.queued
			p.mu.Unlock()
			p.other.drained(before, after)
			return copy(b, m.b), m.text, nil
		case p.closed:
			p.mu.Unlock()
			_ = p.Close() // as SCTP: a reset is answered by a reset
			return 0, false, io.EOF
		case !p.deadline.IsZero() && !time.Now().Before(p.deadline):
			p.mu.Unlock()
			return 0, false, os.ErrDeadlineExceeded
		}
		p.wake.Wait()
	}
}

func (p *pipeEnd) drained(before, after int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before > p.level && after <= p.level {
		signal(p.low)
	}
}

func (p *pipeEnd) WriteMessage(b []byte, text bool) error {
	p.mu.Lock()
	shut := p.shut
	p.mu.Unlock()
	if shut {
		return io.ErrClosedPipe
	}
	o := p.other
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = append(o.queue, pipeMessage{append([]byte(nil), b...), text})
	o.queued += len(b)
	o.wake.Broadcast()
	return nil
}

func (p *pipeEnd) Buffered() int {
	p.other.mu.Lock()
	defer p.other.mu.Unlock()
	return p.other.queued
}

func (p *pipeEnd) LowWater(n int) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.level = n
	return p.low
}

func (p *pipeEnd) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	if p.timer != nil {
		p.timer.Stop()
	}
	p.timer = time.AfterFunc(time.Until(t), func() { p.mu.Lock(); p.wake.Broadcast(); p.mu.Unlock() })
	return nil
}

func (p *pipeEnd) Close() error {
	p.mu.Lock()
	p.shut = true
	p.mu.Unlock()
	p.other.mu.Lock()
	defer p.other.mu.Unlock()
	p.other.closed = true
	p.other.wake.Broadcast()
	return nil
}
