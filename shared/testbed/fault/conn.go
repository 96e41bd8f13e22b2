package fault

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is one connection through the proxy: two sockets and, for each direction, a goroutine that reads and one that
// empties the delay line.
type conn struct {
	p      *Proxy
	ctx    context.Context
	cancel context.CancelFunc
	lost   atomic.Bool // bytes were swallowed

	mu     sync.Mutex // guards the sockets against a cut while the target is dialled
	client *net.TCPConn
	target *net.TCPConn
	closed bool
}

func newConn(p *Proxy, client *net.TCPConn) *conn {
	c := &conn{p: p, client: client}
	c.ctx, c.cancel = context.WithCancel(p.ctx)
	return c
}

// run serves the connection until it has ended in both directions or was cut.
func (c *conn) run() {
	defer c.cut() // closed in good order already, if it ended well
	if _, ok := c.p.gate.wait(c.ctx, isOpen); !ok {
		return
	}
	if !c.dial() {
		return
	}
	c.setReceiveBuffers()
	up, down := newPipe(c, Up, c.client, c.target), newPipe(c, Down, c.target, c.client)
	var tasks sync.WaitGroup
	for _, p := range []*pipe{up, down} {
		tasks.Go(p.read)
		tasks.Go(p.write)
	}
	tasks.Wait()
	up.release()
	down.release()
	if up.ended && down.ended {
		c.close()
	}
}

func (c *conn) dial() bool {
	dialer := net.Dialer{Timeout: dialTimeout}
	target, err := dialer.DialContext(c.ctx, "tcp", c.p.currentTarget())
	if err != nil {
		return false // the client sees a reset
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target = target.(*net.TCPConn)
	if c.closed {
		_ = c.target.Close()
		return false
	}
	return true
}

// setReceiveBuffers applies the configured size, or a small one where the direction is narrow.
func (c *conn) setReceiveBuffers() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for d, socket := range []*net.TCPConn{c.client, c.target} {
		size := c.p.cfg.ReceiveBuffer
		if size == 0 && c.p.flows[d].narrow() {
			size = narrowBuffer
		}
		if size > 0 && socket != nil {
			_ = socket.SetReadBuffer(size) // fails only on a closed socket
		}
	}
}

// cut resets both sides. It does nothing to a connection that is closed.
func (c *conn) cut() { c.shut(true) }

// close ends both sides in good order.
func (c *conn) close() { c.shut(false) }

func (c *conn) shut(reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel()
	if c.closed {
		return
	}
	c.closed = true
	for _, socket := range []*net.TCPConn{c.client, c.target} {
		if socket == nil {
			continue
		}
		if reset {
			_ = socket.SetLinger(0)
		}
		_ = socket.Close() // the other side sees it, which is all that matters
	}
}

// pipe is one direction of a connection.
type pipe struct {
	c     *conn
	flow  *flow
	line  *line
	from  *net.TCPConn
	to    *net.TCPConn
	ended bool               // the end was handed on; written by read or write, read after both have ended
	done  context.Context    // ends write when read has handed on the end by itself
	stop  context.CancelFunc // of done
}

func newPipe(c *conn, d Direction, from, to *net.TCPConn) *pipe {
	p := &pipe{c: c, flow: c.p.flows[d], line: newLine(), from: from, to: to}
	p.done, p.stop = context.WithCancel(c.ctx)
	return p
}

// read takes bytes from one side and gives them to the path.
func (p *pipe) read() {
	raw, err := p.from.SyscallConn()
	if err != nil {
		p.c.cut()
		return
	}
	for {
		buffer, n, err := p.receive(raw)
		if err != nil {
			p.fail(err)
			return
		}
		sent, arrive := p.flow.send(n, time.Now())
		if !p.forward(parcel{due: arrive, data: (*buffer)[:n], buffer: buffer}) || !sleepUntil(p.c.ctx, sent) {
			return
		}
	}
}

// receive waits until there is something to read and only then takes a buffer, so that idle connections hold none.
func (p *pipe) receive(raw syscall.RawConn) (buffer *[]byte, n int, err error) {
	limit := p.flow.chunk()
	waitErr := raw.Read(func(fd uintptr) bool {
		buffer = p.c.p.buffers.Get().(*[]byte)
		for n, err = syscall.Read(int(fd), (*buffer)[:limit]); errors.Is(err, syscall.EINTR); {
			n, err = syscall.Read(int(fd), (*buffer)[:limit])
		}
		if err == nil && n > 0 {
			return true
		}
		p.c.p.buffers.Put(buffer)
		buffer = nil
		return !errors.Is(err, syscall.EAGAIN)
	})
	if waitErr != nil {
		return nil, 0, waitErr
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	return buffer, n, err
}

// fail ends reading: the end of a direction takes the same way as its bytes; a reset passes at once, unless everything
// is held back.
func (p *pipe) fail(err error) {
	if errors.Is(err, io.EOF) {
		_, arrive := p.flow.send(0, time.Now())
		p.forward(parcel{due: arrive, fin: true})
		return
	}
	p.c.p.gate.wait(p.c.ctx, isOpen)
	p.c.cut()
}

// forward hands a parcel on at once when nothing delays it and nothing is ahead of it, else puts it into the line.
func (p *pipe) forward(parcel parcel) bool {
	if parcel.due.IsZero() && p.line.idle() {
		ok := p.deliver(parcel)
		p.recycle(parcel)
		if parcel.fin {
			p.stop()
		}
		return ok
	}
	parcel = compact(parcel, &p.c.p.buffers)
	if p.c.p.memory.Acquire(p.c.ctx, parcel.weight) != nil {
		parcel.weight = 0
		p.recycle(parcel)
		return false
	}
	p.line.put(parcel)
	return true
}

// compact moves few bytes out of a large buffer, and says what the parcel weighs.
func compact(parcel parcel, buffers *sync.Pool) parcel {
	if parcel.buffer != nil && len(parcel.data) < chunkSize/4 {
		parcel.data = append([]byte(nil), parcel.data...)
		buffers.Put(parcel.buffer)
		parcel.buffer = nil
	}
	parcel.weight = int64(cap(parcel.data)) + parcelOverhead
	return parcel
}

// write empties the line, until the end of the direction has been handed on.
func (p *pipe) write() {
	for {
		parcel, ok := p.line.take(p.done)
		if !ok {
			return
		}
		ok = p.deliver(parcel)
		p.recycle(parcel)
		p.line.handedOn()
		if !ok || parcel.fin {
			return
		}
	}
}

// deliver hands a parcel to the other side, holds it back or swallows it, as the proxy was told. False: no more follows.
func (p *pipe) deliver(parcel parcel) bool {
	m, ok := p.c.p.gate.wait(p.c.ctx, notStalled)
	if !ok {
		return false
	}
	if m == swallowing {
		return p.swallow(parcel)
	}
	if p.c.lost.Load() {
		p.c.cut() // nothing may follow on a gap
		return false
	}
	if parcel.fin {
		p.ended = p.to.CloseWrite() == nil
		if !p.ended {
			p.c.cut()
		}
		return p.ended
	}
	allowed, cut := p.flow.allow(len(parcel.data))
	n, err := p.to.Write(parcel.data[:allowed])
	p.flow.bytes.Add(int64(n))
	if cut != nil {
		p.c.cut()
		close(cut)
		return false
	}
	if err != nil {
		p.c.cut()
	}
	return err == nil
}

// swallow drops a parcel. The connection stays open until Resume, which resets it.
func (p *pipe) swallow(parcel parcel) bool {
	p.c.lost.Store(true)
	if parcel.fin {
		p.c.p.gate.wait(p.c.ctx, isOpen)
	}
	// Resume opens the gate before it looks for connections that lost bytes: it saw this one, or the gate is open here.
	if m, _ := p.c.p.gate.now(); m == open {
		p.c.cut()
		return false
	}
	return !parcel.fin
}

// recycle gives back what a parcel holds.
func (p *pipe) recycle(parcel parcel) {
	if parcel.buffer != nil {
		p.c.p.buffers.Put(parcel.buffer)
	}
	p.c.p.memory.Release(parcel.weight)
}

// release gives back what is still under way when both goroutines have ended.
func (p *pipe) release() {
	p.stop()
	for _, parcel := range p.line.drain() {
		p.recycle(parcel)
	}
}
