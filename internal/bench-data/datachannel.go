// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/client"
)

// dataChannelConfig is a node, and the gateway that leads to it.
type dataChannelConfig struct {
	URL, Token string
	Pin        string // as the gateway writes it
	Node       string
}

// dataChannel is a peer connection to a node.
type dataChannel struct {
	conn *client.Conn
	api  *peer.Public
}

func openDataChannel() (_ *dataChannel, err error) {
	var c dataChannelConfig
	if err := json.Unmarshal([]byte(os.Getenv(configEnv)), &c); err != nil {
		return nil, err
	}
	var trust peer.TLSOptions
	pin, err := hex.DecodeString(strings.TrimPrefix(c.Pin, "sha256:"))
	if err != nil || len(pin) != len(trust.Pin) {
		return nil, errors.Join(fmt.Errorf("pin %q is none", c.Pin), err)
	}
	copy(trust.Pin[:], pin)
	d := &dataChannel{}
	if d.api, err = peer.NewPublic(c.URL, c.Token, trust); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](d.api.WebRTC().StartDataChannel(ctx))
	if d.conn, err = client.Dial(ctx, call, client.Options{Node: c.Node}); err != nil {
		d.api.Close()
		return nil, err
	}
	return d, nil
}

// dial reaches what the node exposes, whatever the address.
func (d *dataChannel) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return d.conn.DialContext(ctx, network, net.JoinHostPort("localhost", strconv.Itoa(exposedPort)))
}

// Close ends the connection. It is the end of the process, too: what cannot be
// closed ends with that.
func (d *dataChannel) Close() {
	_ = d.conn.Close()
	d.api.Close()
}
