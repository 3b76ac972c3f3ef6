// SPDX-License-Identifier: Apache-2.0

// Command etcd is what the writes of the control plane are measured beside: a
// member of an etcd cluster, as a library gives it to a program that embeds it
// and with every setting at its default; and a client that writes to such a
// cluster as that of Meshgate writes to its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/meshgate/meshgate/internal/bench-control/writer"
)

// patience is how long the cluster has to become ready.
const patience = 30 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 3 {
		return errors.New("want: etcd member|load CONFIG")
	}
	switch os.Args[1] {
	case "member":
		return member(os.Args[2])
	case "load":
		return load(os.Args[2])
	}
	return fmt.Errorf("no such role: %s", os.Args[1])
}

// memberConfig says which member to be.
type memberConfig struct {
	Name, Dir string
	// Client and Peer are the URLs on which it is reached, Cluster the peer
	// URLs of all members as NAME=URL,...
	Client, Peer, Cluster string
}

// member runs until standard input ends.
func member(config string) error {
	var c memberConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	client, err := url.Parse(c.Client)
	if err != nil {
		return err
	}
	peer, err := url.Parse(c.Peer)
	if err != nil {
		return err
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster = c.Name, c.Dir, c.Cluster
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.LogLevel, cfg.LogOutputs = "error", []string{"stderr"}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return err
	case <-time.After(patience):
		return errors.New("the cluster has no leader")
	}
	if err := say(true); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// loadConfig says where to write.
type loadConfig struct {
	Targets []string
	Value   int // bytes
}

// load writes whenever a line of standard input asks for it.
func load(config string) error {
	var c loadConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	t := target{at: c.Targets}
	for _, at := range c.Targets {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{at}, DialTimeout: patience})
		if err != nil {
			return err
		}
		defer client.Close()
		t.clients = append(t.clients, client)
	}
	return writer.Serve(context.Background(), os.Stdin, os.Stdout, t, c.Value)
}

// target is an etcd cluster, with a client of each member.
type target struct {
	at      []string
	clients []*clientv3.Client
}

var _ writer.Target = target{}

// Members implements writer.Target.
func (t target) Members() int { return len(t.clients) }

// Put implements writer.Target.
func (t target) Put(ctx context.Context, member int, key, value string) error {
	_, err := t.clients[member].Put(ctx, key, value)
	return err
}

// Leader implements writer.Target.
func (t target) Leader(ctx context.Context) (int, error) {
	for i, client := range t.clients {
		s, err := client.Status(ctx, t.at[i])
		if err != nil {
			return 0, err
		}
		if s.Leader == s.Header.MemberId {
			return i, nil
		}
	}
	return 0, errors.New("no member leads")
}

func say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
