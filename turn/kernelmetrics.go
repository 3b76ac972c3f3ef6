// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/turn/xdp"
)

// kernelMetrics show what the kernel path does, or why there is none. Names of
// interfaces are labels: xdp has at most 64 at a time.
type kernelMetrics struct {
	channels, refused, packets, bytes, interfaces, idle *prometheus.Desc
}

func newKernelMetrics(desc func(name, help string, labels ...string) *prometheus.Desc) kernelMetrics {
	return kernelMetrics{
		channels: desc("meshgate_turn_kernel_channels", "TURN channels that the kernel serves past the server now."),
		refused:  desc("meshgate_turn_kernel_refused_channels_total", "TURN channels that the kernel had no room for, so that the server carries them."),
		packets: desc("meshgate_turn_kernel_packets_total",
			"Packets of channels in the kernel, by outcome. What was not sent, limited or broken went to the server.", "outcome"),
		bytes:      desc("meshgate_turn_kernel_bytes_total", "Payload bytes of channels in the kernel, by outcome of their packets.", "outcome"),
		interfaces: desc("meshgate_turn_kernel_interfaces", "Network interfaces at which the kernel serves TURN channels: 1 for each, with its mode, native or generic.", "interface", "mode"),
		idle:       desc("meshgate_turn_kernel_idle", "1 for the reason why the kernel serves no TURN channels, 0 for the others, and for all while it does.", "reason"),
	}
}

func (m kernelMetrics) describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.channels, m.refused, m.packets, m.bytes, m.interfaces, m.idle} {
		ch <- d
	}
}

func (m kernelMetrics) collect(s xdp.Stats, gauge func(*prometheus.Desc, int, ...string), counter func(*prometheus.Desc, uint64, ...string)) {
	gauge(m.channels, s.Bindings)
	counter(m.refused, s.Refused)
	for i := range xdp.NumOutcomes {
		counter(m.packets, s.Packets[i], i.String())
		counter(m.bytes, s.Bytes[i], i.String())
	}
	for _, i := range s.Interfaces {
		gauge(m.interfaces, 1, i.Name, string(i.Mode))
	}
	for r := xdp.Serving + 1; r < xdp.NumReasons; r++ {
		is := 0
		if r == s.Idle {
			is = 1
		}
		gauge(m.idle, is, r.String())
	}
}
