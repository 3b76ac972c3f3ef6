// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// errUAPI says that the library's state is not in the format that we know:
// https://www.wireguard.com/xplatform/#configuration-protocol
var errUAPI = errors.New("malformed interface state")

// uapiState is the state of a device as the library tells it.
type uapiState struct {
	privateKey mesh.WireGuardPrivateKey
	listenPort uint16
	mark       uint32
	peers      map[mesh.WireGuardKey]*mesh.PeerStats
	// unclaimed are the prefixes of idle peers; see Device.nobody.
	unclaimed []netip.Prefix
}

// state asks the library.
func (d *Device) state() (*uapiState, error) {
	text, err := d.wg.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("read interface state: %w", err)
	}
	s, err := parseUAPI(text)
	if err != nil {
		return nil, fmt.Errorf("read interface state: %w", err)
	}
	if nobody := s.peers[d.nobody]; nobody != nil {
		s.unclaimed = nobody.AllowedIPs
		delete(s.peers, d.nobody)
	}
	return s, nil
}

// sortedPeers returns the peers by key, their allowed prefixes in order.
func (s *uapiState) sortedPeers() []mesh.PeerStats {
	peers := make([]mesh.PeerStats, 0, len(s.peers))
	for _, p := range s.peers {
		slices.SortFunc(p.AllowedIPs, netip.Prefix.Compare)
		peers = append(peers, *p)
	}
	slices.SortFunc(peers, func(a, b mesh.PeerStats) int {
		return cmp.Compare(string(a.PublicKey[:]), string(b.PublicKey[:]))
	})
	return peers
}

// uapiParser reads the answer to a "get". Errors name keys, never values: one
// of them is the private key.
type uapiParser struct {
	state *uapiState
	peer  *mesh.PeerStats // nil in the device section
	seen  map[string]bool // keys of the section that may come once
	// sec and nsec are the two halves of the peer's last handshake.
	sec, nsec int64
}

// parseUAPI reads the text of a "get" and accepts nothing that it does not know.
func parseUAPI(text string) (*uapiState, error) {
	p := uapiParser{
		state: &uapiState{peers: make(map[mesh.WireGuardKey]*mesh.PeerStats)},
		seen:  make(map[string]bool),
	}
	line := 0
	for entry := range strings.Lines(text) {
		line++
		key, value, ok := strings.Cut(strings.TrimSuffix(entry, "\n"), "=")
		if !ok {
			return nil, fmt.Errorf("line %d: no value: %w", line, errUAPI)
		}
		if err := p.set(key, value); err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", line, key, errUAPI)
		}
	}
	p.endPeer()
	return p.state, nil
}

// set takes in one line.
func (p *uapiParser) set(key, value string) error {
	if key == "public_key" {
		return p.startPeer(value)
	}
	if key == "allowed_ip" {
		return p.allowedIP(value)
	}
	if p.seen[key] {
		return errUAPI
	}
	p.seen[key] = true
	if p.peer == nil {
		return p.setDevice(key, value)
	}
	return p.setPeer(key, value)
}

// setDevice takes in a line of the device section.
func (p *uapiParser) setDevice(key, value string) error {
	switch key {
	case "private_key":
		return parseKey(p.state.privateKey[:], value)
	case "listen_port":
		port, err := strconv.ParseUint(value, 10, 16)
		p.state.listenPort = uint16(port)
		return err
	case "fwmark":
		mark, err := strconv.ParseUint(value, 10, 32)
		p.state.mark = uint32(mark)
		return err
	}
	return errUAPI
}

// setPeer takes in a line of a peer's section.
func (p *uapiParser) setPeer(key, value string) (err error) {
	switch key {
	case "preshared_key":
		return parseKey(make([]byte, 32), value)
	case "protocol_version":
		if value != "1" {
			return errUAPI
		}
	case "endpoint":
		p.peer.Endpoint = value
	case "last_handshake_time_sec":
		p.sec, err = strconv.ParseInt(value, 10, 64)
	case "last_handshake_time_nsec":
		if p.nsec, err = strconv.ParseInt(value, 10, 64); p.nsec < 0 || p.nsec >= int64(time.Second) {
			return errUAPI
		}
	case "tx_bytes":
		p.peer.TransmitBytes, err = strconv.ParseUint(value, 10, 64)
	case "rx_bytes":
		p.peer.ReceiveBytes, err = strconv.ParseUint(value, 10, 64)
	case "persistent_keepalive_interval":
		var seconds uint64
		seconds, err = strconv.ParseUint(value, 10, 16)
		p.peer.Keepalive = time.Duration(seconds) * time.Second
	default:
		return errUAPI
	}
	return err
}

// startPeer begins the section of another peer.
func (p *uapiParser) startPeer(value string) error {
	p.endPeer()
	p.peer = new(mesh.PeerStats)
	if err := parseKey(p.peer.PublicKey[:], value); err != nil {
		return err
	}
	if _, twice := p.state.peers[p.peer.PublicKey]; twice {
		return errUAPI
	}
	p.state.peers[p.peer.PublicKey] = p.peer
	clear(p.seen)
	return nil
}

// endPeer finishes the section of the current peer.
func (p *uapiParser) endPeer() {
	if p.peer != nil && (p.sec != 0 || p.nsec != 0) {
		p.peer.LastHandshake = time.Unix(p.sec, p.nsec)
	}
	p.sec, p.nsec = 0, 0
}

// allowedIP takes in one of the networks behind a peer.
func (p *uapiParser) allowedIP(value string) error {
	prefix, err := netip.ParsePrefix(value)
	if err != nil || p.peer == nil || prefix != prefix.Masked() {
		return errUAPI
	}
	p.peer.AllowedIPs = append(p.peer.AllowedIPs, prefix)
	return nil
}

// parseKey reads the hexadecimal form of a key into dst.
func parseKey(dst []byte, value string) error {
	if len(value) != hex.EncodedLen(len(dst)) {
		return errUAPI
	}
	_, err := hex.Decode(dst, []byte(value))
	return err
}
