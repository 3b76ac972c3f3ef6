// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/device"
)

// The library reports per packet, and what strangers send decides how often.
const (
	logEvery = time.Second
	logBurst = 10
)

// peerLog passes the library's messages on: troubles as warnings, the rest for
// debugging. Both are limited; neither holds keys. It gives peers the names of
// their nodes, and tells a trouble with a peer once: again only after the peer
// was heard or the trouble is another one.
type peerLog struct {
	logger  *slog.Logger
	warn    *rate.Limiter
	verbose *rate.Limiter
	// nobody is what the library calls the peer that is none; its troubles are
	// not told.
	nobody string

	mu sync.Mutex // guards the fields below
	// names holds the names of the configured peers by what the library calls
	// them.
	names map[string]string
	// told is the last trouble that was told of each peer in names.
	told map[string]string
}

func newPeerLog(logger *slog.Logger) *peerLog {
	limit := func() *rate.Limiter { return rate.NewLimiter(rate.Every(logEvery), logBurst) }
	return &peerLog{logger: logger, warn: limit(), verbose: limit(), names: map[string]string{}, told: map[string]string{}}
}

// library is the logger that the library takes.
func (l *peerLog) library() *device.Logger {
	return &device.Logger{Verbosef: l.debugf, Errorf: l.errorf}
}

// setPeers names the peers and forgets what was told of others.
func (l *peerLog) setPeers(lists ...[]Peer) {
	names := make(map[string]string)
	for _, peers := range lists {
		for i := range peers {
			names[libraryName(peers[i].Key)] = peers[i].label()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names = names
	for peer := range l.told {
		if _, ok := names[peer]; !ok {
			delete(l.told, peer)
		}
	}
}

// follow names the peers that changed and forgets what was told of those that
// are gone.
func (l *peerLog) follow(ch *changes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range ch.removed {
		delete(l.names, libraryName(key))
		delete(l.told, libraryName(key))
	}
	for i := range ch.peers {
		l.names[libraryName(ch.peers[i].Key)] = ch.peers[i].label()
	}
}

// libraryName is device.Peer.String for the peer with this key.
func libraryName(key mesh.WireGuardKey) string {
	text := base64.StdEncoding.EncodeToString(key[:])
	return "peer(" + text[:4] + "…" + text[39:43] + ")"
}

// label is how the logs call a peer.
func (p *Peer) label() string {
	if p.Name != "" {
		return p.Name
	}
	return p.Key.String()
}

func (l *peerLog) errorf(format string, args ...any) {
	if l.nobody != "" && about(args) == l.nobody {
		return
	}
	peer, name := l.peer(args)
	if name != "" && !l.news(peer, trouble(format, args)) {
		l.debugf(format, args...)
		return
	}
	if l.warn.Allow() {
		write(l.logger.Warn, peer, name, format, args)
	}
}

func (l *peerLog) debugf(format string, args ...any) {
	if heard(format) {
		peer, _ := l.peer(args)
		l.mu.Lock()
		delete(l.told, peer)
		l.mu.Unlock()
	}
	if l.verbose.Allow() {
		peer, name := l.peer(args)
		write(l.logger.Debug, peer, name, format, args)
	}
}

// heard reports whether a message says that a peer proved to be there.
func heard(format string) bool {
	return strings.HasSuffix(format, "Received handshake response") || strings.HasSuffix(format, "Received handshake initiation")
}

// about returns what the library calls the peer that a message is about, or "".
func about(args []any) string {
	for _, a := range args {
		if p, ok := a.(*device.Peer); ok {
			return p.String()
		}
	}
	return ""
}

// peer finds the peer that a message is about: what the library calls it, and
// its name. Both are empty for a message about no peer or an unknown one.
func (l *peerLog) peer(args []any) (peer, name string) {
	peer = about(args)
	l.mu.Lock()
	defer l.mu.Unlock()
	if name = l.names[peer]; name == "" {
		return "", ""
	}
	return peer, name
}

// news reports whether state is not what was told of the peer last, and notes it.
func (l *peerLog) news(peer, state string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told[peer] == state {
		return false
	}
	l.told[peer] = state
	return true
}

// trouble tells messages about a peer apart by what is wrong, not by details
// such as the address in an error of a socket.
func trouble(format string, args []any) string {
	for _, a := range args {
		if err, ok := a.(error); ok {
			for next := err; next != nil; next = errors.Unwrap(next) {
				err = next
			}
			return format + err.Error()
		}
	}
	return format
}

// write logs a message, the library's name of a peer replaced.
func write(log func(msg string, args ...any), peer, name, format string, args []any) {
	detail := fmt.Sprintf(format, args...)
	if name == "" {
		log("wireguard", "detail", detail)
		return
	}
	log("wireguard", "peer", name, "detail", strings.TrimPrefix(detail, peer+" - "))
}
