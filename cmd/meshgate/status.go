// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sort"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func (a *app) statusCommand() *cobra.Command {
	var to access
	cmd := &cobra.Command{
		Use:   "status [NODE]",
		Short: "how a node is, and whom the gateway reaches",
		Args:  args(cobra.MaximumNArgs(1), "at most one node id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			if len(args) == 1 {
				return a.nodeStatus(cmd.Context(), gate, args[0])
			}
			return a.meshStatus(cmd.Context(), gate)
		},
	}
	to.registerNear(cmd.Flags())
	return cmd
}

// nodeStatus prints what one node says of itself.
func (a *app) nodeStatus(ctx context.Context, gate *peer.Public, id string) error {
	answer, err := gate.Node().GetStatus(ctx, connect.NewRequest(&v1.GetStatusRequest{Id: id}))
	if connect.CodeOf(err) == connect.CodeFailedPrecondition {
		return a.peerStatus(ctx, gate, id) // it runs no Meshgate that could be asked
	}
	if err != nil {
		return fmt.Errorf("status of %s: %w", id, err)
	}
	s := answer.Msg
	path := lookAtPath(ctx, gate, s.GetId())
	if a.structured() {
		return a.printProto(s)
	}
	rows := [][]string{
		{"id", s.GetId()},
		{"state", stateOnline}, // it has answered
		{"version", s.GetVersion()},
		{"uptime", s.GetUptime()},
		{"in the cluster", s.GetClusterStatus().String()},
	}
	if i := s.GetInterfaceMetrics(); i != nil {
		rows = append(rows,
			[]string{"interface", fmt.Sprintf("%s (%s)", i.GetDeviceName(), i.GetType())},
			[]string{"addresses", i.GetAddressV4() + " " + i.GetAddressV6()},
			[]string{"received", bytesText(i.GetTotalReceiveBytes())},
			[]string{"sent", bytesText(i.GetTotalTransmitBytes())},
			[]string{"peers", fmt.Sprint(i.GetNumPeers())})
	}
	return table(a.stdout, append(rows, pathRows(path, time.Now())...))
}

// lookAtPath is how whoever answers reaches a node; nil where that is not told.
func lookAtPath(ctx context.Context, gate *peer.Public, id string) *meshgatev1.Path {
	answer, err := gate.Paths().ListPaths(ctx, connect.NewRequest(&meshgatev1.ListPathsRequest{}))
	if err != nil {
		return nil // it is an addition, which older gateways do not have
	}
	for _, p := range answer.Msg.GetPaths() {
		if p.GetNodeId() == id {
			return p
		}
	}
	return tryPath(ctx, gate, id)
}

// tryPath is how whoever answers reaches a node that is none of its peers, or why
// it does not; nil where that is not told.
func tryPath(ctx context.Context, gate *peer.Public, id string) *meshgatev1.Path {
	stream, err := gate.Paths().Ping(ctx, connect.NewRequest(&meshgatev1.PingRequest{NodeId: id, Count: 1}))
	if err != nil {
		return nil
	}
	defer func() { _ = stream.Close() }() // it has ended
	if !stream.Receive() {
		return nil // such as of the node itself
	}
	return stream.Msg().GetPath()
}

// peerStatus prints what the gateway knows of a peer that cannot be asked.
func (a *app) peerStatus(ctx context.Context, gate *peer.Public, id string) error {
	m, err := lookAtMesh(ctx, gate)
	if err != nil {
		return fmt.Errorf("status of %s: %w", id, err)
	}
	states := statesOf(m, nil)
	only := &meshgatev1.WatchMeshResponse{GatewayId: m.GetGatewayId()}
	for _, o := range m.GetNodes() {
		if o.GetId() == id {
			only.Nodes = append(only.Nodes, o)
		}
	}
	for _, l := range m.GetLinks() {
		if l.GetNodeId() == id {
			only.Links = append(only.Links, l)
		}
	}
	return a.printMesh(only, states)
}

// meshStatus prints every node and how the gateway reaches it.
func (a *app) meshStatus(ctx context.Context, gate *peer.Public) error {
	m, err := lookAtMesh(ctx, gate)
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if err := a.printMesh(m, statesOf(m, a.lookAtCluster(ctx, gate))); err != nil || a.structured() {
		return err
	}
	return a.printExit(lookAtExit(ctx, gate))
}

// lookAtCluster is who of the gateways is alive, by their ids. It is empty where
// that is not told: then links have to say it.
func (a *app) lookAtCluster(ctx context.Context, gate *peer.Public) map[string]bool {
	answer, err := gate.Cluster().Status(ctx, connect.NewRequest(&meshgatev1.StatusRequest{}))
	if err != nil {
		switch connect.CodeOf(err) {
		case connect.CodePermissionDenied, connect.CodeUnimplemented: // a caller or a gateway without it
		default:
			fmt.Fprintf(a.stderr, "which gateways are up is not known: %s\n", explain(err))
		}
		return nil
	}
	if trouble := answer.Msg.GetTrouble(); trouble != "" {
		fmt.Fprintln(a.stderr, trouble)
	}
	alive := map[string]bool{}
	for _, r := range answer.Msg.GetReplicas() {
		alive[r.GetId()] = r.GetAlive()
	}
	return alive
}

// lookAtMesh is the mesh as the gateway sees it now.
func lookAtMesh(ctx context.Context, gate *peer.Public) (*meshgatev1.WatchMeshResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := gate.Watch().WatchMesh(ctx, connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }() // only the first message is wanted
	if !stream.Receive() {
		return nil, stream.Err()
	}
	return stream.Msg(), nil
}

// printMesh prints the nodes of m with their states.
func (a *app) printMesh(m *meshgatev1.WatchMeshResponse, states map[string]string) error {
	if a.structured() {
		return a.printProto(m)
	}
	links := linksOf(m)
	nodes := m.GetNodes()
	sort.Slice(nodes, func(i, j int) bool { return nodes[i].GetId() < nodes[j].GetId() })
	rows := [][]string{{"NODE", "ADDRESS", "STATE", "LAST HANDSHAKE", "RECEIVED", "SENT", "PATH"}}
	for _, o := range nodes {
		row := []string{o.GetId(), hostOf(o.GetPrivateIpv4(), o.GetPrivateIpv6()), states[o.GetId()]}
		if l := links[o.GetId()]; l == nil || o.GetId() == m.GetGatewayId() {
			why := ""
			if states[o.GetId()] == stateUnknown {
				why = "meshgate status " + o.GetId() + " says why"
			}
			row = append(row, "", "", "", why)
		} else {
			last := "never"
			if at := l.GetLastHandshake(); at != nil {
				last = time.Since(at.AsTime()).Round(time.Second).String() + " ago"
			}
			row = append(row, last, bytesText(l.GetReceiveBytes()), bytesText(l.GetTransmitBytes()), linkPath(l))
		}
		rows = append(rows, row)
	}
	return table(a.stdout, rows)
}

// linkPath is how packets take a link, as far as the gateway tells.
func linkPath(l *meshgatev1.Link) string {
	if text := pathStory(l.GetPath(), time.Now()); text != "" {
		return text
	}
	return l.GetEndpoint()
}

// bytesText is a count of bytes for people.
func bytesText(n uint64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/step, 0
	for value >= step && unit < 4 {
		value /= step
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[unit])
}
