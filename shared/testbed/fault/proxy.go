// Package fault is a TCP proxy that misbehaves on demand: it delays, narrows, stalls, swallows, cuts and refuses.
//
// It works on the bytes of established connections. What happens below (packets lost, reordered, sent again) reaches TCP's
// users as delay and cuts, which it can make. The handshake of a connection through it takes no extra time.
package fault

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// Direction of bytes through the proxy.
type Direction int

// The directions.
const (
	Up   Direction = iota // from the side that connected to the target
	Down                  // from the target
)

// Shape is what a path does to the bytes of one direction. The zero value does nothing.
type Shape struct {
	Latency   time.Duration // one way; any number of bytes may be under way
	Bandwidth int64         // bytes a second, of all connections together; 0: unlimited
}

const (
	defaultMemory  = 256 << 20
	smallestMemory = 1 << 20
	dialTimeout    = 10 * time.Second
	chunkSize      = 128 << 10
	parcelOverhead = 128 // bytes of memory that a parcel takes besides its data
	// narrowBuffer is the receive buffer of a socket whose direction has a limited bandwidth, so that what waits for
	// the narrow path waits at the sender, where a scheduler sees it, and not in this process's kernel.
	narrowBuffer = 64 << 10
)

// Config says where a proxy stands. It forwards faithfully until told otherwise.
type Config struct {
	Listen        string // default "127.0.0.1:0"
	Target        string // "host:port"
	Up, Down      Shape
	ReceiveBuffer int   // bytes of both sockets' receive buffers; default: the system's, or 64 KiB with a bandwidth
	Memory        int64 // most bytes under way because of latency, all connections together; default 256 MiB
}

// Stats are counted since the proxy was made.
type Stats struct {
	Accepted int64 // connections
	Active   int   // connections open now
	Up, Down int64 // bytes handed on
}

// Proxy is a running proxy. Its methods may be called at any time and from any goroutine.
type Proxy struct {
	cfg      Config
	addr     string
	ctx      context.Context
	cancel   context.CancelFunc
	tasks    sync.WaitGroup // connections
	flows    [2]*flow       // by Direction
	gate     *gate
	memory   *semaphore.Weighted
	buffers  sync.Pool // *[]byte of chunkSize
	accepted atomic.Int64

	mu       sync.Mutex // guards what follows
	target   string
	listener net.Listener // nil while refusing
	looping  chan struct{}
	conns    map[*conn]struct{}
	closed   bool
}

// New starts a proxy.
func New(cfg Config) (*Proxy, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Memory == 0 {
		cfg.Memory = defaultMemory
	}
	if cfg.Memory < smallestMemory {
		return nil, fmt.Errorf("a memory of %d bytes is below the smallest, %d", cfg.Memory, smallestMemory)
	}
	p := &Proxy{
		cfg: cfg, target: cfg.Target, gate: newGate(), memory: semaphore.NewWeighted(cfg.Memory),
		flows: [2]*flow{newFlow(cfg.Up), newFlow(cfg.Down)}, conns: make(map[*conn]struct{}), addr: cfg.Listen,
	}
	p.buffers.New = func() any { b := make([]byte, chunkSize); return &b }
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if err := p.Accept(); err != nil {
		p.cancel()
		return nil, err
	}
	return p, nil
}

// Addr is where the proxy listens, "127.0.0.1:port"; it stays the same through Refuse and Accept.
func (p *Proxy) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// SetTarget makes new connections go to another "host:port".
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Shape changes a direction, for open connections too. What is under way keeps its delay.
func (p *Proxy) Shape(d Direction, s Shape) {
	p.flows[d].setShape(s)
	for _, c := range p.active() {
		c.setReceiveBuffers()
	}
}

// Cut resets all connections (RST) and returns how many there were. Bytes under way are lost.
func (p *Proxy) Cut() int {
	conns := p.active()
	for _, c := range conns {
		c.cut()
	}
	return len(conns)
}

// CutAfter lets n more bytes of a direction through, of all connections together, and then resets the connection that
// carries the next one. At most n bytes arrive: a reset also takes those that the receiver's kernel had no room for.
// The channel is closed when it has happened. A later call replaces an earlier one that has not happened yet.
func (p *Proxy) CutAfter(d Direction, n int64) <-chan struct{} { return p.flows[d].cutAfter(n) }

// Stall holds everything back silently, both ways: connections stay open, new ones are accepted and held too, ends and
// resets are not passed on. Nothing is lost: Resume goes on where it stopped.
func (p *Proxy) Stall() { p.gate.set(stalled) }

// Blackhole swallows everything silently, both ways; new connections are accepted and held. Resume resets the
// connections that have lost bytes, as no path loses bytes of a TCP connection and then goes on.
func (p *Proxy) Blackhole() { p.gate.set(swallowing) }

// Resume ends Stall and Blackhole.
func (p *Proxy) Resume() {
	p.gate.set(open)
	for _, c := range p.active() {
		if c.lost.Load() {
			c.cut()
		}
	}
}

// Refuse closes the listener, so that new connections are refused; open ones go on.
func (p *Proxy) Refuse() error {
	p.mu.Lock()
	listener, looping := p.listener, p.looping
	p.listener = nil
	p.mu.Unlock()
	if listener == nil {
		return nil
	}
	err := listener.Close()
	<-looping
	return err
}

// Accept ends Refuse: the proxy listens at the same address again.
func (p *Proxy) Accept() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if p.listener != nil {
		return nil
	}
	listener, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.listener, p.addr, p.looping = listener, listener.Addr().String(), make(chan struct{})
	go p.loop(listener, p.looping)
	return nil
}

// Stats returns the counters.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{
		Accepted: p.accepted.Load(), Active: len(p.conns),
		Up: p.flows[Up].bytes.Load(), Down: p.flows[Down].bytes.Load(),
	}
}

// Close resets all connections, stops listening and waits for everything. It may be called twice.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.Refuse() // errors say that it was closed
	p.cancel()
	p.Cut()
	p.tasks.Wait()
}

func (p *Proxy) loop(listener net.Listener, looping chan<- struct{}) {
	defer close(looping)
	for {
		accepted, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // that connection ended before it was accepted
		}
		p.accepted.Add(1)
		c := newConn(p, accepted.(*net.TCPConn))
		if !p.add(c) {
			c.cut()
			return
		}
	}
}

// add starts a connection, unless the proxy is closing.
func (p *Proxy) add(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	p.tasks.Go(func() {
		c.run()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	})
	return true
}

// currentTarget is asked when a connection dials, which can be long after it was accepted.
func (p *Proxy) currentTarget() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target
}

func (p *Proxy) active() []*conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	conns := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	return conns
}
