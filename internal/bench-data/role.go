// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
)

// roleEnv makes this program a sender or receiver, configEnv configures it.
const (
	roleEnv   = "MESHGATE_BENCH_DATA_ROLE"
	configEnv = "MESHGATE_BENCH_DATA_CONFIG"
)

const (
	roleHost     = "host"     // sends and receives with the sockets of its namespace
	roleNetstack = "netstack" // sends through a WireGuard device without an interface
	// roleDataChannel sends through a DataChannel to a node.
	roleDataChannel = "datachannel"
)

// datagramSize is what fits into every tunnel that is measured.
const datagramSize = 1200

// lull is how long nothing has to arrive until a run of datagrams is over.
const lull = 500 * time.Millisecond

// order is what a role is told to do, one line of JSON each.
type order struct {
	// Receive waits for one transfer; else To is sent to.
	Receive bool           `json:"receive"`
	UDP     bool           `json:"udp"`
	To      netip.AddrPort `json:"to"`
	// Warm and Count are the times that do not count of a transfer, and that do.
	Warm, Count time.Duration
	// Rate is that of datagrams, in bits per second.
	Rate float64
}

// outcome is what came of an order.
type outcome struct {
	// Rate is in bits per second; Bytes are all of a stream that arrived, and
	// Datagrams were sent, or arrived.
	Rate      float64 `json:"rate"`
	Bytes     int64   `json:"bytes"`
	Datagrams int     `json:"datagrams"`
	Error     string  `json:"error,omitempty"`
}

// started is the first line of a role.
type started struct {
	Port uint16 `json:"port"`
}

// host is a role that runs.
type host struct {
	tcp  net.Listener
	udp  net.PacketConn
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// runRole does what it is told until its input ends.
func runRole(role string) error {
	h := &host{dial: new(net.Dialer).DialContext}
	port := uint16(0)
	switch role {
	case roleHost:
		var err error
		if h.tcp, err = net.Listen("tcp", ":0"); err != nil {
			return err
		}
		port = h.tcp.Addr().(*net.TCPAddr).AddrPort().Port()
		if h.udp, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		_ = h.udp.(*net.UDPConn).SetReadBuffer(8 << 20) // what the host allows
	case roleNetstack:
		d, err := openNetstack()
		if err != nil {
			return err
		}
		defer d.Close()
		h.dial = d.DialContext
	case roleDataChannel:
		c, err := openDataChannel()
		if err != nil {
			return err
		}
		defer c.Close()
		h.dial = c.dial
	default:
		return fmt.Errorf("no such role")
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(started{Port: port}); err != nil {
		return err
	}
	in := json.NewDecoder(os.Stdin)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r, err := h.obey(o)
		if err != nil {
			r.Error = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

func (h *host) obey(o order) (outcome, error) {
	switch {
	case o.Receive && o.UDP:
		return h.receiveDatagrams(o)
	case o.Receive:
		return h.receive(o)
	case o.UDP:
		return h.sendDatagrams(o)
	default:
		return h.send(o)
	}
}

// receive takes one connection and tells the rate of what arrives.
func (h *host) receive(o order) (outcome, error) {
	c, err := h.tcp.Accept()
	if err != nil {
		return outcome{}, err
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	from := time.Time{}
	all, bytes := int64(0), 0
	begin := time.Now()
	for {
		n, err := c.Read(buf)
		now := time.Now()
		all += int64(n)
		switch {
		case err != nil:
			return outcome{}, fmt.Errorf("the transfer ended early: %w", err)
		case now.Sub(begin) < o.Warm:
		case from.IsZero():
			from = now
		default:
			bytes += n
			if d := now.Sub(from); d >= o.Count {
				return outcome{Rate: 8 * float64(bytes) / d.Seconds(), Bytes: all}, nil
			}
		}
	}
}

// send sends until the other side has enough.
func (h *host) send(o order) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := h.dial(ctx, "tcp", o.To.String())
	if err != nil {
		return outcome{}, err
	}
	defer c.Close()
	buf := make([]byte, 128<<10)
	for {
		if _, err := c.Write(buf); err != nil {
			return outcome{}, nil
		}
	}
}

// receiveDatagrams counts what arrives until nothing does.
func (h *host) receiveDatagrams(order) (outcome, error) {
	buf := make([]byte, 2048)
	n := 0
	wait := 10 * time.Second
	for {
		if err := h.udp.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return outcome{}, err
		}
		_, _, err := h.udp.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return outcome{Datagrams: n}, nil
		}
		if err != nil {
			return outcome{}, err
		}
		n++
		wait = lull
	}
}

// sendDatagrams sends at an even rate.
func (h *host) sendDatagrams(o order) (outcome, error) {
	c, err := h.dial(context.Background(), "udp", o.To.String())
	if err != nil {
		return outcome{}, err
	}
	defer c.Close()
	buf := make([]byte, datagramSize)
	interval := time.Duration(float64(time.Second) * 8 * datagramSize / o.Rate)
	begin := time.Now()
	n := 0
	for {
		passed := time.Since(begin)
		if passed >= o.Count {
			return outcome{Datagrams: n, Rate: 8 * datagramSize * float64(n) / passed.Seconds()}, nil
		}
		for due := int(passed / interval); n < due; n++ {
			if _, err := c.Write(buf); err != nil {
				return outcome{Datagrams: n}, err
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// netstackConfig is a device with one peer.
type netstackConfig struct {
	Key, Peer         string // base64
	Address, Endpoint string
	PeerNetwork       string
}

func openNetstack() (*wg.Device, error) {
	var c netstackConfig
	if err := json.Unmarshal([]byte(os.Getenv(configEnv)), &c); err != nil {
		return nil, err
	}
	key, err := parseKey(c.Key)
	if err != nil {
		return nil, err
	}
	peer, err := parseKey(c.Peer)
	if err != nil {
		return nil, err
	}
	d, err := wg.New(wg.Options{})
	if err != nil {
		return nil, err
	}
	return d, d.Set(context.Background(), wg.Config{
		PrivateKey: mesh.WireGuardPrivateKey(key),
		Addresses:  []netip.Prefix{netip.MustParsePrefix(c.Address)},
		Peers: []wg.Peer{{
			Key: mesh.WireGuardKey(peer), Endpoint: c.Endpoint,
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix(c.PeerNetwork)},
		}},
	})
}
