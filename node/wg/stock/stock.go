// SPDX-License-Identifier: Apache-2.0

// Package stock runs a WireGuard peer that knows nothing of Meshgate: the
// unmodified wireguard-go device on its own userspace network, configured by
// the same wg-quick file that a phone or a router would get.
//
// The demo uses it to show that such peers are reached; tests use it to show
// that a printed configuration works as it stands.
package stock

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// defaultMTU is what wg-quick picks on a 1500 byte network.
const defaultMTU = 1420

// Peer is a running stock WireGuard peer.
type Peer struct {
	device *device.Device
	net    *netstack.Net
	addrs  []netip.Addr
}

// New starts a peer from a wg-quick configuration. It understands the keys
// that carry the tunnel ([Interface] PrivateKey, Address, MTU, ListenPort,
// DNS; [Peer] PublicKey, Endpoint, AllowedIPs, PersistentKeepalive) and
// refuses others by name.
func New(config string) (*Peer, error) {
	c, err := parse(config)
	if err != nil {
		return nil, err
	}
	tun, stack, err := netstack.CreateNetTUN(c.addrs, nil, c.mtu)
	if err != nil {
		return nil, fmt.Errorf("make userspace network: %w", err)
	}
	d := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	if err := d.IpcSet(c.uapi.String()); err != nil {
		d.Close()
		return nil, fmt.Errorf("configure wireguard: %w", err)
	}
	if err := d.Up(); err != nil {
		d.Close()
		return nil, fmt.Errorf("start wireguard: %w", err)
	}
	return &Peer{device: d, net: stack, addrs: c.addrs}, nil
}

// Addrs are the peer's own addresses, in the order of its configuration.
func (p *Peer) Addrs() []netip.Addr { return p.addrs }

// Listen accepts TCP connections on a port of every address of the peer.
func (p *Peer) Listen(port uint16) (net.Listener, error) {
	return p.net.ListenTCP(&net.TCPAddr{Port: int(port)})
}

// ListenPacket receives datagrams on a port of the peer's first address.
func (p *Peer) ListenPacket(port uint16) (net.PacketConn, error) {
	return p.net.ListenUDPAddrPort(netip.AddrPortFrom(p.addrs[0], port))
}

// DialContext connects from the peer into the mesh.
func (p *Peer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return p.net.DialContext(ctx, network, address)
}

// Close ends the peer and everything that it carries.
func (p *Peer) Close() error {
	p.device.Close()
	return nil
}

// settings are a wg-quick file as wireguard-go wants it.
type settings struct {
	addrs []netip.Addr
	mtu   int
	uapi  strings.Builder
}

var errSyntax = errors.New("not a wg-quick configuration")

func parse(config string) (*settings, error) {
	c := &settings{mtu: defaultMTU}
	section := ""
	lines := bufio.NewScanner(strings.NewReader(config))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("%w: line %d", errSyntax, n)
		}
		if err := c.set(section, strings.TrimSpace(key), strings.TrimSpace(value)); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", errSyntax, n, err)
		}
	}
	if len(c.addrs) == 0 {
		return nil, fmt.Errorf("%w: no Address", errSyntax)
	}
	return c, nil
}

func (c *settings) set(section, key, value string) error {
	switch section + key {
	case "[Interface]PrivateKey":
		return c.key("private_key", value)
	case "[Interface]Address":
		for _, text := range list(value) {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return err
			}
			c.addrs = append(c.addrs, p.Addr())
		}
	case "[Interface]MTU":
		mtu, err := strconv.Atoi(value)
		c.mtu = mtu
		return err
	case "[Interface]ListenPort":
		fmt.Fprintf(&c.uapi, "listen_port=%s\n", value)
	case "[Interface]DNS": // names are not resolved here
	case "[Peer]PublicKey":
		return c.key("public_key", value)
	case "[Peer]Endpoint":
		at, err := net.ResolveUDPAddr("udp", value)
		if err != nil {
			return err
		}
		to := at.AddrPort()
		fmt.Fprintf(&c.uapi, "endpoint=%s\n", netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	case "[Peer]AllowedIPs":
		for _, text := range list(value) {
			fmt.Fprintf(&c.uapi, "allowed_ip=%s\n", text)
		}
	case "[Peer]PersistentKeepalive":
		fmt.Fprintf(&c.uapi, "persistent_keepalive_interval=%s\n", value)
	default:
		return fmt.Errorf("unknown key %s in %s", key, section)
	}
	return nil
}

func (c *settings) key(name, value string) error {
	raw, err := base64.StdEncoding.DecodeString(value)
	if err != nil || len(raw) != 32 {
		return fmt.Errorf("%s is not a WireGuard key", name)
	}
	fmt.Fprintf(&c.uapi, "%s=%s\n", name, hex.EncodeToString(raw))
	return nil
}

func list(value string) []string {
	var out []string
	for text := range strings.SplitSeq(value, ",") {
		out = append(out, strings.TrimSpace(text))
	}
	return out
}
