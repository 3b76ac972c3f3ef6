// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// maxMessages is how many messages one call may bring. A client with twenty
// interfaces and four TURN servers stays below it.
const maxMessages = 256

// signal is what any of the four calls says after its first message: a session
// description or a candidate, or else a path.
type signal struct {
	description, candidate string
	path                   *v1.PathSignal
}

// inbox is the receiving half of a call as a channel, so that a handler can
// wait for messages and other things at once.
type inbox struct {
	c   chan signal
	err error // why c was closed; io.EOF after the half-close. Read it after that.
}

// newInbox starts to receive. The goroutine ends when receive fails, which it
// does at the latest when the call is over; Close of the Service waits for it.
func (s *Service) newInbox(ctx context.Context, receive func() (signal, error)) *inbox {
	in := &inbox{c: make(chan signal)}
	s.running.Go(func() {
		defer close(in.c)
		for n := 0; n < maxMessages; {
			m, err := receive()
			if err != nil {
				in.err = err
				return
			}
			if m.path == nil {
				n++ // paths are paced where they are taken: see pathPace
			}
			select {
			case in.c <- m:
			case <-ctx.Done():
				in.err = context.Cause(ctx)
				return
			}
		}
		in.err = fmt.Errorf("more than %d messages in one call: %w", maxMessages, mesh.ErrExhausted)
	})
	return in
}

// next waits for one message, which the other side owes within the timeout.
func (in *inbox) next(ctx context.Context, timeout time.Duration, what string) (signal, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case m, ok := <-in.c:
		if !ok {
			return m, in.over(what)
		}
		return m, nil
	case <-timer.C:
		return signal{}, late(what)
	case <-ctx.Done():
		return signal{}, context.Cause(ctx)
	}
}

// prepend returns an inbox that gives first before all others. It is for a
// first message that says more than what it is about.
func (in *inbox) prepend(ctx context.Context, s *Service, first signal) *inbox {
	if first == (signal{}) {
		return in
	}
	out := &inbox{c: make(chan signal)}
	s.running.Go(func() {
		defer close(out.c)
		for m, ok := first, true; ok; m, ok = <-in.c {
			select {
			case out.c <- m:
			case <-ctx.Done():
				out.err = context.Cause(ctx)
				return
			}
		}
		out.err = in.err
	})
	return out
}

// over is the error for a call that ended while something was due.
func (in *inbox) over(what string) error {
	if errors.Is(in.err, io.EOF) {
		return fmt.Errorf("the call was half-closed before the %s: %w", what, context.Canceled)
	}
	return fmt.Errorf("receive the %s: %w", what, in.err)
}

func late(what string) error {
	return fmt.Errorf("timed out waiting for %s: %w", what, context.DeadlineExceeded)
}
