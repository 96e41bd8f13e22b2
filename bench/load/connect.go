package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// echoTimeout bounds each single echo; a path that holds one up for longer is broken, not slow.
const echoTimeout = 60 * time.Second

// connect dials addr. The connection is closed when ctx ends; the caller closes it too and calls release.
func connect(ctx context.Context, addr string) (conn *net.TCPConn, release func(), err error) {
	dialer := net.Dialer{Timeout: 20 * time.Second}
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return c.(*net.TCPConn), func() {
		stop()
		_ = c.Close()
	}, nil
}

// roundTrip sends message and waits for its echo.
func roundTrip(conn *net.TCPConn, message []byte) error {
	if err := conn.SetDeadline(time.Now().Add(echoTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	answer := make([]byte, len(message))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("read an echo: %w", err)
	}
	if !bytes.Equal(answer, message) {
		return fmt.Errorf("%w: an echo differs", errContent)
	}
	return nil
}

// openEcho connects and has the first echo answered.
func openEcho(ctx context.Context, addr string, seed uint64) (*net.TCPConn, func(), error) {
	conn, release, err := connect(ctx, addr)
	if err != nil {
		return nil, nil, err
	}
	if err := roundTrip(conn, header{op: opEcho, seed: seed}.encode()); err != nil {
		release()
		return nil, nil, err
	}
	return conn, release, nil
}

// AwaitEcho waits until an echo comes back through addr: then the whole path works. It gives up when ctx ends.
func AwaitEcho(ctx context.Context, addr string) error {
	var last error
	for {
		_, release, err := openEcho(ctx, addr, 0)
		if err == nil {
			release()
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("no echo through %s: %w", addr, ctx.Err()), last)
		}
		last = err
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}
