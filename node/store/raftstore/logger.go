// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
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
	case level >= hclog.Warn && !frequent(msg):
		s.logger.Warn(msg, args...)
	default:
		s.logger.Debug(msg, args...)
	}
}

// frequent says whether raft repeats a message several times a second while a
// replica is out of reach.
func frequent(msg string) bool {
	switch msg {
	case "failed to heartbeat to", "failed to appendEntries to", "failed to contact",
		"failed to make requestVote RPC", "rejecting pre-vote request since we have a leader":
		return true
	}
	return false
}

// lateFormat is formatted only if it is logged.
type lateFormat []any

// LogValue implements slog.LogValuer.
func (f lateFormat) LogValue() slog.Value {
	format, _ := f[0].(string)
	return slog.StringValue(fmt.Sprintf(format, f[1:]...))
}
