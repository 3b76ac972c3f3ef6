// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/skip2/go-qrcode"
	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func (a *app) peerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peer",
		Short: "WireGuard devices that run no Meshgate",
		Args:  args(cobra.NoArgs, "create or delete"),
		RunE:  func(*cobra.Command, []string) error { return usagef("want peer create NAME or peer delete NAME") },
	}
	cmd.AddCommand(a.peerCreateCommand(), a.peerDeleteCommand())
	return cmd
}

// peerOutput is the JSON form of a created peer.
type peerOutput struct {
	ID        string   `json:"id"`
	Addresses []string `json:"addresses"`
	Config    string   `json:"config"`
}

func (a *app) peerCreateCommand() *cobra.Command {
	var to access
	var qr bool
	var file string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "let a device in and print its wg-quick configuration",
		Long: "create makes a key, registers NAME with the mesh and prints a wg-quick\n" +
			"configuration. The private key is in that configuration and nowhere else:\n" +
			"it never leaves this machine otherwise and is not shown again.",
		Args: args(cobra.ExactArgs(1), "one name for the peer"),
		RunE: func(cmd *cobra.Command, args []string) error {
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			id, err := mesh.ParseNodeID(args[0])
			if err != nil {
				return usageError{err}
			}
			key, err := mesh.GenerateKey()
			if err != nil {
				return err
			}
			answer, err := gate.Member().Join(cmd.Context(), &v1.JoinRequest{
				Id: string(id), PublicKey: key.Public().Encode(), AssignIpv4: true,
			}, key)
			if err != nil {
				return fmt.Errorf("create peer %s: %w", id, err)
			}
			config, err := wgQuick(string(id), key, answer)
			if err != nil {
				// A peer without a configuration is of no use to anybody.
				_, undo := gate.Membership().Leave(cmd.Context(), connect.NewRequest(&v1.LeaveRequest{Id: string(id)}))
				return errors.Join(err, undo)
			}
			return a.printPeer(string(id), config, answer, file, qr)
		},
	}
	to.registerServer(cmd.Flags())
	cmd.Flags().BoolVar(&qr, "qr", false, "print a QR code for the WireGuard app instead of text")
	cmd.Flags().StringVar(&file, "file", "", "write the configuration to this file (mode 0600) instead")
	return cmd
}

func (a *app) printPeer(id, config string, r *v1.JoinResponse, file string, qr bool) error {
	if file != "" {
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			return fmt.Errorf("write configuration (peer %s exists now; remove it with: meshgate peer delete %s): %w", id, id, err)
		}
		config = ""
	}
	switch {
	case a.structured():
		return a.print(peerOutput{ID: id, Addresses: peerAddresses(r), Config: config})
	case file != "":
		fmt.Fprintf(a.stderr, "peer %s may join; start it with: wg-quick up %s\n", id, file)
		return nil
	case qr:
		code, err := qrcode.New(config, qrcode.Medium)
		if err != nil {
			return fmt.Errorf("make the QR code: %w", err)
		}
		fmt.Fprint(a.stdout, code.ToSmallString(false))
		fmt.Fprintf(a.stderr, "Scan it with the WireGuard app. It holds the private key of %s: do not keep it.\n", id)
		return nil
	default:
		_, err := fmt.Fprint(a.stdout, config)
		return err
	}
}

func (a *app) peerDeleteCommand() *cobra.Command {
	var to access
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "remove a peer or a node from the mesh",
		Args:  args(cobra.ExactArgs(1), "one name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			was, err := gate.Mesh().GetNode(cmd.Context(), connect.NewRequest(&v1.GetNodeRequest{Id: args[0]}))
			if err != nil {
				return fmt.Errorf("delete peer %s: %w", args[0], err)
			}
			_, err = gate.Membership().Leave(cmd.Context(), connect.NewRequest(&v1.LeaveRequest{Id: args[0]}))
			if err != nil {
				return fmt.Errorf("delete peer %s: %w", args[0], err)
			}
			fmt.Fprintf(a.stderr, "%s is not in the mesh any more\n", args[0])
			if len(was.Msg.GetFeatures()) > 0 {
				fmt.Fprintln(a.stderr, "It runs Meshgate: it ends once it notices. A token that it has would let it join anew (join --again): revoke the token to keep it out.")
			}
			return nil
		},
	}
	to.registerServer(cmd.Flags())
	return cmd
}

// peerKeepalive is the seconds between two packets that keep the mapping of a
// NAT in front of the peer, as WireGuard's documentation recommends.
const peerKeepalive = 25

// wgQuick is the configuration of a peer that joined with key: everything in
// the mesh goes through the gateways that the answer names.
func wgQuick(id string, key mesh.PrivateKey, r *v1.JoinResponse) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n[Interface]\nPrivateKey = %s\nAddress = %s\n",
		id, key.WireGuard().Base64(), strings.Join(peerAddresses(r), ", "))
	if dns := r.GetDnsServers(); len(dns) > 0 {
		fmt.Fprintf(&b, "DNS = %s, %s\n", strings.Join(dns, ", "), strings.TrimSuffix(r.GetMeshDomain(), "."))
	}
	var networks []string
	for _, text := range []string{r.GetNetworkIpv4(), r.GetNetworkIpv6()} {
		if p, err := netip.ParsePrefix(text); err == nil {
			networks = append(networks, p.Masked().String())
		}
	}
	reachable := 0
	for _, p := range r.GetPeers() {
		endpoint := p.GetNode().GetPrimaryEndpoint()
		if endpoint == "" {
			continue // it could not be called first
		}
		pub, err := mesh.ParsePublicKey(p.GetNode().GetPublicKey())
		if err != nil {
			return "", fmt.Errorf("key of gateway %s: %w", p.GetNode().GetId(), err)
		}
		allowed := p.GetAllowedIps()
		if reachable == 0 {
			allowed = networks // the first gateway carries the whole mesh
		}
		fmt.Fprintf(&b, "\n# %s\n[Peer]\nPublicKey = %s\nEndpoint = %s\nAllowedIPs = %s\nPersistentKeepalive = %d\n",
			p.GetNode().GetId(), pub.WireGuard(), endpoint, strings.Join(allowed, ", "), peerKeepalive)
		reachable++
	}
	if reachable == 0 {
		return "", fmt.Errorf("the network ACLs of this mesh let %s reach no gateway", id)
	}
	return b.String(), nil
}

// peerAddresses are the peer's own addresses with their prefix lengths.
func peerAddresses(r *v1.JoinResponse) []string {
	var out []string
	for _, text := range []string{r.GetAddressIpv4(), r.GetAddressIpv6()} {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()).String())
		}
	}
	return out
}

// hostOf is the first of some prefixes as a bare address.
func hostOf(prefixes ...string) string {
	for _, text := range prefixes {
		if p, err := netip.ParsePrefix(text); err == nil {
			return p.Addr().String()
		}
	}
	return ""
}
