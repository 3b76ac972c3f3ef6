// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/logging"
	"github.com/pion/webrtc/v3"
)

// The raw DataChannel is pion/webrtc as its users have it: detached channels,
// messages of 16 KiB, at most 1 MiB in the send queue. It gets what the product
// gives its sockets: one UDP port with large buffers, and loopback only.
const (
	rawMessage = 16 << 10
	rawHigh    = 1 << 20
	rawLow     = rawHigh / 2
	rawBuffer  = 8 << 20

	// endOfUpload is the text message after the last byte of an upload.
	endOfUpload = "end"
)

// Labels of raw channels tell what the other side is to do with them.
const (
	labelSource    = "source"
	labelSink      = "sink"
	labelSourceTCP = "source over TCP"
	labelSinkTCP   = "sink over TCP"
)

// rawLabel is what a client asks for.
func rawLabel(d direction, tcp bool) string {
	switch {
	case d == up && tcp:
		return labelSinkTCP
	case d == up:
		return labelSink
	case tcp:
		return labelSourceTCP
	}
	return labelSource
}

// rawPeer is a peer connection with one channel of its own socket.
type rawPeer struct {
	pc     *webrtc.PeerConnection
	mux    interface{ Close() error }
	closed chan struct{} // closed when the connection has ended
}

func newRawPeer() (*rawPeer, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(rawBuffer) // the system gives what it allows
	_ = conn.SetWriteBuffer(rawBuffer)
	logs := &logging.DefaultLoggerFactory{Writer: io.Discard}
	mux := webrtc.NewICEUDPMux(logs.NewLogger("ice"), conn)
	s := webrtc.SettingEngine{LoggerFactory: logs}
	s.DetachDataChannels()
	s.SetIncludeLoopbackCandidate(true)
	s.SetICEUDPMux(mux)
	s.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	pc, err := webrtc.NewAPI(webrtc.WithSettingEngine(s)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return nil, errors.Join(err, mux.Close())
	}
	p := &rawPeer{pc: pc, mux: mux, closed: make(chan struct{})}
	over := sync.OnceFunc(func() { close(p.closed) })
	pc.OnConnectionStateChange(func(s webrtc.PeerConnectionState) {
		switch s {
		case webrtc.PeerConnectionStateFailed, webrtc.PeerConnectionStateClosed, webrtc.PeerConnectionStateDisconnected:
			over()
		}
	})
	return p, nil
}

func (p *rawPeer) close() { _, _ = p.pc.Close(), p.mux.Close() }

// describe sets a local description and returns it with all its candidates.
func (p *rawPeer) describe(d webrtc.SessionDescription) (*webrtc.SessionDescription, error) {
	gathered := webrtc.GatheringCompletePromise(p.pc)
	if err := p.pc.SetLocalDescription(d); err != nil {
		return nil, err
	}
	<-gathered
	return p.pc.LocalDescription(), nil
}

// rawChannel is a detached channel with a bound on what waits to be sent.
type rawChannel struct {
	*datachannel.DataChannel
	low    chan struct{}
	closed <-chan struct{}
}

func (p *rawPeer) detach(dc *webrtc.DataChannel) (*rawChannel, error) {
	d, err := dc.Detach()
	if err != nil {
		return nil, err
	}
	c := &rawChannel{DataChannel: d.(*datachannel.DataChannel), low: make(chan struct{}, 1), closed: p.closed}
	c.SetBufferedAmountLowThreshold(rawLow)
	c.OnBufferedAmountLow(func() {
		select {
		case c.low <- struct{}{}:
		default:
		}
	})
	return c, nil
}

// send queues a message, once there is room.
func (c *rawChannel) send(p []byte) error {
	for c.BufferedAmount() > rawHigh {
		select {
		case <-c.low:
		case <-c.closed:
			return net.ErrClosed
		}
	}
	_, err := c.Write(p)
	return err
}

// rawConfig is for the role of the raw peer.
type rawConfig struct {
	Window  window
	Service addresses
}

// runRaw answers offers at POST /, whose body and answer are descriptions.
func runRaw(config string) error {
	var cfg rawConfig
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &http.Server{Handler: http.HandlerFunc(cfg.answer), ReadHeaderTimeout: patience}
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	if err := say("http://" + l.Addr().String() + "/"); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent ends
	return nil
}

func (cfg rawConfig) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	var offer webrtc.SessionDescription
	if err := json.NewDecoder(r.Body).Decode(&offer); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := cfg.accept(offer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(answer) // the client has gone if this fails
}

func (cfg rawConfig) accept(offer webrtc.SessionDescription) (*webrtc.SessionDescription, error) {
	p, err := newRawPeer()
	if err != nil {
		return nil, err
	}
	p.pc.OnDataChannel(func(dc *webrtc.DataChannel) {
		dc.OnOpen(func() {
			defer p.close()
			c, err := p.detach(dc)
			if err == nil {
				err = cfg.serve(c, dc.Label())
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "raw: %s: %v\n", dc.Label(), err)
			}
			<-p.closed // what was sent last has to arrive
		})
	})
	if err := p.pc.SetRemoteDescription(offer); err != nil {
		p.close()
		return nil, err
	}
	answer, err := p.pc.CreateAnswer(nil)
	if err != nil {
		p.close()
		return nil, err
	}
	return p.describe(answer)
}

// serve does with a channel what its label says, until the client is done.
func (cfg rawConfig) serve(c *rawChannel, label string) error {
	switch label {
	case labelSource:
		for block := make([]byte, rawMessage); c.send(block) == nil; {
		}
		return nil
	case labelSink:
		m := meter{window: cfg.Window}
		err := c.receive(func(p []byte) error { m.add(len(p)); return nil })
		if err != nil {
			return err
		}
		return c.tell(m.result())
	case labelSourceTCP:
		return cfg.sourceTCP(c)
	case labelSinkTCP:
		return cfg.sinkTCP(c)
	}
	return errors.New("unknown label")
}

// receive hands out binary messages until the end of an upload.
func (c *rawChannel) receive(take func([]byte) error) error {
	block := make([]byte, blockSize)
	for {
		n, text, err := c.ReadDataChannel(block)
		if err != nil {
			return err
		}
		if text {
			return nil
		}
		if err := take(block[:n]); err != nil {
			return err
		}
	}
}

func (c *rawChannel) tell(r result) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = c.WriteDataChannel(text, true)
	return err
}

// sourceTCP and sinkTCP are the least that a bridge could do.
func (cfg rawConfig) sourceTCP(c *rawChannel) error {
	conn, err := net.Dial("tcp", cfg.Service.Source)
	if err != nil {
		return err
	}
	defer conn.Close()
	block := make([]byte, rawMessage)
	for {
		n, err := conn.Read(block)
		if err != nil {
			return err
		}
		if c.send(block[:n]) != nil {
			return nil //nolint:nilerr // the client has what it wanted
		}
	}
}

func (cfg rawConfig) sinkTCP(c *rawChannel) error {
	conn, err := net.Dial("tcp", cfg.Service.Sink)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = c.receive(func(p []byte) error { _, err := conn.Write(p); return err })
	if err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	var r result
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		return err
	}
	return c.tell(r)
}

// rawTransfer measures a raw channel, with the service in the process of the
// other side or behind a TCP connection.
func (w *world) rawTransfer(ctx context.Context, d direction, tcp bool) (float64, error) {
	p, err := newRawPeer()
	if err != nil {
		return 0, err
	}
	defer p.close()
	defer context.AfterFunc(ctx, p.close)()
	c, err := p.connect(ctx, w.raw, rawLabel(d, tcp))
	if err != nil {
		return 0, err
	}
	if d == down {
		return download(c, w.window)
	}
	block := make([]byte, rawMessage)
	for end := time.Now().Add(w.window.all()); time.Now().Before(end); {
		if err := c.send(block); err != nil {
			return 0, err
		}
	}
	if _, err := c.WriteDataChannel([]byte(endOfUpload), true); err != nil {
		return 0, err
	}
	n, _, err := c.ReadDataChannel(block)
	if err != nil {
		return 0, err
	}
	var r result
	if err := json.Unmarshal(block[:n], &r); err != nil {
		return 0, fmt.Errorf("answer of the sink: %w", err)
	}
	return r.get()
}

// connect makes the offer and waits for the channel.
func (p *rawPeer) connect(ctx context.Context, url, label string) (*rawChannel, error) {
	dc, err := p.pc.CreateDataChannel(label, nil)
	if err != nil {
		return nil, err
	}
	opened := make(chan struct{})
	dc.OnOpen(func() { close(opened) })
	offer, err := p.pc.CreateOffer(nil)
	if err != nil {
		return nil, err
	}
	whole, err := p.describe(offer)
	if err != nil {
		return nil, err
	}
	answer, err := exchange(ctx, url, whole)
	if err != nil {
		return nil, err
	}
	if err := p.pc.SetRemoteDescription(*answer); err != nil {
		return nil, err
	}
	select {
	case <-opened:
		return p.detach(dc)
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func exchange(ctx context.Context, url string, offer *webrtc.SessionDescription) (*webrtc.SessionDescription, error) {
	text, err := json.Marshal(offer)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer webrtc.SessionDescription
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("answer to the offer: %s: %w", resp.Status, err)
	}
	return &answer, nil
}
