// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/limiter"
	"github.com/meshgate/meshgate/turn/shard"
	"github.com/meshgate/meshgate/turn/stream"
	"github.com/meshgate/meshgate/turn/xdp"
)

// Server is a running TURN server. It is safe for concurrent use.
type Server struct {
	log      *slog.Logger
	policy   *policy
	accounts *accounts
	relays   *relays
	ledger   *core.Ledger
	rates    *rates
	full     [core.NumResources]*fullness
	connects *connects
	record   *record
	answers  atomic.Pointer[limiter.Limiter]
	guesses  *guesses
	unsent   *unsent
	forged   atomic.Uint64 // connections of proxies without their header
	draining atomic.Bool   // as the metrics show it
	metrics  *metrics
	last     atomic.Pointer[totals] // of a server that was closed

	listening *listening
	shards    []atomic.Pointer[shard.Shard] // set by New, while the first of them run
	streams   *stream.Server
	kernel    *xdp.Engine // nil: none

	news    news          // of the policy
	changed chan struct{} // holds one if there are any
	done    chan struct{} // closed by Close
	running sync.WaitGroup

	relay     Relay
	limits    atomic.Pointer[Limits]
	reloading sync.Mutex // held while limits change; threads never wait for it

	mu     sync.Mutex // guards closed
	closed bool
}

// New opens the listeners of cfg and serves until Close.
func New(cfg Config) (_ *Server, err error) {
	s := &Server{
		listening: &listening{given: cfg.Listeners, secure: cfg.SecureListeners},
		changed:   make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.listening.forged = func() { s.forged.Add(1) }
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := s.configure(cfg); err != nil {
		return nil, err
	}
	threads := threadsOf(cfg)
	s.shards = make([]atomic.Pointer[shard.Shard], threads)
	if err := s.listening.open(cfg, threads); err != nil {
		return nil, err
	}
	s.policy.listeners = append(s.UDPAddrs(), s.TCPAddrs()...)
	if err := s.start(cfg, threads); err != nil {
		return nil, err
	}
	if err := s.metrics.register(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("register turn metrics: %w", err)
	}
	s.log.Info("turn server listens", "udp", s.UDPAddrs(), "tcp", s.TCPAddrs(), "relay", s.relays.public(), "n", threads)
	return s, nil
}

// threadsOf is how many shards a server has: one where the kernel does not
// distribute clients among sockets.
func threadsOf(cfg Config) int {
	switch {
	case runtime.GOOS != "linux":
		return 1
	case cfg.Threads > 0:
		return cfg.Threads
	default:
		return min(runtime.GOMAXPROCS(0), maxThreads)
	}
}

// configure makes the parts of s that need no socket.
func (s *Server) configure(cfg Config) (err error) {
	if cfg.Realm == "" {
		cfg.Realm = DefaultRealm
	}
	s.log = cfg.Logger
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("component", "turn")
	limits := cfg.Limits.withDefaults(cfg.Relay)
	s.limits.Store(&limits)
	s.relay = cfg.Relay
	s.relays = newRelays(cfg.Relay, cfg.Secrets)
	s.ledger = core.NewLedger(limits.counts())
	for what := range core.NumResources {
		s.full[what] = &fullness{log: s.log, use: func() (in, limit int) { return s.use(what) }}
	}
	s.record = newRecord(s.log)
	s.connects = &connects{perSecond: limits.ConnectsPerSecond, users: make(map[string]time.Time)}
	s.rates = newRates(limits.BytesPerSecond, s.rateChanged)
	s.accounts = &accounts{realm: cfg.Realm, secrets: cfg.Secrets, users: cfg.Users, allow: cfg.AllowUser}
	s.answers.Store(newAnswers(limits))
	s.guesses = newGuesses(s.log)
	s.unsent = &unsent{log: s.log}
	s.metrics = newMetrics(s.totals)
	s.policy = &policy{special: newBlocks(specialPurpose()), shut: newBlocks(slices.Concat(neverOpen(), metadata())), relays: s.relays, allow: cfg.AllowPeer}
	if err := s.policy.setOpen(cfg.AllowNetworks); err != nil {
		return err
	}
	if _, err := s.policy.refresh(); err != nil {
		return fmt.Errorf("read interface addresses: %w", err)
	}
	return nil
}

func newAnswers(l Limits) *limiter.Limiter {
	return limiter.New(l.AnswersPerSecond, 3*l.AnswersPerSecond)
}

// use is how many of a resource all users hold, and how many they may.
func (s *Server) use(what core.Resource) (in, limit int) {
	_, total := s.limits.Load().counts()
	return s.ledger.Total(what), total.Of(what)
}

// start starts all that runs until Close.
func (s *Server) start(cfg Config, threads int) (err error) {
	key := make([]byte, 32)
	rand.Read(key) // never fails (crypto/rand)
	if s.streams, err = stream.New(s.streamConfig(cfg, threads)); err != nil {
		return err
	}
	if s.kernel, err = xdp.Open(s.kernelConfig(cfg)); err != nil {
		return fmt.Errorf("serve turn channels in the kernel: %w", err)
	}
	attached := make([]stream.Shard, threads)
	for i := range threads {
		sh, err := shard.New(shard.Config{
			Offload: s.offload(),
			Core:    s.coreConfig(cfg, uint8(i), key), Listeners: s.listening.hand(i), Relays: udpRelays{s},
			Streams: s.streams.For(i), Other: s.shard, Unsent: s.unsent.tell, Portable: cfg.Portable, Logger: cfg.Logger,
		})
		if err != nil {
			return fmt.Errorf("start turn thread: %w", err)
		}
		attached[i] = sh
		s.shards[i].Store(sh)
	}
	if err := s.streams.Attach(attached...); err != nil {
		return err
	}
	for _, l := range s.listening.streams {
		s.running.Go(func() {
			if err := s.streams.Serve(l.Listener, l.index); err != nil {
				s.log.Error("turn serves no more connections of a listener", "addr", l.Addr(), "err", err)
			}
		})
	}
	s.running.Go(s.watch)
	s.running.Go(func() { s.record.run(s.describe, s.done) })
	return nil
}

// coreConfig is the configuration of the core of a shard.
func (s *Server) coreConfig(cfg Config, number uint8, nonceKey []byte) core.Config {
	sides := cfg.Relay.sides()
	return core.Config{
		Realm: s.accounts.realm, Software: software, Listeners: s.listening.core, Discovery: s.listening.discovery,
		Offers: core.Offers{
			IPv4: sides[0].public.IsValid(), IPv6: sides[1].public.IsValid(),
			TCP: cfg.TCPRelays && len(s.listening.streams) > 0, DontFragment: true,
		},
		Authenticator: s.accounts, Admit: s.accounts.admit,
		MayConnect: s.connects.take,
		Permit:     s.policy.permit, Fleeting: s.policy.fleeting, Ended: s.record.leave,
		Answer:  func(_ time.Time, to netip.Addr) bool { return s.answers.Load().Take(to) },
		Guesses: s.guesses,
		Quota:   quota{s.ledger, &s.full}, Rate: s.rates.of,
		Limits: s.limits.Load().core(), NonceKey: nonceKey, Hint: true, Shard: number,
	}
}

// shard returns the shard with a number; nil when there is none.
func (s *Server) shard(number uint8) *shard.Shard {
	if int(number) >= len(s.shards) {
		return nil
	}
	return s.shards[number].Load()
}

// UDPAddrs returns the addresses of the UDP listeners.
func (s *Server) UDPAddrs() []netip.AddrPort { return slices.Clone(s.listening.udp) }

// TCPAddrs returns the addresses of the stream listeners.
func (s *Server) TCPAddrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, l := range s.listening.streams {
		if a, ok := addrPort(l.Addr()); ok {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// Close ends all allocations, closes all sockets and waits for what ran. It may
// be called again.
func (s *Server) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first && s.ledger != nil { // else nothing has begun
		s.each(func(_ time.Time, c *core.Core, out *core.Output) {
			c.Evict(func(core.Info) bool { return true }, out)
		})
		last := s.count()
		s.last.Store(&last)
	}
	if first {
		close(s.done)
	}
	if s.streams != nil {
		s.streams.Close()
	}
	s.listening.close()
	for i := range s.shards {
		if sh := s.shards[i].Load(); sh != nil {
			sh.Close()
		}
	}
	s.running.Wait()
	if err := s.kernel.Close(); err != nil && first {
		return fmt.Errorf("detach the kernel path of turn: %w", err)
	}
	return nil
}

// addrPort returns a as a value, IPv4 in its short form; false for an address of any other kind.
func addrPort(a net.Addr) (netip.AddrPort, bool) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), ap.IsValid()
}
