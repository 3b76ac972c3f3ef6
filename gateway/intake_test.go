// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"google.golang.org/protobuf/proto"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

func testIntake(t *testing.T, size int64) *intake {
	t.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	return newIntake(size, m)
}

func wantRefused(t *testing.T, what string, err error) {
	t.Helper()
	var refused *connect.Error
	if !errors.As(err, &refused) || refused.Code() != connect.CodeResourceExhausted ||
		!strings.Contains(refused.Message(), "try again in a second") || refused.Meta().Get("Retry-After") != "1" {
		t.Errorf("%s: %v, want ResourceExhausted with when to try again", what, err)
	}
}

func TestIntake_WaitsForAMomentAndNotBehindMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := testIntake(t, 10)
		release, err := i.take(t.Context(), 99) // larger than all there is
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = i.take(t.Context(), 1)
		wantRefused(t, "who waited", err)
		if took := time.Since(began); took != intakePatience {
			t.Errorf("waited %s, want %s", took, intakePatience)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := i.take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who has no time: %v", err)
		}
		var waiting sync.WaitGroup
		var served atomic.Int32
		for range intakeQueue {
			waiting.Go(func() {
				if release, err := i.take(t.Context(), 1); err == nil {
					served.Add(1)
					release()
				}
			})
		}
		synctest.Wait()
		began = time.Now()
		_, err = i.take(t.Context(), 1)
		if wantRefused(t, "one more than may wait", err); time.Since(began) != 0 {
			t.Errorf("one more than may wait waited %s", time.Since(began))
		}
		release()
		release() // once more, which is nothing
		if waiting.Wait(); served.Load() != intakeQueue {
			t.Errorf("%d of those who waited were served", served.Load())
		}
		if !i.bytes.TryAcquire(i.size) {
			t.Error("something was not given back")
		}
	})
}

// envelope is a message as it stands in a stream.
func envelope(flags byte, message string) string {
	prefix := binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(message)))
	return string(prefix) + message
}

// A message counts from its last byte on until the reader comes back, however it
// is cut up on its way.
func TestMeasuredBody_CountsWhatIsDecoded(t *testing.T) {
	const limit = 100
	for name, tt := range map[string]struct {
		body              string
		enveloped, packed bool
		most              int64 // that counts at a time
	}{
		"whole":                {strings.Repeat("x", 40), false, false, 80},
		"whole and packed":     {strings.Repeat("x", 40), false, true, 140},
		"whole and empty":      {"", false, true, 0},
		"whole and too large":  {strings.Repeat("x", limit+1), false, false, 0},
		"one":                  {envelope(0, strings.Repeat("x", 30)), true, false, 60},
		"one that is packed":   {envelope(1, strings.Repeat("x", 30)), true, false, 130},
		"the last of a stream": {envelope(0, "abc") + envelope(0x80, "end"), true, false, 6},
		"several":              {envelope(0, "abc") + envelope(0, strings.Repeat("x", 50)) + envelope(0, "de"), true, false, 100},
		"none":                 {envelope(0, "") + envelope(1, ""), true, false, 0},
		"too large":            {envelope(0, strings.Repeat("x", limit+1)) + envelope(0, "y"), true, false, 2},
		"cut short":            {envelope(0, strings.Repeat("x", 50))[:40], true, false, 0},
	} {
		for _, chunk := range []func(io.Reader) io.Reader{
			iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader,
		} {
			i := testIntake(t, 1000)
			b := &measuredBody{
				ReadCloser: io.NopCloser(chunk(strings.NewReader(tt.body))), ctx: t.Context(), intake: i, growth: 1, request: &request{deadlines: new(deadlines)}, limit: limit,
				enveloped: tt.enveloped, packed: tt.packed,
			}
			var most int64
			var got bytes.Buffer
			for p := make([]byte, 1); ; { // as connect reads: no further than a message
				n, err := b.Read(p)
				got.Write(p[:n])
				for free := i.size; free >= 0; free-- {
					if i.bytes.TryAcquire(free) {
						i.bytes.Release(free)
						most = max(most, i.size-free)
						break
					}
				}
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if most != tt.most || got.String() != tt.body {
				t.Errorf("%s: counted %d, want %d; read %d of %d bytes", name, most, tt.most, got.Len(), len(tt.body))
			}
			if b.decoded(); !i.bytes.TryAcquire(i.size) {
				t.Errorf("%s: something counts still", name)
			}
		}
	}
}

// FuzzMeasuredBody: whatever a client sends, it is read as it is, and counts
// nothing in the end.
func FuzzMeasuredBody(f *testing.F) {
	f.Add([]byte(envelope(0, "abc")+envelope(1, "de")), true, false, uint8(3))
	f.Add([]byte("{}"), false, true, uint8(1))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 1}, true, true, uint8(9))
	f.Fuzz(func(t *testing.T, body []byte, enveloped, packed bool, step uint8) {
		i := testIntake(t, 1<<20)
		b := &measuredBody{
			ReadCloser: io.NopCloser(bytes.NewReader(body)), ctx: t.Context(), intake: i, growth: 1, request: &request{deadlines: new(deadlines)}, limit: 1 << 10,
			enveloped: enveloped, packed: packed,
		}
		var got []byte
		for p := make([]byte, int(step)+1); ; {
			n, err := b.Read(p)
			got = append(got, p[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if b.decoded(); !bytes.Equal(got, body) || !i.bytes.TryAcquire(i.size) {
			t.Errorf("read %x of %x, or something counts still", got, body)
		}
	})
}

// While the gateway decodes as much as it may, calls of every kind are refused and
// told when to come back; probes are answered; and afterwards all is well.
func TestIntake_BoundsAllCalls(t *testing.T) {
	s := serve(t, func(c *Config) { c.Limits.Intake = 4 << 20 })
	s.intake.patience = time.Millisecond
	release, err := s.intake.take(t.Context(), s.intake.size)
	if err != nil {
		t.Fatal(err)
	}
	ctx, url := testContext(t), "http://"+s.public
	c := bearer(httpClient(t, true, "", nil), "admin")
	calls := map[string]func() error{}
	for name, opts := range map[string][]connect.ClientOption{
		"connect": nil, "gRPC": {connect.WithGRPC()}, "gRPC-web": {connect.WithGRPCWeb()}, "JSON": {connect.WithProtoJSON()},
		"packed": {connect.WithSendGzip()}, "packed gRPC": {connect.WithGRPC(), connect.WithSendGzip()},
	} {
		calls[name] = func() error {
			_, err := v1connect.NewMeshClient(c, url, opts...).GetNode(ctx, connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"}))
			return err
		}
		calls[name+", a stream"] = func() error {
			stream, err := v1connect.NewStorageQueryServiceClient(c, url, opts...).
				Query(ctx, connect.NewRequest(&v1.QueryRequest{Command: v1.QueryRequest_LIST, Query: "app/"}))
			if err != nil {
				return err
			}
			for stream.Receive() {
			}
			return errors.Join(stream.Err(), stream.Close())
		}
	}
	for name, call := range calls {
		wantRefused(t, name, call())
	}
	if n := s.metric(t, "meshgate_gateway_intake_refused_total"); n != float64(len(calls)) {
		t.Errorf("%v were counted, want %d", n, len(calls))
	}
	health := connect.NewClient[[]byte, []byte](c, url+"/"+grpchealth.HealthV1ServiceName+"/Check", connect.WithGRPC(), connect.WithCodec(rawCodec{}))
	if _, err := health.CallUnary(ctx, connect.NewRequest(&[]byte{})); err != nil {
		t.Errorf("health: %v", err)
	}
	if status, _ := askEarly(t, http.MethodGet, url+"/livez"); status != http.StatusOK {
		t.Errorf("livez: %d", status)
	}
	release()
	for name, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s, afterwards: %v", name, err)
		}
	}
	if n := s.metric(t, "meshgate_gateway_intake_bytes"); n != 0 {
		t.Errorf("%v bytes count still", n)
	}
}

// What is decoded counts no more, however long the call goes on; and so does what
// is not there yet.
func TestIntake_SlowCallsHoldNothing(t *testing.T) {
	s := serve(t, func(c *Config) { c.Limits.Intake = 4 << 20 })
	c := bearer(httpClient(t, true, "", nil), "admin")
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	stream, err := meshgatev1connect.NewWatchClient(c, "http://"+s.public).WatchMesh(ctx, connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream)
	}
	body, w := io.Pipe()
	defer w.Close()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.public+v1connect.MeshGetNodeProcedure, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/proto")
	answered := make(chan error, 1)
	go func() {
		resp, err := c.Do(r)
		if err == nil {
			err = resp.Body.Close()
		}
		answered <- err
	}()
	if _, err := w.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil { // and never the rest
		t.Fatal(err)
	}
	if !s.intake.bytes.TryAcquire(s.intake.size) {
		t.Error("a call that was decoded, or one that is not there yet, counts")
	}
	cancel()
	<-answered
}

// bomb is n zeros, packed.
func bomb(t testing.TB, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Health is asked by strangers, and lets nobody unpack more than the name of a
// service takes.
func TestIntake_HealthUnpacksLittle(t *testing.T) {
	s := serve(t, nil)
	for n, want := range map[int]int{maxHealthMessage + 1: http.StatusTooManyRequests, maxHealthMessage: http.StatusBadRequest} {
		r, err := http.NewRequestWithContext(testContext(t), http.MethodPost,
			"http://"+s.public+"/"+grpchealth.HealthV1ServiceName+"/Check", bytes.NewReader(bomb(t, n)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/proto")
		r.Header.Set("Content-Encoding", "gzip")
		resp, err := httpClient(t, true, "", nil).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%d bytes: %s, want %d", n, resp.Status, want)
		}
	}
}

// Changes of objects may be larger than other messages, and more so when they are
// decoded; they count all the same.
func TestIntake_CountsChangesOfObjects(t *testing.T) {
	s, _ := serveState(t)
	s.intake.patience = time.Millisecond
	release, err := s.intake.take(t.Context(), s.intake.size)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for _, n := range []int{1, 8} {
		m := &meshgatev1.ChangeRequest{}
		for range n {
			m.Changes = append(m.Changes, objectState(&v1.Group{Name: strings.Repeat("x", 400<<10)}))
		}
		_, err := s.change(t, "nobody", m)
		wantRefused(t, fmt.Sprint(proto.Size(m), " bytes"), err)
	}
}

// However many send what unpacks to a megabyte, no more is decoded at a time than
// there is room for.
func TestIntake_ManyBombsAtOnce(t *testing.T) {
	s := serve(t, func(c *Config) { c.Limits.Intake = 4 << 20 })
	c := bearer(httpClient(t, true, "", nil), "admin")
	packed := bomb(t, maxMessage-1)
	stop := make(chan struct{})
	var watching, calling sync.WaitGroup
	var most atomic.Int64
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				most.Store(max(most.Load(), int64(s.metric(t, "meshgate_gateway_intake_bytes"))))
			}
		}
	})
	for range 64 {
		calling.Go(func() {
			r, err := http.NewRequestWithContext(testContext(t), http.MethodPost, "http://"+s.public+v1connect.MeshGetNodeProcedure, bytes.NewReader(packed))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Content-Type", "application/proto")
			r.Header.Set("Content-Encoding", "gzip")
			resp, err := c.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode == http.StatusOK || resp.StatusCode >= http.StatusInternalServerError {
				t.Errorf("a bomb: %d", resp.StatusCode)
			}
		})
	}
	calling.Wait()
	close(stop)
	watching.Wait()
	if most.Load() > s.intake.size || most.Load() == 0 {
		t.Errorf("%d bytes at a time, want at most %d, and some", most.Load(), s.intake.size)
	}
}

// Who sends parts of many messages has no more of them kept than its share, and
// others go on.
func TestIntake_UnfinishedMessagesMakeRoom(t *testing.T) {
	s := serve(t, nil)
	base := "http://" + s.public
	s.intake.unfinished.share = 4 << 20
	const part, calls = 900 << 10, 12
	send := func(who string) (answered chan int, rest *io.PipeWriter) {
		body, rest := io.Pipe()
		t.Cleanup(func() { _ = rest.Close() })
		r, err := http.NewRequestWithContext(testContext(t), http.MethodPost, base+v1connect.MeshGetNodeProcedure, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/proto")
		answered = make(chan int, 1)
		go func() {
			resp, err := bearer(httpClient(t, true, "", nil), who).Do(r)
			if err != nil {
				answered <- 0
				return
			}
			_ = resp.Body.Close()
			answered <- resp.StatusCode
		}()
		return answered, rest
	}
	other, rest := send("admin")
	if _, err := rest.Write(make([]byte, part)); err != nil {
		t.Fatal(err)
	}
	var first chan int
	for i := range calls {
		answered, rest := send("viewer")
		if i == 0 {
			first = answered
		}
		_, _ = rest.Write(make([]byte, part)) // it may be refused before all is written
	}
	if status := <-first; status != http.StatusTooManyRequests {
		t.Errorf("the one that has sent a part for the longest time gets %d", status)
	}
	poll(t, func() bool {
		s.intake.unfinished.mu.Lock()
		defer s.intake.unfinished.mu.Unlock()
		l := s.intake.unfinished.byKey["caller viewer"]
		if l == nil {
			return false
		}
		held := heldOf(l)
		if held > s.intake.unfinished.share {
			t.Fatalf("%d bytes of one caller are held, want %d at most", held, s.intake.unfinished.share)
		}
		return held > s.intake.unfinished.share/2
	})
	_ = rest.Close()
	if status := <-other; status != http.StatusBadRequest { // what it sent is zeros
		t.Errorf("another caller gets %d", status)
	}
	s.intake.unfinished.mu.Lock()
	defer s.intake.unfinished.mu.Unlock()
	if l := s.intake.unfinished.byKey["caller admin"]; l != nil {
		t.Errorf("%d messages of a caller without a call count", l.Len())
	}
}
