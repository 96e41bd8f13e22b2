package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// conn is a connection with the one to its backend.
type conn struct {
	b         *Balancer
	to        *backend
	near, far *net.TCPConn
	ctx       context.Context
	end       context.CancelFunc
}

func (b *Balancer) serve() {
	for {
		accepted, err := b.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // that connection ended before it was accepted
		}
		b.tasks.Go(func() { b.carry(accepted.(*net.TCPConn)) })
	}
}

// carry finds a backend that takes the connection, and carries it to the end. Without one it is reset.
func (b *Balancer) carry(near *net.TCPConn) {
	for _, one := range b.order() {
		far, err := b.dial(one)
		if err != nil {
			continue
		}
		c := &conn{b: b, to: one, near: near, far: far}
		c.ctx, c.end = context.WithCancel(b.ctx)
		if b.add(c) {
			c.run()
			b.remove(c)
		} else {
			c.cut()
		}
		return
	}
	reset(near)
}

// order lists the backends that a connection is tried with, at random.
func (b *Balancer) order() (list []*backend) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range b.backends {
		if one.stats.Ready && (len(b.only) == 0 || slices.Contains(b.only, one.Name)) {
			list = append(list, one)
		}
	}
	b.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// dial connects to a backend. What is lost on its way to a partitioned one shows only by the time that it takes.
func (b *Balancer) dial(one *backend) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(b.ctx, b.cfg.Dial)
	defer cancel()
	dialed, err := b.reach(ctx, one)
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		one.stats.Failed++
		return nil, err
	}
	return dialed.(*net.TCPConn), nil
}

// reach is dial without its bound.
func (b *Balancer) reach(ctx context.Context, one *backend) (net.Conn, error) {
	if err := b.passable(ctx, one); err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, "tcp", one.Address)
}

// passable waits until a backend is not partitioned.
func (b *Balancer) passable(ctx context.Context, one *backend) error {
	for {
		b.mu.Lock()
		cut, moved := one.cut, one.moved
		b.mu.Unlock()
		if !cut {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *Balancer) add(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	c.to.conns[c] = struct{}{}
	c.to.stats.Connections++
	return true
}

func (b *Balancer) remove(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(c.to.conns, c)
}

// run copies both ways until both have ended, or one has failed.
func (c *conn) run() {
	defer c.end()
	var ways sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{c.near, c.far}, {c.far, c.near}} {
		ways.Go(func() {
			if err := c.copy(way[1], way[0]); err != nil {
				c.cut() // what one end did, the other is to see
			}
		})
	}
	ways.Wait()
	_, _ = c.near.Close(), c.far.Close() // cut may have done it
}

// copy carries one direction with its end.
func (c *conn) copy(to, from *net.TCPConn) error {
	buf := make([]byte, bufferSize)
	for {
		n, err := from.Read(buf)
		if gate := c.b.passable(c.ctx, c.to); gate != nil {
			return gate
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return to.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

// cut resets both ends.
func (c *conn) cut() {
	c.end()
	reset(c.near)
	reset(c.far)
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // it may be closed
	_ = c.Close()
}

// watch keeps what is known about a backend's readiness.
func (b *Balancer) watch(one *backend) {
	tick := time.NewTicker(b.cfg.Every)
	defer tick.Stop()
	for {
		err := b.check(one)
		if b.ctx.Err() != nil {
			return
		}
		b.mu.Lock()
		one.stats.Ready = err == nil
		b.mu.Unlock()
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Balancer) check(one *backend) error {
	ctx, cancel := context.WithTimeout(b.ctx, checkTimeout)
	defer cancel()
	conn, err := b.reach(ctx, one)
	if err != nil {
		return err
	}
	defer conn.Close()
	if b.cfg.Check == TCP {
		return nil
	}
	status, err := askReady(ctx, conn, one.Address)
	if err == nil && status != okStatus {
		err = fmt.Errorf("%s answers with status %d", one.Name, status)
	}
	return err
}
