// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/http"
	"strings"
	"testing"
)

// Whatever a client sends first in a socket, no header of it may speak of the
// connection, break a line or claim to be somebody else.
func FuzzParseSocketHeader(f *testing.F) {
	for _, seed := range []string{
		"content-type: application/grpc-web+proto\r\nx-grpc-web: 1\r\n", "a: b, c\r\na: d\r\n", "x-webmesh-proxied-for: admin\r\n",
		"Host: x\r\n", "a:\x00\r\n", ":\r\n", "a: b\n\r\n", "\r\n\r\n", "cookie: c\r\nSEC-X: 1\r\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		h, err := parseSocketHeader(raw)
		if err != nil {
			return
		}
		for key, values := range h {
			if http.CanonicalHeaderKey(key) != key || connectionHeader(key) || strings.HasPrefix(key, proxyHeaders) {
				t.Errorf("key %q", key)
			}
			for _, v := range values {
				if strings.ContainsAny(v, "\r\n\x00") {
					t.Errorf("%s: %q", key, v)
				}
			}
		}
	})
}

func FuzzParseCredentials(f *testing.F) {
	f.Add("Bearer token", "", "")
	f.Add("bearer  x", "alice", "")
	f.Add("Basic YTpi", "", "pw")
	f.Fuzz(func(t *testing.T, authorization, username, password string) {
		h := http.Header{}
		for key, v := range map[string]string{headerAuthorization: authorization, headerUsername: username, headerPassword: password} {
			if v != "" {
				h.Set(key, v)
			}
		}
		c, err := parseCredentials(h)
		if err != nil {
			return
		}
		if (c.Token != "") == (c.Username != "" && c.Password != "") {
			t.Errorf("from %v", h)
		}
	})
}

func FuzzParseTokens(f *testing.F) {
	f.Add([]byte("# a\n" + hashOf("x") + " alice\n"))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = parseTokens([][]byte{raw}) })
}
