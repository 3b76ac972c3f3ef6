// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package xdp

import (
	"errors"
	"fmt"
	"iter"

	"github.com/meshgate/meshgate/turn/core"
)

// Engine serves nothing on this system.
type Engine struct{}

// Open returns an error if the mode asks for what only Linux has, and nil if it
// asks for nothing.
func Open(cfg Config) (*Engine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Mode == Generic || cfg.Mode == Native {
		return nil, fmt.Errorf("XDP mode %s needs Linux; set it to off: %w", cfg.Mode, errors.ErrUnsupported)
	}
	if cfg.Mode == Off {
		return nil, nil
	}
	return &Engine{}, nil
}

// Serves is false.
func (*Engine) Serves() bool { return false }

// Follow does nothing.
func (*Engine) Follow() error { return nil }

// Changed does nothing.
func (*Engine) Changed(core.Flow, iter.Seq[core.Binding]) {}

// Counters returns nothing.
func (*Engine) Counters(core.Flow) core.Usage { return core.Usage{} }

// Stats says why there is nothing to count.
func (e *Engine) Stats() Stats {
	if e == nil {
		return Stats{Idle: Unwanted}
	}
	return Stats{Idle: Unloadable}
}

// Interfaces returns nothing.
func (*Engine) Interfaces() []Interface { return nil }

// Close does nothing.
func (*Engine) Close() error { return nil }
