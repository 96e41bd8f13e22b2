package backend

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

// forward opens a channel to the target on a pooled connection. A connection that turns out to be broken is replaced
// once: it may have died since its last use.
func (s *Set) forward(ctx context.Context, backend string, who Caller, target string) (Conn, error) {
	for attempt := 1; ; attempt++ {
		l, err := s.acquire(ctx, backend, who)
		if err != nil {
			return nil, err
		}
		start := time.Now()
		c, err := l.open(ctx, target)
		waitsOf(ctx).opened(time.Since(start))
		if err == nil {
			return c, nil
		}
		if attempt == 2 || !errors.Is(err, errs.BackendBroken) {
			return nil, err
		}
	}
}

// directTCPIP is the extra data of a channel open (RFC 4254 section 7.2).
type directTCPIP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// opening is the result of a channel open.
type opening struct {
	channel ssh.Channel
	err     error
}

// open uses the slot that the caller has acquired: it is given back when the channel has ended, or has not come about.
func (l *link) open(ctx context.Context, target string) (*channelConn, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, l.unused(errs.Wrap(errs.Internal, err, "the target %q is no address", target))
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, l.unused(errs.Wrap(errs.Internal, err, "the target %q is no address", target))
	}
	extra := ssh.Marshal(directTCPIP{host, uint32(number), "127.0.0.1", 0})
	c := newChannelConn(l)
	result := make(chan opening, 1)
	ok := l.set.spawn(func() {
		// The library waits for the answer as long as the connection lives, so this may outlive the caller.
		channel, requests, err := l.conn.OpenChannel("direct-tcpip", extra)
		if !c.arrived(opening{channel, err}, result) && err == nil {
			_ = channel.Close() // nobody wants it any more
		}
		if err == nil {
			ssh.DiscardRequests(requests) // until the channel has ended on both sides, or the connection
		}
		c.ended()
	})
	if !ok {
		return nil, l.unused(errs.New(errs.ShuttingDown, "the gateway is shutting down"))
	}
	select {
	case o := <-result:
		if o.err != nil {
			return nil, l.openFailure(o.err, target)
		}
		return c, nil
	case <-ctx.Done():
		if o, ok := c.abandon(result); ok {
			_ = o.Close()
		}
		l.suspect() // no answer may mean a dead connection
		return nil, l.openLate(ctx, target)
	}
}

func (l *link) unused(err error) error {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	l.releaseLocked()
	return err
}

func (l *link) openFailure(err error, target string) error {
	b := l.b
	var refusal *ssh.OpenChannelError
	if errors.As(err, &refusal) {
		return errs.New(errs.TargetRefused, "backend %q (%s; phase: channel, server: %s) did not connect to %s: %s (%s)",
			b.Name, b.Address, l.peer.Version, target, refusal.Message, refusal.Reason)
	}
	l.discard()
	return errs.Wrap(errs.BackendBroken, err, "the SSH connection to backend %q (%s; phase: channel, server: %s) broke", b.Name, b.Address, l.peer.Version)
}

func (l *link) openLate(ctx context.Context, target string) error {
	b := l.b
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errs.Wrap(errs.BackendTimeout, ctx.Err(), "backend %q (%s; phase: channel, server: %s) did not connect to %s in time", b.Name, b.Address, l.peer.Version, target)
	}
	return l.set.ended(ctx, b, "channel")
}

// channelConn is a channel as a Conn.
type channelConn struct {
	link *link
	gone chan struct{} // closed when the channel has ended on both sides, or its connection
	rank uint64        // among the channels of the connection that have ended, from 1; set before gone is closed

	mu        sync.Mutex
	channel   ssh.Channel // set before the Conn is handed out
	abandoned bool        // nobody waits for the open any more

	closed    atomic.Bool // by our side
	hungUp    atomic.Bool // by the end of its connection
	finished  atomic.Bool // CloseWrite was called
	closeOnce sync.Once
	closeErr  error
}

func newChannelConn(l *link) *channelConn { return &channelConn{link: l, gone: make(chan struct{})} }

// arrived hands the opening to whoever waits; false: they have left.
func (c *channelConn) arrived(o opening, result chan<- opening) bool {
	l := c.link
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abandoned {
		return false
	}
	if o.err == nil {
		c.channel = o.channel
		l.conns[c] = struct{}{}
		if l.opened++; l.opened > 1 {
			l.pool.reused++
			l.b.counts.reuse.Inc()
		}
		l.b.counts.opened.Inc()
		l.b.counts.open.Inc()
	}
	result <- o // buffered
	return true
}

// abandon gives up waiting; it returns the channel that arrived at the same moment, if one did.
func (c *channelConn) abandon(result <-chan opening) (ssh.Channel, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case o := <-result:
		return o.channel, o.err == nil
	default:
		c.abandoned = true
		return nil, false
	}
}

// ended gives the slot back.
func (c *channelConn) ended() {
	l := c.link
	l.set.mu.Lock()
	if _, ok := l.conns[c]; ok {
		delete(l.conns, c)
		l.b.counts.open.Dec()
	}
	l.over++
	c.rank = l.over
	l.releaseLocked()
	l.set.mu.Unlock()
	close(c.gone)
}

// Read returns io.EOF only after the other side has ended its stream.
func (c *channelConn) Read(p []byte) (int, error) {
	n, err := c.channel.Read(p)
	if err == nil {
		return n, nil
	}
	if c.closed.Load() {
		return n, c.opError("read", net.ErrClosed)
	}
	if err == io.EOF && !c.hungUp.Load() && c.cleanEnd() {
		return n, io.EOF
	}
	return n, c.brokenError("read", err)
}

// goneWithin is how long after the end of a stream its channel is gone too, when the library ended both at once.
const goneWithin = time.Millisecond

// cleanEnd tells an end that the other side sent from one that the library makes up when the connection ends. A broken
// wire has said so before. As long as the channel is not gone, the end was sent. Otherwise either the other side has
// closed the channel as well, or has disconnected by a message, which asking it for a sign of life finds out.
func (c *channelConn) cleanEnd() bool {
	if c.link.wire.cut.Load() {
		return c.proven()
	}
	timer := time.NewTimer(goneWithin)
	defer timer.Stop()
	select {
	case <-c.gone:
		return c.link.alive() || c.proven() // we may have ended the connection meanwhile
	case <-timer.C:
		return !c.link.wire.cut.Load() || c.proven()
	}
}

// proven reports that the server gave a sign of life after the channel had ended.
func (c *channelConn) proven() bool {
	select {
	case <-c.gone:
		return c.rank <= c.link.proven.Load()
	default:
		return false
	}
}

func (c *channelConn) Write(p []byte) (int, error) {
	n, err := c.channel.Write(p)
	if err == nil {
		return n, nil
	}
	switch {
	case c.closed.Load():
		return n, c.opError("write", net.ErrClosed)
	case c.finished.Load():
		return n, c.opError("write", syscall.EPIPE)
	case c.hungUp.Load() || c.link.wire.cut.Load() || err != io.EOF:
		return n, c.brokenError("write", err)
	}
	return n, c.opError("write", syscall.EPIPE) // the other side has closed the channel
}

// CloseWrite ends our stream and leaves the other side's open.
func (c *channelConn) CloseWrite() error {
	if c.closed.Load() {
		return c.opError("close", net.ErrClosed)
	}
	if c.finished.Swap(true) {
		return nil
	}
	if err := c.channel.CloseWrite(); err != nil {
		return c.opError("close", syscall.EPIPE)
	}
	return nil
}

// Close closes both directions. It does not wait for the backend.
func (c *channelConn) Close() error {
	c.closeOnce.Do(func() {
		c.closed.Store(true)
		if err := c.channel.Close(); err != nil && err != io.EOF { // EOF: the other side was faster
			c.closeErr = c.brokenError("close", err)
		}
	})
	return c.closeErr
}

// hangUp closes the channel because its connection ends, which its user is told as a broken connection.
func (c *channelConn) hangUp() {
	c.hungUp.Store(true)
	_ = c.channel.Close() // fails when the server was faster
}

// LocalAddr is that of the SSH connection.
func (c *channelConn) LocalAddr() net.Addr {
	local, _ := c.link.addresses()
	return local
}

// RemoteAddr is that of the SSH connection: the address of the target is known only to the backend.
func (c *channelConn) RemoteAddr() net.Addr {
	_, remote := c.link.addresses()
	return remote
}

// SetDeadline is not supported and returns os.ErrNoDeadline.
func (c *channelConn) SetDeadline(time.Time) error { return c.opError("set", os.ErrNoDeadline) }

// SetReadDeadline is not supported and returns os.ErrNoDeadline.
func (c *channelConn) SetReadDeadline(time.Time) error { return c.opError("set", os.ErrNoDeadline) }

// SetWriteDeadline is not supported and returns os.ErrNoDeadline.
func (c *channelConn) SetWriteDeadline(time.Time) error { return c.opError("set", os.ErrNoDeadline) }

func (c *channelConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "ssh", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func (c *channelConn) brokenError(op string, err error) error {
	b := c.link.b
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return errs.Wrap(errs.BackendBroken, err, "the SSH connection to backend %q (%s) broke during a %s", b.Name, b.Address, op)
}
