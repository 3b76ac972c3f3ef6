// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// tcpPair is a TCP connection.
func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = a.Close() })
	return c.(*net.TCPConn), a.(*net.TCPConn)
}

func window() int { return Window }

func TestPump_PassesHalfClosesOnAndCounts(t *testing.T) {
	near, far := tcpPair(t)
	client, server := pair(t)
	var up, down atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- Pump(server, near, Counter{Up: func(n int) { up.Add(int64(n)) }, Down: func(n int) { down.Add(int64(n)) }})
	}()
	_, _ = client.Write([]byte("question"))
	_ = client.CloseWrite()
	if got, err := io.ReadAll(far); err != nil || string(got) != "question" {
		t.Fatalf("%q, %v", got, err)
	}
	_, _ = far.Write([]byte("the answer"))
	_ = far.Close()
	if got, err := io.ReadAll(client); err != nil || string(got) != "the answer" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if up.Load() != 8 || down.Load() != 10 {
		t.Fatalf("counted %d up, %d down", up.Load(), down.Load())
	}
}

func TestPump_ErrorsOnOneSideBreakTheOther(t *testing.T) {
	t.Run("connection", func(t *testing.T) {
		near, far := tcpPair(t)
		client, server := pair(t)
		done := make(chan error, 1)
		go func() { done <- Pump(server, near, Counter{}) }()
		_ = far.SetLinger(0)
		_ = far.Close()
		var e *Error
		if _, err := io.ReadAll(client); !errors.As(err, &e) || e.Code != CodeBroken {
			t.Fatalf("read: %v", err)
		}
		if <-done == nil {
			t.Fatal("no error")
		}
	})
	t.Run("client", func(t *testing.T) {
		near, far := tcpPair(t)
		client, server := pair(t)
		done := make(chan error, 1)
		go func() { done <- Pump(server, near, Counter{}) }()
		client.Abort(CodeCanceled, "enough")
		if _, err := io.ReadAll(far); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Logf("the connection ended with %v", err)
		}
		if <-done == nil {
			t.Fatal("no error")
		}
	})
}

func TestRaw_EitherEndEndsTheOther(t *testing.T) {
	for _, who := range []string{"channel", "connection"} {
		t.Run(who, func(t *testing.T) {
			near, far := tcpPair(t)
			ch, b := newPipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				Raw(t.Context(), b, near, window, Counter{})
			}()
			_ = ch.WriteMessage([]byte("up"), false)
			_, _ = far.Write([]byte("down"))
			buf := make([]byte, 16)
			if n, err := far.Read(buf); err != nil || string(buf[:n]) != "up" {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			if n, _, err := ch.ReadMessage(buf); err != nil || string(buf[:n]) != "down" {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			if who == "channel" {
				_ = ch.WriteMessage([]byte("last"), false)
				_ = ch.Close()
				if got, err := io.ReadAll(far); err != nil || string(got) != "last" {
					t.Fatalf("%q, %v", got, err)
				}
				_ = far.Close()
			} else {
				_, _ = far.Write([]byte("last"))
				_ = far.Close()
				if n, _, err := ch.ReadMessage(buf); err != nil || string(buf[:n]) != "last" {
					t.Fatalf("%q, %v", buf[:n], err)
				}
				if _, _, err := ch.ReadMessage(buf); !errors.Is(err, io.EOF) {
					t.Fatalf("after the end: %v", err)
				}
			}
			<-done
		})
	}
}

// conn is a connection whose reading and writing tests decide.
type conn struct {
	net.Conn
	read  func([]byte) (int, error)
	write func([]byte) (int, error)
	once  sync.Once
	done  chan struct{}
}

func newConn() *conn { return &conn{done: make(chan struct{})} }

func (c *conn) Read(p []byte) (int, error) {
	if c.read == nil || isClosed(c.done) {
		<-c.done
		return 0, net.ErrClosed
	}
	return c.read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	if c.write == nil || isClosed(c.done) {
		<-c.done
		return 0, net.ErrClosed
	}
	return c.write(p)
}
func (c *conn) Close() error                     { c.once.Do(func() { close(c.done) }); return nil }
func (c *conn) CloseWrite() error                { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
func (c *conn) SetDeadline(time.Time) error      { return nil }

func TestRaw_SlowSidesHoldAtMostOneWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch, b := newPipe()
		taken := 0
		c := newConn()
		c.read = func(p []byte) (int, error) { taken += len(p); return len(p), nil }
		done := make(chan struct{})
		go func() {
			defer close(done)
			Raw(t.Context(), b, c, window, Counter{})
		}()
		synctest.Wait()
		if taken != Window {
			t.Fatalf("%d bytes taken for a client that reads nothing", taken)
		}
		// The other direction is SCTP's: the bridge holds one message.
		for range 100 {
			_ = ch.WriteMessage(make([]byte, MessageSize), false)
		}
		synctest.Wait()
		if left := ch.Buffered(); left != 99*MessageSize {
			t.Fatalf("%d bytes are left in the channel", left)
		}
		_ = c.Close()
		_ = ch.Close()
		<-done
	})
}

func TestDatagrams_DropsRatherThanWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch, b := newPipe()
		c := newConn()
		sent := 0
		c.read = func(p []byte) (int, error) {
			if sent++; sent > 1000 {
				<-c.done
				return 0, net.ErrClosed
			}
			if sent%100 == 0 {
				return 0, errors.New("connection refused, says a router")
			}
			return 1000, nil
		}
		c.write = func(p []byte) (int, error) {
			if len(p) == 7 {
				return 0, errors.New("no route")
			}
			return len(p), nil
		}
		drops := dropCounter{n: map[string]int{}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			Datagrams(b, c, DatagramConfig{Queue: 10_000, MaxMessage: 5000, Count: Counter{Drop: drops.drop}})
		}()
		_ = ch.WriteMessage(make([]byte, 7), false)
		_ = ch.WriteMessage(make([]byte, 100<<10), false)
		_ = ch.WriteMessage([]byte(`{"type":"ping"}`), true)
		synctest.Wait()
		if n := ch.other.other.queuedMessages(); n < 10 || n > 12 {
			t.Fatalf("%d datagrams wait for a client that reads nothing", n)
		}
		_ = c.Close()
		_ = ch.Close()
		<-done
		if got := fmt.Sprint(drops.n); got != "map[refused:11 slow_reader:979 too_big:1]" {
			t.Fatalf("drops %v", got)
		}
	})
}

// dropCounter counts drops by reason.
type dropCounter struct {
	mu sync.Mutex
	n  map[string]int
}

func (d *dropCounter) drop(reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n[reason]++
}

func (p *pipeEnd) queuedMessages() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue)
}

func TestDatagrams_IdleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch, b := newPipe()
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			Datagrams(b, near, DatagramConfig{Idle: time.Minute})
		}()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		begin := time.Now()
		timer := time.AfterFunc(40*time.Second, func() { _ = ch.WriteMessage([]byte("x"), false) })
		defer timer.Stop()
		if _, _, err := ch.ReadMessage(make([]byte, 16)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if d := time.Since(begin); d != 100*time.Second {
			t.Fatalf("ended after %v", d)
		}
		<-done
		_ = far.Close()
	})
}

func TestPackets_OnlyWireGuardPassesAndHandshakesAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ch, b := newPipe()
		drops := map[string]int{}
		p := NewPackets(b, Counter{Drop: func(r string) { drops[r]++ }})
		handshake := make([]byte, 148)
		handshake[0] = 1
		for range 100 {
			_ = ch.WriteMessage(handshake, false)
		}
		for _, junk := range [][]byte{{}, {4}, make([]byte, 64), bytes.Repeat([]byte{4}, 64)} {
			_ = ch.WriteMessage(junk, false)
		}
		data := make([]byte, 2000)
		data[0] = 4
		_ = ch.WriteMessage(data, false)
		_ = ch.WriteMessage(data[:100], false)
		_ = ch.Close()
		buf := make([]byte, 1500)
		var kinds [5]int
		for {
			if _, err := p.ReadPacket(buf); err != nil {
				break
			}
			kinds[buf[0]]++
		}
		if kinds[1] != handshakeRate || kinds[4] != 1 {
			t.Fatalf("packets by type: %v", kinds)
		}
		if fmt.Sprint(drops) != "map[not_wireguard:4 rate:80 too_big:1]" {
			t.Fatalf("drops %v", drops)
		}
		<-p.Done()
		if err := p.WritePacket(data); !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("write after the end: %v", err)
		}
	})
}

func TestPackets_SlowChannelDrops(t *testing.T) {
	ch, b := newPipe()
	drops := 0
	p := NewPackets(b, Counter{Drop: func(string) { drops++ }})
	data := make([]byte, 1000)
	for range 200 {
		if err := p.WritePacket(data); err != nil {
			t.Fatal(err)
		}
	}
	if got := ch.queuedMessages(); got != 200-drops || got > packetQueue/1000+2 {
		t.Fatalf("%d packets wait, %d were dropped", got, drops)
	}
	_ = ch.Close()
	p.Finish()
}
