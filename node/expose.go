// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
)

const (
	// exposeDialTimeout bounds the wait for the exposed service itself, which
	// is on this host or near it.
	exposeDialTimeout = 5 * time.Second
	// udpIdle ends a UDP conversation that is silent in both directions.
	udpIdle = 2 * time.Minute
	// maxConversations and maxMemberConversations bound the UDP conversations of
	// one exposed port: of all members of the mesh together, and of each.
	maxConversations       = 1024
	maxMemberConversations = 64
	// maxExposed and maxMemberExposed bound the TCP connections alike. Those
	// whose other end is gone end by TCP's keepalive.
	maxExposed       = 4096
	maxMemberExposed = 256
)

// Expose makes one service of the host reachable on the node's mesh address.
type Expose struct {
	// Protocol is "tcp" or "udp".
	Protocol string
	// Port is the port on the mesh address.
	Port uint16
	// Target is the "host:port" that connections are carried to.
	Target string
	// Kind is a hint for people; see mesh.Service.
	Kind string
}

// ParseExpose reads "tcp:8080=127.0.0.1:3000", "tcp:127.0.0.1:22" (same port
// on both sides) and either form with ",kind=http" behind it.
func ParseExpose(s string) (Expose, error) {
	const form = "want PROTOCOL:PORT=HOST:PORT or PROTOCOL:HOST:PORT, as in tcp:8080=127.0.0.1:3000"
	spec, kind, _ := strings.Cut(s, ",kind=")
	protocol, rest, ok := strings.Cut(spec, ":")
	if !ok || (protocol != "tcp" && protocol != "udp") {
		return Expose{}, fmt.Errorf("%w: expose %q: %s", mesh.ErrInvalid, s, form)
	}
	port, target, explicit := strings.Cut(rest, "=")
	if !explicit {
		target = rest
	}
	host, targetPort, err := net.SplitHostPort(target)
	if err != nil || host == "" {
		return Expose{}, fmt.Errorf("%w: expose %q: %s", mesh.ErrInvalid, s, form)
	}
	if !explicit {
		port = targetPort
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Expose{}, fmt.Errorf("%w: expose %q: port %q is not in 1 to 65535", mesh.ErrInvalid, s, port)
	}
	if p, err := strconv.ParseUint(targetPort, 10, 16); err != nil || p == 0 {
		return Expose{}, fmt.Errorf("%w: expose %q: port %q is not in 1 to 65535", mesh.ErrInvalid, s, targetPort)
	}
	return Expose{Protocol: protocol, Port: uint16(n), Target: target, Kind: kind}, nil
}

func validateExpose(list []Expose, features []mesh.Feature) error {
	seen := map[mesh.Service]bool{}
	for _, e := range list {
		at := mesh.Service{Protocol: e.Protocol, Port: e.Port}
		if seen[at] {
			return fmt.Errorf("%w: %s port %d is exposed twice", mesh.ErrInvalid, e.Protocol, e.Port)
		}
		seen[at] = true
		for _, f := range features {
			if e.Protocol == "tcp" && f.Port == e.Port {
				return fmt.Errorf("%w: port %d is the node's own (%s); expose another one", mesh.ErrInvalid, e.Port, f.Kind)
			}
		}
	}
	return nil
}

// services is what a node's record says of its exposed ports.
func services(list []Expose) []mesh.Service {
	var out []mesh.Service
	for _, e := range list {
		out = append(out, mesh.Service{Protocol: e.Protocol, Port: e.Port, Kind: e.Kind})
	}
	return out
}

// exposer carries connections from the mesh address to the host's services.
type exposer struct {
	list   []Expose
	device *wg.Device
	// origin names the member of the mesh that an address speaks for.
	origin func(netip.Addr) string
	log    *slog.Logger

	wait sync.WaitGroup

	mu        sync.Mutex // guards the fields below
	listening map[netip.Addr]context.CancelFunc
}

func newExposer(list []Expose, device *wg.Device, origin func(netip.Addr) string, log *slog.Logger) *exposer {
	return &exposer{
		list: list, device: device, origin: origin, log: log.With("component", "expose"),
		listening: map[netip.Addr]context.CancelFunc{},
	}
}

// run owns every listener and connection: it ends them when ctx ends.
func (x *exposer) run(ctx context.Context) error {
	<-ctx.Done()
	x.mu.Lock()
	for _, stop := range x.listening {
		stop()
	}
	x.mu.Unlock()
	x.wait.Wait()
	return ctx.Err()
}

// set listens on exactly addrs. It is harmless to repeat.
func (x *exposer) set(ctx context.Context, addrs []netip.Addr) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err // run may have stopped waiting
	}
	keep := map[netip.Addr]bool{}
	for _, a := range addrs {
		keep[a] = true
		if _, ok := x.listening[a]; ok {
			continue
		}
		stop, err := x.listen(ctx, a)
		if err != nil {
			return err
		}
		x.listening[a] = stop
	}
	for a, stop := range x.listening {
		if !keep[a] {
			stop()
			delete(x.listening, a)
		}
	}
	return nil
}

// listen opens every exposed port on addr; stop closes them and what they carry.
func (x *exposer) listen(ctx context.Context, addr netip.Addr) (stop context.CancelFunc, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	for _, e := range x.list {
		at := hostPort(addr.String(), e.Port)
		if e.Protocol == "udp" {
			c, err := x.device.ListenPacket(ctx, "udp", at)
			if err != nil {
				return nil, fmt.Errorf("listen on udp %s: %w", at, err)
			}
			x.wait.Go(func() { x.serveUDP(ctx, c, e) })
			continue
		}
		l, err := x.device.Listen(ctx, "tcp", at)
		if err != nil {
			return nil, fmt.Errorf("listen on tcp %s: %w", at, err)
		}
		x.wait.Go(func() { x.serveTCP(ctx, l, e) })
	}
	return cancel, nil
}

func (x *exposer) serveTCP(ctx context.Context, l net.Listener, e Expose) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	open := quota{members: map[string]int{}}
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil {
				x.log.Error("exposed port no longer accepts", "addr", l.Addr(), "err", err)
			}
			return
		}
		member := x.origin(addrPortOf(c.RemoteAddr()).Addr())
		if !open.take(member) {
			_ = c.Close() // the service is flooded; refusing early keeps the rest alive
			continue
		}
		x.wait.Go(func() {
			defer open.give(member)
			x.carryTCP(ctx, c, e)
		})
	}
}

// quota counts the TCP connections of one exposed port.
type quota struct {
	mu      sync.Mutex // guards the fields below
	all     int
	members map[string]int
}

// take reports whether member may have one more, and counts it.
func (q *quota) take(member string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all >= maxExposed || q.members[member] >= maxMemberExposed {
		return false
	}
	q.all++
	q.members[member]++
	return true
}

// give returns what take counted.
func (q *quota) give(member string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.members[member]--; q.members[member] == 0 {
		delete(q.members, member)
	}
}

// carryTCP joins one connection with the service until both directions ended.
func (x *exposer) carryTCP(ctx context.Context, c net.Conn, e Expose) {
	defer func() { _ = c.Close() }()
	target, err := dialHost(ctx, e)
	if err != nil {
		x.log.Warn("exposed service does not answer", "addr", e.Target, "err", err)
		return
	}
	defer func() { _ = target.Close() }()
	defer context.AfterFunc(ctx, func() { _, _ = c.Close(), target.Close() })()
	splice(c, target)
}

// dialHost connects to an exposed service on the host side.
func dialHost(ctx context.Context, e Expose) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, exposeDialTimeout)
	defer cancel()
	var d net.Dialer
	return d.DialContext(ctx, e.Protocol, e.Target)
}

// splice copies both ways and hands each end of stream on. An error in one
// direction ends both.
func splice(a, b net.Conn) {
	var wait sync.WaitGroup
	one := func(dst, src net.Conn) {
		_, err := io.Copy(dst, src)
		if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		}
		if err != nil {
			_, _ = a.Close(), b.Close()
		}
	}
	wait.Go(func() { one(a, b) })
	one(b, a)
	wait.Wait()
}
