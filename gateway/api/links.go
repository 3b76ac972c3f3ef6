// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// statsAge is how old shared statistics may be. Reading them walks every
	// WireGuard peer, so that many watchers share one reading.
	statsAge = time.Second
	// handshakeAge is when WireGuard refuses to send with a session
	// (REJECT_AFTER_TIME): a peer without a younger handshake is out of reach.
	handshakeAge = 180 * time.Second
)

// links shares readings of the interface's statistics between callers.
type links struct {
	source Links
	ways   Ways

	mu    sync.Mutex // guards the fields below; held while reading, so that one reads for all
	at    time.Time
	stats mesh.InterfaceStats
	found map[mesh.NodeID]mesh.Way // of stats; nil until they are asked for
}

// get returns statistics that are at most statsAge old.
func (l *links) get() (mesh.InterfaceStats, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.getLocked()
}

// all returns them with the ways to the nodes, as far as those are known. Nobody
// changes either.
func (l *links) all(ctx context.Context) (mesh.InterfaceStats, map[mesh.NodeID]mesh.Way, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stats, err := l.getLocked()
	if err != nil || l.found != nil {
		return stats, l.found, err
	}
	l.found = map[mesh.NodeID]mesh.Way{}
	// Who watches the mesh wants it without them, too.
	if ways, err := l.ways.Ways(ctx); err == nil {
		for _, w := range ways {
			l.found[w.Node] = w
		}
	}
	return stats, l.found, nil
}

func (l *links) getLocked() (mesh.InterfaceStats, error) {
	if !l.at.IsZero() && time.Since(l.at) < statsAge {
		return l.stats, nil
	}
	stats, err := l.source.Stats()
	if err != nil {
		return mesh.InterfaceStats{}, err
	}
	l.stats, l.at, l.found = stats, time.Now(), nil
	return stats, nil
}

// linksToProto gives each peer of the interface the name of its node, sorted
// by it, and the way to it. Peers that s does not know are left out.
func linksToProto(s *mesh.Snapshot, stats mesh.InterfaceStats, ways map[mesh.NodeID]mesh.Way, now time.Time) []*meshgatev1.Link {
	out := make([]*meshgatev1.Link, 0, len(stats.Peers))
	for _, p := range stats.Peers {
		n, ok := s.NodeByKey(p.PublicKey)
		if !ok {
			continue
		}
		link := &meshgatev1.Link{
			NodeId:        string(n.ID),
			Online:        !p.LastHandshake.IsZero() && now.Sub(p.LastHandshake) < handshakeAge,
			Endpoint:      p.Endpoint,
			ReceiveBytes:  p.ReceiveBytes,
			TransmitBytes: p.TransmitBytes,
		}
		if !p.LastHandshake.IsZero() {
			link.LastHandshake = timestamppb.New(p.LastHandshake)
		}
		if w, ok := ways[n.ID]; ok {
			link.Path = wayToProto(w)
		}
		out = append(out, link)
	}
	slices.SortFunc(out, func(a, b *meshgatev1.Link) int { return strings.Compare(a.GetNodeId(), b.GetNodeId()) })
	return out
}

// metricsToProto is the interface as Node.GetStatus shows it. Keys are plain
// WireGuard keys, as v1 nodes send them.
func metricsToProto(s mesh.InterfaceStats) *v1.InterfaceMetrics {
	m := &v1.InterfaceMetrics{
		DeviceName: s.Name,
		Type:       s.Type,
		ListenPort: int32(s.ListenPort),
		NumPeers:   int32(len(s.Peers)),
	}
	if !s.PublicKey.IsZero() {
		m.PublicKey = s.PublicKey.String()
	}
	for _, a := range s.Addresses {
		if a.Addr().Is4() {
			m.AddressV4 = a.String()
		} else {
			m.AddressV6 = a.String()
		}
	}
	for _, p := range s.Peers {
		m.TotalReceiveBytes += p.ReceiveBytes
		m.TotalTransmitBytes += p.TransmitBytes
		m.Peers = append(m.Peers, peerMetricsToProto(p))
	}
	return m
}

func peerMetricsToProto(p mesh.PeerStats) *v1.PeerMetrics {
	m := &v1.PeerMetrics{
		PublicKey:           p.PublicKey.String(),
		Endpoint:            p.Endpoint,
		PersistentKeepAlive: p.Keepalive.String(),
		ProtocolVersion:     1,
		ReceiveBytes:        p.ReceiveBytes,
		TransmitBytes:       p.TransmitBytes,
	}
	if !p.LastHandshake.IsZero() {
		m.LastHandshakeTime = p.LastHandshake.UTC().Format(time.RFC3339)
	}
	for _, prefix := range p.AllowedIPs {
		m.AllowedIps = append(m.AllowedIps, prefix.String())
	}
	return m
}
