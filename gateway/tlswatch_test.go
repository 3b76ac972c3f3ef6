// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// The end of a certificate is told when it comes, and a new one when it is there.
func TestTLS_LogTellsWhatChanges(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	open := func() *certificates {
		c, err := openCertificates(TLS{SelfSignedDir: t.TempDir(), Names: []string{"gate.test"}}, logger)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c, other := open(), open()
	end := c.current().Leaf.NotAfter
	var last judgement
	for _, tt := range []struct {
		name  string
		certs *certificates
		now   time.Time
		want  string // in the log; empty: nothing is there
	}{
		{"49 s before its end", c, end.Add(-49 * time.Second), "ends soon"},
		{"a moment later", c, end.Add(-time.Second), ""},
		{"after its end", c, end.Add(11 * time.Second), "has expired"},
		{"an hour later", c, end.Add(time.Hour), ""},
		{"a day later", c, end.Add(25 * time.Hour), "has expired"},
		{"another one", other, time.Now(), "the public certificate is another one"},
		{"the other one a minute later", other, time.Now().Add(time.Minute), ""},
	} {
		log.Reset()
		last = tt.certs.judge(tt.now, last)
		if got := log.String(); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: the log says %q", tt.name, got)
		}
	}
}
