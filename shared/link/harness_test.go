package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// memConn is one end of an in-memory lane: whole messages, a bounded buffer between the ends, and a way to break it at any
// message.
type memConn struct {
	in, out  *memPipe
	pending  [][]byte
	buffered int
	closed   sync.Once
	pair     *memPair
}

type memPair struct {
	client, server *memConn
	broken         chan struct{}
	once           sync.Once
}

type memPipe struct {
	mu       sync.Mutex
	cond     sync.Cond
	messages [][]byte
	size     int
	received uint64
	broken   bool
	stalled  bool
	closing  error // close frame, after the messages
	budget   int   // bytes until the pipe breaks by itself; 0: never
	pair     *memPair
}

const memPipeSize = 256 << 10

func newMemPair() *memPair {
	p := &memPair{broken: make(chan struct{})}
	up, down := &memPipe{pair: p}, &memPipe{pair: p}
	up.cond.L, down.cond.L = &up.mu, &down.mu
	p.client = &memConn{in: down, out: up, pair: p}
	p.server = &memConn{in: up, out: down, pair: p}
	return p
}

// cut breaks both directions; what is on the way is lost.
func (p *memPair) cut() {
	p.once.Do(func() {
		for _, pipe := range []*memPipe{p.client.in, p.client.out} {
			pipe.mu.Lock()
			pipe.broken, pipe.messages = true, nil
			pipe.cond.Broadcast()
			pipe.mu.Unlock()
		}
		close(p.broken)
	})
}

// stall lets nothing through any more, silently.
func (p *memPair) stall() {
	for _, pipe := range []*memPipe{p.client.in, p.client.out} {
		pipe.mu.Lock()
		pipe.stalled = true
		pipe.mu.Unlock()
	}
}

var errMem = errs.New(errs.LaneLost, "the in-memory lane was cut")

func (c *memConn) NextReader() (io.Reader, error) {
	p := c.in
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.broken:
			return nil, errMem
		case p.stalled:
		case len(p.messages) > 0:
			m := p.messages[0]
			p.messages = p.messages[1:]
			p.size -= len(m)
			p.received += uint64(len(m))
			p.cond.Broadcast()
			return bytes.NewReader(m), nil
		case p.closing != nil:
			return nil, p.closing
		}
		p.cond.Wait()
	}
}

func (c *memConn) Write(head, payload []byte) error {
	c.pending = append(c.pending, append(append([]byte(nil), head...), payload...))
	c.buffered += len(head) + len(payload)
	return nil
}

func (c *memConn) Buffered() int { return c.buffered }

func (c *memConn) Flush() error {
	p := c.out
	p.mu.Lock()
	for _, m := range c.pending {
		for !p.broken && (p.size > memPipeSize || p.stalled) {
			p.cond.Wait()
		}
		if p.broken {
			p.mu.Unlock()
			return errMem
		}
		p.messages = append(p.messages, m)
		p.size += len(m)
		p.cond.Broadcast()
		if p.budget > 0 {
			if p.budget -= len(m); p.budget <= 0 {
				p.mu.Unlock()
				c.pair.cut()
				return errMem
			}
		}
	}
	c.pending, c.buffered = nil, 0
	p.mu.Unlock()
	return nil
}

func (c *memConn) Close(code int, reason string) {
	c.closed.Do(func() {
		p := c.out
		p.mu.Lock()
		p.closing = errs.FromCloseFrame(code, reason)
		p.cond.Broadcast()
		p.mu.Unlock()
		go func() {
			select {
			case <-time.After(2 * time.Second):
				c.pair.cut()
			case <-c.pair.broken:
			}
		}()
	})
}

func (c *memConn) Drain() {
	for {
		if _, err := c.NextReader(); err != nil {
			return
		}
	}
}

func (c *memConn) Abort() { c.pair.cut() }
func (c *memConn) Wait()  {}
func (c *memConn) Received() uint64 {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.in.received
}

// network makes lanes between a client and a gateway that holds tunnels, and resumes the client's tunnel whenever a lane
// breaks.
type network struct {
	t        testing.TB
	dial     func() (client, server Conn, cut func())
	server   Config
	client   Config
	lanes    sync.WaitGroup
	mu       sync.Mutex
	tunnels  map[ID]*Tunnel
	cutLane  func()
	onLane   func(n int, cut func())
	count    int
	laneErrs []error
}

func (n *network) serve(conn Conn) {
	defer n.lanes.Done()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	hs, err := Greet(ctx, conn)
	if err == nil {
		var lane *Lane
		if lane, err = n.accept(hs); err == nil {
			err = lane.Run()
			n.mu.Lock()
			n.laneErrs = append(n.laneErrs, err)
			n.mu.Unlock()
			return
		}
	}
	conn.Close(errs.CloseFrame(err))
	conn.Drain()
	conn.Abort()
}

func (n *network) accept(hs *Handshake) (*Lane, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id, resume := hs.Tunnel()
	if !resume {
		tun, lane, err := hs.Accept(n.server)
		if err == nil {
			n.tunnels[tun.ID()] = tun
		}
		return lane, err
	}
	tun, ok := n.tunnels[id]
	if !ok {
		return nil, errs.New(errs.TunnelUnknown, "no such tunnel")
	}
	return hs.Resume(tun)
}

// lane makes a connection whose far end is served.
func (n *network) lane() (Conn, func()) {
	client, server, cut := n.dial()
	n.lanes.Add(1)
	go n.serve(server)
	n.mu.Lock()
	n.cutLane = cut
	n.count++
	count, hook := n.count, n.onLane
	n.mu.Unlock()
	if hook != nil {
		hook(count, cut)
	}
	return client, cut
}

// connect makes a tunnel and keeps it on a lane until it is over.
func (n *network) connect() *Tunnel {
	for {
		conn, _ := n.lane()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		tun, lane, err := Connect(ctx, conn, n.client)
		cancel()
		if err != nil {
			conn.Abort()
			continue
		}
		n.lanes.Add(1)
		go n.keep(tun, lane)
		return tun
	}
}

func (n *network) keep(tun *Tunnel, lane *Lane) {
	defer n.lanes.Done()
	for {
		if lane != nil {
			_ = lane.Run()
		}
		if tun.Err() != nil {
			return
		}
		conn, _ := n.lane()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		var err error
		lane, err = tun.Resume(ctx, conn)
		cancel()
		if err != nil {
			lane = nil
			conn.Abort()
			if errors.Is(err, errs.TunnelUnknown) {
				tun.Close(err)
				return
			}
		}
	}
}

// gateway returns the one tunnel the gateway holds.
func (n *network) gateway() *Tunnel {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.tunnels {
		return t
	}
	return nil
}

func memNetwork(t testing.TB, server, client Config) *network {
	return &network{t: t, server: server, client: client, tunnels: map[ID]*Tunnel{}, dial: func() (Conn, Conn, func()) {
		p := newMemPair()
		return p.client, p.server, p.cut
	}}
}

// finish ends everything and checks that nothing stays behind.
func (n *network) finish(tun *Tunnel, before int64) {
	gw := n.gateway()
	tun.Close(nil)
	gw.Close(nil)
	tun.Wait()
	gw.Wait()
	n.lanes.Wait()
	require.Equal(n.t, before, held.Load(), "buffers left behind")
	for _, x := range []*Tunnel{tun, gw} {
		require.Zero(n.t, x.budget.Used(), "budget not given back")
		require.Zero(n.t, x.waiting, "bytes counted as waiting")
		require.Zero(n.t, x.unacked, "bytes counted as unacknowledged")
	}
}

// pattern makes bytes that depend on stream, direction and position, and checks them. What two
// streams in three carry shrinks when it is compressed, but for every fourth run of it.
type pattern struct {
	seed uint64
	pos  uint64
}

func (p *pattern) fill(b []byte) {
	for i := range b {
		b[i] = p.at(p.pos + uint64(i))
	}
	p.pos += uint64(len(b))
}

func (p *pattern) at(pos uint64) byte {
	word := pos >> 3
	if p.seed>>1%3 != 0 && pos/50_000%4 != 3 && word&7 != 0 { // only one word of eight is of its position alone
		word &= 7
	}
	x := (word + p.seed*0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9
	x ^= x >> 29
	return byte(x >> (8 * (pos & 7)))
}

func (p *pattern) check(b []byte) error {
	for i, c := range b {
		if want := p.at(p.pos + uint64(i)); c != want {
			return fmt.Errorf("byte %d is %#x, want %#x", p.pos+uint64(i), c, want)
		}
	}
	p.pos += uint64(len(b))
	return nil
}

// sendAll writes n bytes of the pattern in pieces of at most size.
func sendAll(s *Stream, seed uint64, n, size int) error {
	p, b := pattern{seed: seed}, make([]byte, size)
	for left := n; left > 0; {
		m := min(left, size)
		p.fill(b[:m])
		if _, err := s.Write(b[:m]); err != nil {
			return fmt.Errorf("after %d bytes: %w", n-left, err)
		}
		left -= m
	}
	return s.CloseWrite()
}

// readAll reads to the end, and checks content and length.
func readAll(s *Stream, seed uint64, n, size int) error {
	p, b := pattern{seed: seed}, make([]byte, size)
	for {
		m, err := s.Read(b)
		if cerr := p.check(b[:m]); cerr != nil {
			return cerr
		}
		if err == io.EOF {
			if p.pos != uint64(n) {
				return fmt.Errorf("ended after %d bytes, want %d", p.pos, n)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", p.pos, err)
		}
	}
}
