// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// wire is a connected packet socket whose other end is a fake server, in memory.
type wire struct {
	mu     sync.Mutex
	server *fakeServer
	lose   func(n int) bool // drops the n-th packet of either direction
	echo   bool             // packets to peers come back
	n      int
	fail   error // of the next read

	packets chan []byte
	closed  chan struct{}
	gone    atomic.Bool // as closed, for those outside of the bubble
}

func newWire(s *fakeServer) *wire {
	return &wire{server: s, lose: func(int) bool { return false }, packets: make(chan []byte, 1024), closed: make(chan struct{})}
}

func (w *wire) dial(context.Context, string, string) (net.Conn, error) { return w, nil }

func (w *wire) drop() bool {
	w.n++
	return w.lose(w.n)
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone.Load() {
		return 0, net.ErrClosed
	}
	if w.drop() {
		return len(b), nil
	}
	var answer []byte
	switch {
	case b[0]>>6 == 1:
		if w.echo {
			answer = b
		}
	case !checkMessage(b):
		return 0, errors.New("the client sends garbage")
	default:
		m := message(b)
		answer = w.server.answer(m)
		if m.kind() == sendIndication && w.echo {
			id := newTxID()
			answer = newMessage(dataIndication, id).add(attrXORPeerAddress, xorValue(m.address(attrXORPeerAddress), id)).
				add(attrData, m.get(attrData))
		}
	}
	if answer != nil && !w.drop() {
		w.deliver(answer)
	}
	return len(b), nil
}

// deliver hands a packet to the client, as long as there is room.
func (w *wire) deliver(b []byte) {
	select {
	case w.packets <- bytes.Clone(b):
	default:
	}
}

func (w *wire) Read(b []byte) (int, error) {
	w.mu.Lock()
	err := w.fail
	w.fail = nil
	w.mu.Unlock()
	if err != nil {
		return 0, err
	}
	select {
	case p := <-w.packets:
		if p == nil {
			return w.Read(b)
		}
		return copy(b, p), nil
	case <-w.closed:
		return 0, net.ErrClosed
	}
}

// failRead makes one read fail.
func (w *wire) failRead(err error) {
	w.mu.Lock()
	w.fail = err
	w.mu.Unlock()
	w.packets <- nil // ends the read that waits
}

func (w *wire) Close() error {
	if w.gone.Swap(true) {
		return net.ErrClosed
	}
	close(w.closed)
	return nil
}

func (w *wire) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (w *wire) RemoteAddr() net.Addr             { return &net.UDPAddr{} }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// inMemory runs f with an allocation over w, in virtual time.
func inMemory(t *testing.T, w *wire, f func(t *testing.T, a *Allocation)) {
	synctest.Test(t, func(t *testing.T) {
		w.packets, w.closed = make(chan []byte, 1024), make(chan struct{})
		a, err := Allocate(t.Context(), Config{
			Server: "turn:192.0.2.1", Username: testUser, Password: testPassword, Dial: w.dial,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		f(t, a)
	})
}

// count asks the fake server, which works under the lock of w.
func (w *wire) count(method uint16) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.server.count(method)
}

func wait(d time.Duration) { <-time.After(d) }

func TestAllocation_LivesForADay(t *testing.T) {
	w := newWire(newFakeServer())
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		wait(24 * time.Hour)
		synctest.Wait()
		if a.Err() != nil {
			t.Fatal(a.Err())
		}
		if n := w.count(methodRefresh); n < 24*60*2 || n > 24*60*3 {
			t.Errorf("%d refreshes in a day without packets", n)
		}
	})
	if n := w.server.count(methodRefresh); n == 0 || !w.gone.Load() {
		t.Error("Close left the socket open")
	}
}

// Every third packet gets lost, of requests and responses alike, for an hour.
func TestAllocation_LivesThroughLoss(t *testing.T) {
	w := newWire(newFakeServer())
	w.echo = true
	w.lose = func(n int) bool { return n%3 == 0 }
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		got := make(chan struct{}, 1)
		reading := make(chan struct{})
		go func() {
			defer close(reading)
			bufs, sizes, from := [][]byte{make([]byte, MaxPacket)}, make([]int, 1), make([]netip.AddrPort, 1)
			for {
				if _, err := a.ReadBatch(bufs, sizes, from); err != nil {
					return
				}
				select {
				case got <- struct{}{}:
				default:
				}
			}
		}()
		silent := 0
		for range 3600 {
			if err := a.WriteTo([]byte("data"), testPeer); err != nil {
				t.Fatal(err)
			}
			wait(time.Second)
			select {
			case <-got:
				silent = 0
			default:
				if silent++; silent > 10 {
					t.Fatal("nothing came for 10 s")
				}
			}
		}
		a.Close()
		<-reading
	})
}

func TestAllocation_ServerFallsSilent(t *testing.T) {
	w := newWire(newFakeServer())
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		w.mu.Lock()
		w.lose = func(int) bool { return true }
		w.mu.Unlock()
		start := time.Now()
		<-a.Done()
		if d := time.Since(start); !errors.Is(a.Err(), ErrTimeout) || d > keepInterval+40*time.Second {
			t.Errorf("it ended after %s with %v", d, a.Err())
		}
		start = time.Now()
		a.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("Close took %s after the end", d)
		}
	})
}

func TestAllocation_CloseIsBounded(t *testing.T) {
	w := newWire(newFakeServer())
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		w.mu.Lock()
		w.lose = func(int) bool { return true }
		w.mu.Unlock()
		start := time.Now()
		a.Close()
		if d := time.Since(start); d != closeTimeout {
			t.Errorf("Close took %s, want %s", d, closeTimeout)
		}
	})
}

func TestAllocate_GivesUpOnSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(newFakeServer())
		w.lose = func(int) bool { return true }
		start := time.Now()
		_, err := Allocate(t.Context(), Config{Server: "turn:192.0.2.1", Dial: w.dial})
		if d := time.Since(start); !errors.Is(err, ErrTimeout) || d != streamWait {
			t.Errorf("after %s: %v", d, err)
		}
		if !w.gone.Load() {
			t.Error("the socket is open")
		}
	})
}

// An allocation of another program, or of this one a moment ago, on the same
// 5-tuple: another port has none.
func TestAllocate_TriesAnotherPort(t *testing.T) {
	for _, busy := range []int{1, mismatchTries - 1, mismatchTries} {
		synctest.Test(t, func(t *testing.T) {
			var wires []*wire
			dial := func(context.Context, string, string) (net.Conn, error) {
				w := newWire(newFakeServer())
				if len(wires) < busy {
					w.server.refuse[methodAllocate] = 437
				}
				wires = append(wires, w)
				return w, nil
			}
			a, err := Allocate(t.Context(), Config{Server: "turn:192.0.2.1", Username: testUser, Password: testPassword, Dial: dial})
			if busy == mismatchTries {
				if !errors.Is(err, ErrLost) {
					t.Errorf("%d busy ports: %v", busy, err)
				}
			} else if err != nil {
				t.Errorf("%d busy ports: %v", busy, err)
			} else {
				a.Close()
			}
			for i, w := range wires {
				if !w.gone.Load() {
					t.Errorf("socket %d is open", i)
				}
			}
		})
	}
}

// Errors of the socket that pass do not end the allocation, and do not make it spin.
func TestAllocation_SocketErrorsPass(t *testing.T) {
	w := newWire(newFakeServer())
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		for _, err := range []error{
			os.NewSyscallError("read", syscall.ENETDOWN), os.NewSyscallError("read", syscall.EHOSTUNREACH),
			os.NewSyscallError("read", syscall.ECONNREFUSED), io.ErrUnexpectedEOF,
		} {
			for range 20 {
				w.failRead(err)
			}
			wait(time.Minute)
			if a.Err() != nil {
				t.Fatalf("%v ended it: %v", err, a.Err())
			}
		}
	})
}

// Garbage of all kinds, from the right address, harms nobody.
func TestAllocation_Garbage(t *testing.T) {
	w := newWire(newFakeServer())
	w.echo = true
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		for i := range 600 {
			b := bytes.Repeat([]byte{byte(i)}, i*7%2000)
			w.deliver(b)
			synctest.Wait()
		}
		if err := a.WriteTo([]byte("data"), testPeer); err != nil {
			t.Fatal(err)
		}
		data, from := readOne(t, a)
		if string(data) != "data" || from != testPeer || a.Stats().Malformed < 500 {
			t.Errorf("got %q from %s, %+v", data, from, a.Stats())
		}
	})
}

func TestAllocation_OversizePacketsAreCounted(t *testing.T) {
	w := newWire(newFakeServer())
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		w.deliver(make([]byte, packetSize+1))
		synctest.Wait()
		if got := a.Stats().Oversize; got != 1 {
			t.Errorf("%d counted", got)
		}
	})
}

func TestAllocation_SetCredential(t *testing.T) {
	w := newWire(newFakeServer())
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		w.mu.Lock()
		w.server.password = "next"
		w.mu.Unlock()
		wait(5 * time.Minute)
		if err := a.Permit(testPeer); !errors.Is(err, ErrCredential) {
			t.Errorf("with the old credential: %v", err)
		}
		a.SetCredential(testUser, "next")
		synctest.Wait()
		if err := a.Permit(testPeer); err != nil {
			t.Error(err)
		}
		wait(time.Hour)
		if a.Err() != nil {
			t.Error(a.Err())
		}
	})
}

// Many goroutines use one allocation at once, and it ends under them.
func TestAllocation_IsSafeForConcurrentUse(t *testing.T) {
	w := newWire(newFakeServer())
	w.echo = true
	inMemory(t, w, func(t *testing.T, a *Allocation) {
		var running sync.WaitGroup
		for i := range 4 {
			running.Go(func() {
				for n := 0; a.WriteBatch([][]byte{[]byte("a"), fmt.Append(nil, n)}, peerAt(i)) == nil; n++ {
					wait(time.Millisecond)
				}
			})
			running.Go(func() {
				bufs, sizes, from := [][]byte{make([]byte, 9), make([]byte, 9)}, make([]int, 2), make([]netip.AddrPort, 2)
				for {
					if _, err := a.ReadBatch(bufs, sizes, from); err != nil {
						return
					}
				}
			})
			running.Go(func() {
				for a.Permit(peerAt(100+i)) == nil {
					a.SetCredential(testUser, testPassword)
					_ = a.Stats()
					wait(time.Second)
				}
			})
		}
		wait(10 * time.Second)
		a.Close()
		running.Wait()
	})
}

// FuzzCore feeds a standing allocation, with all kinds of requests on their
// way, two packets, and sees that its tables stay within their bounds.
func FuzzCore(f *testing.F) {
	indication := newMessage(dataIndication, txID{}).addPeer(testPeer).add(attrData, []byte("data"))
	f.Add([]byte(indication), []byte{0x40, 0, 0, 1, 'x'}, uint8(1))
	f.Add([]byte(newFakeServer().challenge(newMessage(methodRefresh, txID{}), 438)), []byte(indication), uint8(0))
	f.Add([]byte(newMessage(methodRefresh|classSuccess, txID{}).add(attrLifetime, make([]byte, 4)).sign(newFakeServer().key())), []byte{}, uint8(2))
	f.Add([]byte(newMessage(methodAllocate|classError, txID{}).add(attrAlternateServer, plainValue(testPeer)).add(attrAlternateDomain, []byte("b"))), []byte{}, uint8(0))
	f.Fuzz(func(t *testing.T, first, second []byte, which uint8) {
		b := standingBench(t, nil)
		b.write(peerAt(1), 2*channelAfter)
		b.lose = always
		b.refresh(b.clock)
		b.write(testPeer, 1)
		b.write(peerAt(1), 1)
		b.pump()
		for _, packet := range [][]byte{first, second} {
			if len(packet) >= headerLen && len(b.transactions) > 0 { // past the guard of the id
				id := b.transactions[int(which)%len(b.transactions)].id
				packet = bytes.Clone(packet)
				copy(packet[8:], id[:])
			}
			if checkMessage(packet) {
				if to := message(packet).alternate(); to.at.IsValid() && (to.at.Port() == 0 || to.at.Addr().IsUnspecified()) {
					t.Fatalf("sent on to %v", to)
				}
			}
			from, data, ok := b.receive(packet, b.clock)
			if ok && (b.permissions[from.Addr()] == nil || len(data) > len(packet)) {
				t.Fatalf("%d bytes from %s", len(data), from)
			}
			b.pump()
		}
		b.run(time.Minute)
		if len(b.transactions) > 2*maxPeers+1 || len(b.peers) > maxPeers {
			t.Fatalf("%d transactions, %d peers", len(b.transactions), len(b.peers))
		}
	})
}
