// SPDX-License-Identifier: Apache-2.0

// Package writer is the client process of a measurement of writes, whatever it
// writes to. It needs the standard library only, so that programs of another
// module can be one.
package writer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// grace is how long writes may take that began within a measurement.
	grace = 30 * time.Second
	// keys is how many keys each client writes, one after the other.
	keys = 64
)

// Order asks for one measurement.
type Order struct {
	// Clients write at the same time, each one write after the other. They are
	// spread over the members, beginning with the one that leads.
	Clients int
	// Writes that are acknowledged within Count after Warm are counted.
	Warm, Count time.Duration
}

// Result is what came of an Order.
type Result struct {
	// Acked is how many writes were acknowledged per second.
	Acked float64
	// P50 and P99 are quantiles of how long they took, in ms.
	P50, P99 float64
	// Error says why there is no result; empty when there is one.
	Error string
}

// Target is what is written to.
type Target interface {
	// Leader returns which of the members leads.
	Leader(ctx context.Context) (int, error)
	// Put writes a key by way of a member and returns once the write is
	// acknowledged.
	Put(ctx context.Context, member int, key, value string) error
	// Members is how many there are.
	Members() int
}

// Serve says that it is ready and then measures for each Order that comes, as
// a line of JSON, until in ends. Values have size bytes.
func Serve(ctx context.Context, in io.Reader, out io.Writer, t Target, size int) error {
	value := make([]byte, size)
	for i := range value {
		value[i] = 'a' + byte(i*7%26)
	}
	answers := json.NewEncoder(out)
	if err := answers.Encode(true); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var o Order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		r, err := measure(ctx, o, t, string(value))
		if err != nil {
			r.Error = err.Error()
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

// measure lets clients write and looks at what is acknowledged in the window.
func measure(ctx context.Context, o Order, t Target, value string) (Result, error) {
	if o.Clients < 1 || o.Count <= 0 {
		return Result{}, errors.New("nothing to measure")
	}
	ctx, cancel := context.WithTimeout(ctx, o.Warm+o.Count+grace)
	defer cancel()
	first, err := t.Leader(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("look for the leader: %w", err)
	}
	from := time.Now().Add(o.Warm)
	to := from.Add(o.Count)
	took := make([][]time.Duration, o.Clients)
	errs := make([]error, o.Clients)
	var wg sync.WaitGroup
	for c := range o.Clients {
		wg.Go(func() {
			for i := 0; ; i++ {
				start := time.Now()
				if err := t.Put(ctx, (first+c)%t.Members(), fmt.Sprintf("bench/%d/%d", c, i%keys), value); err != nil {
					errs[c] = err
					return
				}
				switch end := time.Now(); {
				case end.After(to):
					return
				case end.After(from):
					took[c] = append(took[c], end.Sub(start))
				}
			}
		})
	}
	wg.Wait()
	return result(took, o.Count), errors.Join(errs...)
}
