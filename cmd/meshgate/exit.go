// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

const (
	// exitPatience is how long the command waits for an exit to work.
	exitPatience = 5 * time.Second
	// lookAtExitEach is how often it looks.
	lookAtExitEach = 100 * time.Millisecond
)

func (a *app) exitCommand() *cobra.Command {
	var to access
	var open, off bool
	cmd := &cobra.Command{
		Use:   "exit [NODE]",
		Short: "reach the Internet through another node",
		Long: "Shows through which node the node of this host, and in tun mode the host, reaches the Internet,\n" +
			"or chooses one. That holds until the node ends: its --exit-node says how it begins.",
		Args: args(cobra.MaximumNArgs(1), "at most one node id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if off && (open || len(args) > 0) {
				return usagef("--off ends the use of an exit; give no node, and no --open")
			}
			if open && len(args) == 0 {
				return usagef("--open goes with the node to use: meshgate exit NODE --open")
			}
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			ask := &meshgatev1.UseExitRequest{Open: open}
			if len(args) == 1 {
				ask.NodeId = args[0]
			}
			return a.exit(cmd.Context(), gate, ask, off || len(args) == 1)
		},
	}
	to.registerNear(cmd.Flags())
	cmd.Flags().BoolVar(&off, "off", false, "reach the Internet in the usual way")
	cmd.Flags().BoolVar(&open, "open", false, "while there is no way to the exit, let packets leave in the usual way; without, they are not sent")
	return cmd
}

// exit makes a change, if there is one to make, waits until it works, and prints
// the exit. One that does not work is an error.
func (a *app) exit(ctx context.Context, gate *peer.Public, ask *meshgatev1.UseExitRequest, change bool) error {
	if change {
		if _, err := gate.Paths().UseExit(ctx, connect.NewRequest(ask)); err != nil {
			return fmt.Errorf("use exit: %w", err)
		}
	}
	use := lookAtExit(ctx, gate)
	for over := time.Now().Add(exitPatience); change && use != nil && !use.GetWorks() && time.Now().Before(over); {
		if err := pause(ctx, lookAtExitEach); err != nil {
			return err
		}
		use = lookAtExit(ctx, gate)
	}
	if use == nil {
		use = &meshgatev1.ExitUse{}
	}
	if a.structured() {
		if err := a.printProto(use); err != nil {
			return err
		}
	} else if use.GetNodeId() == "" {
		fmt.Fprintln(a.stdout, "no exit: packets to the Internet leave in the usual way")
	} else if err := a.printExit(use); err != nil {
		return err
	}
	if use.GetNodeId() != "" && !use.GetWorks() {
		return errors.New("the exit does not work yet; the node goes on trying")
	}
	return nil
}

// lookAtExit is the exit that whoever answers uses; nil for none, and where that is
// not told.
func lookAtExit(ctx context.Context, gate *peer.Public) *meshgatev1.ExitUse {
	answer, err := gate.Paths().ListPaths(ctx, connect.NewRequest(&meshgatev1.ListPathsRequest{}))
	if err != nil {
		return nil
	}
	return answer.Msg.GetExit()
}

// printExit prints what becomes of packets to the Internet, if there is an exit.
func (a *app) printExit(use *meshgatev1.ExitUse) error {
	if use.GetNodeId() == "" {
		return nil
	}
	_, err := fmt.Fprintln(a.stdout, exitStory(use, time.Now()))
	return err
}

// exitStory says how an exit is used.
func exitStory(use *meshgatev1.ExitUse, now time.Time) string {
	since := ""
	if use.GetSince().IsValid() {
		since = ", for " + now.Sub(use.GetSince().AsTime()).Round(time.Second).String()
	}
	switch {
	case use.GetWorks():
		return fmt.Sprintf("exit: packets to the Internet go through %s%s", use.GetNodeId(), since)
	case use.GetOpen():
		return fmt.Sprintf("exit: %s is out of reach%s, and packets to the Internet leave in the usual way: %s", use.GetNodeId(), since, use.GetReason())
	}
	return fmt.Sprintf("exit: %s is out of reach%s, and packets to the Internet are not sent (meshgate exit --off ends that): %s", use.GetNodeId(), since, use.GetReason())
}
