// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// pionLogs gives pion's chatter to slog. Whatever level pion chose, it is
// Debug here: pion warns about every odd packet of a stranger, and only this
// package knows what an operator has to do.
type pionLogs struct{ logger *slog.Logger }

// NewLogger implements logging.LoggerFactory.
func (p pionLogs) NewLogger(scope string) logging.LeveledLogger {
	return pionLog{p.logger.With("scope", scope)}
}

type pionLog struct{ logger *slog.Logger }

// line is a log line that is put together only if somebody reads it.
type line struct {
	format string
	args   []any
}

// LogValue implements slog.LogValuer, for handlers of every format.
func (l line) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf(l.format, l.args...)) }

func (p pionLog) log(level, text string) { p.logger.Debug("pion says", "level", level, "text", text) }

func (p pionLog) logf(level, format string, args []any) {
	p.logger.Debug("pion says", "level", level, "text", line{format, args})
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
