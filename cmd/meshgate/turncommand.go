// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// completeTimeout bounds what a shell waits for names to complete.
const completeTimeout = 2 * time.Second

func (a *app) turnCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "turn",
		Short: "what the TURN servers of the gateways relay",
		Args:  args(cobra.NoArgs, "list or close"),
		RunE: func(*cobra.Command, []string) error {
			return usagef("want turn list, turn close ID..., or turn close --user USER")
		},
	}
	cmd.AddCommand(a.turnListCommand(), a.turnCloseCommand())
	return cmd
}

// allocationsOf says which allocations are meant.
type allocationsOf struct{ gateway, user string }

func (of *allocationsOf) register(cmd *cobra.Command, gateway, user string) {
	cmd.Flags().StringVar(&of.gateway, "gateway", "", gateway)
	cmd.Flags().StringVar(&of.user, "user", "", user)
}

func (a *app) turnListCommand() *cobra.Command {
	var to access
	var of allocationsOf
	cmd := &cobra.Command{
		Use:   "list",
		Short: "show who is relayed, from where and how much",
		Long: "list shows the allocations of the TURN servers of all gateways, those that relayed most first. SENT went\n" +
			"from the client to peers, RECEIVED came from them. It takes a role that may get everything.",
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			list, silent, err := listAllocations(cmd.Context(), gate, of)
			if err != nil {
				return fmt.Errorf("list allocations: %w", err)
			}
			if err := a.printAllocations(list, time.Now()); err != nil {
				return err
			}
			if len(list) == 0 && len(silent) == 0 && of.user != "" {
				fmt.Fprintf(a.stderr, "no relays of %q now; one of --turn.users-file is static:NAME here, one of --turn.secret-file all that its credentials have behind the time\n", of.user)
			}
			return silentGateways(silent, "its allocations are not in the list")
		},
	}
	to.registerServer(cmd.Flags())
	of.register(cmd, "id of the gateway whose are listed (default: all gateways)", "the user whose are listed (default: everybody)")
	return cmd
}

func (a *app) turnCloseCommand() *cobra.Command {
	var to access
	var of allocationsOf
	cmd := &cobra.Command{
		Use:   "close ID...",
		Short: "end allocations, or all of a user",
		Long: "close ends the allocations that turn list shows under these ids, or all of --user, at once, and the\n" +
			"connections of their clients over TCP and TLS; over UDP these are not told. They may come back while their\n" +
			"credentials are good: take away the user's token or role first (meshgate token revoke, meshgate delete\n" +
			"rolebindings). It takes a role that may delete everything.",
		Args: args(cobra.ArbitraryArgs, "ids of allocations"),
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := of.checkClose(ids); err != nil {
				return err
			}
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			if len(ids) == 0 {
				return a.closeOfUser(cmd.Context(), gate, of)
			}
			return a.closeAllocations(cmd.Context(), gate, ids)
		},
		ValidArgsFunction: func(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeAllocations(cmd, &to, given), cobra.ShellCompDirectiveNoFileComp
		},
	}
	to.registerServer(cmd.Flags())
	of.register(cmd, "with --user: the gateway at which they end (default: all gateways)", "end all allocations of this user")
	return cmd
}

// checkClose refuses what does not say what is to end. The flags of of may have come
// from the environment, too.
func (of allocationsOf) checkClose(ids []string) error {
	switch {
	case len(ids) == 0 && of.user == "":
		return usagef("which allocations? Give ids as turn list shows them, or --user")
	case len(ids) > 0 && of.user != "":
		return usagef("ids and --user name allocations in two ways; give one")
	case len(ids) > 0 && of.gateway != "":
		return usagef("--gateway is for --user; an id has its gateway in front")
	}
	return nil
}

// listAllocations reads a whole list, those that relayed most first, and who of the
// gateways did not answer.
func listAllocations(ctx context.Context, gate *peer.Public, of allocationsOf) (list []*meshgatev1.Allocation, silent []*meshgatev1.SilentGateway, err error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	stream, err := gate.Turn().ListAllocations(ctx, connect.NewRequest(&meshgatev1.ListAllocationsRequest{GatewayId: of.gateway, User: of.user}))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = stream.Close() }() // all was read, or nothing more is wanted
	for stream.Receive() {
		list = append(list, stream.Msg().GetAllocations()...)
		silent = append(silent, stream.Msg().GetSilent()...)
	}
	slices.SortFunc(list, func(a, b *meshgatev1.Allocation) int {
		return cmp.Or(cmp.Compare(b.GetSentBytes()+b.GetReceivedBytes(), a.GetSentBytes()+a.GetReceivedBytes()), strings.Compare(a.GetId(), b.GetId()))
	})
	return list, silent, stream.Err()
}

func (a *app) printAllocations(list []*meshgatev1.Allocation, now time.Time) error {
	if a.structured() {
		items := make([]proto.Message, 0, len(list))
		for _, m := range list {
			items = append(items, m)
		}
		return a.printProtos(items)
	}
	rows := [][]string{{"ID", "USER", "CLIENT", "RELAYED", "SINCE", "ENDS IN", "PERMISSIONS", "CHANNELS", "SENT", "RECEIVED"}}
	for _, m := range list {
		since, ends := "", ""
		if m.GetSince() != nil {
			since = ago(now.Sub(m.GetSince().AsTime())) + " ago"
		}
		if m.GetExpiresAt() != nil {
			ends = ago(m.GetExpiresAt().AsTime().Sub(now))
		}
		rows = append(rows, []string{
			m.GetId(), printable(m.GetUser()), m.GetTransport() + " " + m.GetClientAddress(), relayedText(m), since, ends,
			fmt.Sprint(m.GetPermissions()), fmt.Sprint(m.GetChannels()), sizeText(m.GetSentBytes()), sizeText(m.GetReceivedBytes()),
		})
	}
	return table(a.stdout, rows)
}

// relayedText is where peers reach an allocation.
func relayedText(m *meshgatev1.Allocation) string {
	text := strings.Join(m.GetRelayedAddresses(), " ")
	if m.GetRelayTransport() == "TCP" {
		text = "TCP " + text
	}
	return text
}

// printable is a name that others chose, fit for a terminal.
func printable(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

// sizeText is a number of bytes as people read it.
func sizeText(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	size, unit := float64(n), 0
	for ; size >= 1<<10 && unit < 4; unit++ {
		size /= 1 << 10
	}
	return fmt.Sprintf("%.1f %ciB", size, " KMGT"[unit])
}

// closeAllocations ends the allocations with these ids, as far as they are there.
func (a *app) closeAllocations(ctx context.Context, gate *peer.Public, ids []string) error {
	var errs []error
	for _, id := range ids {
		_, err := gate.Turn().CloseAllocations(ctx, connect.NewRequest(&meshgatev1.CloseAllocationsRequest{Id: id}))
		err = a.tell("closed", []string{id}, err)
		errs = append(errs, err)
		if code := connect.CodeOf(err); err != nil && code != connect.CodeNotFound && code != connect.CodeUnavailable {
			break // the next one would be answered likewise
		}
	}
	return errors.Join(errs...)
}

// closeOfUser ends all allocations of a user.
func (a *app) closeOfUser(ctx context.Context, gate *peer.Public, of allocationsOf) error {
	answer, err := gate.Turn().CloseAllocations(ctx, connect.NewRequest(&meshgatev1.CloseAllocationsRequest{User: of.user, GatewayId: of.gateway}))
	if err != nil {
		return fmt.Errorf("allocations of %s not closed: %w", printable(of.user), err)
	}
	if a.structured() {
		if err := a.printProto(answer.Msg); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "closed: %d of %s\n", answer.Msg.GetClosed(), printable(of.user))
	}
	return silentGateways(answer.Msg.GetSilent(), "what it holds of the user goes on")
}

// silentGateways is the error for gateways that have not answered; nil for none.
func silentGateways(silent []*meshgatev1.SilentGateway, what string) error {
	var errs []error
	for _, g := range silent {
		errs = append(errs, fmt.Errorf("gateway %s: %s; %s", g.GetGatewayId(), g.GetReason(), what))
	}
	return errors.Join(errs...)
}

// completeAllocations are the ids that a shell offers, without those that are there
// already. A shell asks while somebody types: what fails is silent.
func completeAllocations(cmd *cobra.Command, to *access, given []string) []string {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	gate, err := to.dial(ctx, cmd.Flags())
	if err != nil {
		return nil
	}
	defer gate.Close()
	list, _, _ := listAllocations(ctx, gate, allocationsOf{})
	var ids []string
	for _, m := range list {
		if !slices.Contains(given, m.GetId()) {
			ids = append(ids, fmt.Sprintf("%s\t%s at %s", m.GetId(), printable(m.GetUser()), m.GetClientAddress()))
		}
	}
	return ids
}
