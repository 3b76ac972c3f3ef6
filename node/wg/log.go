// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/device"
)

// The library reports per packet, and what strangers send decides how often.
const (
	logEvery = time.Second
	logBurst = 10
)

// newLogger passes the library's messages on: troubles as warnings, the rest
// for debugging. Both are limited; neither holds keys.
func newLogger(logger *slog.Logger) *device.Logger {
	return &device.Logger{Verbosef: limited(logger.Debug), Errorf: limited(logger.Warn)}
}

// limited makes a printf-like function of log that drops what comes too fast.
func limited(log func(msg string, args ...any)) func(format string, args ...any) {
	limit := rate.NewLimiter(rate.Every(logEvery), logBurst)
	return func(format string, args ...any) {
		if limit.Allow() {
			log("wireguard", "detail", fmt.Sprintf(format, args...))
		}
	}
}
