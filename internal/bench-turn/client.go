// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"
)

const (
	// channel is the number of the only one that a client binds.
	channel = 0x4001
	// resend is how long a client waits for an answer until it asks again, and
	// attempts how often it asks: a server that starts has a few seconds.
	resend   = 250 * time.Millisecond
	attempts = 40
)

// login is how to use a server.
type login struct {
	At                 netip.AddrPort
	Username, Password string
	// Secure is where it serves TLS, if it does, with that certificate in DER.
	Secure      netip.AddrPort
	Certificate []byte
}

// client has an allocation on a server and a channel to one peer.
type client struct {
	fd    int
	peer  int // index
	login *login
	// nonce, realm and key are those of the server's challenge.
	nonce stun.Nonce
	realm stun.Realm
	key   stun.MessageIntegrity
	relay unix.RawSockaddrInet4

	waits   [stun.TransactionIDSize]byte
	request []byte
	sent    time.Time
	tries   int
}

func newClient(l *login, peer int) (*client, error) {
	fd, _, err := openUDP()
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: l.At.Addr().As4(), Port: int(l.At.Port())}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return &client{fd: fd, peer: peer, login: l}, nil
}

// attribute is one with a plain value.
type attribute struct {
	kind  stun.AttrType
	value []byte
}

// AddTo implements stun.Setter.
func (a attribute) AddTo(m *stun.Message) error {
	m.Add(a.kind, a.value)
	return nil
}

// peerAddress is XOR-PEER-ADDRESS.
type peerAddress netip.AddrPort

// AddTo implements stun.Setter.
func (p peerAddress) AddTo(m *stun.Message) error {
	a := netip.AddrPort(p)
	return stun.XORMappedAddress{IP: net.IP(a.Addr().AsSlice()), Port: int(a.Port())}.AddToAs(m, stun.AttrXORPeerAddress)
}

// transportUDP is REQUESTED-TRANSPORT with UDP.
func transportUDP() stun.Setter {
	return attribute{stun.AttrRequestedTransport, []byte{unix.IPPROTO_UDP, 0, 0, 0}}
}

// signed is a request; it has a credential once the server has asked for one.
func (c *client) signed(method stun.Method, with ...stun.Setter) (*stun.Message, error) {
	setters := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, with...)
	if c.key != nil {
		setters = append(setters, stun.NewUsername(c.login.Username), c.realm, c.nonce, c.key)
	}
	return stun.Build(setters...)
}

// challenged takes a response that asks for a credential, or for a newer nonce.
// It returns false for all others.
func (c *client) challenged(response *stun.Message) (bool, error) {
	if response.Type.Class != stun.ClassErrorResponse {
		return false, nil
	}
	var code stun.ErrorCodeAttribute
	if err := code.GetFrom(response); err != nil {
		return false, err
	}
	fresh := c.key == nil && code.Code == stun.CodeUnauthorized || code.Code == stun.CodeStaleNonce
	if !fresh {
		return false, fmt.Errorf("%s was answered with %d %s", response.Type.Method, code.Code, code.Reason)
	}
	if err := errors.Join(c.nonce.GetFrom(response), c.realm.GetFrom(response)); err != nil {
		return false, fmt.Errorf("a challenge without its attributes: %w", err)
	}
	// They lie in the buffer of the response.
	c.nonce, c.realm = slices.Clone(c.nonce), slices.Clone(c.realm)
	c.key = stun.NewLongTermIntegrity(c.login.Username, c.realm.String(), c.login.Password)
	return true, nil
}

// allocate asks for an allocation.
func (c *client) allocate() (*stun.Message, error) {
	return c.signed(stun.MethodAllocate, transportUDP())
}

// allocated takes the answer to allocate.
func (c *client) allocated(response *stun.Message) (again bool, err error) {
	if again, err := c.challenged(response); again || err != nil {
		return again, err
	}
	var relay stun.XORMappedAddress
	if err := relay.GetFromAs(response, stun.AttrXORRelayedAddress); err != nil {
		return false, err
	}
	ip, ok := netip.AddrFromSlice(relay.IP)
	if !ok || !ip.Unmap().Is4() {
		return false, fmt.Errorf("the relayed address %s is not IPv4", relay)
	}
	c.relay = sockaddr(netip.AddrPortFrom(ip.Unmap(), uint16(relay.Port)))
	return false, nil
}

// bind asks for the channel to a peer.
func (c *client) bind(peer netip.AddrPort) (*stun.Message, error) {
	return c.signed(stun.MethodChannelBind,
		attribute{stun.AttrChannelNumber, []byte{channel >> 8, channel & 0xff, 0, 0}}, peerAddress(peer))
}

// leave asks to end the allocation.
func (c *client) leave() (*stun.Message, error) {
	return c.signed(stun.MethodRefresh, attribute{stun.AttrLifetime, make([]byte, 4)})
}

// exchange is a request that many clients make and what they do with the answer.
type exchange struct {
	ask func(*client) (*stun.Message, error)
	// took returns true when the client has to ask again.
	took func(c *client, response *stun.Message) (again bool, err error)
	// window is how many clients wait for an answer at a time.
	window int
}

// run has all clients ask. It ends with the first error.
func (x exchange) run(clients []*client) error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create", err)
	}
	defer unix.Close(poll)
	events := make([]unix.EpollEvent, x.window)
	waiting := make(map[int32]*client, x.window) // by fd
	buffer := make([]byte, 2048)
	next, checked := 0, time.Now()
	for next < len(clients) || len(waiting) > 0 {
		for next < len(clients) && len(waiting) < x.window {
			c := clients[next]
			next++
			if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c.fd)}); err != nil {
				return os.NewSyscallError("epoll_ctl", err)
			}
			waiting[int32(c.fd)] = c
			if err := x.start(c); err != nil {
				return err
			}
		}
		n, err := unix.EpollWait(poll, events, int(resend.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("epoll_wait", err)
		}
		for _, e := range events[:max(n, 0)] {
			c := waiting[e.Fd]
			done, err := x.hear(c, buffer)
			if err != nil {
				return err
			}
			if done {
				delete(waiting, e.Fd)
				if err := unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, c.fd, nil); err != nil {
					return os.NewSyscallError("epoll_ctl", err)
				}
			}
		}
		if now := time.Now(); now.Sub(checked) >= resend {
			checked = now
			if err := repeat(waiting, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// start sends a client's request.
func (x exchange) start(c *client) error {
	m, err := x.ask(c)
	if err != nil {
		return err
	}
	c.waits, c.request, c.tries, c.sent = m.TransactionID, m.Raw, 1, time.Now()
	_, _ = unix.Write(c.fd, c.request) // repeat sends what is lost
	return nil
}

// hear reads what came for a client and tells whether it has what it asked for.
func (x exchange) hear(c *client, buffer []byte) (done bool, err error) {
	n, err := unix.Read(c.fd, buffer)
	if err != nil {
		return false, nil // such as that of a server that does not listen yet
	}
	m := &stun.Message{Raw: buffer[:n]}
	if m.Decode() != nil || m.TransactionID != c.waits {
		return false, nil
	}
	again, err := x.took(c, m)
	if err != nil || !again {
		return true, err
	}
	return false, x.start(c)
}

// repeat sends requests again that have waited long enough.
func repeat(waiting map[int32]*client, now time.Time) error {
	for _, c := range waiting {
		if now.Sub(c.sent) < resend {
			continue
		}
		if c.tries++; c.tries > attempts {
			return fmt.Errorf("the server at %s does not answer", c.login.At)
		}
		c.sent = now
		_, _ = unix.Write(c.fd, c.request)
	}
	return nil
}
