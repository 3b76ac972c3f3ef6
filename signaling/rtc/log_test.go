// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
)

func TestPionLogs_TextIsThereInEveryFormat(t *testing.T) {
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler {
			return slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
		"json": func(b *bytes.Buffer) slog.Handler {
			return slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
	} {
		var b bytes.Buffer
		log := pionLogs{slog.New(handler(&b))}.NewLogger("ice")
		log.Warnf("read %d bytes", 7)
		if !bytes.Contains(b.Bytes(), []byte("read 7 bytes")) {
			t.Errorf("%s: %s", name, b.String())
		}
		if name == "json" && !json.Valid(b.Bytes()) {
			t.Errorf("no JSON: %s", b.String())
		}
	}
}
