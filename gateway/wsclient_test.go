// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"
)

// wsCall is a call over grpc-websockets, written after the protocol's
// description and not after the server.
type wsCall struct {
	conn    *websocket.Conn
	ctx     context.Context
	buf     bytes.Buffer
	header  http.Header // after the first frame with headers
	trailer http.Header // after the end
}

// dialWS begins a call; who may be empty.
func dialWS(t testing.TB, ctx context.Context, addr, procedure, who string, extra ...string) *wsCall {
	t.Helper()
	c := openWS(t, ctx, addr, procedure, nil)
	lines := append([]string{"content-type: application/grpc-web+proto", "x-grpc-web: 1"}, extra...)
	if who != "" {
		lines = append(lines, "authorization: Bearer "+tokenOf(who))
	}
	sort.Strings(lines)
	c.write(t, []byte(strings.Join(lines, "\r\n")+"\r\n"))
	return c
}

// openWS opens the socket only.
func openWS(t testing.TB, ctx context.Context, addr, procedure string, h http.Header) *wsCall {
	t.Helper()
	conn, res, err := websocket.Dial(ctx, "ws://"+addr+procedure, &websocket.DialOptions{Subprotocols: []string{"grpc-websockets"}, HTTPHeader: h})
	if err != nil {
		status := 0
		if res != nil {
			status = res.StatusCode
		}
		t.Fatalf("dial (%d): %v", status, err)
	}
	conn.SetReadLimit(8 << 20)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return &wsCall{conn: conn, ctx: ctx}
}

func (c *wsCall) write(t testing.TB, raw []byte) {
	t.Helper()
	if err := c.conn.Write(c.ctx, websocket.MessageBinary, raw); err != nil {
		t.Fatalf("write: %v", err)
	}
}

func frame(m proto.Message) []byte {
	raw, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	out := make([]byte, 5, 5+len(raw))
	binary.BigEndian.PutUint32(out[1:], uint32(len(raw)))
	return append(out, raw...)
}

func (c *wsCall) send(t testing.TB, m proto.Message) {
	t.Helper()
	c.write(t, append([]byte{0}, frame(m)...))
}

func (c *wsCall) closeSend(t testing.TB) {
	t.Helper()
	c.write(t, []byte{1})
}

// receive reads the next message into m. At the end of the call it returns
// io.EOF, or the call's error as *connect.Error.
func (c *wsCall) receive(m proto.Message) error {
	for {
		flags, body, err := c.frame()
		if err != nil {
			return err
		}
		if flags&0x80 == 0 {
			return proto.Unmarshal(body, m)
		}
		h := http.Header{}
		for line := range strings.SplitSeq(string(body), "\r\n") {
			if key, value, ok := strings.Cut(line, ":"); ok {
				h.Add(strings.TrimSpace(key), strings.TrimSpace(value))
			}
		}
		if c.header == nil && h.Get("grpc-status") == "" {
			c.header = h
			continue
		}
		if c.header == nil {
			c.header = h // an answer without messages
		}
		c.trailer = h
		code, err := strconv.Atoi(h.Get("grpc-status"))
		if err != nil {
			return fmt.Errorf("trailers without a status: %q", body)
		}
		if code == 0 {
			return io.EOF
		}
		return connect.NewError(connect.Code(code), errors.New(h.Get("grpc-message")))
	}
}

func (c *wsCall) frame() (flags byte, body []byte, err error) {
	prefix, err := c.take(5)
	if err != nil {
		return 0, nil, err
	}
	flags = prefix[0]
	body, err = c.take(int(binary.BigEndian.Uint32(prefix[1:])))
	return flags, body, err
}

func (c *wsCall) take(n int) ([]byte, error) {
	for c.buf.Len() < n {
		kind, raw, err := c.conn.Read(c.ctx)
		if err != nil {
			return nil, err
		}
		if kind != websocket.MessageBinary {
			return nil, errors.New("text message")
		}
		c.buf.Write(raw)
	}
	return bytes.Clone(c.buf.Next(n)), nil
}

// closed reads the close frame that has to follow the trailers.
func (c *wsCall) closed() websocket.StatusCode {
	_, _, err := c.conn.Read(c.ctx)
	return websocket.CloseStatus(err)
}
