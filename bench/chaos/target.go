package chaos

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// headerSize is what a connection begins with: its id, big-endian. It is no part of the content.
const headerSize = 8

// target is the backend. It knows the connections that are to come, and tells each what it saw of it.
type target struct {
	listener *net.TCPListener
	moved    atomic.Int64 // bytes of content that arrived
	tasks    sync.WaitGroup

	mu       sync.Mutex
	expected map[uint64]*connection
	open     map[*net.TCPConn]struct{}
	strays   []error // connections that nobody knows
	closed   bool
}

func newTarget() (*target, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	t := &target{listener: l, expected: map[uint64]*connection{}, open: map[*net.TCPConn]struct{}{}}
	t.tasks.Go(t.serve)
	return t, nil
}

func (t *target) addr() string { return t.listener.Addr().String() }

// expect makes a connection known before it begins.
func (t *target) expect(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expected[c.id] = c
}

func (t *target) serve() {
	for {
		conn, err := t.listener.AcceptTCP()
		if err != nil {
			return
		}
		if !t.add(conn) {
			conn.Close()
			return
		}
		t.tasks.Go(func() {
			defer t.remove(conn)
			if err := t.handle(conn); err != nil {
				t.mu.Lock()
				defer t.mu.Unlock()
				t.strays = append(t.strays, err)
			}
		})
	}
}

func (t *target) add(conn *net.TCPConn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.open[conn] = struct{}{}
	}
	return !t.closed
}

func (t *target) remove(conn *net.TCPConn) {
	conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, conn)
}

// handle plays the backend's part of a connection.
func (t *target) handle(conn *net.TCPConn) error {
	var header [headerSize]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return fmt.Errorf("a connection ended at the backend before it said which it is: %w", err)
	}
	id := binary.BigEndian.Uint64(header[:])
	t.mu.Lock()
	c := t.expected[id]
	delete(t.expected, id)
	t.mu.Unlock()
	if c == nil {
		return fmt.Errorf("connection %d came to the backend twice, or was never made", id)
	}
	c.backend = carry(conn, c.down, c.seed+1, c.piece, c.order == tell, c.order == ask, &t.moved)
	close(c.met)
	return nil
}

// unknown returns the connections that came without being expected.
func (t *target) unknown() []error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.strays
}

// close cuts what is left.
func (t *target) close() error {
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
