// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxHello bounds what is read of a client before it is known what it wants,
	// in bytes. Browsers say less than 4 KiB, even with post-quantum keys.
	maxHello = 16 << 10
	// maxHellos bounds that of all clients together, whatever they have sent of
	// it: 2 KiB of as many as may be sorted. To read TLS takes some more.
	maxHellos = maxSortedAll * 2 << 10
	// maxSorted is how many connections of one network may be sorted at a time,
	// and maxSortedAll how many of all. For each one more, the one whose hello is
	// awaited longest is closed.
	maxSorted    = 256
	maxSortedAll = 4096
	// maxGreeted and maxGreetedAll bound likewise those that ask for a stream,
	// until it knows who is there. Only other gateways have business there.
	maxGreeted    = 32
	maxGreetedAll = 256
	// maxQueued is how many connections wait for the gateway to accept them;
	// more are closed.
	maxQueued = 1024
	// acceptAgain is the pause after an Accept that failed.
	acceptAgain = 50 * time.Millisecond
)

// Limits that the log names.
const (
	limitHellos  = "hellos"  // connections that have not said what they want
	limitStreams = "streams" // connections that say they are gateways
	limitQueue   = "queue"   // connections that wait to be accepted
)

// Front is the public port of a gateway that is one of several. It is open
// before the gateway serves: the others have to be heard for there to be a state
// that it could serve. What asks, by ALPN, for one of the streams goes there;
// all else waits for Accept of the listener, untouched.
type Front struct {
	listener net.Listener
	streams  map[string]func(context.Context, net.Conn)

	cancel  context.CancelFunc
	wg      sync.WaitGroup
	sorted  *waiting      // those whose hello is awaited, by network
	greeted *waiting      // those that a stream makes the acquaintance of, by network
	queued  chan struct{} // holds a token for each connection that waits for Accept
	queue   chan net.Conn // on their way to Accept; never closed
	done    chan struct{} // closed when the port is

	// refused counts the connections that were closed instead of handed over.
	refused atomic.Uint64
	// flood tells of those that had to make room.
	flood overflow

	quiet     chan struct{} // closed when nobody accepts any more
	quietOnce sync.Once
	end       sync.Once
	err       error // of closing the port
}

// NewFront opens the front of l, which it owns; log may be nil: discard logs. Each stream gets its connections
// with the whole TLS handshake still to come, and its own goroutine. It returns
// once it knows who is there and has handed the connection on, or has closed it:
// until then that is one of few strangers, and its context ends when others want
// the place, or with Close. Values of ctx are kept, its end is ignored. However
// many connections the gateway holds and its queue has, the streams have places of
// their own, in share.
func NewFront(ctx context.Context, l net.Listener, log *slog.Logger, share Share, streams map[string]func(context.Context, net.Conn)) *Front {
	sorted := newWaiting(min(maxSorted, share.sorted), share.sorted)
	sorted.room = maxHellos
	return newFront(ctx, l, log, streams, sorted,
		newWaiting(min(maxGreeted, share.greeted), share.greeted), share.queued)
}

func newFront(ctx context.Context, l net.Listener, log *slog.Logger, streams map[string]func(context.Context, net.Conn), sorted, greeted *waiting, queued int) *Front {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &Front{
		flood: overflow{
			log: log.With("component", "gateway"),
			msg: "the public port is flooded: connections are closed before it is known what they want, those that have waited longest first",
		},
		listener: l, streams: streams, cancel: cancel,
		sorted: sorted, greeted: greeted, queued: make(chan struct{}, queued),
		queue: make(chan net.Conn), done: make(chan struct{}), quiet: make(chan struct{}),
	}
	f.wg.Go(func() { f.run(ctx) })
	return f
}

// Close closes the port and waits until nothing of it is left. It may be called
// again.
func (f *Front) Close() error {
	f.end.Do(func() {
		close(f.done)
		f.cancel()
		f.err = f.listener.Close()
	})
	f.wg.Wait()
	f.flood.end()
	return f.err
}

// Listener accepts what is for no stream. Closing it leaves the streams alone.
func (f *Front) Listener() net.Listener { return frontListener{f} }

// Loan is a listener like Listener whose Close ends only itself.
func (f *Front) Loan() net.Listener {
	return &frontLoan{frontListener: frontListener{f}, over: make(chan struct{})}
}

// run accepts connections until Close.
func (f *Front) run(ctx context.Context) {
	for {
		conn, err := f.listener.Accept()
		switch {
		case err == nil:
			remote, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
			from := network(remote.Addr())
			awaited, heard, hold := f.sorted.enter(ctx, from) // here, so that places are in order
			f.wg.Go(func() {
				wanted, conn, err := f.hear(awaited, hold, conn)
				if err != nil && awaited.Err() != nil && ctx.Err() == nil { // it lost its place
					f.flood.closed(limitHellos, from)
				}
				heard()
				if err == nil {
					f.sort(ctx, from, wanted, conn)
				}
			})
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default: // such as too many open files, which passes
			timer := time.NewTimer(acceptAgain)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
		}
	}
}

// hear finds out what a connection wants, or closes it. awaited ends when the
// connection loses its place among those whose hello is awaited; hold is told
// what is kept of it.
func (f *Front) hear(awaited context.Context, hold func(bytes int), raw net.Conn) (wanted []string, conn net.Conn, err error) {
	if wanted, conn, err = sniff(awaited, hold, raw); err != nil {
		f.refuse(raw)
	}
	return wanted, conn, err
}

// sort hands over a connection that wants one of some protocols.
func (f *Front) sort(ctx context.Context, from string, wanted []string, conn net.Conn) {
	for name, stream := range f.streams {
		if slices.Contains(wanted, name) {
			f.greet(ctx, from, conn, stream)
			return
		}
	}
	f.enqueue(from, conn)
}

// greet hands a connection to a stream, for as long as nobody knows who it is.
func (f *Front) greet(ctx context.Context, from string, conn net.Conn, stream func(context.Context, net.Conn)) {
	wait, known, _ := f.greeted.enter(ctx, from)
	defer known()
	stream(wait, conn)
	if wait.Err() != nil && ctx.Err() == nil { // it lost its place
		f.refused.Add(1)
		f.flood.closed(limitStreams, from)
	}
}

// refuse closes a connection to which nothing was promised.
func (f *Front) refuse(conn net.Conn) {
	f.refused.Add(1)
	_ = conn.Close()
}

// enqueue waits for Accept, unless too many do.
func (f *Front) enqueue(from string, conn net.Conn) {
	select {
	case f.queued <- struct{}{}:
		defer func() { <-f.queued }()
	default:
		f.flood.closed(limitQueue, from)
		f.refuse(conn)
		return
	}
	select {
	case f.queue <- conn:
	case <-f.quiet:
		_ = conn.Close()
	case <-f.done:
		_ = conn.Close()
	}
}

// sniff reads the ClientHello of a connection and returns the protocols that it
// names, and a connection that yields all that was read once more. What is no
// TLS names none. hold is told of bytes before they are kept.
func sniff(ctx context.Context, hold func(bytes int), raw net.Conn) (protocols []string, again net.Conn, err error) {
	if err := raw.SetDeadline(time.Now().Add(headerTimeout)); err != nil {
		return nil, nil, err
	}
	r := &recorder{Conn: raw, hold: hold}
	_ = tls.Server(r, &tls.Config{ // it always fails, on purpose
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			protocols = slices.Clone(hello.SupportedProtos)
			return nil, errSniffed
		},
	}).HandshakeContext(ctx)
	if r.err != nil {
		return nil, nil, r.err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	return protocols, &replayed{Conn: raw, rest: r.read}, raw.SetDeadline(time.Time{})
}

// Errors of sniff.
var (
	errSniffed  = errors.New("the hello was read")
	errTooLarge = errors.New("the hello is too large")
)

// recorder keeps what is read and swallows what is written: the client is
// answered by whom it wants.
type recorder struct {
	net.Conn
	hold func(bytes int)
	read []byte
	err  error // of reading
}

// Read implements net.Conn.
func (r *recorder) Read(p []byte) (int, error) {
	room := maxHello - len(r.read)
	if room <= 0 {
		r.err = errTooLarge
		return 0, r.err
	}
	n, err := r.Conn.Read(p[:min(len(p), room)])
	r.hold(n)
	r.read = append(r.read, p[:n]...)
	r.err = err
	return n, err
}

// Write implements net.Conn.
func (*recorder) Write(p []byte) (int, error) { return len(p), nil }

// replayed is a connection of which something was read already.
type replayed struct {
	net.Conn
	rest []byte
}

// Read implements net.Conn.
func (c *replayed) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		c.rest = nil
	}
	return n, nil
}

// frontListener is what a gateway accepts from.
type frontListener struct{ front *Front }

// Accept implements net.Listener.
func (l frontListener) Accept() (net.Conn, error) { return l.accept(nil) }

// accept accepts until the listener is closed, or over is.
func (l frontListener) accept(over <-chan struct{}) (net.Conn, error) {
	select {
	case <-l.front.quiet:
		return nil, net.ErrClosed
	case <-over:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-l.front.queue:
		return conn, nil
	case <-l.front.quiet:
	case <-l.front.done:
	case <-over:
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (l frontListener) Close() error {
	l.front.quietOnce.Do(func() { close(l.front.quiet) })
	return nil
}

// Addr implements net.Listener.
func (l frontListener) Addr() net.Addr { return l.front.listener.Addr() }

// frontLoan is a frontListener on loan.
type frontLoan struct {
	frontListener
	once sync.Once
	over chan struct{}
}

// Accept implements net.Listener.
func (l *frontLoan) Accept() (net.Conn, error) { return l.accept(l.over) }

// Close implements net.Listener.
func (l *frontLoan) Close() error {
	l.once.Do(func() { close(l.over) })
	return nil
}
