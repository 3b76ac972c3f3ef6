// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/meshgate/meshgate/internal/child"
)

// peers is how many there are. Several relays send to each of them, so that it takes
// many packets at once: it is the server that shall be busy, not the load.
const peers = 16

// world is the two hosts and the load. Servers come and go.
type world struct {
	*lab
	dir    string // for files of servers
	self   string
	coturn string // path of its server
	load   *child.Process
	// cables are those of servers, by name.
	cables map[string]cable
}

func newWorld(ctx context.Context) (w *world, err error) {
	w = &world{cables: make(map[string]cable)}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.self, err = os.Executable(); err != nil {
		return w, err
	}
	if w.dir, err = os.MkdirTemp("", "meshgate-bench-turn-"); err != nil {
		return w, err
	}
	if w.lab, err = newLab(ctx); err != nil {
		return w, err
	}
	err = pinned(w.loadCPU, func() error {
		w.load, err = w.role(ctx, w.loadSide, roleLoad, loadConfig{Peers: peers}, new(started))
		return err
	})
	return w, err
}

func (w *world) close() {
	if w.load != nil {
		w.load.End()
	}
	if w.lab != nil {
		w.lab.close()
	}
	if w.dir != "" {
		_ = os.RemoveAll(w.dir) // of the temporary files
	}
}

// role starts this program in a role.
func (w *world) role(ctx context.Context, namespace, role string, config, ready any) (*child.Process, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	cmd := command(ctx, namespace, w.self)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, configEnv+"="+string(text))
	return child.Start(ctx, cmd, ready)
}

// cableOf is the cable of a server, which is made when it is asked for first.
func (w *world) cableOf(ctx context.Context, name string) (c cable, err error) {
	c, ok := w.cables[name]
	if ok {
		return c, nil
	}
	if c, err = w.lab.cable(ctx); err == nil {
		w.cables[name] = c
	}
	return c, err
}

// tell has the load do something.
func (w *world) tell(ctx context.Context, o order) (r outcome, err error) {
	if err := w.load.Send(o); err != nil {
		return r, err
	}
	if err := w.load.Receive(ctx, &r); err != nil {
		return r, fmt.Errorf("%w: %s", err, w.load.Stderr())
	}
	if r.Error != "" {
		err = errors.New(r.Error)
	}
	return r, err
}

// transfer has clients of a server send and receive.
func (w *world) transfer(ctx context.Context, s *server, o transferOrder) (transferred, error) {
	o.PID = s.pid
	r, err := w.tell(ctx, order{Server: s.name, Transfer: &o})
	if err != nil {
		return r.Transferred, s.blame(fmt.Errorf("%s: %s: %w", s.name, o.cell, err))
	}
	return r.Transferred, nil
}

// connect makes clients of a server.
func (w *world) connect(ctx context.Context, s *server, clients int) (connected, error) {
	r, err := w.tell(ctx, order{Server: s.name, Connect: &connectOrder{
		Login: s.login, PID: s.pid, Clients: clients, Window: window(clients), Peers: s.cable.load,
	}})
	if err != nil {
		return r.Connected, s.blame(fmt.Errorf("%s: %w", s.name, err))
	}
	return r.Connected, nil
}

// blame adds to an error what the server has said.
func (s *server) blame(err error) error {
	if text := s.says(); text != "" {
		return fmt.Errorf("%w\n%s says: %s", err, s.name, text)
	}
	return err
}

// quit ends a server and forgets its clients.
func (w *world) quit(ctx context.Context, s *server) error {
	s.end()
	_, err := w.tell(ctx, order{Server: s.name, Forget: true})
	return err
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// lookCoturn finds coturn's server and tells its version.
func (w *world) lookCoturn(ctx context.Context) (version string, err error) {
	w.coturn, version, err = findCoturn(ctx)
	return version, err
}
