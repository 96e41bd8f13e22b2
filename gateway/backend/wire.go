package backend

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
)

// errNotSSH2 ends the reading of a server that speaks another version of SSH.
var errNotSSH2 = errors.New("the server does not speak SSH 2")

// wire is the TCP connection under an SSH connection. It notes what the SSH library keeps to itself: the server's version
// line, also when the handshake fails (and the first line of something that is no SSH server); that the connection is
// broken, before the library tells the channels; and refuses servers that are older than SSH 2, which the library does
// not check.
type wire struct {
	net.Conn
	settled bool   // the version line has passed; used by the one reader only
	line    []byte // the line being read; likewise

	mu      sync.Mutex
	first   string // first line of the server
	version string // its version line, such as SSH-2.0-OpenSSH_9.2

	cut     atomic.Bool // reading or writing failed, or it was closed
	expired atomic.Bool // by a deadline
}

// maxVersionLine bounds what is kept of a line; RFC 4253 section 4.2 allows 255 bytes.
const maxVersionLine = 255

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.failed(err)
	}
	if !w.settled && n > 0 {
		if bad := w.inspect(p[:n]); bad != nil {
			return 0, bad
		}
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	if err != nil {
		w.failed(err)
	}
	return n, err
}

func (w *wire) Close() error {
	w.cut.Store(true)
	return w.Conn.Close()
}

func (w *wire) failed(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		w.expired.Store(true)
	}
	w.cut.Store(true)
}

// inspect reads along until the version line has passed.
func (w *wire) inspect(p []byte) error {
	for _, b := range p {
		if b != '\n' {
			if len(w.line) < maxVersionLine {
				w.line = append(w.line, b)
			}
			continue
		}
		line := string(bytes.TrimRight(w.line, "\r"))
		w.line = w.line[:0]
		if err := w.note(line); err != nil || w.settled {
			return err
		}
	}
	return nil
}

func (w *wire) note(line string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first == "" {
		w.first = line
	}
	if len(line) < 4 || line[:4] != "SSH-" {
		return nil
	}
	w.version, w.settled, w.line = line, true, nil
	// "1.99" is a server that speaks 2 and also 1 (RFC 4253 section 5.1).
	for _, ok := range []string{"SSH-2.0-", "SSH-1.99-"} {
		if len(line) >= len(ok) && line[:len(ok)] == ok {
			return nil
		}
	}
	return fmt.Errorf("%w: it says %q", errNotSSH2, line)
}

// greeting returns the version line, and the first line whatever it was. Both are empty when nothing came.
func (w *wire) greeting() (version, first string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.version, w.first
}
