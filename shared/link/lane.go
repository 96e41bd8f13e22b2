package link

import (
	"errors"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// Lane is one connection's service to a tunnel.
type Lane struct {
	t     *Tunnel
	conn  Conn
	epoch uint64

	// Guarded by t.mu.
	wake     sync.Cond // the writer waits here for work
	idle     bool      // nobody writes; the writer waits
	inline   bool      // a sender does the writer's work
	stopped  bool      // the writer must end
	cause    error     // why this side ended the lane, if it did
	farewell *errs.Error
	normal   bool // the farewell is no failure
	leaving  *time.Timer
	parted   bool // the farewell was sent
	sync     syncState
	synced   bool // the peer's state is known: frames may flow
	pulse    pulse
	heard    time.Time // the last frame
	rested   time.Time // when the writer had nothing more to do, the last time
	ended    bool

	quietAtEnd time.Duration // see Quiet

	maxFrame int       // payload of a DATA frame, bytes; follows the lane's rate
	rateFrom time.Time // start of the busy period that is measured; zero when idle
	rateSent int       // bytes since
	rate     meter     // at which the network takes bytes; the writer's
	flushed  time.Time // the last time
}

const (
	flushAt = 64 << 10 // bytes in the write buffer that are worth a system call

	// A keystroke waits for the frame that is being written: at the lane's measured rate no longer than this.
	frameTime    = 20 * time.Millisecond
	minFrame     = 4 << 10
	rateInterval = 50 * time.Millisecond
	farewellTime = 2 * time.Second // for a peer to take the tunnel's end
)

func (t *Tunnel) newLane(conn Conn, epoch uint64, synced bool) *Lane {
	l := &Lane{t: t, conn: conn, epoch: epoch, synced: synced, maxFrame: t.frame, rate: t.rate}
	l.wake.L = &t.mu
	return l
}

// Run serves the tunnel over the lane until it ends, and returns why: the tunnel's own error when the tunnel is over,
// else what broke the lane. It must be called exactly once. The connection is closed when it returns.
func (l *Lane) Run() error {
	l.t.mu.Lock()
	l.startPulse()
	l.t.mu.Unlock()
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer l.recovered()
		l.writeLoop()
	}()
	err := l.stop(l.readLoop())
	<-written
	l.conn.Abort()
	l.conn.Wait()
	return err
}

// stop detaches the lane and decides what ended it. A peer that broke the protocol ends the tunnel.
func (l *Lane) stop(err error) error {
	t := l.t
	t.mu.Lock()
	l.noteEnd()
	if l.cause != nil {
		err = l.cause
	}
	e := errs.From(err)
	if t.lane == l {
		t.lane = nil
		if e.Category() == errs.Protocol && e.Code != errs.Displaced {
			t.end(e, false)
		}
	}
	if t.err != nil {
		err = t.err
	}
	l.stopped = true
	if errors.Is(l.cause, errs.LaneDead) {
		// It may just have been slow: a frame that takes longer than the peer's patience never arrives whole, so the next
		// lane tries smaller ones.
		t.frame = max(t.frame/8, minFrame)
	}
	l.pulse.timer.Stop()
	if l.leaving != nil {
		l.leaving.Stop()
	}
	l.wake.Signal()
	parted := l.parted
	t.mu.Unlock()

	if e.Category() == errs.Protocol && !parted {
		l.conn.Close(errs.CloseFrame(e))
		l.conn.Drain()
	}
	l.conn.Abort()
	return err
}

// leave lets the writer tell the peer that the tunnel is over; a peer that takes nothing is not waited for. Called with
// mu held.
func (l *Lane) leave(e *errs.Error, normal bool) {
	l.farewell, l.normal = e, normal
	l.leaving = time.AfterFunc(farewellTime, l.conn.Abort)
	l.wake.Signal()
}

// displace ends the lane because a newer one carries the tunnel. Called with mu held.
func (l *Lane) displace() {
	l.cause = errs.New(errs.Displaced, "lane %d is displaced by a newer one", l.epoch)
	l.stopped = true
	l.wake.Signal()
	l.t.handlers.Add()
	go func() {
		defer l.t.handlers.Done()
		l.conn.Close(errs.CloseFrame(l.cause))
	}()
}

// abort ends the lane for a reason found elsewhere than in its reader. Called with mu held.
func (l *Lane) abort(cause error) {
	l.noteEnd()
	if l.cause == nil {
		l.cause = cause
	}
	l.stopped = true
	l.wake.Signal()
	l.conn.Abort()
}

func (l *Lane) recovered() {
	if p := recover(); p != nil {
		l.t.mu.Lock()
		defer l.t.mu.Unlock()
		l.panicked(p)
	}
}

// panicked costs the lane, not the tunnel. Called with mu held, on the stack of the panic.
func (l *Lane) panicked(p any) {
	l.t.cfg.Logger.Error("panic in a lane", "code", errs.Panicked.String(), "panic", p, "stack", string(debug.Stack()))
	l.abort(errs.New(errs.Panicked, "a fault in the lane"))
}

// writeLoop writes whatever becomes ready and is not written by whoever made it so.
func (l *Lane) writeLoop() {
	t := l.t
	var out outgoing
	scratch := make([]byte, 0, 512)
	t.mu.Lock()
	defer t.mu.Unlock()
	for !l.stopped {
		switch {
		case l.inline: // it signals when it leaves work, or else whoever has some does
			l.wake.Wait()
			l.idle = false // the sender may have set it on leaving
		case l.step(&out, scratch):
		case l.parted:
			_ = l.unlocked(l.close)
			return
		default:
			l.rest()
			l.wake.Wait()
			l.idle = false
		}
	}
	for l.inline { // the connection is used until the sender leaves
		l.wake.Wait()
	}
}

// step puts the next frame on the lane, in the scheduler's order, or flushes when there is none: small frames gather until
// nothing more is ready, none waits for a timer. It says whether there was anything to do. Called with mu held, which it
// gives up while it writes.
func (l *Lane) step(out *outgoing, scratch []byte) bool {
	if l.next(out, scratch) {
		err := l.put(out, min(flushAt, l.maxFrame))
		l.wrote(err)
		return true
	}
	if l.conn.Buffered() == 0 {
		return false
	}
	l.wrote(l.unlocked(l.flush))
	return true
}

// inlineSteps is how much a sender does of the writer's work before it leaves the rest to it.
const inlineSteps = 4

// On a lane that was flushed less than gatherTime ago, small frames are likely to come in company: they are left to the
// lane's goroutine, which finds several by the time that it runs.
const gatherTime = 200 * time.Microsecond

// writeNow lets the caller, who has made n bytes ready, be the writer for a moment: to wake the lane's own goroutine costs
// more than to write a large frame or a lonely one. The caller may wait for the network, so it must not be a lane's
// reader. Called with mu held, which it gives up while it writes.
func (t *Tunnel) writeNow(n int) {
	l := t.lane
	if l == nil || !l.idle || l.stopped || !l.synced {
		return // a writer is at it, or there is none
	}
	if n < flushAt/2 && time.Since(l.flushed) < gatherTime {
		t.wakeLane()
		return
	}
	l.idle, l.inline = false, true
	defer func() {
		if p := recover(); p != nil { // the lane's fault, not the sender's
			l.inline = false
			l.panicked(p)
		}
	}()
	var out outgoing
	var scratch [64]byte // control frames that need more grow a slice of their own
	more := true
	for i := 0; i < inlineSteps && more && !l.stopped; i++ {
		more = l.step(&out, scratch[:0])
	}
	l.inline = false
	if more || l.stopped || l.farewell != nil {
		l.wake.Signal()
		return
	}
	l.rest()
}

// put writes one frame, and flushes from limit bytes on. Called with mu held, which it gives up meanwhile.
func (l *Lane) put(out *outgoing, limit int) (err error) {
	l.t.mu.Unlock()
	defer func() {
		l.t.mu.Lock()
		if out.buf != nil {
			out.buf.Release()
			out.buf = nil
		}
		out.packed.note()
	}()
	l.t.count.framesSent.Add(1)
	err = l.write(out)
	if err == nil && l.conn.Buffered() >= limit {
		err = l.flush()
	}
	return err
}

// unlocked calls f without mu. Called with mu held.
func (l *Lane) unlocked(f func() error) error {
	l.t.mu.Unlock()
	defer l.t.mu.Lock()
	return f()
}

// wrote notes how a write went, by the writer: what the lane's rate allows is where the next one begins, and a failure loses
// the lane. Called with mu held.
func (l *Lane) wrote(err error) {
	if !l.stopped {
		l.t.frame, l.t.rate = l.maxFrame, l.rate
	}
	if err != nil && !l.stopped {
		l.abort(errs.Wrap(errs.LaneLost, err, "writing to the peer"))
	}
}

// flush writes the buffer to the network and measures the rate at which the network takes it.
func (l *Lane) flush() error {
	n := l.conn.Buffered()
	start := time.Now()
	if l.rateFrom.IsZero() {
		l.rateFrom, l.rateSent = start, 0
	}
	err := l.conn.Flush()
	l.flushed = time.Now()
	l.measure(n, l.flushed.Sub(start))
	l.rateSent += n
	if l.rateSent < 4*minFrame {
		return err
	}
	if spent := time.Since(l.rateFrom); spent >= rateInterval {
		l.maxFrame = frameFor(l.rateSent, spent)
		l.rateFrom, l.rateSent = time.Now(), 0
	}
	return err
}

// A flush of fewer bytes, in less time, tells what a system call costs rather than how fast the network is.
const (
	measuredBytes = 16 << 10
	measuredTime  = time.Millisecond
)

// measure notes how long the network took for n bytes.
func (l *Lane) measure(n int, took time.Duration) {
	if n >= measuredBytes || took >= measuredTime {
		l.rate.add(n, took)
	}
}

// rest notes that nobody has anything to write. What a lane takes without making its writer wait may be larger.
func (l *Lane) rest() {
	l.idle, l.rested, l.rateFrom = true, time.Now(), time.Time{}
	l.maxFrame = min(2*l.maxFrame, MaxPayload)
	l.t.frame = l.maxFrame
}

// frameFor is the payload that a lane which took n bytes in spent writes within frameTime.
func frameFor(n int, spent time.Duration) int {
	return min(max(int(int64(n)*int64(frameTime)/int64(spent)), minFrame), MaxPayload)
}

// next picks the frame to send now. Called with mu held.
func (l *Lane) next(out *outgoing, scratch []byte) bool {
	t := l.t
	switch {
	case l.parted:
		return false
	case l.farewell != nil:
		l.part(out, scratch)
		return true
	case l.sync.due:
		l.nextSync(out)
		return true
	case l.pulse.frame(out):
		return true
	case !l.synced:
		return false
	}
	if t.tctl.frame(out, scratch) {
		return true
	}
	if t.nextControl(out, scratch) {
		if frameType(out.head[0]) == typeOpen { // an answer is awaited, like that to data
			l.hurryPulse()
		}
		return true
	}
	if !t.nextData(out, l.maxFrame) {
		return false
	}
	l.hurryPulse()
	return true
}

// part sends the tunnel's end: RESET of stream 0. The writer closes the connection once that is written.
func (l *Lane) part(out *outgoing, scratch []byte) {
	out.set(header{kind: typeReset}, appendFailure(scratch, l.farewell))
	l.parted = true
}

// close sends the close frame that fits the farewell.
func (l *Lane) close() error {
	if l.normal {
		l.conn.Close(errs.CloseNormal, "done")
	} else {
		l.conn.Close(errs.CloseFrame(l.farewell))
	}
	return nil
}

// readLoop takes frames until the connection ends or the peer breaks a rule. It never waits for a consumer.
func (l *Lane) readLoop() (err error) {
	defer func() {
		if p := recover(); p != nil {
			l.t.cfg.Logger.Error("panic in a lane", "code", errs.Panicked.String(), "panic", p, "stack", string(debug.Stack()))
			err = errs.New(errs.Panicked, "a fault in the lane")
		}
	}()
	for {
		r, err := l.conn.NextReader()
		if err != nil {
			return err
		}
		if err := l.readFrame(r); err != nil {
			return err
		}
	}
}

func (l *Lane) readFrame(r io.Reader) error {
	buf := GetBuffer(MaxPayload)
	h, n, err := readMessage(r, buf.b)
	if err == nil && h.kind == typeData && h.flags&flagCompressed != 0 {
		buf, n, err = l.unpack(&h, buf, n)
	}
	if err != nil {
		buf.Release()
		return err
	}
	l.t.count.framesReceived.Add(1)
	keep := false
	l.t.mu.Lock()
	defer func() { // also after a panic: what runs foreign code without mu has taken it again
		if !keep {
			buf.Release()
		}
		l.t.mu.Unlock()
	}()
	l.heard = time.Now()
	keep, err = l.dispatch(h, buf, n)
	return err
}

// readMessage reads one frame; its payload goes to p, n bytes of it.
func readMessage(r io.Reader, p []byte) (h header, n int, err error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		// The very values that io.ReadFull makes of a message's end: an error that wraps one is of a connection that broke.
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = violation("a message shorter than the header of %d bytes", headerSize)
		}
		return h, 0, err
	}
	if h, err = parseHeader(&head); err != nil {
		return h, 0, err
	}
	for {
		if n == len(p) {
			return h, n, messageEnds(r, h)
		}
		m, err := r.Read(p[n:])
		n += m
		if err == io.EOF {
			return h, n, nil
		}
		if err != nil {
			return h, n, err
		}
	}
}

// messageEnds makes sure that nothing follows a payload of the greatest size. Ignorable frames may be larger.
func messageEnds(r io.Reader, h header) error {
	more, err := io.Copy(io.Discard, r)
	if err == nil && more > 0 && h.kind&typeIgnorable == 0 {
		err = violation("%v with a payload of %d bytes; allowed are %d", h.kind, MaxPayload+more, MaxPayload)
	}
	return err
}
