// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/client"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// Nodes of the measured mesh. The gateway itself exposes the services of this
// host; the peer behind WireGuard has its own.
const (
	nodeGateway = "gateway"
	nodePeer    = "peer"
)

// dial opens a peer connection to a node as the Go client of the product does.
func dial(ctx context.Context, api *peer.Public, node string) (*client.Conn, error) {
	call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](api.WebRTC().StartDataChannel(ctx))
	return client.Dial(ctx, call, client.Options{Node: node, RTC: rtc.Config{Loopback: true}})
}

func (w *world) api() (*peer.Public, error) {
	return peer.NewPublic(w.gateway.URL, w.gateway.Token, peer.TLSOptions{})
}

// goPaths are the paths whose client is in Go.
func (w *world) goPaths() []path {
	raw, gateway := w.rawProcess, w.gatewayProcess
	return []path{
		{"Go", pathRaw, raw, func(ctx context.Context, d direction) (float64, error) { return w.rawTransfer(ctx, d, false) }},
		{"Go", pathRawTCP, raw, func(ctx context.Context, d direction) (float64, error) { return w.rawTransfer(ctx, d, true) }},
		{"Go", pathMeshgate, gateway, func(ctx context.Context, d direction) (float64, error) { return w.transfer(ctx, d, nodeGateway) }},
		{"Go", pathWireGuard, gateway, func(ctx context.Context, d direction) (float64, error) { return w.transfer(ctx, d, nodePeer) }},
	}
}

// transfer measures the product.
func (w *world) transfer(ctx context.Context, d direction, node string) (float64, error) {
	api, err := w.api()
	if err != nil {
		return 0, err
	}
	defer api.Close()
	c, err := dial(ctx, api, node)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	port := portSource
	if d == up {
		port = portSink
	}
	conn, err := c.DialContext(ctx, "tcp", localPort(port))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if d == up {
		return upload(conn, w.window)
	}
	return download(conn, w.window)
}

func localPort(port int) string { return net.JoinHostPort("localhost", strconv.Itoa(port)) }

// download reads for the window.
func download(conn io.Reader, win window) (float64, error) {
	m := meter{window: win}
	block := make([]byte, blockSize)
	for {
		n, err := conn.Read(block)
		if err != nil {
			return 0, err
		}
		if m.add(n) {
			return m.rate()
		}
	}
}

// upload writes for the window, and asks the sink what arrived.
func upload(conn net.Conn, win window) (float64, error) {
	block := make([]byte, blockSize)
	for end := time.Now().Add(win.all()); time.Now().Before(end); {
		if _, err := conn.Write(block); err != nil {
			return 0, err
		}
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return 0, err
	}
	var r result
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		return 0, fmt.Errorf("answer of the sink: %w", err)
	}
	return r.get()
}

// opening is how long the parts of one StartDataChannel took, from the request on.
type opening struct {
	open      time.Duration // channels can be used
	firstByte time.Duration // a byte came back from an echo
}

// opens measures n peer connections, one after the other.
func (w *world) opens(ctx context.Context, n int) ([]opening, error) {
	api, err := w.api()
	if err != nil {
		return nil, err
	}
	defer api.Close()
	var all []opening
	for i := range n + 1 {
		o, err := w.openOnce(ctx, api)
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first one also connects to the API
			all = append(all, o)
		}
	}
	return all, nil
}

func (w *world) openOnce(ctx context.Context, api *peer.Public) (opening, error) {
	begin := time.Now()
	c, err := dial(ctx, api, nodeGateway)
	if err != nil {
		return opening{}, err
	}
	defer c.Close()
	o := opening{open: time.Since(begin)}
	conn, err := echoByte(ctx, c)
	if err != nil {
		return opening{}, err
	}
	defer conn.Close()
	o.firstByte = time.Since(begin)
	return o, nil
}

// echoByte opens a connection to the echo, sends one byte and waits for it.
func echoByte(ctx context.Context, c *client.Conn) (net.Conn, error) {
	conn, err := c.DialContext(ctx, "tcp", localPort(portEcho))
	if err != nil {
		return nil, err
	}
	if _, err = conn.Write([]byte{1}); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// connections opens connections inside one peer connection for a while, as many
// at a time as told, each with one byte to an echo and back, and returns how
// many there were in a second. A connection counts, and makes room for the
// next, when nothing of it is left on either side.
func (w *world) connections(ctx context.Context, parallel int, long time.Duration) (float64, error) {
	api, err := w.api()
	if err != nil {
		return 0, err
	}
	defer api.Close()
	c, err := dial(ctx, api, nodeGateway)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range parallel {
		g.Go(func() error {
			for time.Since(begin) < long {
				conn, err := echoByte(ctx, c)
				if err != nil {
					return err
				}
				if err := conn.Close(); err != nil {
					return err
				}
				<-conn.(*bridge.Stream).Done()
				done.Add(1)
			}
			return nil
		})
	}
	err = g.Wait()
	return float64(done.Load()) / time.Since(begin).Seconds(), err
}
