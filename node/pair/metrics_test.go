// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

// value is that of a counter or gauge.
func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

// What a pair goes through is in the metrics.
func TestMetrics_TellWherePacketsGo(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.blocked = direct
		a, b := l.two()
		m := a.pairs.metrics
		l.until(3*time.Second, "the pair stands over a relay", func() bool { return standing(a, b) })
		relayed := []float64{value(t, m.pairs[byGateway]), value(t, m.pairs[directly]), value(t, m.pairs[byRelay]), value(t, m.switches[byRelay])}
		if relayed[0] != 0 || relayed[1] != 0 || relayed[2] != 1 || relayed[3] != 1 {
			t.Errorf("over a relay: %v", relayed)
		}
		if n := value(t, m.relays[path.UDP]); n != 1 || value(t, m.made[path.UDP]) != 1 {
			t.Errorf("%v relays", n)
		}
		l.block(false)
		l.until(30*time.Second, "the pair is direct", func() bool { return a.status("bob").Path.Direct && a.status("gate").Path.Direct })
		if value(t, m.pairs[directly]) != 1 || value(t, m.pairs[byRelay]) != 0 || value(t, m.switches[directly]) != 1 || value(t, m.gateways[directly]) != 1 {
			t.Error("the pair is direct and the metrics do not tell")
		}
		if value(t, m.sent) == 0 || value(t, m.received) == 0 {
			t.Error("no signals are counted")
		}
		l.block(true)
		l.until(time.Minute, "the gateway carries the packets", func() bool {
			l.talk(a, b)
			there, _ := a.has("bob")
			return len(there) == 0
		})
		if value(t, m.pairs[byGateway]) != 1 || value(t, m.pairs[directly]) != 0 || value(t, m.switches[byGateway]) != 1 {
			t.Error("the gateway carries the packets and the metrics do not tell")
		}
	})
}

// Queues that are full lose what comes, and tell.
func TestMetrics_CountWhatIsDropped(t *testing.T) {
	p, err := New(Config{Self: "ada"}) // nobody runs it
	if err != nil {
		t.Fatal(err)
	}
	for range seekQueue + 3 {
		p.Seek(netip.MustParseAddr("172.16.0.2"))
	}
	for range packetQueue + 5 {
		p.STUN(wg.NativeSocket, netip.MustParseAddrPort("10.0.0.2:51820"), []byte{0, 1})
	}
	if n := value(t, p.metrics.dropped[dropSeek]); n != 3 {
		t.Errorf("%v seeks were dropped, want 3", n)
	}
	if n := value(t, p.metrics.dropped[dropPacket]); n != 5 {
		t.Errorf("%v packets were dropped, want 5", n)
	}
}

// Two of a kind cannot be registered, and nothing of the second one stays.
func TestNew_SaysWhenMetricsAreTaken(t *testing.T) {
	r := prometheus.NewRegistry()
	if _, err := New(Config{Self: "ada", Registerer: r}); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Self: "bob", Registerer: r}); err == nil || !strings.Contains(err.Error(), "register metrics of pairs") {
		t.Errorf("got %v", err)
	}
	families, err := r.Gather()
	if err != nil || len(families) == 0 {
		t.Errorf("%d families, %v", len(families), err)
	}
}

// A pair that has lost its way for a moment counts as before; all else as it is.
func TestLink_Carrier(t *testing.T) {
	for _, c := range []struct {
		l    link
		want carrier
	}{
		{link{kind: sought}, byGateway},
		{link{kind: sought, last: path.State{Standing: true, Direct: true}}, byGateway},
		{link{kind: sought, stands: true, last: path.State{Standing: true, Direct: true}}, directly},
		{link{kind: sought, stands: true, last: path.State{Standing: true}}, byRelay},
		{link{kind: sought, stands: true, counted: byRelay}, byRelay},
		{link{kind: edge, stands: true, counted: directly}, directly},
		{link{kind: sought, counted: directly}, byGateway},
		{link{kind: gateway, stands: true, counted: directly}, byGateway},
		{link{kind: gateway, stands: true, last: path.State{Standing: true}}, byRelay},
	} {
		if got := c.l.carrier(); got != c.want {
			t.Errorf("%+v: %v", c.l, got)
		}
	}
}
