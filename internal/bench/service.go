// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"io"
	"iter"
	"maps"
	"net"
	"os"

	"github.com/meshgate/meshgate/node/wg/stock"
)

// Ports of the services on nodes: the well-known ones of RFC 862 to 864.
const (
	portEcho   = 7
	portSink   = 9
	portSource = 19
)

// blockSize is how much is written to, or read from, a connection at once.
const blockSize = 64 << 10

// addresses are where the services listen on this host.
type addresses struct{ Echo, Sink, Source string }

func (a addresses) ports() iter.Seq2[uint16, string] {
	return maps.All(map[uint16]string{portEcho: a.Echo, portSink: a.Sink, portSource: a.Source})
}

// runService serves the destinations of all transfers: on this host, and on a
// stock WireGuard peer whose configuration comes on standard input.
func runService(config string) error {
	var win window
	if err := json.Unmarshal([]byte(config), &win); err != nil {
		return err
	}
	handlers := map[uint16]func(net.Conn){
		portEcho:   func(c net.Conn) { _, _ = io.Copy(c, c) },
		portSink:   func(c net.Conn) { sink(c, win) },
		portSource: source,
	}
	at := map[uint16]string{}
	for port, handle := range handlers {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		at[port] = l.Addr().String()
		go serve(l, handle)
	}
	if err := say(addresses{Echo: at[portEcho], Sink: at[portSink], Source: at[portSource]}); err != nil {
		return err
	}
	line, err := bufio.NewReader(os.Stdin).ReadBytes('\n')
	if err != nil {
		return nil //nolint:nilerr // the parent has ended before it needed a peer
	}
	var wireguard string
	if err := json.Unmarshal(line, &wireguard); err != nil {
		return err
	}
	peer, err := stock.New(wireguard)
	if err != nil {
		return err
	}
	defer peer.Close()
	for port, handle := range handlers {
		l, err := peer.Listen(port)
		if err != nil {
			return err
		}
		go serve(l, handle)
	}
	if err := say(true); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent ends
	return nil
}

func serve(l net.Listener, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// source writes until the reader is gone.
func source(c net.Conn) {
	block := make([]byte, blockSize)
	for {
		if _, err := c.Write(block); err != nil {
			return
		}
	}
}

// sink reads to the end and answers with the rate at which bytes arrived.
func sink(c net.Conn, win window) {
	m := meter{window: win}
	block := make([]byte, blockSize)
	for {
		n, err := c.Read(block)
		m.add(n)
		if err != nil {
			break
		}
	}
	_ = json.NewEncoder(c).Encode(m.result()) // nobody is left to be told of an error
}
