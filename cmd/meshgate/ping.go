// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// pingConfig is what the flags of ping say, as typed.
type pingConfig struct {
	to          access
	from        string
	count       uint32
	interval    time.Duration
	untilDirect bool
	timeout     time.Duration
}

func (a *app) pingCommand() *cobra.Command {
	c := &pingConfig{}
	cmd := &cobra.Command{
		Use:   "ping NODE",
		Short: "ask a node for signs of life, and tell by what path its packets go",
		Long: "ping has the node of this host, or else the gateway, ask NODE, by its id or its address in\n" +
			"the mesh, for a sign of life over the mesh, and says of each answer by what path packets go: directly, over a TURN\n" +
			"server, or by way of a gateway. The first packets to a node have a path looked for;\n" +
			"--until-direct waits for a direct one. The sign is a TCP connection, since nothing else\n" +
			"is answered by every kind of node.",
		Args: args(cobra.ExactArgs(1), "the id of a node, or its address in the mesh"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.count == 0 && !c.untilDirect {
				return usagef("--count 0 asks nobody: give at least 1, or --until-direct")
			}
			gate, err := c.to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			if c.untilDirect && !cmd.Flags().Changed("count") {
				c.count = 0
			}
			if !c.untilDirect && cmd.Flags().Changed("timeout") {
				return usagef("--timeout is for --until-direct; without, give --count")
			}
			return a.ping(cmd.Context(), gate, args[0], c)
		},
	}
	f := cmd.Flags()
	c.to.registerNear(f)
	f.StringVar(&c.from, "from", "", "node that asks, by way of the gateway (default: the node of this host, else the gateway)")
	f.Uint32VarP(&c.count, "count", "c", 4, "how often to ask, at most 1000")
	f.DurationVar(&c.interval, "interval", time.Second, "time from one question to the next, at least 100ms")
	f.BoolVar(&c.untilDirect, "until-direct", false, "end as soon as an answer comes over a direct path, and fail if none does")
	f.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long --until-direct waits, at most 5m")
	return cmd
}

// ping asks a node as c says, and prints what it answers.
func (a *app) ping(ctx context.Context, gate *peer.Public, id string, c *pingConfig) error {
	ask := &meshgatev1.PingRequest{NodeId: id, FromId: c.from, Count: c.count, UntilDirect: c.untilDirect, Interval: durationpb.New(c.interval)}
	if c.untilDirect {
		ask.Timeout = durationpb.New(c.timeout)
	}
	stream, err := gate.Paths().Ping(ctx, connect.NewRequest(ask))
	if err != nil {
		return fmt.Errorf("ping %s: %w", id, err)
	}
	defer func() { _ = stream.Close() }() // it has ended, or nobody wants the rest
	heard := false
	var last *meshgatev1.PingResponse
	for stream.Receive() {
		last = stream.Msg()
		heard = heard || last.GetRoundTrip() != nil
		if err := a.printPing(last); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return fmt.Errorf("ping %s: %w", id, err)
	}
	return verdictOf(id, heard, last, c)
}

func (a *app) printPing(m *meshgatev1.PingResponse) error {
	if a.structured() {
		return a.printProto(m)
	}
	if m.GetRoundTrip() == nil {
		_, err := fmt.Fprintf(a.stdout, "no answer from %s (%s): %s\n", m.GetNodeId(), m.GetAddress(), plain(m.GetReason()))
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "reply from %s (%s) in %s, %s\n", m.GetNodeId(), m.GetAddress(), milliseconds(m.GetRoundTrip().AsDuration()), pathText(m.GetPath()))
	return err
}

// verdictOf is nil when a ping has ended as was wanted. last is its last answer.
func verdictOf(id string, heard bool, last *meshgatev1.PingResponse, c *pingConfig) error {
	id = cmp.Or(last.GetNodeId(), id) // of an address
	switch {
	case last == nil:
		return fmt.Errorf("ping %s: the gateway ended the call without an answer; does it run this version of Meshgate?", id)
	case !heard && last.GetPath().GetKind() == meshgatev1.PathKind_PATH_KIND_NONE && last.GetPath().GetReason() != "":
		return advised{fmt.Errorf("%s does not answer: %s", id, last.GetPath().GetReason())}
	case !heard:
		return fmt.Errorf("%s does not answer; meshgate status %s says what is known of it", id, id)
	case c.untilDirect && (last.GetRoundTrip() == nil || last.GetPath().GetKind() != meshgatev1.PathKind_PATH_KIND_DIRECT):
		why := last.GetPath().GetReason()
		if why == "" {
			why = pathText(last.GetPath())
		}
		return advised{fmt.Errorf("%s is not reached directly: %s. meshgate netcheck on both hosts says what their networks let through", id, why)}
	}
	return nil
}
