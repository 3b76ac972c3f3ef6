// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/rtc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a server that says what a test wants it to.
type script struct {
	ctx      context.Context //nolint:containedctx // a call
	sendErr  error
	messages chan *v1.DataChannelOffer
	err      error // what Receive returns after the messages; nil waits
}

func (s *script) Send(*v1.StartDataChannelRequest) error { return s.sendErr }
func (s *script) CloseSend() error                       { return nil }
func (s *script) Receive() (*v1.DataChannelOffer, error) {
	select {
	case m := <-s.messages:
		return m, nil
	default:
	}
	if s.err != nil {
		return nil, s.err
	}
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}

func offer(t *testing.T) string {
	t.Helper()
	e, err := rtc.New(rtc.Config{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	p, err := e.NewPeer(context.Background(), rtc.PeerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := p.Offer()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestDial_Failures(t *testing.T) {
	refused := errors.New("permission denied: no role grants it")
	for _, tc := range []struct {
		name     string
		sendErr  error
		messages []*v1.DataChannelOffer
		err      error
		want     error
	}{
		{name: "refused at once", err: refused, want: refused},
		{name: "refused while sending", sendErr: io.EOF, err: refused, want: refused},
		{name: "refused after the offer", messages: []*v1.DataChannelOffer{{Offer: offer(t)}}, err: refused, want: refused},
		{name: "garbage for an offer", messages: []*v1.DataChannelOffer{{Offer: "v=0"}}, want: rtc.ErrDescription},
		{
			name: "garbage for a candidate", want: rtc.ErrCandidate,
			messages: []*v1.DataChannelOffer{{Offer: offer(t)}, {Candidate: "candidate:x"}},
		},
		{name: "no word", want: context.DeadlineExceeded},
		{name: "nobody behind the offer", messages: []*v1.DataChannelOffer{{Offer: offer(t)}}, want: context.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wait := time.Minute
			if tc.want == context.DeadlineExceeded { // the others need their time on a busy machine
				wait = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), wait)
			defer cancel()
			s := &script{ctx: ctx, sendErr: tc.sendErr, err: tc.err, messages: make(chan *v1.DataChannelOffer, 2)}
			for _, m := range tc.messages {
				s.messages <- m
			}
			_, err := Dial(ctx, s, Options{Node: "n", RTC: rtc.Config{Loopback: true}})
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestDial_SharedSocketIsRefused(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := Dial(context.Background(), &script{}, Options{RTC: rtc.Config{UDP: pc}}); err == nil {
		t.Fatal("accepted")
	}
}
