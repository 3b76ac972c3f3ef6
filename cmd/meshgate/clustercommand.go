// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

func (a *app) clusterCommand() *cobra.Command {
	const verbs = "status, promote ID, demote ID, remove ID or transfer [ID]"
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "the gateways that keep the state of the mesh",
		Args:  args(cobra.NoArgs, verbs),
		RunE:  func(*cobra.Command, []string) error { return usagef("want %s", verbs) },
	}
	one := args(cobra.ExactArgs(1), "the id of a gateway")
	cmd.AddCommand(
		a.onGateway("status", "who keeps the state, who leads, and who lags", "", args(cobra.NoArgs, "no arguments"), a.clusterStatus),
		a.onGateway("promote ID", "give an observer a vote", "", one, func(ctx context.Context, c *peer.Public, given []string) error {
			err := a.tellChange("promoted", given, none(c.Cluster().Promote(ctx, connect.NewRequest(&meshgatev1.PromoteRequest{Id: given[0]}))))
			return a.tellVoters(ctx, c, err)
		}),
		a.onGateway("demote ID", "take a voter's vote", "A gateway that is demoted keeps a copy of the state, which does not count.", one, func(ctx context.Context, c *peer.Public, given []string) error {
			err := a.tellChange("demoted", given, none(c.Cluster().Demote(ctx, connect.NewRequest(&meshgatev1.DemoteRequest{Id: given[0]}))))
			return a.tellVoters(ctx, c, err)
		}),
		a.onGateway("remove ID", "take a gateway out of the cluster", "A gateway that is removed ends. It stays a member of the mesh until meshgate delete nodes ID.", one, func(ctx context.Context, c *peer.Public, given []string) error {
			err := a.tellChange("removed", given, none(c.Cluster().Remove(ctx, connect.NewRequest(&meshgatev1.RemoveRequest{Id: given[0]}))))
			return a.tellVoters(ctx, c, err)
		}),
		a.onGateway("transfer [ID]", "make another voter lead", "", args(cobra.MaximumNArgs(1), "at most one gateway"), func(ctx context.Context, c *peer.Public, given []string) error {
			r := &meshgatev1.TransferLeadershipRequest{}
			if len(given) == 1 {
				r.Id = given[0]
			}
			return a.tellChange("handed over", given, none(c.Cluster().TransferLeadership(ctx, connect.NewRequest(r))))
		}),
	)
	return cmd
}

// onGateway is a command that calls a gateway.
func (a *app) onGateway(use, short, long string, check cobra.PositionalArgs, run func(context.Context, *peer.Public, []string) error) *cobra.Command {
	var to access
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: check,
		RunE: func(cmd *cobra.Command, given []string) error {
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			return run(cmd.Context(), gate, given)
		},
	}
	to.registerServer(cmd.Flags())
	return cmd
}

// tell says what happened.
func (a *app) tell(what string, given []string, err error) error {
	name := "the leadership"
	if len(given) == 1 {
		name = given[0]
	}
	if err != nil {
		return fmt.Errorf("%s not %s: %w", name, what, err)
	}
	if !a.structured() {
		fmt.Fprintf(a.stdout, "%s: %s\n", name, what)
	}
	return nil
}

// tellChange is tell for a change of the cluster: one that took too long may have
// happened, or happen yet.
func (a *app) tellChange(what string, given []string, err error) error {
	told := a.tell(what, given, err)
	if err != nil && (connect.CodeOf(err) == connect.CodeDeadlineExceeded || strings.Contains(err.Error(), store.ErrUncertain.Error())) {
		return fmt.Errorf("%w: outcome unknown: ask meshgate cluster status what became of it, and which gateways keep no changes", told)
	}
	return told
}

// tellVoters says after a change that worked how many gateways may fail now; it
// passes on the error of the change.
func (a *app) tellVoters(ctx context.Context, c *peer.Public, err error) error {
	if err != nil || a.structured() {
		return err
	}
	answer, err := c.Cluster().Status(ctx, connect.NewRequest(&meshgatev1.StatusRequest{}))
	if err != nil {
		return nil // the change was made; this is only said on top
	}
	fmt.Fprintln(a.stderr, votersText(votersIn(answer.Msg)))
	return nil
}

func votersIn(s *meshgatev1.StatusResponse) int {
	n := 0
	for _, r := range s.GetReplicas() {
		if r.GetVoter() {
			n++
		}
	}
	return n
}

// votersText says how many of n voters may fail, and that an even number is no
// better than one less.
func votersText(n int) string {
	fail := strconv.Itoa((n - 1) / 2)
	if fail == "0" {
		fail = "none"
	}
	if n == 1 {
		return "1 voter, none may fail"
	}
	text := fmt.Sprintf("%d voters, %s may fail", n, fail)
	if n%2 == 0 {
		text += fmt.Sprintf(": no more than with %d; have an odd number (meshgate cluster promote, demote, or another gateway)", n-1)
	}
	return text
}

func (a *app) clusterStatus(ctx context.Context, c *peer.Public, _ []string) error {
	answer, err := c.Cluster().Status(ctx, connect.NewRequest(&meshgatev1.StatusRequest{}))
	if err != nil {
		return fmt.Errorf("status of the cluster: %w", err)
	}
	if err := a.printCluster(answer.Msg); err != nil {
		return err
	}
	if trouble := answer.Msg.GetTrouble(); trouble != "" {
		return errors.New(trouble)
	}
	if n := votersIn(answer.Msg); n > 0 && !a.structured() {
		fmt.Fprintln(a.stderr, votersText(n)+lossText(answer.Msg))
	}
	return nil
}

// farBehind is how many entries a voter may lack that are on their way.
const farBehind = 1024

// lossText says how many more voters may fail while some do not answer, keep
// nothing for want of room, or have yet to catch up; empty when there are none.
func lossText(s *meshgatev1.StatusResponse) string {
	var gone, full, late []string
	for _, r := range s.GetReplicas() {
		switch {
		case !r.GetVoter():
		case !r.GetAlive():
			gone = append(gone, r.GetId())
		case r.GetRoom() == meshgatev1.Room_ROOM_NONE:
			full = append(full, r.GetId())
		case r.GetLag() > farBehind:
			late = append(late, r.GetId())
		}
	}
	text := ""
	if len(gone) > 0 {
		text = "; out of reach now: " + strings.Join(gone, ", ")
	}
	if len(full) > 0 {
		text += "; without room on the disk: " + strings.Join(full, ", ")
	}
	if len(late) > 0 {
		text += "; far behind: " + strings.Join(late, ", ")
	}
	if text == "" {
		return ""
	}
	more := "none"
	if n := (votersIn(s)-1)/2 - len(gone) - len(full) - len(late); n > 0 {
		more = strconv.Itoa(n)
	}
	return fmt.Sprintf("%s, so that %s more may", text, more)
}

// contactText is how long ago a replica was heard from, as exactly as matters.
func contactText(ago time.Duration) string {
	unit := time.Millisecond
	if ago >= time.Second {
		unit = time.Second
	}
	return ago.Round(unit).String() + " ago"
}

func (a *app) printCluster(s *meshgatev1.StatusResponse) error {
	if a.structured() {
		return a.printProto(s)
	}
	rows := [][]string{{"ID", "ROLE", "ADDRESS", "HEARD", "LAG"}}
	for _, r := range s.GetReplicas() {
		role := roleObserver
		switch {
		case r.GetLeader() && r.GetAlive():
			role = "leader"
		case r.GetVoter():
			role = roleVoter
		}
		heard, lag := "not known", "not known"
		if r.GetLastContact() != nil {
			heard = contactText(r.GetLastContact().AsDuration())
			if !r.GetLagUnknown() {
				lag = fmt.Sprint(r.GetLag())
			}
		}
		switch {
		case r.GetAlive() && r.GetLastContact() == nil:
			heard = "answers"
		case !r.GetAlive():
			heard += " (out of reach)"
		}
		switch r.GetRoom() {
		case meshgatev1.Room_ROOM_LOW:
			heard += " (disk full)"
		case meshgatev1.Room_ROOM_NONE:
			heard += " (disk full, falls behind)"
		default:
		}
		rows = append(rows, []string{r.GetId(), role, r.GetAddress(), heard, lag})
	}
	return table(a.stdout, rows)
}
