// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// maxFile bounds a configuration file, in bytes.
	maxFile = 16 << 20
	// settleTime is how long a file has to stay as it is before what is no
	// longer in it ends what lasts. Not every program replaces files at once:
	// for a moment they may be empty, or end too early.
	settleTime = time.Second
)

// watched is a value parsed from files, and parsed anew when they change. It
// looks when it is asked, so that it needs no goroutine. It is safe for
// concurrent use.
type watched[T any] struct {
	paths []string
	parse func(files [][]byte) (T, error)
	log   *slog.Logger

	mu    sync.Mutex // guards the fields below
	value T
	count uint64    // of values before this one
	since time.Time // when value was read; zero for the first
	seen  []stamp
}

// stamp tells one content of a file from the next.
type stamp struct {
	modified time.Time
	size     int64
}

// watch parses the files at paths; an error says what is wrong with them. A
// nil logger discards what get has to say later.
func watch[T any](logger *slog.Logger, parse func(files [][]byte) (T, error), paths ...string) (*watched[T], error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	w := &watched[T]{paths: paths, parse: parse, log: logger}
	seen, err := w.look()
	if err != nil {
		return nil, err
	}
	if w.value, err = w.load(); err != nil {
		return nil, err
	}
	w.seen = seen
	return w, nil
}

// get returns the value of the files as they are now. While they cannot be
// read or parsed it returns the last good value, and says so in the log once
// for each change.
func (w *watched[T]) get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.getLocked()
}

// getSettled is get, and whether the value has been the same for settleTime.
func (w *watched[T]) getSettled() (value T, settled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.getLocked(), time.Since(w.since) >= settleTime
}

// generation is another number for each value that get returns, and again once
// the value has settled.
func (w *watched[T]) generation() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.getLocked()
	if time.Since(w.since) < settleTime {
		return 2 * w.count
	}
	return 2*w.count + 1
}

func (w *watched[T]) getLocked() T {
	seen, err := w.look()
	if err == nil && slices.Equal(seen, w.seen) {
		return w.value
	}
	if err != nil {
		if w.seen != nil {
			w.log.Warn("file not readable, its last content stays in force", "err", err)
			w.seen = nil
		}
		return w.value
	}
	w.seen = seen
	value, err := w.load()
	if err != nil {
		w.log.Warn("changed file not used, its last content stays in force", "err", err)
		return w.value
	}
	w.log.Info("file read again", "path", w.paths[0])
	w.value = value
	w.count++
	w.since = time.Now()
	return value
}

func (w *watched[T]) look() ([]stamp, error) {
	stamps := make([]stamp, 0, len(w.paths))
	for _, path := range w.paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.Size() > maxFile || !info.Mode().IsRegular() {
			return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("not a regular file of at most %d bytes", maxFile)}
		}
		stamps = append(stamps, stamp{modified: info.ModTime(), size: info.Size()})
	}
	return stamps, nil
}

func (w *watched[T]) load() (T, error) {
	var zero T
	files := make([][]byte, 0, len(w.paths))
	for _, path := range w.paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			return zero, err
		}
		files = append(files, raw)
	}
	value, err := w.parse(files)
	if err != nil {
		return zero, fmt.Errorf("%s: %w", w.paths[0], err)
	}
	return value, nil
}
