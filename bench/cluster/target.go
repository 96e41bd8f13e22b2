package cluster

import (
	"crypto/sha256"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Target is what the routes lead to: it sends back what it gets and, once that has ended, the SHA-256 of it. So an
// application knows what arrived in each direction, and that half-closed connections stay so.
type Target struct {
	listener net.Listener
	tasks    sync.WaitGroup
	moved    atomic.Int64 // bytes that arrived
	total    atomic.Int64 // connections

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

// NewTarget starts a target.
func NewTarget() (*Target, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &Target{listener: l, open: map[net.Conn]struct{}{}}
	t.tasks.Go(t.serve)
	return t, nil
}

// Addr is where it listens.
func (t *Target) Addr() string { return t.listener.Addr().String() }

// Open counts the connections that are open now.
func (t *Target) Open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open)
}

// Total counts the connections since the start.
func (t *Target) Total() int64 { return t.total.Load() }

func (t *Target) serve() {
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			return
		}
		if !t.add(conn) {
			conn.Close()
			return
		}
		t.tasks.Go(func() {
			defer t.remove(conn)
			t.echo(conn)
		})
	}
}

func (t *Target) add(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.open[conn] = struct{}{}
		t.total.Add(1)
	}
	return !t.closed
}

func (t *Target) remove(conn net.Conn) {
	conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, conn)
}

// echo serves a connection. What breaks it shows at its other end.
func (t *Target) echo(conn net.Conn) {
	sum, buf := sha256.New(), make([]byte, pieceSize)
	for {
		n, err := conn.Read(buf)
		sum.Write(buf[:n])
		t.moved.Add(int64(n))
		if n > 0 {
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		if err == io.EOF {
			_, _ = conn.Write(sum.Sum(nil))
			return
		}
		if err != nil {
			_ = conn.(*net.TCPConn).SetLinger(0) // broken at one end, so at the other
			return
		}
	}
}

// Close cuts what is left.
func (t *Target) Close() error {
	err := t.listener.Close()
	t.mu.Lock()
	t.closed = true
	for conn := range t.open {
		conn.Close()
	}
	t.mu.Unlock()
	t.tasks.Wait()
	return err
}
