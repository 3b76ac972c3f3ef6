// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pion/datachannel"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/meshgate/meshgate/internal/v1client"
	nodemesh "github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/client"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// guestEnv makes the test binary a guest of a mesh: what is no node of ours and
// has to run on a host of its own. It does what it is told on its standard input,
// a guestOrder a line, answers with a guestAnswer a line, and ends with it.
const guestEnv = "MESHGATE_E2E_GUEST"

// guestConfig is the guest.
type guestConfig struct {
	// Kind is guestICE or guestPage.
	Kind string
	// Gateway is the id of the one at URL.
	Gateway, URL, Pin, Token string
	// ID is who a guestICE is.
	ID string
}

const (
	// guestICE is a WireGuard peer that knows v1 alone: its packets go to the
	// gateway through the channel "wireguard-proxy" of a peer connection.
	guestICE = "ice"
	// guestPage is a page in a browser, as far as the gateway can tell.
	guestPage = "page"
)

// guestOrder has a guest reach somebody: guestICE an address, guestPage the echo
// service of a node.
type guestOrder struct {
	To     string
	Within time.Duration
}

// guestAnswer says how that went. The first one, without an order, says that the
// guest is ready.
type guestAnswer struct {
	// Addr is the address of a guestICE in the mesh.
	Addr string
	Err  string
}

// guest runs one.
func guest(text string) error {
	var cfg guestConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	var opts peer.TLSOptions
	pin, err := hex.DecodeString(strings.TrimPrefix(cfg.Pin, "sha256:"))
	if err != nil || copy(opts.Pin[:], pin) != len(opts.Pin) {
		return fmt.Errorf("pin %q: %w", cfg.Pin, err)
	}
	gate, err := peer.NewPublic(cfg.URL, cfg.Token, opts)
	if err != nil {
		return err
	}
	defer gate.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reach := func(o guestOrder) error { return pageReaches(ctx, gate, o) }
	ready := guestAnswer{}
	if cfg.Kind == guestICE {
		p, err := newICEPeer(ctx, gate, cfg)
		if err != nil {
			return err
		}
		defer p.close()
		ready.Addr, reach = p.addr.String(), p.reaches
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(ready); err != nil {
		return err
	}
	for in := json.NewDecoder(os.Stdin); ; {
		var o guestOrder
		if err := in.Decode(&o); err != nil {
			return nil // it is over
		}
		var a guestAnswer
		if err := reach(o); err != nil {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// pageReaches opens a peer connection to a node, as a page does, and has the echo
// service there say a word.
func pageReaches(ctx context.Context, gate *peer.Public, o guestOrder) error {
	ctx, cancel := context.WithTimeout(ctx, o.Within)
	defer cancel()
	call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](gate.WebRTC().StartDataChannel(ctx))
	c, err := client.Dial(ctx, call, client.Options{Node: o.To, RTC: rtc.Config{}})
	if err != nil {
		return err
	}
	return errors.Join(echoOnce(ctx, c), c.Close())
}

// icePeer is a guestICE.
type icePeer struct {
	addr   netip.Addr
	client *v1client.Client
	device *device.Device
	net    *netstack.Net
}

// newICEPeer joins the mesh and connects to the gateway.
func newICEPeer(ctx context.Context, gate *peer.Public, cfg guestConfig) (*icePeer, error) {
	key, err := nodemesh.GenerateKey()
	if err != nil {
		return nil, err
	}
	joined, err := gate.Member().Join(ctx, &v1.JoinRequest{Id: cfg.ID, PublicKey: key.Public().Encode(), AssignIpv4: true}, key)
	if err != nil {
		return nil, err
	}
	own, err := netip.ParsePrefix(joined.GetAddressIpv4())
	if err != nil {
		return nil, err
	}
	var server nodemesh.PublicKey
	for _, p := range joined.GetPeers() {
		if p.GetNode().GetId() == cfg.Gateway {
			if server, err = nodemesh.ParsePublicKey(p.GetNode().GetPublicKey()); err != nil {
				return nil, err
			}
		}
	}
	p := &icePeer{addr: own.Addr()}
	call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](gate.WebRTC().StartDataChannel(ctx))
	p.client, err = v1client.Dial(ctx, &oneSender{Stream: call}, v1client.Config{
		Request:  &v1.StartDataChannelRequest{NodeId: cfg.Gateway, Proto: "udp"},
		Username: cfg.ID, Password: cfg.ID,
		IPFilter: func(ip net.IP) bool { return ip.To4() != nil && !ip.IsLoopback() },
	})
	if err != nil {
		return nil, err
	}
	tun, stack, err := netstack.CreateNetTUN([]netip.Addr{p.addr}, nil, 1280)
	if err != nil {
		return nil, errors.Join(err, p.client.Close())
	}
	p.net = stack
	p.device = device.NewDevice(tun, &channelBind{channel: p.client.Control()}, device.NewLogger(device.LogLevelSilent, ""))
	private, public := key.WireGuard(), server.WireGuard()
	err = p.device.IpcSet(fmt.Sprintf("private_key=%x\npublic_key=%x\nendpoint=channel\nallowed_ip=%s\npersistent_keepalive_interval=5\n",
		private[:], public[:], joined.GetNetworkIpv4()))
	if err == nil {
		err = p.device.Up()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	l, err := p.net.ListenTCP(&net.TCPAddr{Port: portEcho})
	if err != nil {
		p.close()
		return nil, err
	}
	go echo(l)
	return p, nil
}

// oneSender is a call for clients that send from several goroutines.
type oneSender struct {
	v1client.Stream
	mu sync.Mutex // held while sending
}

func (s *oneSender) Send(m *v1.StartDataChannelRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Stream.Send(m)
}

func (s *oneSender) CloseSend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Stream.CloseSend()
}

func (p *icePeer) close() {
	p.device.Close()
	_ = p.client.Close()
}

// reaches pings an address until the first echo.
func (p *icePeer) reaches(o guestOrder) error {
	to, err := netip.ParseAddr(o.To)
	if err != nil {
		return err
	}
	c, err := p.net.DialPingAddr(netip.Addr{}, to)
	if err != nil {
		return err
	}
	defer c.Close()
	ask, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{}}).Marshal(nil)
	if err != nil {
		return err
	}
	b := make([]byte, 256)
	for end := time.Now().Add(o.Within); time.Now().Before(end); {
		if _, err := c.Write(ask); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return err
		}
		size, err := c.Read(b)
		if err != nil {
			continue // none yet
		}
		if m, err := icmp.ParseMessage(1, b[:size]); err == nil && m.Type == ipv4.ICMPTypeEchoReply {
			return nil
		}
	}
	return errNoEcho
}

// errNoEcho is for pings that nobody answered.
var errNoEcho = errors.New("no echo")

// channelBind is a conn.Bind whose packets are the messages of one channel.
type channelBind struct {
	channel datachannel.ReadWriteCloser

	mu   sync.Mutex // guards open
	open bool
}

// channelEnd is the other end of the channel.
type channelEnd struct{}

func (channelEnd) ClearSrc()           {}
func (channelEnd) SrcToString() string { return "" }
func (channelEnd) DstToString() string { return "channel" }
func (channelEnd) DstToBytes() []byte  { return []byte("channel") }
func (channelEnd) DstIP() netip.Addr   { return netip.AddrFrom4([4]byte{192, 0, 2, 1}) }
func (channelEnd) SrcIP() netip.Addr   { return netip.Addr{} }

func (b *channelBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = true
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, ends []conn.Endpoint) (int, error) {
		n, err := b.channel.Read(packets[0])
		if err != nil {
			return 0, net.ErrClosed
		}
		sizes[0], ends[0] = n, channelEnd{}
		return 1, nil
	}}, port, nil
}

// Close ends the channel, unless nothing was opened yet.
func (b *channelBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return nil
	}
	return b.channel.Close()
}

func (b *channelBind) SetMark(uint32) error { return nil }
func (b *channelBind) BatchSize() int       { return 1 }

func (b *channelBind) ParseEndpoint(string) (conn.Endpoint, error) { return channelEnd{}, nil }

func (b *channelBind) Send(packets [][]byte, _ conn.Endpoint) error {
	for _, p := range packets {
		if _, err := b.channel.Write(p); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}
