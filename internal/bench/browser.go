// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshgate/meshgate/internal/child"
)

// blankPage is of the gateway's origin and there without a built console.
const blankPage = "/livez"

// browser is Chromium with a page that measures. One measurement runs at a time.
type browser struct {
	world  *world
	driver *child.Process
}

func startBrowser(ctx context.Context, w *world) (*browser, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("find the root of the module: %w", err)
	}
	cmd := exec.CommandContext(ctx, "node", "--import", "tsx", filepath.Join("internal", "bench", "browser", "driver.ts"), w.gateway.URL+blankPage)
	cmd.Dir = strings.TrimSpace(string(root))
	var ready bool
	driver, err := child.Start(ctx, cmd, &ready)
	if err != nil {
		return nil, fmt.Errorf("run Chromium (make build first, or leave it out with -chromium=false): %w", err)
	}
	return &browser{world: w, driver: driver}, nil
}

func (b *browser) close() { b.driver.End() }

// run runs a function of browser/page.ts.
func (b *browser) run(ctx context.Context, into any, name string, args ...any) error {
	if err := b.driver.Send(map[string]any{"name": name, "args": args}); err != nil {
		return err
	}
	var answer struct {
		Value json.RawMessage
		Error string
	}
	if err := b.driver.Receive(ctx, &answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return json.Unmarshal(answer.Value, into)
}

func (b *browser) access() map[string]string {
	return map[string]string{"url": b.world.gateway.URL, "token": b.world.gateway.Token}
}

func (b *browser) window() map[string]int64 {
	w := b.world.window
	return map[string]int64{"warm": w.Warm.Milliseconds(), "count": w.Count.Milliseconds()}
}

// paths are the paths whose client is in Chromium.
func (b *browser) paths() []path {
	raw, gateway := b.world.rawProcess, b.world.gatewayProcess
	return []path{
		{"Chromium", pathRaw, raw, func(ctx context.Context, d direction) (float64, error) { return b.rawTransfer(ctx, d, false) }},
		{"Chromium", pathRawTCP, raw, func(ctx context.Context, d direction) (float64, error) { return b.rawTransfer(ctx, d, true) }},
		{"Chromium", pathMeshgate, gateway, b.transfer},
	}
}

func (b *browser) transfer(ctx context.Context, d direction) (rate float64, err error) {
	if d == up {
		err = b.run(ctx, &rate, "upload", b.access(), nodeGateway, portSink, b.window())
	} else {
		err = b.run(ctx, &rate, "download", b.access(), nodeGateway, portSource, b.window())
	}
	return rate, err
}

func (b *browser) rawTransfer(ctx context.Context, d direction, tcp bool) (rate float64, err error) {
	label := rawLabel(d, tcp)
	if d == up {
		err = b.run(ctx, &rate, "rawUpload", b.world.raw, label, endOfUpload, b.window())
	} else {
		err = b.run(ctx, &rate, "rawDownload", b.world.raw, label, b.window())
	}
	return rate, err
}

// opens measures n peer connections, one after the other.
func (b *browser) opens(ctx context.Context, n int) ([]opening, error) {
	var list []struct{ Open, FirstByte float64 }
	if err := b.run(ctx, &list, "opens", b.access(), nodeGateway, portEcho, n+1); err != nil {
		return nil, err
	}
	var all []opening
	for _, o := range list[1:] { // the first one also compiles the script
		all = append(all, opening{open: milliseconds(o.Open), firstByte: milliseconds(o.FirstByte)})
	}
	return all, nil
}

func milliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
