// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// newRaftLogger returns the logger that raft wants. What raft calls
// information is how an election goes step by step; it is logged as debug,
// and the store itself says who leads. What raft calls an error heals by
// itself, or makes the store fail, which is logged as an error then.
func newRaftLogger(logger *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(logSink{logger})
	return l
}

// logSink passes raft's logs on to slog.
type logSink struct{ logger *slog.Logger }

var _ hclog.SinkAdapter = logSink{}

// Accept implements hclog.SinkAdapter.
func (s logSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	for i, arg := range args {
		switch arg := arg.(type) {
		case hclog.Format:
			args[i] = lateFormat(arg)
		case string:
			if arg == "error" && i%2 == 0 {
				args[i] = "err"
			}
		}
	}
	switch {
	case level >= hclog.Warn && !ordinary(msg, args):
		s.logger.Warn(msg, args...)
	default:
		s.logger.Debug(msg, args...)
	}
}

// ordinary says whether a message that raft warns with is nothing for
// operators: it repeats several times a second while a replica is out of reach
// or there is no leader, of which upkeep speaks once; or it comes with every
// replica that joins, catches up or is removed.
func ordinary(msg string, args []any) bool {
	switch msg {
	case "failed to heartbeat to", "failed to appendEntries to", "failed to contact",
		"failed to make requestVote RPC", "rejecting pre-vote request since we have a leader",
		"heartbeat timeout reached, starting election", "Election timeout reached, restarting election":
		return true
	case "no known peers, aborting election", "failed to get previous log", "appendEntries rejected, sending older logs":
		return true // it joins: the leader finds out from where on it lacks the log
	case "not part of stable configuration, aborting election", "rejecting pre-vote request since node is not in configuration",
		"heartbeat timeout reached, not part of a stable configuration or a non-voter, not triggering a leader election":
		return true // it was removed, and does not know yet
	case "failed to decode incoming command", "failed to flush response":
		return slices.ContainsFunc(args, hungUp)
	}
	return false
}

// hungUp says whether a value of a message is that a connection ended, or that
// this replica takes no more of them. What arrives and makes no sense is
// something else.
func hungUp(arg any) bool {
	err, _ := arg.(error)
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, raft.ErrTransportShutdown)
}

// lateFormat is formatted only if it is logged.
type lateFormat []any

// LogValue implements slog.LogValuer.
func (f lateFormat) LogValue() slog.Value {
	format, _ := f[0].(string)
	return slog.StringValue(fmt.Sprintf(format, f[1:]...))
}
