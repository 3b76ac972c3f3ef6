// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

// A gateway that answered and does not any more is silent since it was heard
// last; packets of WireGuard that still come say that it is there.
func TestLink_TheGatewayIsSilent(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		var log bytes.Buffer
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		l, f := s.link(gateway, s.gate("gate", 9))
		if !l.open(time.Now()) {
			t.Fatal("the device has no peer")
		}
		way := l.way.(*stillWay)
		look := func() time.Time { l.steer(time.Now()); return l.status().Silent }
		s.pass(time.Minute)
		if at := look(); !at.IsZero() {
			t.Fatalf("one that never answered is silent since %s", at)
		}
		f.state = path.State{Standing: true, Direct: true, Verified: time.Now()}
		look()
		last := time.Now()
		f.state = path.State{Why: "the other node does not answer any more"}
		s.pass(time.Second)
		if at := look(); !at.IsZero() {
			t.Errorf("silent at once, since %s", at)
		}
		s.pass(mutedAfter)
		if at := look(); !at.Equal(last) || strings.Count(log.String(), "gateway does not answer") != 1 {
			t.Errorf("silent since %s, want %s; log %q", at, last, log.String())
		}
		way.activity = wg.Activity{Heard: time.Now()}
		if at := look(); !at.IsZero() || !strings.Contains(log.String(), "gateway answers again") {
			t.Errorf("heard, and silent since %s; log %q", at, log.String())
		}
		last = time.Now()
		s.pass(keptAlive)
		if at := look(); !at.Equal(last) {
			t.Errorf("after a keepalive: silent since %s, want %s", at, last)
		}
		f.state = path.State{Standing: true, Direct: true, Verified: time.Now()}
		if at := look(); !at.IsZero() {
			t.Errorf("answers, and silent since %s", at)
		}
	})
}

// What is logged of a pair that breaks is who carries its packets, if anybody.
func TestLink_BreaksWithoutAGateway(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		var log bytes.Buffer
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		g, gate := s.link(gateway, s.gate("gate", 9))
		if !g.open(time.Now()) {
			t.Fatal("the device has no peer")
		}
		l, _ := s.link(sought, s.peer("ada", 1))
		for _, c := range []struct {
			heard bool
			want  string
		}{{false, "no gateway has answered since"}, {true, "the gateway carries its packets"}} {
			log.Reset()
			l.stands, l.ready, l.lost = true, time.Time{}, time.Now()
			s.pass(brokenMost)
			gate.state = path.State{Standing: c.heard, Verified: time.Now()}
			l.settle(time.Now())
			if l.stands || !strings.Contains(log.String(), c.want) {
				t.Errorf("heard %v: stands %v, log %q", c.heard, l.stands, log.String())
			}
		}
	})
}

// How the gateway is reached is logged when that is another way than before.
func TestLink_LogsHowTheGatewayIsReached(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		var log bytes.Buffer
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		l, _ := s.link(gateway, s.gate("gate", 9))
		direct, none := path.State{Standing: true, Direct: true}, path.State{}
		tcp := path.State{Standing: true, Transport: path.TCP, Relay: "gate", Why: "no answer on 2 direct ways"}
		tls := tcp
		tls.Transport = path.TLS
		for i, c := range []struct {
			state path.State
			want  string
		}{
			{direct, ""}, {none, ""}, {tcp, "over a relay\" gateway=gate transport=TCP reason=\"no answer"}, {none, ""}, {tcp, ""},
			{tls, "transport=TLS"}, {direct, "gateway is reached directly"}, {direct, ""},
		} {
			log.Reset()
			if l.moved(c.state); c.want == "" && log.Len() > 0 || !strings.Contains(log.String(), c.want) {
				t.Errorf("%d: got %q, want %q", i, log.String(), c.want)
			}
		}
	})
}
