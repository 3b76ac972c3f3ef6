// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshgate/meshgate/internal/child"
)

// The servers, in the order in which they are measured.
const (
	meshgate = "meshgate" // package turn in user space
	kernel   = "xdp"      // the same, with channels in the kernel
	coturn   = "coturn"   // Debian's
	pion     = "pion"     // pion/turn/v3's server with its defaults
)

// turnPort is where each of them listens, on an address of its own, and turnsPort
// where ours does with TLS.
const turnPort, turnsPort = 3478, 5349

// server is a server that runs.
type server struct {
	name  string
	cable cable
	login login
	pid   int
	// end ends it, and kill does so at once.
	end, kill func()
	// says is the end of what it wrote to its standard error.
	says func() string
}

// serverConfig configures the roles that are servers.
type serverConfig struct {
	At netip.AddrPort
	// Clients is the network of clients and peers.
	Clients netip.Prefix
	// Allocations is how many there may be.
	Allocations int
	// Answers is how many strangers of a network are answered in a second; 0
	// leaves it at the default.
	Answers int
	// Lifetime is that of allocations; 0 leaves it at the default.
	Lifetime time.Duration
	// Kernel asks for channels in the kernel.
	Kernel bool
	// Secure has our server serve TLS, too.
	Secure bool
}

// serve starts a server on a cable and pins it. It answers soon.
func (w *world) serve(ctx context.Context, name string, c cable, config serverConfig) (s *server, err error) {
	config.At, config.Clients = netip.AddrPortFrom(c.server, turnPort), c.network()
	config.Kernel = name == kernel
	if config.Kernel {
		// Nothing is sent before both ends of the cable have their programs.
		if _, err := w.tell(ctx, order{Pass: c.name}); err != nil {
			return nil, err
		}
	}
	err = pinned(w.serverCPU, func() error {
		if name == coturn {
			s, err = w.startCoturn(ctx, config)
			return err
		}
		role := roleMeshgate
		if name == pion {
			role = rolePion
		}
		var ready started
		p, err := w.role(ctx, w.serverSide, role, config, &ready)
		if err != nil {
			return err
		}
		if ready.Lacks != "" {
			p.End()
			return &lacksError{ready.Lacks}
		}
		s = &server{
			login: login{
				At: config.At, Username: ready.Username, Password: ready.Password,
				Secure: netip.AddrPortFrom(c.server, turnsPort), Certificate: ready.Certificate,
			},
			pid: p.PID(), end: p.End, kill: p.Kill, says: p.Stderr,
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.name, s.cable = name, c
	if config.Kernel {
		if err := w.pollBy(ctx, c, w.serverCPU); err != nil {
			s.end()
			return nil, err
		}
	}
	return s, nil
}

// lacksError says why a server cannot be measured on this machine.
type lacksError struct{ reason string }

// Error implements error.
func (e *lacksError) Error() string { return e.reason }

// startCoturn starts Debian's server with one thread for relays, as it has one CPU. All
// that is off is what this benchmark has no use for; what it would log goes nowhere.
func (w *world) startCoturn(ctx context.Context, config serverConfig) (*server, error) {
	const user, password = "bench", "bench"
	at := config.At.Addr().String()
	cmd := command(ctx, w.serverSide, w.coturn, "-n", "--listening-ip="+at, fmt.Sprintf("--listening-port=%d", turnPort), "--relay-ip="+at,
		"--relay-threads=1", "--min-port=20000", "--max-port=60000", "--realm=bench", "--lt-cred-mech", "--user="+user+":"+password,
		"--userdb="+filepath.Join(w.dir, "turndb"), "--pidfile="+filepath.Join(w.dir, "turnserver.pid"), "--no-cli", "--no-tcp", "--no-tls",
		"--no-dtls", "--no-tcp-relay", "--log-file=/dev/null", "--no-stdout-log", "--simple-log")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	kill := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // to be killed is no success
	}
	return &server{
		login: login{At: config.At, Username: user, Password: password}, pid: cmd.Process.Pid,
		end: kill, kill: kill, // it would take seconds to end in peace
		says: func() string { return "" },
	}, nil
}

// findCoturn returns the path of coturn's server and its version.
func findCoturn(ctx context.Context) (path, version string, err error) {
	for _, name := range []string{"turnserver", "/usr/sbin/turnserver"} {
		if path, err = exec.LookPath(name); err == nil {
			break
		}
	}
	if err != nil {
		return "", "", errors.New("coturn's turnserver is not here: apt-get install coturn (and systemctl disable --now coturn, which would take the TURN port of the host), or measure without it: -without coturn")
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", "", fmt.Errorf("%s --version: %w", path, err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return path, strings.TrimSpace(lines[len(lines)-1]), nil
}

// memory is what a server holds resident, in bytes.
func (s *server) memory() (int64, error) {
	now, _, err := child.RSS(s.pid)
	return now, err
}

// files is how many files and sockets it has open.
func (s *server) files() (int, error) {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid))
	return len(list), err
}

// sockets is how many UDP sockets its host has.
func (s *server) sockets() (n int, err error) {
	for _, name := range []string{"udp", "udp6"} {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", s.pid, name))
		if err != nil {
			return 0, err
		}
		n += strings.Count(string(raw), "\n") - 1 // the first line is the head
	}
	return n, nil
}
