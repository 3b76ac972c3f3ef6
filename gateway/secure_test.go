// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// answer is what a plain HTTP request got.
type answer struct {
	*http.Response
	text string
}

// ask makes an HTTP request; header holds pairs. "Host" sets the host.
func ask(t *testing.T, c *http.Client, method, url, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(testContext(t), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Add(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res, string(raw)}
}

func TestHeaders_OnEveryAnswer(t *testing.T) {
	s := serve(t, nil)
	c := httpClient(t, false, "", nil)
	for _, path := range []string{"/", "/assets/app-1234.js", "/livez", "/nothing.png", v1connect.MeshGetNodeProcedure} {
		a := ask(t, c, http.MethodGet, "http://"+s.public+path, "", "X-Request-Id", "mine")
		if csp := a.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'self'") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", path, csp)
		}
		for key, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "Strict-Transport-Security": "",
		} {
			if got := a.Header.Get(key); got != want {
				t.Errorf("%s: %s is %q", path, key, got)
			}
		}
		if id := a.Header.Get("X-Request-Id"); id == "" || id == "mine" || len(a.Header["X-Request-Id"]) != 1 {
			t.Errorf("%s: request id %q", path, a.Header["X-Request-Id"])
		}
	}
}

// Nobody speaks for somebody else, in whatever spelling.
func TestHeaders_OfProxiesAreDropped(t *testing.T) {
	var got http.Header
	h := begin(t.Context(), true, nil)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header }))
	req := httptest.NewRequest(http.MethodPost, "/", nil)
	req.Header = http.Header{
		"X-Webmesh-Proxied-For": {"admin", "root"}, "X-Webmesh-Proxied-From": {"gw-2"}, "x-webmesh-proxied-for": {"admin"},
		"X-Webmesh-Proxied-For-Bin": {"YQ"}, "X-WEBMESH-PROXIED": {"x"}, "X-Webmesh-Basic-Auth-Username": {"alice"}, "X-Other": {"1"},
	}
	h.ServeHTTP(httptest.NewRecorder(), req)
	if len(got) != 2 || got.Get("X-Other") != "1" || got.Get("X-Webmesh-Basic-Auth-Username") != "alice" {
		t.Errorf("got %v", got)
	}
}

func TestConsole(t *testing.T) {
	s := serve(t, nil)
	c := httpClient(t, false, "", nil)
	for _, tt := range []struct {
		path, accept string
		status       int
		text, cache  string
	}{
		{"/", "", 200, "console", "no-cache"},
		{"/index.html", "", 200, "console", "no-cache"},
		{"/nodes/web-1", "text/html", 200, "console", "no-cache"}, // a page of the console
		{"/nodes/web-1", "*/*", 404, "", ""},
		{"/assets/app-1234.js", "", 200, "1", "public, max-age=31536000, immutable"},
		{"/assets/", "text/html", 200, "console", "no-cache"}, // no listing
		{"/assets/absent.js", "text/html", 404, "", ""},
		{"/../../etc/passwd", "", 404, "", ""},
	} {
		a := ask(t, c, http.MethodGet, "http://"+s.public+tt.path, "", "Accept", tt.accept)
		if a.StatusCode != tt.status || !strings.Contains(a.text, tt.text) || a.Header.Get("Cache-Control") != tt.cache {
			t.Errorf("%s (%s): %d %q, cache %q", tt.path, tt.accept, a.StatusCode, a.text, a.Header.Get("Cache-Control"))
		}
	}
}

func TestHosts_OthersAreNotServed(t *testing.T) {
	s := serve(t, func(c *Config) { c.Access.Hosts = []string{"localhost", "127.0.0.1", "::1"} })
	c := httpClient(t, false, "", nil)
	for host, want := range map[string]int{
		"localhost":        200,
		"LOCALHOST:8080":   200,
		"127.0.0.1:1":      200,
		"[::1]:8080":       200,
		"evil.example":     421,
		"localhost.evil":   421,
		"evil:80":          421,
		"127.0.0.1.nip.io": 421,
	} {
		if a := ask(t, c, http.MethodGet, "http://"+s.public+"/livez", "", "Host", host); a.StatusCode != want {
			t.Errorf("%s: %d", host, a.StatusCode)
		}
	}
}

// What a page of another origin can make a browser send has no effect, with
// the victim's credentials or without.
func TestCrossOrigin(t *testing.T) {
	const friend = "https://console.example.org"
	s := serve(t, func(c *Config) { c.Access.Origins = []string{friend} })
	c := bearer(httpClient(t, false, "", nil), "admin")
	url := "http://" + s.public + v1connect.MembershipLeaveProcedure
	leave := `{"id":"web-1"}`
	for _, tt := range []struct {
		name   string
		header []string
		status int
	}{
		{"no browser", nil, 200},
		{"own page", []string{"Origin", "http://" + s.public}, 200},
		{"own page, new browser", []string{"Origin", "http://" + s.public, "Sec-Fetch-Site", "same-origin"}, 200},
		{"friend", []string{"Origin", friend, "Sec-Fetch-Site", "cross-site"}, 200},
		{"evil page", []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, 403},
		{"evil page, old browser", []string{"Origin", "https://evil.example"}, 403},
		{"sandboxed page", []string{"Origin", "null"}, 403},
		{"sibling page", []string{"Origin", "https://other.example.org", "Sec-Fetch-Site", "same-site"}, 403},
		{"friend over http", []string{"Origin", "http://console.example.org", "Sec-Fetch-Site", "cross-site"}, 403},
	} {
		before := s.node.writes()
		a := ask(t, c, http.MethodPost, url, leave, append(tt.header, "Content-Type", "application/json")...)
		if a.StatusCode != tt.status || (s.node.writes() > before) != (tt.status == 200) {
			t.Errorf("%s: %d %s", tt.name, a.StatusCode, a.text)
		}
	}
	before := s.node.writes()
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"} { // no preflight
		if a := ask(t, c, http.MethodPost, url, leave, "Content-Type", kind); a.StatusCode != http.StatusUnsupportedMediaType {
			t.Errorf("%s: %d", kind, a.StatusCode)
		}
	}
	if a := ask(t, c, http.MethodGet, url+`?connect=v1&encoding=json&message={"id":"web-1"}`, ""); a.StatusCode != http.StatusMethodNotAllowed && a.StatusCode != http.StatusNotFound {
		t.Errorf("GET: %d", a.StatusCode)
	}
	if s.node.writes() != before {
		t.Error("something was changed")
	}
}

func TestCORS_Preflight(t *testing.T) {
	const friend = "https://console.example.org"
	s := serve(t, func(c *Config) { c.Access.Origins = []string{friend} })
	c := httpClient(t, false, "", nil)
	preflight := func(origin string) answer {
		return ask(t, c, http.MethodOptions, "http://"+s.public+v1connect.MeshGetNodeProcedure, "", "Origin", origin,
			"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type,x-grpc-web")
	}
	ok := preflight(friend)
	if ok.Header.Get("Access-Control-Allow-Origin") != friend || !strings.Contains(ok.Header.Get("Access-Control-Allow-Headers"), "authorization") {
		t.Errorf("friend: %v", ok.Header)
	}
	if ok.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Error("cookies are allowed")
	}
	for _, origin := range []string{"https://evil.example", "null", "http://console.example.org", friend + ".evil.example"} {
		if h := preflight(origin).Header; h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %v", origin, h)
		}
	}
}

func TestConfig_OriginsAreExact(t *testing.T) {
	for origin, ok := range map[string]bool{
		"https://a.example": true, "http://localhost:5173": true,
		"*": false, "https://a.example/": false, "a.example": false, "null": false, "": false, "ftp://a": false, "https://": false,
	} {
		cfg := Config{Node: newFakeNode(nil), Signaling: &fakeSignaling{}, Access: Access{Origins: []string{origin}}}
		if err := cfg.Validate(); (err == nil) != ok {
			t.Errorf("%q: %v", origin, err)
		}
	}
}

// On the mesh the address is the credential, so that no page may use it.
func TestMesh_NoBrowsers(t *testing.T) {
	s := serve(t, nil)
	c := httpClient(t, false, "127.0.0.2", nil)
	url := "http://" + s.mesh + v1connect.MembershipLeaveProcedure
	for _, header := range [][]string{
		{"Origin", "https://evil.example"}, {"Origin", "http://" + s.mesh}, {"Origin", "null"},
		{"Sec-Fetch-Site", "same-origin"}, {"Sec-Fetch-Site", "none"},
	} {
		a := ask(t, c, http.MethodPost, url, `{"id":"laptop"}`, append(header, "Content-Type", "application/json")...)
		if a.StatusCode != http.StatusForbidden {
			t.Errorf("%v: %d", header, a.StatusCode)
		}
	}
	if n := s.node.writes(); n != 0 {
		t.Errorf("%d changes", n)
	}
	if a := ask(t, c, http.MethodPost, url, `{"id":"laptop"}`, "Content-Type", "application/json"); a.StatusCode != 200 {
		t.Errorf("a member: %d %s", a.StatusCode, a.text)
	}
	// No console, no tokens.
	if a := ask(t, c, http.MethodGet, "http://"+s.mesh+"/", ""); a.StatusCode == 200 {
		t.Error("the console is on the mesh")
	}
	stranger := bearer(httpClient(t, false, "127.0.0.77", nil), "admin")
	if a := ask(t, stranger, http.MethodPost, url, `{"id":"web-1"}`, "Content-Type", "application/json"); a.StatusCode != 401 {
		t.Errorf("a stranger with a token: %d", a.StatusCode)
	}
}

// A member that was removed is a stranger from that moment on.
func TestMesh_RemovedMember(t *testing.T) {
	s := serve(t, nil)
	c := v1connect.NewMeshClient(httpClient(t, true, "127.0.0.2", nil), "http://"+s.mesh)
	if _, err := c.GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"})); err != nil {
		t.Fatal(err)
	}
	without := testSnapshot()
	without.Nodes = without.Nodes.Without("laptop")
	s.node.set(without)
	if _, err := c.GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"})); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("got %v", err)
	}
	s.node.set(nil)
	if _, err := c.GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"})); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("before the node is in the mesh: %v", err)
	}
}

func TestBadInput_Sizes(t *testing.T) {
	s := serve(t, nil)
	c := bearer(httpClient(t, true, "", nil), "admin")
	url := "http://" + s.public + v1connect.MembershipJoinProcedure
	var bomb bytes.Buffer
	z, err := gzip.NewWriterLevel(&bomb, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(bytes.Repeat([]byte(" "), 4<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, body string
		header     []string
		want       string
	}{
		{"4 MiB", `{"id":"` + strings.Repeat("x", 4<<20) + `"}`, nil, "resource_exhausted"},
		{"gzip bomb", bomb.String(), []string{"Content-Encoding", "gzip"}, `resource_exhausted","message":"message size 1048577 is`}, // and not one byte more
		{"unknown compression", "x", []string{"Content-Encoding", "br"}, "unimplemented"},
		{"10 000 routes", `{"id":"x","publicKey":"k","routes":[` + strings.Repeat(`"10.0.0.0/8",`, 10_000) + `"10.0.0.0/8"]}`, nil, "invalid_argument"},
		{"deep JSON", strings.Repeat(`{"directPeers":`, 20_000), nil, "invalid_argument"},
		{"invalid UTF-8", "{\"id\":\"\xff\xfe\"}", nil, "invalid_argument"},
		{"no JSON", "]", nil, "invalid_argument"},
		{"empty", "{}", nil, "invalid_argument"},
		{"expired", "{}", []string{"Connect-Timeout-Ms", "0"}, ""},
		{"timeout of words", "{}", []string{"Connect-Timeout-Ms", "soon"}, "invalid_argument"},
	} {
		a := ask(t, c, http.MethodPost, url, tt.body, append(tt.header, "Content-Type", "application/json")...)
		if a.StatusCode == 200 || !strings.Contains(a.text, `"code":"`+tt.want) {
			t.Errorf("%s: %d %.200s", tt.name, a.StatusCode, a.text)
		}
	}
	if n := s.node.writes(); n != 0 {
		t.Errorf("%d changes", n)
	}
}

func TestBadInput_Headers(t *testing.T) {
	s := serve(t, nil)
	for _, http2 := range []bool{false, true} {
		req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, "http://"+s.public+"/livez", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Big", strings.Repeat("x", 64<<10))
		res, err := httpClient(t, http2, "", nil).Do(req)
		if err != nil {
			continue // cut off
		}
		if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("HTTP/2 %v: %d", http2, res.StatusCode)
		}
		if err := res.Body.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestUnknownPaths(t *testing.T) {
	s := serve(t, nil)
	c := bearer(httpClient(t, true, "", nil), "admin")
	for _, path := range []string{"/v1.Nothing/Get", "/v1.Mesh/Nothing", "/v1.Mesh/GetNode/", "//v1.Mesh/GetNode", "/v1.Mesh/./GetNode", "/V1.Mesh/GetNode", "/v1.mesh/GetNode", "/"} {
		a := ask(t, c, http.MethodPost, "http://"+s.public+path, `{"id":"web-1"}`, "Content-Type", "application/json")
		if a.StatusCode == 200 || a.StatusCode >= 500 && a.StatusCode != http.StatusNotImplemented {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.text)
		}
	}
	if a := ask(t, c, http.MethodPost, "http://"+s.public+"/v1.Nothing/Get", "{}", "Content-Type", "application/json"); !strings.Contains(a.text, "unimplemented") {
		t.Errorf("unknown service: %d %s", a.StatusCode, a.text)
	}
}

func TestHealth(t *testing.T) {
	s := serve(t, nil)
	c := httpClient(t, false, "", nil)
	probe := func(addr, path string) answer { return ask(t, c, http.MethodGet, "http://"+addr+path, "") }
	conn, err := grpc.NewClient("passthrough:///"+s.public, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	check := func(service string) (healthpb.HealthCheckResponse_ServingStatus, error) {
		res, err := healthpb.NewHealthClient(conn).Check(testContext(t), &healthpb.HealthCheckRequest{Service: service})
		return res.GetStatus(), err
	}
	for _, path := range []string{"/livez", "/readyz", "/healthz"} {
		if a := probe(s.public, path); a.StatusCode != 200 || a.text != "ok\n" {
			t.Errorf("%s: %d %q", path, a.StatusCode, a.text)
		}
	}
	for _, service := range []string{"", "v1.Mesh", "meshgate.v1.Watch"} {
		if status, err := check(service); err != nil || status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v %v", service, status, err)
		}
	}
	if _, err := check("v1.Nothing"); err == nil {
		t.Error("a service that is not there is healthy")
	}
	s.node.mu.Lock()
	s.node.health = errors.New("waiting for the disk")
	s.node.mu.Unlock()
	if status, err := check(""); err != nil || status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("%v %v", status, err)
	}
	if a := probe(s.public, "/livez"); a.StatusCode != 200 {
		t.Errorf("/livez: %d", a.StatusCode)
	}
	if a := probe(s.public, "/readyz"); a.StatusCode != 503 || strings.Contains(a.text, "disk") {
		t.Errorf("/readyz for strangers: %d %q", a.StatusCode, a.text)
	}
	if a := probe(s.operators, "/readyz"); a.StatusCode != 503 || !strings.Contains(a.text, "waiting for the disk") {
		t.Errorf("/readyz for operators: %d %q", a.StatusCode, a.text)
	}
	if a := probe(s.public, "/healthz"); a.StatusCode != 503 {
		t.Errorf("/healthz: %d", a.StatusCode)
	}
}

func TestMetrics_OnTheirOwnListenerOnly(t *testing.T) {
	s := serve(t, nil)
	c := httpClient(t, false, "", nil)
	_ = ask(t, c, http.MethodPost, "http://"+s.public+v1connect.MeshGetNodeProcedure, "{}", "Content-Type", "application/json")
	for _, addr := range []string{s.public, s.mesh} {
		for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/vars"} {
			if a := ask(t, c, http.MethodGet, "http://"+addr+path, ""); a.StatusCode != 404 && a.StatusCode != 405 {
				t.Errorf("%s%s: %d", addr, path, a.StatusCode)
			}
		}
	}
	a := ask(t, c, http.MethodGet, "http://"+s.operators+"/metrics", "")
	for _, want := range []string{
		`meshgate_gateway_rpc_started_total{rpc="/v1.Mesh/GetNode"} 1`,
		`meshgate_gateway_rpc_handled_total{code="unauthenticated",rpc="/v1.Mesh/GetNode"} 1`,
		`meshgate_gateway_auth_failures_total{reason="none"} 1`,
		"meshgate_gateway_rpc_in_flight 0",
	} {
		if !strings.Contains(a.text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if a := ask(t, c, http.MethodGet, "http://"+s.operators+"/metrics", "", "Origin", "https://evil.example"); a.StatusCode != 403 {
		t.Errorf("a page reads metrics: %d", a.StatusCode)
	}
}

func TestReflection(t *testing.T) {
	for _, tt := range []struct {
		open bool
		who  string
		ok   bool
	}{{false, "admin", true}, {false, "viewer", false}, {false, "", false}, {true, "", true}} {
		s := serve(t, func(c *Config) { c.Access.OpenReflection = tt.open })
		ctx, cancel := context.WithCancel(testContext(t))
		stream := grpcreflect.NewClient(bearer(httpClient(t, true, "", nil), tt.who), "http://"+s.public, connect.WithGRPC()).NewStream(ctx)
		names, err := stream.ListServices()
		if (err == nil && len(names) > 10) != tt.ok {
			t.Errorf("open %v, %q: %v, %v", tt.open, tt.who, names, err)
		}
		_, _ = stream.Close()
		cancel()
	}
}

func TestChannelRate(t *testing.T) {
	bubble(t, func(c *Config) { c.Limits.ChannelRate, c.Limits.ChannelBurst = 10, 20 }, func(t *testing.T, s *served, p *pipes) {
		c := p.client(t, true)
		begin := func(who string) error {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			call := v1connect.NewWebRTCClient(bearer(c, who), "http://gate").StartDataChannel(ctx)
			defer call.CloseResponse()
			if err := call.Send(&v1.StartDataChannelRequest{NodeId: "web-1"}); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			_, err := call.Receive()
			return err
		}
		count := func(n int) (served int) {
			for range n {
				err := begin("admin")
				if err == nil {
					served++
				} else if connect.CodeOf(err) != connect.CodeResourceExhausted {
					t.Fatal(err)
				}
			}
			return served
		}
		if n := count(100); n != 20 {
			t.Errorf("%d of 100 at once", n)
		}
		if err := begin("opener"); err != nil {
			t.Errorf("another caller suffers: %v", err)
		}
		pass(time.Second)
		if n := count(100); n != 10 {
			t.Errorf("%d after a second", n)
		}
	})
}

// The log has one record per call, and no secrets.
func TestLog(t *testing.T) {
	var log lockedBuffer
	s := serve(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	c := bearer(httpClient(t, true, "", nil), "admin")
	call := v1connect.NewWebRTCClient(c, "http://"+s.public).StartDataChannel(testContext(t))
	if err := call.Send(&v1.StartDataChannelRequest{NodeId: "web-1", Answer: "canary-sdp", Candidate: "fault"}); err != nil {
		t.Fatal(err)
	}
	if _, err := call.Receive(); connect.CodeOf(err) != connect.CodeInternal {
		t.Fatal(err)
	}
	_ = call.CloseResponse()
	_, err := v1connect.NewMembershipClient(c, "http://"+s.public).Leave(testContext(t), connect.NewRequest(&v1.LeaveRequest{Id: "web-1"}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = v1connect.NewMeshClient(withHeader(httpClient(t, true, "", nil), "Authorization", "Bearer canary-token-000000000000000"), "http://"+s.public).
		GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"}))
	if connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	for _, never := range []string{"canary", tokenOf("admin")} {
		if strings.Contains(text, never) {
			t.Errorf("%q is in the log", never)
		}
	}
	for _, want := range []string{
		`level=ERROR msg=rpc component=gateway rpc=/v1.WebRTC/StartDataChannel code=internal`,
		`level=INFO msg=rpc component=gateway rpc=/v1.Membership/Leave code=ok`,
		`level=INFO msg=rpc component=gateway rpc=/v1.Mesh/GetNode code=unauthenticated`,
		`err="secret cause"`, `caller=admin`,
	} {
		if strings.Count(text, want) != 1 && want != `caller=admin` || !strings.Contains(text, want) {
			t.Errorf("%q is there %d times in\n%s", want, strings.Count(text, want), text)
		}
	}
}

func TestErrors_TextNamesTheNextStep(t *testing.T) {
	s := serve(t, nil)
	c := v1connect.NewMeshClient(bearer(httpClient(t, true, "", nil), "admin"), "http://"+s.public)
	_, err := c.GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "absent"}))
	if err == nil || !strings.Contains(err.Error(), "ListNodes") {
		t.Errorf("got %v", err)
	}
	_, err = v1connect.NewAppDaemonClient(bearer(httpClient(t, true, "", nil), "admin"), "http://"+s.public).Status(testContext(t), connect.NewRequest(&v1.StatusRequest{}))
	if connect.CodeOf(err) != connect.CodeUnimplemented || !strings.Contains(err.Error(), "meshgate join") {
		t.Errorf("got %v", err)
	}
}
