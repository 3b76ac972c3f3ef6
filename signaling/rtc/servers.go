// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/pion/stun"
)

const (
	// maxServers is how many URLs of ICE servers one peer asks.
	maxServers = 16
	// turnTimeout bounds the TCP and TLS handshakes with a TURN server.
	turnTimeout = 5 * time.Second
)

// parseServers turns ICE servers into the URLs that ICE asks. TURN over DTLS
// is left out: it would put a second DTLS stack in front of the first.
func parseServers(servers []ICEServer) ([]*stun.URI, error) {
	var out []*stun.URI
	for _, s := range servers {
		for _, text := range s.URLs {
			u, err := stun.ParseURI(text)
			if err != nil {
				return nil, fmt.Errorf("ICE server URL: %w", err)
			}
			turn := u.Scheme == stun.SchemeTypeTURN || u.Scheme == stun.SchemeTypeTURNS
			password, _ := s.Credential.(string)
			switch {
			case turn && (s.Username == "" || password == ""),
				u.Scheme == stun.SchemeTypeSTUNS,
				u.Scheme == stun.SchemeTypeTURNS && u.Proto != stun.ProtoTypeTCP:
				continue
			case turn:
				u.Username, u.Password = s.Username, password
			}
			if len(out) == maxServers {
				return out, nil
			}
			out = append(out, u)
		}
	}
	return out, nil
}

// ServerHost is the host in the URL of an ICE server, or "" if it has none.
func ServerHost(url string) string {
	u, err := stun.ParseURI(url)
	if err != nil {
		return ""
	}
	return u.Host
}

// turnDialer connects to TURN servers over TCP and TLS. ICE calls it through
// the interface of a SOCKS proxy, which is the one way to get between ICE and
// such a connection.
type turnDialer struct {
	ctx    context.Context //nolint:containedctx // the life of one peer; the interface has no place for it
	net    *guardedNet
	config *tls.Config // or nil
	secure map[string]string
}

func newTURNDialer(ctx context.Context, n *guardedNet, config *tls.Config, urls []*stun.URI) *turnDialer {
	d := &turnDialer{ctx: ctx, net: n, config: config, secure: map[string]string{}}
	for _, u := range urls {
		if u.Scheme == stun.SchemeTypeTURNS {
			d.secure[fmt.Sprintf("%s:%d", u.Host, u.Port)] = u.Host
		}
	}
	return d
}

// Dial implements proxy.Dialer. The address is as ICE writes it, host and port
// joined by a colon even for IPv6.
func (d *turnDialer) Dial(_, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, turnTimeout)
	defer cancel()
	host, secure := d.secure[address]
	target := address
	if i := lastColon(address); i >= 0 {
		target = net.JoinHostPort(trimBrackets(address[:i]), address[i+1:])
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	if secure {
		config := d.config.Clone()
		if config == nil {
			config = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		config.ServerName = host
		client := tls.Client(conn, config)
		if err := client.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err
		}
		conn = client
	}
	return d.net.guardStream(conn)
}

func lastColon(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == ':' {
			return i
		}
	}
	return -1
}

func trimBrackets(s string) string {
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}
