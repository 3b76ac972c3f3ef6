// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// pionLogs gives pion's chatter to slog. Whatever level pion chose, it is
// Debug here: pion warns about every odd packet of a stranger, and only this
// package knows what an operator has to do.
type pionLogs struct {
	logger *slog.Logger
	on     bool
}

func newPionLogs(l *slog.Logger) logging.LoggerFactory {
	return pionLogs{logger: l, on: l.Enabled(context.Background(), slog.LevelDebug)} //nolint:forbidigo // asks for a level, does no work
}

// NewLogger implements logging.LoggerFactory.
func (p pionLogs) NewLogger(scope string) logging.LeveledLogger {
	return pionLog{logger: p.logger.With("scope", scope), on: p.on}
}

type pionLog struct {
	logger *slog.Logger
	on     bool
}

func (p pionLog) log(level, text string) {
	if p.on {
		p.logger.Debug("pion says", "level", level, "text", text)
	}
}

func (p pionLog) logf(level, format string, args []any) {
	if p.on {
		p.log(level, fmt.Sprintf(format, args...))
	}
}

func (p pionLog) Trace(string)                 {}
func (p pionLog) Tracef(string, ...any)        {}
func (p pionLog) Debug(string)                 {}
func (p pionLog) Debugf(string, ...any)        {}
func (p pionLog) Info(m string)                { p.log("info", m) }
func (p pionLog) Infof(f string, args ...any)  { p.logf("info", f, args) }
func (p pionLog) Warn(m string)                { p.log("warn", m) }
func (p pionLog) Warnf(f string, args ...any)  { p.logf("warn", f, args) }
func (p pionLog) Error(m string)               { p.log("error", m) }
func (p pionLog) Errorf(f string, args ...any) { p.logf("error", f, args) }
