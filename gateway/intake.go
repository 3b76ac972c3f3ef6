// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"golang.org/x/sync/semaphore"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

const (
	// defaultIntake is the most that is decoded at a time, in bytes.
	defaultIntake = 64 << 20
	// intakeQueue is how many messages may wait for others to be decoded, and
	// intakePatience for how long: decoding takes milliseconds.
	intakeQueue    = 64
	intakePatience = 2 * time.Second
	// objectsGrowth is how much larger changes of objects may be when they are
	// decoded: they may have more fields than others.
	objectsGrowth = 32
	// minUnfinished is what of a message may be there without being counted, in
	// bytes, unfinishedShare which part of the room one caller may have, and
	// leastUnfinished what it is in any case: the largest message.
	minUnfinished   = 16 << 10
	unfinishedShare = 4
	leastUnfinished = 2 * api.MaxStoreMessage
	// envelopePrefix is what stands before a message of a stream and of gRPC:
	// flags, of which the lowest says that it is packed, and its length.
	envelopePrefix = 5
	envelopePacked = 1
)

// intake bounds the bytes that all calls together unpack and decode at a time.
// The bounds of one message say nothing of a thousand that come at once. A message
// counts from when all of it is there, so that who sends slowly holds nothing,
// until it is decoded. Until then it is one of the unfinished, which have a bound
// of their own. It is safe for concurrent use.
type intake struct {
	bytes *semaphore.Weighted
	size  int64
	// unfinished are the messages of which more than minUnfinished is there, by
	// caller. Who has sent a part of one for the longest time makes room.
	unfinished *waiting
	patience   time.Duration
	queue      chan struct{} // holds a token for each message that waits
	metrics    *metrics
}

func newIntake(size int64, m *metrics) *intake {
	unfinished := newWaiting(math.MaxInt, 0)
	unfinished.room = max(int(size), leastUnfinished)
	unfinished.share = max(int(size)/unfinishedShare, leastUnfinished)
	return &intake{
		unfinished: unfinished,
		bytes:      semaphore.NewWeighted(size), size: size, patience: intakePatience,
		queue: make(chan struct{}, intakeQueue), metrics: m,
	}
}

// take counts n bytes until release is called, once or again. It waits while
// others are decoded, but not long, and not behind many.
func (i *intake) take(ctx context.Context, n int64) (release func(), err error) {
	n = min(n, i.size) // one that is larger has it alone
	if !i.bytes.TryAcquire(n) {
		if err := i.wait(ctx, n); err != nil {
			return nil, err
		}
	}
	i.metrics.decoding.Add(float64(n))
	return sync.OnceFunc(func() {
		i.metrics.decoding.Sub(float64(n))
		i.bytes.Release(n)
	}), nil
}

func (i *intake) wait(ctx context.Context, n int64) error {
	select {
	case i.queue <- struct{}{}:
		defer func() { <-i.queue }()
	default:
		return i.refuse()
	}
	patient, cancel := context.WithTimeout(ctx, i.patience)
	defer cancel()
	if err := i.bytes.Acquire(patient, n); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return i.refuse()
	}
	return nil
}

// refuse counts and says that there is too much to decode.
func (i *intake) refuse() error {
	i.metrics.overfed.Inc()
	err := connect.NewError(connect.CodeResourceExhausted,
		errors.New("the gateway has more messages to decode than it has memory for: try again in a second, with smaller messages if you can"))
	err.Meta().Set("Retry-After", "1")
	return err
}

// measured counts the messages of calls against the intake. Health is asked when
// there is the least room, and its messages are small: it is let pass.
func (g *Gateway) measured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := requestFrom(r.Context())
		if q == nil || r.Body == nil || strings.HasPrefix(r.URL.Path, "/"+grpchealth.HealthV1ServiceName+"/") {
			next.ServeHTTP(w, r)
			return
		}
		kind := r.Header.Get("Content-Type")
		service, limit, _ := messageBounds(r.URL.Path)
		b := &measuredBody{
			ReadCloser: r.Body, ctx: r.Context(), intake: g.intake, limit: int64(limit), growth: 1,
			enveloped: strings.HasPrefix(kind, "application/grpc") || strings.HasPrefix(kind, "application/connect+"),
			packed:    packed(r.Header.Get("Content-Encoding")),
			request:   q,
		}
		if service == meshgatev1connect.ObjectsName {
			b.growth = objectsGrowth
		}
		defer b.decoded()
		defer b.finish()
		q.decoded, r.Body = b.decoded, b
		next.ServeHTTP(w, r)
	})
}

func packed(encoding string) bool { return encoding != "" && encoding != "identity" }

// measuredBody is the body of a request that counts each message when its last
// byte was read.
type measuredBody struct {
	io.ReadCloser
	ctx       context.Context //nolint:containedctx // of the request, as its body is
	intake    *intake
	limit     int64 // of a message, in bytes
	growth    int64 // how many times as large a message may be when it is decoded
	enveloped bool
	packed    bool // whole, where it is not enveloped

	// Of the message that is read: its prefix, as far as it was, how much of it
	// is left, and, of one that is not enveloped, how much there was.
	prefix [envelopePrefix]byte
	have   int
	left   int64
	whole  int64

	request *request
	lost    atomic.Bool // the message made room

	mu      sync.Mutex // guards the fields below
	release func()     // of the message that is decoded; nil: none is
	// Of a message of which a part is there, once that counts; nil before.
	part int
	hold func(bytes int)
	over func()
}

// Read implements io.Reader. Who reads on has decoded what it read before.
func (b *measuredBody) Read(p []byte) (int, error) {
	b.decoded()
	n, err := b.ReadCloser.Read(p)
	var weight int64
	if b.enveloped {
		weight = b.follow(p[:n])
	} else if b.whole += int64(n); errors.Is(err, io.EOF) {
		weight = b.weigh(b.whole, b.packed)
	}
	b.count(b.unfinished(err))
	if b.lost.Load() {
		return 0, b.intake.refuse()
	}
	if weight == 0 {
		return n, err
	}
	release, refused := b.intake.take(b.ctx, weight)
	if refused != nil {
		return 0, refused // with its last byte it would be taken for whole
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release = release
	return n, err
}

// unfinished is how much is there of a message that is not there whole. err is what
// reading ended with.
func (b *measuredBody) unfinished(err error) int {
	switch {
	case err != nil:
		return 0
	case !b.enveloped:
		return int(b.whole)
	case b.left > 0:
		return int(int64(binary.BigEndian.Uint32(b.prefix[1:])) - b.left)
	}
	return 0
}

// count says that n bytes of a message are there. What they are collected in may
// be twice as large.
func (b *measuredBody) count(n int) {
	if n < minUnfinished {
		b.finish()
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hold == nil {
		place, leave, hold := b.intake.unfinished.enter(context.Background(), b.request.key())
		stop := context.AfterFunc(place, func() {
			b.lost.Store(true)
			b.request.deadlines.read(time.Unix(1, 0)) // it may wait for more
		})
		b.hold, b.over = hold, func() {
			stop()
			leave()
		}
	}
	b.hold(2 * (n - b.part))
	b.part = n
}

// finish says that no part of a message is there.
func (b *measuredBody) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over != nil {
		b.over()
	}
	b.part, b.hold, b.over = 0, nil, nil
}

// follow reads along and returns the weight of the messages that end in data.
func (b *measuredBody) follow(data []byte) (weight int64) {
	for len(data) > 0 {
		if b.left == 0 {
			n := copy(b.prefix[b.have:], data)
			b.have, data = b.have+n, data[n:]
			if b.have < envelopePrefix {
				break
			}
			b.left = int64(binary.BigEndian.Uint32(b.prefix[1:]))
		}
		n := min(b.left, int64(len(data)))
		b.left, data = b.left-n, data[n:]
		if b.left == 0 {
			weight += b.weigh(int64(binary.BigEndian.Uint32(b.prefix[1:])), b.prefix[0]&envelopePacked != 0)
			b.have = 0
		}
	}
	return weight
}

// weigh is what a message of n bytes counts: itself, and what is decoded, which
// of a packed one is told by nothing but its bound. What is too large is dropped.
func (b *measuredBody) weigh(n int64, packed bool) int64 {
	switch {
	case n > b.limit:
		return 0
	case packed && n > 0:
		return n + b.growth*b.limit
	}
	return (1 + b.growth) * n
}

// decoded says that the last message is decoded.
func (b *measuredBody) decoded() {
	b.mu.Lock()
	release := b.release
	b.release = nil
	b.mu.Unlock()
	if release != nil {
		release()
	}
}
