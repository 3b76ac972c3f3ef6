// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	demoHTTPPort = 80
	demoEchoPort = 7
	// maxDemoDownload bounds /download/N.
	maxDemoDownload = 1 << 30
)

// demoServices are an HTTP page, a TCP echo and a UDP echo.
type demoServices struct {
	name string
	page net.Listener
	echo net.Listener
	udp  net.PacketConn
}

// run serves until ctx ends.
func (d *demoServices) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	server := &http.Server{Handler: demoPage(d.name), ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := server.Serve(d.page); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the page of %s: %w", d.name, err)
		}
		return nil
	})
	g.Go(func() error { return echoTCP(ctx, d.echo) })
	g.Go(func() error { return echoUDP(ctx, d.udp) })
	g.Go(func() error {
		<-ctx.Done()
		return errors.Join(ctx.Err(), server.Close(), d.echo.Close(), d.udp.Close())
	})
	return g.Wait()
}

// demoPage says where one is, echoes POST bodies at /echo and sends N bytes
// of a fixed pattern at /download/N.
func demoPage(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, "<!doctype html><title>%[1]s</title><h1>Hello from %[1]s</h1><p>You came as %[2]s.</p>\n",
			html.EscapeString(name), html.EscapeString(r.RemoteAddr))
	})
	mux.HandleFunc("GET /download/{bytes}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("bytes"), 10, 64)
		if err != nil || n < 0 || n > maxDemoDownload {
			http.Error(w, "want /download/N with N up to 1073741824", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, &pattern{}, n) // an error is the reader's leaving
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		// Without it the server stops reading once the answer has begun.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.Copy(w, r.Body)
	})
	return mux
}

// pattern reads as the bytes 0 to 250 over and over: 251 is prime, so a block
// that went missing shows.
type pattern struct{ at int }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at)
		p.at = (p.at + 1) % 251
	}
	return len(b), nil
}

func echoTCP(ctx context.Context, l net.Listener) error {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return endOf(ctx, err)
		}
		wait.Go(func() {
			defer func() { _ = c.Close() }()
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			_, _ = io.Copy(c, c) // both ends are the same peer: its error is its own
		})
	}
}

func echoUDP(ctx context.Context, c net.PacketConn) error {
	buf := make([]byte, 65535)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return endOf(ctx, err)
		}
		if _, err := c.WriteTo(buf[:n], from); err != nil {
			return endOf(ctx, err)
		}
	}
}

// endOf hides the error that closing a listener at the end causes.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
