// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Transport is how a client talks to a server.
type Transport string

// The transports of a TURN client.
const (
	UDP Transport = "udp"
	TCP Transport = "tcp"
	TLS Transport = "tls"
)

// server is a TURN server as a URI names it.
type server struct {
	uri       string
	host      string // a name, or an address without brackets
	port      string
	transport Transport
}

// parseServer reads a URI of RFC 7065: turn:host, turn:host:port,
// turns:[2001:db8::1]:443?transport=tcp.
func parseServer(uri string) (server, error) {
	wrong := func(why string) (server, error) {
		return server{}, fmt.Errorf("turn server %q: %s; write turn:HOST:PORT?transport=udp, "+
			"turn:HOST:PORT?transport=tcp or turns:HOST:PORT?transport=tcp", uri, why)
	}
	scheme, rest, found := strings.Cut(uri, ":")
	scheme = strings.ToLower(scheme)
	if !found || scheme != "turn" && scheme != "turns" {
		return wrong("the scheme is neither turn nor turns")
	}
	address, query, hasQuery := strings.Cut(rest, "?")
	s := server{uri: uri, transport: UDP, port: "3478"}
	if scheme == "turns" {
		s.transport, s.port = TLS, "5349"
	}
	if hasQuery {
		switch transport, ok := strings.CutPrefix(query, "transport="); {
		case ok && transport == "tcp" && scheme == "turn":
			s.transport = TCP
		case ok && transport == "tcp":
		case ok && transport == "udp" && scheme == "turn":
		case ok && transport == "udp":
			return wrong("turn over DTLS is not offered")
		default:
			return wrong("only ?transport=udp and ?transport=tcp may follow the host")
		}
	}
	if !s.parseHost(address) {
		return wrong("the host or the port is none")
	}
	return s, nil
}

// parseHost reads host and port of s; without a port the default stays.
func (s *server) parseHost(address string) bool {
	s.host = address
	if inner, ok := strings.CutPrefix(address, "["); ok && strings.HasSuffix(inner, "]") {
		s.host = strings.TrimSuffix(inner, "]")
	} else if strings.Contains(address, ":") {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return false
		}
		s.host, s.port = host, port
	}
	if n, err := strconv.ParseUint(s.port, 10, 16); err != nil || n == 0 {
		return false
	}
	if strings.HasPrefix(address, "[") || strings.Contains(s.host, ":") {
		addr, err := netip.ParseAddr(s.host)
		return err == nil && addr.Is6()
	}
	return s.host != "" && len(s.host) <= 255 && !strings.ContainsAny(s.host, "/@?#[]% \t\r\n\x00")
}

// network is the name that package net has for the transport of s.
func (s server) network() string {
	if s.transport == UDP {
		return "udp"
	}
	return "tcp"
}

// at is where s listens.
func (s server) at() string { return net.JoinHostPort(s.host, s.port) }
