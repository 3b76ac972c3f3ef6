// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// restartPause is the pause before a replica that ended is started again.
	restartPause = 300 * time.Millisecond
	// comeBack is how long a replica may take from its start until it answers,
	// once nothing is wrong with it any more.
	comeBack = 60 * time.Second
	// lastLines are how many lines of its log are shown of one that does not.
	lastLines = 40
)

// replica is one of the cluster, over all starts of its process.
type replica struct {
	id      string
	address string // for clients
	disk    *disk
	log     string // file
	config  replicaConfig

	// inUse is held by the fault that works on the process or the disk.
	inUse sync.Mutex

	mu       sync.Mutex // guards the fields below
	proc     *exec.Cmd
	stdin    io.Closer
	ended    chan struct{} // closed when proc has ended
	wanted   bool          // it should run: when it ends it is started again
	byItself int           // how often it ended although nobody ended it
}

// start starts the process and what watches it.
func (r *replica) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted = true
	return r.startLocked()
}

func (r *replica) startLocked() error {
	out, err := os.OpenFile(r.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd, err := role(context.Background(), roleReplica, r.config, "nsenter", "--net=/run/netns/"+r.id)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = out, out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r.proc, r.stdin, r.ended = cmd, stdin, make(chan struct{})
	go r.watch(cmd, r.ended)
	return nil
}

// watch starts the process again when it ends and nobody wanted that.
func (r *replica) watch(cmd *exec.Cmd, ended chan struct{}) {
	_ = cmd.Wait()
	close(ended)
	<-time.After(restartPause)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wanted && r.proc == cmd {
		r.byItself++
		fmt.Fprintf(os.Stderr, "            %s ended by itself: %s\n", r.id, r.tail(1))
		if err := r.startLocked(); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: start", r.id, "again:", err)
		}
	}
}

// kill ends the process with SIGKILL and waits until it is gone.
func (r *replica) kill() {
	r.mu.Lock()
	r.wanted = false
	cmd, ended := r.proc, r.ended
	r.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill()
		<-ended
	}
}

// signal sends a signal to the process.
func (r *replica) signal(s syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.proc.Process.Signal(s) // it may have ended
}

// restarts is how often the process ended although nobody ended it.
func (r *replica) restarts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byItself
}

// ask makes a request on a connection of its own.
func (r *replica) ask(req request) (response, error) {
	l := &link{address: r.address}
	defer l.close()
	answer, err := l.ask(req)
	if err == nil && answer.Status != statusOK {
		err = errors.New(answer.Error)
	}
	return answer, err
}

// answers waits until the replica answers a linearizable read.
func (r *replica) answers(ctx context.Context) error {
	var err error
	for until := time.Now().Add(comeBack); time.Now().Before(until) && ctx.Err() == nil; pause(ctx, 100*time.Millisecond) {
		if _, err = r.ask(request{Verb: verbGet, Key: "/chaos/0/0", Within: attempt}); err == nil {
			return nil
		}
	}
	return fmt.Errorf("replica %s does not answer: %w\n%s", r.id, errors.Join(err, ctx.Err()), r.tail(lastLines))
}

// tail is the end of the log of the process, so many lines.
func (r *replica) tail(n int) string {
	raw, err := os.ReadFile(r.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// newReplica prepares a replica that was not started yet.
func newReplica(ctx context.Context, dir, id string, index int, config replicaConfig) (*replica, error) {
	d, err := newDisk(ctx, dir, id)
	if err != nil {
		return nil, err
	}
	config.ID, config.Dir, config.Join = id, filepath.Join(d.mount, "state"), index > 0
	config.Address, config.Serve = addressOf(index)+":7000", addressOf(index)+":7001"
	return &replica{id: id, address: config.Serve, disk: d, log: filepath.Join(dir, id+".log"), config: config}, nil
}
