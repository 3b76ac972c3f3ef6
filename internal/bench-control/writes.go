// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/internal/bench-control/writer"
	"github.com/meshgate/meshgate/internal/child"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// voters is how many replicas each cluster has.
const voters = 3

// Names of what is written to.
const (
	toReplicas = "Meshgate, replicas"
	toGateways = "Meshgate, gateways"
	toEtcd     = "etcd"
)

// target is a member of a cluster.
type target struct{ ID, URL string }

// loadConfig says what a client process writes to.
type loadConfig struct {
	Targets []target
	Value   int // bytes
}

// runLoad is the client process of replicas and gateways. Its calls are made by
// the same library as those of etcd's client.
func runLoad(c loadConfig) error {
	var l load
	for _, t := range c.Targets {
		address, secure := strings.CutPrefix(t.URL, "https://")
		transport := insecure.NewCredentials()
		if secure { // who it is, is known: see newClients
			transport = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
		}
		conn, err := grpc.NewClient(strings.TrimPrefix(address, "http://"), grpc.WithTransportCredentials(transport))
		if err != nil {
			return err
		}
		defer conn.Close()
		l = append(l, member{t.ID, conn})
	}
	return writer.Serve(context.Background(), os.Stdin, os.Stdout, l, c.Value)
}

// load is a cluster, with a connection to each member.
type load []member

type member struct {
	id   string
	conn *grpc.ClientConn
}

var _ writer.Target = load(nil)

// Members implements writer.Target.
func (l load) Members() int { return len(l) }

// Put implements writer.Target.
func (l load) Put(ctx context.Context, member int, key, value string) error {
	return l[member].call(ctx, v1connect.StorageQueryServicePublishProcedure, &v1.PublishRequest{Key: key, Value: value}, &v1.PublishResponse{})
}

// Leader implements writer.Target.
func (l load) Leader(ctx context.Context) (int, error) {
	var s v1.Status
	if err := l[0].call(ctx, v1connect.NodeGetStatusProcedure, &v1.GetStatusRequest{}, &s); err != nil {
		return 0, err
	}
	i := slices.IndexFunc(l, func(m member) bool { return m.id == s.GetCurrentLeader() })
	if i < 0 {
		return 0, fmt.Errorf("%q leads, who is no member", s.GetCurrentLeader())
	}
	return i, nil
}

// call makes a call as the admin.
func (m member) call(ctx context.Context, procedure string, req, res proto.Message) error {
	return m.conn.Invoke(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tokenOf(admin)), procedure, req, res)
}

// startProgram starts the program that has etcd inside.
func startProgram(ctx context.Context, path, role string, config any) (*child.Process, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	return child.Start(ctx, exec.CommandContext(ctx, path, role, string(text)), new(bool))
}

// system is a cluster and its client process.
type system struct {
	name    string
	members processes
	client  *child.Process
}

func (s *system) end() {
	if s.client != nil {
		s.client.End()
	}
	s.members.end()
}

// startSystem starts a cluster and a client of it.
func startSystem(ctx context.Context, b binaries, o options, name string) (s *system, err error) {
	s = &system{name: name}
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	var targets []target
	start := map[string]func(context.Context, binaries, int) (processes, []target, error){
		toReplicas: startReplicas, toGateways: startGateways, toEtcd: startEtcd,
	}[name]
	if s.members, targets, err = start(ctx, b, voters); err != nil {
		return nil, err
	}
	if name == toEtcd {
		at := make([]string, len(targets))
		for i, t := range targets {
			at[i] = t.URL
		}
		s.client, err = startProgram(ctx, b.etcd, "load", map[string]any{"Targets": at, "Value": o.value})
		return s, err
	}
	s.client, err = startRole(ctx, roleLoad, loadConfig{Targets: targets, Value: o.value}, new(bool))
	return s, err
}

// write measures once. It also returns the CPU time that the members used for
// each acknowledged write.
func (s *system) write(ctx context.Context, o options, clients int) (r writer.Result, cpu time.Duration, err error) {
	before, err := s.cpu()
	if err != nil {
		return r, 0, err
	}
	if err := s.client.Send(writer.Order{Clients: clients, Warm: o.warm, Count: o.count}); err != nil {
		return r, 0, err
	}
	if err := s.client.Receive(ctx, &r); err != nil {
		return r, 0, fmt.Errorf("%w: %s", err, s.client.Stderr())
	}
	if r.Error != "" {
		return r, 0, errors.New(r.Error)
	}
	after, err := s.cpu()
	// The time before the window counts as well, at the same rate.
	writes := r.Acked * (o.warm + o.count).Seconds()
	return r, time.Duration(float64(after-before) / max(writes, 1)), err
}

// cpu is what all members have used.
func (s *system) cpu() (all time.Duration, err error) {
	for _, m := range s.members {
		one, err := m.CPU()
		if err != nil {
			return 0, err
		}
		all += one
	}
	return all, nil
}

// measureWrites writes to each cluster in each round, at one and at many
// clients. Every other round goes backwards. The first one, in which everybody
// dials and grows, does not count. Many short rounds say more than a few long
// ones: whoever else is on the machine comes and goes within seconds.
func measureWrites(ctx context.Context, b binaries, o options, r *report) error {
	var systems []*system
	defer func() {
		for _, s := range systems {
			s.end()
		}
	}()
	for _, name := range []string{toReplicas, toGateways, toEtcd} {
		s, err := startSystem(ctx, b, o, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		systems = append(systems, s)
	}
	type step struct {
		*system
		clients int
	}
	var steps []step
	for _, clients := range clientCounts {
		for _, s := range systems {
			steps = append(steps, step{s, clients})
		}
	}
	for round := range o.rounds + 1 {
		for _, s := range steps {
			one, cpu, err := s.write(ctx, o, s.clients)
			if err != nil {
				return fmt.Errorf("%s, %d clients: %w", s.name, s.clients, err)
			}
			if round > 0 {
				r.addWrite(s.name, s.clients, one, cpu)
			}
		}
		if round > 0 {
			slices.Reverse(steps)
		}
	}
	return nil
}
