// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/internal/child"
)

// order is what the load is told to do, one line of JSON each: one of the fields
// behind Server.
type order struct {
	// Server says whose clients are meant.
	Server   string
	Connect  *connectOrder  `json:",omitempty"`
	Transfer *transferOrder `json:",omitempty"`
	Flood    *floodOrder    `json:",omitempty"`
	Churn    *churnOrder    `json:",omitempty"`
	// Pass has an interface pass all packets on with a program (passAll).
	Pass string `json:",omitempty"`
	// Forget closes the clients of a server that is gone.
	Forget bool `json:",omitempty"`
}

// connectOrder makes clients, which allocate and then bind a channel each.
type connectOrder struct {
	Login login
	PID   int // of the server
	// Clients is how many there are, Window how many of them wait for an answer
	// at a time.
	Clients, Window int
	// Peers is the address of the load on the server's cable.
	Peers netip.Addr
}

// outcome is what came of an order.
type outcome struct {
	Connected   connected
	Transferred transferred
	Flooded     flooded
	Groups      int    // of a churn
	Error       string `json:",omitempty"`
}

// connected tells of connectOrder: how long all of the allocations and all of
// the channels took, and what CPU time the server.
type connected struct {
	Allocate, Bind       time.Duration
	AllocateCPU, BindCPU time.Duration
}

// load is the role of all clients and peers. One thread does everything.
type load struct {
	peers   []peer
	clients map[string][]*client
	run     uint32 // number of the last transfer
	silent  []silent
	counts  bool // the time of programs in the kernel (countRuns)
}

// peer is a socket that several clients may send to.
type peer struct {
	fd   int
	port uint16
}

// loadConfig configures the role.
type loadConfig struct{ Peers int }

// runLoad does what it is told until its input ends.
func runLoad(c loadConfig) error {
	runtime.LockOSThread()
	l := &load{clients: make(map[string][]*client)}
	for range c.Peers {
		fd, port, err := openUDP()
		if err != nil {
			return err
		}
		l.peers = append(l.peers, peer{fd, port})
	}
	if err := say(started{}); err != nil {
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
		r, err := l.obey(o)
		if err != nil {
			r.Error = err.Error()
		}
		if err := say(r); err != nil {
			return err
		}
	}
}

func (l *load) obey(o order) (r outcome, err error) {
	switch {
	case o.Connect != nil:
		var list []*client
		list, r.Connected, err = l.connect(*o.Connect, len(l.clients[o.Server]))
		l.clients[o.Server] = append(l.clients[o.Server], list...)
	case o.Transfer != nil:
		r.Transferred, err = l.transfer(l.clients[o.Server], *o.Transfer, nil)
	case o.Flood != nil:
		r.Flooded, r.Transferred, err = l.flood(l.clients[o.Server], *o.Flood)
	case o.Churn != nil:
		r.Transferred, r.Groups, err = l.churn(*o.Churn)
	case o.Pass != "":
		_, err = passAll(o.Pass) // open until the process ends: its time tells what counting takes
	case o.Forget:
		forget(l.clients[o.Server])
		delete(l.clients, o.Server)
	default:
		err = errors.New("an order to do nothing")
	}
	return r, err
}

// connect makes clients, whose peers begin with the one of a number. They are
// returned with an error, too.
func (l *load) connect(o connectOrder, first int) (list []*client, r connected, err error) {
	for i := range o.Clients {
		c, err := newClient(&o.Login, (first+i)%len(l.peers))
		if err != nil {
			return list, r, err
		}
		list = append(list, c)
	}
	r.Allocate, r.AllocateCPU, err = timed(o.PID, func() error {
		return exchange{ask: (*client).allocate, took: (*client).allocated, window: o.Window}.run(list)
	})
	if err != nil {
		return list, r, fmt.Errorf("allocate: %w", err)
	}
	r.Bind, r.BindCPU, err = timed(o.PID, func() error { return l.bind(list, o.Peers, o.Window) })
	return list, r, err
}

// bind binds the channels of clients, whose peers are at an address.
func (l *load) bind(list []*client, at netip.Addr, window int) error {
	err := exchange{
		ask: func(c *client) (*stun.Message, error) {
			return c.bind(netip.AddrPortFrom(at, l.peers[c.peer].port))
		},
		took: (*client).challenged, window: window,
	}.run(list)
	if err != nil {
		return fmt.Errorf("bind channels: %w", err)
	}
	return nil
}

// leave ends the allocations of clients, and closes them.
func (l *load) leave(list []*client) error {
	err := exchange{ask: (*client).leave, took: (*client).challenged, window: window(len(list))}.run(list)
	forget(list)
	if err != nil {
		return fmt.Errorf("end allocations: %w", err)
	}
	return nil
}

// forget closes clients.
func forget(list []*client) {
	for _, c := range list {
		unix.Close(c.fd)
	}
}

// timed tells how long f takes, and what CPU time a process uses meanwhile.
func timed(pid int, f func() error) (took, cpu time.Duration, err error) {
	before, err := child.Runtime(pid)
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := f(); err != nil {
		return 0, 0, err
	}
	took = time.Since(begin)
	after, err := child.Runtime(pid)
	return took, after - before, err
}
