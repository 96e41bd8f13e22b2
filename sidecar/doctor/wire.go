package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	bannerTime  = 2 * time.Second // in which an SSH server says what it is: it speaks first
	maxPreamble = 4 << 10         // bytes until the end of the version
	maxGreeting = 64 << 10        // bytes of the beginning that are kept
)

// wire is a stream as a network connection that remembers the beginning of what came.
type wire struct {
	stream
	r    *bufio.Reader
	mu   sync.Mutex
	seen bytes.Buffer
}

func newWire(s stream) *wire { return &wire{stream: s, r: bufio.NewReaderSize(s, maxPreamble)} }

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen.Len() < maxGreeting {
		w.seen.Write(p[:n])
	}
	return n, err
}

// greeting is what came first, as far as it was read.
func (w *wire) greeting() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.seen.Bytes())
}

// Close ends the stream. Deadlines are for contexts, whose end aborts the stream.
func (w *wire) Close() error {
	w.abort()
	return nil
}

func (w *wire) LocalAddr() net.Addr              { return routeAddr("doctor") }
func (w *wire) RemoteAddr() net.Addr             { return routeAddr("route") }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

type routeAddr string

func (routeAddr) Network() string  { return "route" }
func (a routeAddr) String() string { return string(a) }

// errNoBanner says that what is behind the route is no SSH server, as far as can be seen.
var errNoBanner = errors.New("no SSH server")

// banner waits for the server's version, without taking it away. After an error the stream is of no more use.
func (w *wire) banner(ctx context.Context) (string, error) {
	type peeked struct {
		text string
		err  error
	}
	got := make(chan peeked, 1)
	go func() {
		text, err := w.peekVersion()
		got <- peeked{text, err}
	}()
	timer := time.NewTimer(bannerTime)
	defer timer.Stop()
	select {
	case p := <-got:
		if p.err == nil || ctx.Err() == nil { // else the stream was aborted for it
			return p.text, p.err
		}
	case <-ctx.Done():
		w.abort()
		<-got
	case <-timer.C:
		w.abort()
		if p := <-got; p.err == nil {
			return p.text, nil
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return "", ctx.Err()
	}
	return "", fmt.Errorf("%w as far as can be seen: it waits for its client to speak first, so there is nothing more to try", errNoBanner)
}

// peekVersion finds the line that begins with SSH-, before which a server may send others (RFC 4253 section 4.2).
func (w *wire) peekVersion() (string, error) {
	for n := 1; ; n++ {
		b, err := w.r.Peek(n)
		if len(b) > 0 {
			n = w.r.Buffered()
			b, _ = w.r.Peek(n) // it is there
		}
		if version, ok := versionIn(b); ok {
			return version, nil
		}
		first, _, _ := strings.Cut(string(b), "\n")
		switch {
		case len(b) == maxPreamble:
			return "", fmt.Errorf("%w: it says %q", errNoBanner, clip(first, 60))
		case err != nil && len(b) > 0:
			return "", fmt.Errorf("%w: it said %q and closed", errNoBanner, clip(first, 60))
		case err != nil:
			return "", err
		}
	}
}

// versionIn is the first whole line that begins with SSH-.
func versionIn(b []byte) (version string, ok bool) {
	for line, rest, more := bytes.Cut(b, []byte("\n")); more; line, rest, more = bytes.Cut(rest, []byte("\n")) {
		if bytes.HasPrefix(line, []byte("SSH-")) {
			return clip(strings.TrimSuffix(string(line), "\r"), 255), true
		}
	}
	return "", false
}
