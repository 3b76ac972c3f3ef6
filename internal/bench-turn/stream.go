// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"
)

// streamPatience is how long a server may take to answer on a stream.
const streamPatience = 10 * time.Second

// streams has clients come over TCP and TLS one after the other, allocate, send to a
// peer, get its answer and hang up, which ends their allocations.
func (l *load) streams(o churnOrder) error {
	for i := range o.Streams {
		for over, dial := range map[string]func(login) (net.Conn, error){"TCP": dialTCP, "TLS": dialTLS} {
			if err := l.stream(&client{login: &o.Login, peer: i % len(l.peers)}, dial, o.Peers); err != nil {
				return fmt.Errorf("a client over %s: %w", over, err)
			}
		}
	}
	return nil
}

func dialTCP(to login) (net.Conn, error) {
	return net.DialTimeout("tcp", to.At.String(), streamPatience)
}

// stream is the life of one of them.
func (l *load) stream(c *client, dial func(login) (net.Conn, error), at netip.Addr) (err error) {
	conn, err := dial(*c.login)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(time.Now().Add(streamPatience)); err != nil {
		return err
	}
	p := l.peers[c.peer]
	for _, x := range []exchange{
		{ask: (*client).allocate, took: (*client).allocated},
		{ask: func(c *client) (*stun.Message, error) { return c.bind(netip.AddrPortFrom(at, p.port)) }, took: (*client).challenged},
	} {
		if err := x.over(conn, c); err != nil {
			return err
		}
	}
	frame := binary.BigEndian.AppendUint16(nil, channel)
	frame = append(binary.BigEndian.AppendUint16(frame, 8), "12345678"...)
	if _, err := conn.Write(frame); err != nil {
		return err
	}
	// What comes from other clients meanwhile is for this peer, too: it sends anyway.
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(streamPatience.Milliseconds()))
	answer, err := newSender(frame[header:], 1)
	if err != nil {
		return err
	}
	if err := answer.send(p.fd, &c.relay); err != nil {
		return fmt.Errorf("send to a relay: %w", err)
	}
	if _, err := io.ReadFull(conn, frame); err != nil {
		return fmt.Errorf("read what a peer sent: %w", err)
	}
	return nil
}

// over makes the exchange on a stream.
func (x exchange) over(conn net.Conn, c *client) error {
	for again := true; again; {
		request, err := x.ask(c)
		if err != nil {
			return err
		}
		if _, err := conn.Write(request.Raw); err != nil {
			return err
		}
		response := &stun.Message{Raw: make([]byte, stunHeader)}
		if _, err := io.ReadFull(conn, response.Raw); err != nil {
			return fmt.Errorf("read a response: %w", err)
		}
		response.Raw = append(response.Raw, make([]byte, binary.BigEndian.Uint16(response.Raw[2:]))...)
		if _, err := io.ReadFull(conn, response.Raw[stunHeader:]); err != nil {
			return fmt.Errorf("read a response: %w", err)
		}
		if err := response.Decode(); err != nil {
			return err
		}
		if again, err = x.took(c, response); err != nil {
			return err
		}
	}
	return nil
}
