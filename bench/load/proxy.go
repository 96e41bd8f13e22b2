package load

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Proxy is the path between a peer's two sides with a property of a real one: a delay or a limited bandwidth.
type Proxy struct {
	l      net.Listener
	target string
	pipe   func(ctx context.Context, to, from *net.TCPConn) error // one direction, until its end
	tune   func(conn *net.TCPConn) error
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Close ends the proxy and its connections, and waits for them.
func (p *Proxy) Close() {
	p.cancel()
	p.all.Wait()
}

// newProxy listens on a loopback port. buffer is the size of the sockets' buffers in bytes; the listener's is set too,
// for the window of a connection is chosen when it is accepted.
func newProxy(target string, buffer int, pipe func(ctx context.Context, to, from *net.TCPConn) error) (*Proxy, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, buffer)
		})
		return errors.Join(err, failed)
	}}
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{l: l, target: target, pipe: pipe, cancel: cancel}
	p.tune = func(conn *net.TCPConn) error {
		return errors.Join(conn.SetReadBuffer(buffer), conn.SetWriteBuffer(buffer))
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	p.all.Go(func() { p.accept(ctx) })
	return p, nil
}

func (p *Proxy) accept(ctx context.Context) {
	for {
		conn, err := p.l.Accept()
		if err != nil {
			return // closed; anything else shows as a path that does not work
		}
		p.all.Go(func() { p.carry(ctx, conn.(*net.TCPConn)) })
	}
}

// carry runs both directions of one connection; when one fails both end, when one ends the other goes on.
func (p *Proxy) carry(ctx context.Context, near *net.TCPConn) {
	defer near.Close()
	dialer := net.Dialer{Timeout: 10 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", p.target)
	if err != nil {
		return
	}
	far := conn.(*net.TCPConn)
	defer far.Close()
	if p.tune(near) != nil || p.tune(far) != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		_ = near.Close()
		_ = far.Close()
	})()
	direction := func(to, from *net.TCPConn) {
		if p.pipe(ctx, to, from) != nil || to.CloseWrite() != nil {
			cancel()
		}
	}
	var back sync.WaitGroup
	back.Go(func() { direction(near, far) })
	direction(far, near)
	back.Wait()
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// unlessEOF is err, but nil for the regular end of a direction.
func unlessEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
