// Package link is the tunnel protocol: streams with absolute offsets over WebSockets that may break and be replaced without
// a byte lost. PROTOCOL.md beside this file is its specification.
//
// A Tunnel outlives the lanes (WebSockets) that carry it. Its owner connects it (Connect, Greet), runs each lane
// (Lane.Run), and resumes it over a new connection when a lane has ended (Tunnel.Resume, Handshake.Resume). One mutex
// guards a tunnel and its streams; nothing blocks while holding it.
package link

import (
	"crypto/rand"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
)

// Config is what a side brings to its tunnels. The zero value of a field means the default given with it.
type Config struct {
	Window     int           // initial receive window of a stream, bytes; 256 KiB
	MaxWindow  int           // to which windows grow, bytes; 16 MiB
	Memory     int64         // budget of the tunnel for windows beyond their initial size, bytes; 64 MiB
	MaxMessage int           // largest message accepted, bytes; 1 MiB
	MaxStreams int           // streams of a tunnel at once; 16384
	Heartbeat  time.Duration // silence after which a ping is sent; a side that stays silent for half as long again is dead; 30 s
	ResumeTTL  time.Duration // gateway: how long it holds a tunnel without a lane, told to the sidecar
	Idle       time.Duration // gateway: after which a tunnel without streams should be ended, told to the sidecar; 0: never
	Replica    string        // gateway: its name, told to the sidecar
	Budget     *Budget       // of the tenant or process, above the tunnel's own; may be nil
	Logger     *slog.Logger  // for faults in handlers; default discards
	Compressor *Compressor   // of the process; nil: the tunnel compresses nothing

	// Accept takes a stream that the peer opened, in a goroutine of its own. It calls Stream.Accept or Stream.Reset before
	// it returns; the stream may go on after that. Nil: streams of the peer are refused.
	Accept func(*Stream)
	// Renew checks a renewed token at the gateway and returns when it expires. It may block.
	Renew func(token string) (expires time.Time, err error)
	// Renewed is the gateway's answer to Tunnel.Renew.
	Renewed func(err error)
	// Made tells of a tunnel at the gateway before the sidecar learns of it, so that a resume cannot come too early.
	Made func(*Tunnel)
	// Ended is called once when the tunnel is over, in a goroutine of its own that its provider waits for.
	Ended func()
	// GoAway tells that the gateway drains; again after a resume.
	GoAway func(GoAway)
}

const (
	defaultWindow     = 256 << 10
	defaultMaxWindow  = 16 << 20
	defaultMemory     = 64 << 20
	defaultMaxMessage = 1 << 20
	defaultMaxStreams = 16384
	defaultHeartbeat  = 30 * time.Second

	minMessage = 4 << 10 // a peer that accepts less could not take a token or a SYNC
	minWindow  = 4 << 10
)

func (c Config) withDefaults() Config {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.Window, defaultWindow)
	set(&c.MaxWindow, max(defaultMaxWindow, c.Window))
	set(&c.MaxMessage, defaultMaxMessage)
	set(&c.MaxStreams, defaultMaxStreams)
	if c.Memory == 0 {
		c.Memory = defaultMemory
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) capabilities() (caps capabilities) {
	if c.Compressor != nil {
		caps |= canCompress
	}
	return caps
}

func (c Config) limits() limits { return limits{uint32(c.MaxMessage), uint32(c.Window)} }

// Tunnel is a logical session between one sidecar and one gateway replica.
type Tunnel struct {
	cfg    Config
	id     ID
	key    [keySize]byte
	client bool // the sidecar's end: it opens streams and resumes
	budget *Budget
	hello  welcome // what the gateway said when the tunnel was made (client)
	packs  bool    // both sides can compress; agreed on when the tunnel was made
	count  counters

	mu       sync.Mutex
	lane     *Lane // nil while detached
	epoch    uint64
	err      *errs.Error   // why the tunnel is over; nil while it lives
	done     chan struct{} // closed when the tunnel is over
	streams  map[uint32]*Stream
	highest  uint32 // last id opened (client) or seen (gateway)
	peer     limits
	sched    scheduler
	tctl     tunnelControl
	waiting  int64 // bytes received that wait for their consumers
	unacked  int64 // bytes written that the peer has not consumed
	opening  int   // sidecar: streams whose OPEN is not answered
	frame    int   // payload of a DATA frame with which the next lane begins, bytes
	rate     meter // and the rate
	acks     []*Stream
	ackTimer *time.Timer
	rtt      rttEstimate
	// heartbeat is the time between pings that is in force; the sidecar may learn another one than configured.
	heartbeat time.Duration
	survived  time.Duration // see Stats

	handlers tally // Accept, Renew and drain goroutines, and closing displaced lanes
}

// counters of a tunnel, over all its lanes.
type counters struct {
	opened, sent, received, replayed, framesSent, framesReceived, resumes atomic.Uint64
	pingsSent, pingsAnswered, pingsLost                                   atomic.Uint64
	compression                                                           compressionCounters
}

// Stats is a snapshot of a tunnel.
type Stats struct {
	Streams        int           // open now
	Opened         uint64        // streams ever opened
	BytesSent      uint64        // payload written to lanes, replays included
	BytesReceived  uint64        // payload accepted, without repeats
	BytesReplayed  uint64        // payload written again after a resume
	FramesSent     uint64        // frames of every kind
	FramesReceived uint64        // frames of every kind
	Resumes        uint64        // lanes after the first
	RTT            time.Duration // smoothed round trip; 0 until measured
	LastRTT        time.Duration // the last one measured
	PingsSent      uint64
	PingsAnswered  uint64        // in time, by a PONG or any other sign of life
	PingsLost      uint64        // not answered in time: within 4 s, or 8 round trips where those are longer
	Silent         time.Duration // how long a ping has been without any sign of life; 0: none is
	Heartbeat      time.Duration // between pings, as in force
	Survived       time.Duration // how quiet the lane had been before the last ping that was answered
	Retained       int64         // bytes of windows beyond their initial size
	Attached       bool          // a lane carries the tunnel now
	Epoch          uint64
	Compression    CompressionStats
}

func newTunnel(cfg Config, client bool, peer limits) *Tunnel {
	t := &Tunnel{cfg: cfg, client: client, peer: peer, heartbeat: cfg.Heartbeat, budget: NewBudget(cfg.Memory, cfg.Budget),
		done: make(chan struct{}), streams: make(map[uint32]*Stream), epoch: 1, frame: MaxPayload}
	t.sched.init()
	if !client {
		rand.Read(t.id[:]) // never fails (crypto/rand)
		rand.Read(t.key[:])
	}
	return t
}

// ID names the tunnel.
func (t *Tunnel) ID() ID { return t.id }

// Name is the ID in hexadecimal, for logs and APIs.
func (t *Tunnel) Name() string { return t.id.String() }

// Replica is the name of the gateway replica that owns the tunnel, as it told the sidecar.
func (t *Tunnel) Replica() string { return t.hello.replica }

// ResumeTTL is how long the gateway holds the tunnel without a lane, as it told the sidecar.
func (t *Tunnel) ResumeTTL() time.Duration { return t.hello.resumeTTL }

// HeldFor is how long after the loss of its lane the gateway may still hold the tunnel: it may have noticed the loss later,
// by its heartbeat. 0: not told.
func (t *Tunnel) HeldFor() time.Duration {
	if t.hello.resumeTTL == 0 {
		return 0
	}
	return t.hello.resumeTTL + t.hello.heartbeat + t.hello.heartbeat/2
}

// Idle is after how long without streams the gateway wants the tunnel to be ended, as it told the sidecar; 0: never.
func (t *Tunnel) Idle() time.Duration { return t.hello.idle }

// Done is closed when the tunnel is over: closed by either side, or given up.
func (t *Tunnel) Done() <-chan struct{} { return t.done }

// Err is why the tunnel is over; nil while it lives.
func (t *Tunnel) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return nil
	}
	return t.err
}

// Attached says whether a lane carries the tunnel now.
func (t *Tunnel) Attached() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lane != nil
}

// Stats returns a snapshot.
func (t *Tunnel) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	var silent time.Duration
	if t.lane != nil {
		silent = t.lane.silent()
	}
	return Stats{Streams: len(t.streams), Opened: t.count.opened.Load(), BytesSent: t.count.sent.Load(), BytesReceived: t.count.received.Load(),
		BytesReplayed: t.count.replayed.Load(), FramesSent: t.count.framesSent.Load(), FramesReceived: t.count.framesReceived.Load(),
		Resumes: t.count.resumes.Load(), RTT: t.rtt.smoothed, LastRTT: t.rtt.last, PingsSent: t.count.pingsSent.Load(),
		PingsAnswered: t.count.pingsAnswered.Load(), PingsLost: t.count.pingsLost.Load(), Silent: silent, Heartbeat: t.heartbeat, Survived: t.survived, Retained: t.budget.Used(), Attached: t.lane != nil, Epoch: t.epoch,
		Compression: t.count.compression.stats()}
}

// Open begins a stream. It never waits: data may be written at once, and goes out with the OPEN. Whether the gateway
// could connect the backend shows in Stream.WaitOpened, or as the error of the first read.
func (t *Tunnel) Open(req OpenRequest) (*Stream, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.err != nil:
		return nil, t.err
	case !t.client:
		return nil, errs.New(errs.Internal, "only the sidecar opens streams")
	case len(t.streams) >= t.cfg.MaxStreams: // the gateway ends a tunnel that goes far over its limit
		return nil, errs.New(errs.StreamLimit, "the tunnel has %d streams, which is the limit", t.cfg.MaxStreams)
	case t.highest == 1<<32-1:
		return nil, errs.New(errs.StreamsExhausted, "all stream ids of the tunnel are used")
	}
	t.highest++
	s := t.addStream(t.highest, req)
	t.opening++
	t.due(s, dueOpen)
	return s, nil
}

// addStream registers a new stream. Called with mu held.
func (t *Tunnel) addStream(id uint32, req OpenRequest) *Stream {
	s := &Stream{t: t, id: id, req: req, started: time.Now()}
	s.send.limit = uint64(t.peer.window)
	s.send.window = uint64(t.cfg.Window)
	s.recv.window = uint64(t.cfg.Window)
	s.recv.limit = s.recv.window
	s.readable.L, s.writable.L = &t.mu, &t.mu
	t.streams[id] = s
	t.count.opened.Add(1)
	return s
}

// Close ends the tunnel: its streams are reset with err, which the peer is told, and its lane is closed with the code
// that fits. A nil err is a normal end. Close does not wait; Wait does.
func (t *Tunnel) Close(err error) {
	e := errs.From(err)
	if e == nil {
		e = errs.New(errs.ShuttingDown, "the tunnel was closed")
	}
	t.mu.Lock()
	t.end(e, err == nil)
	t.mu.Unlock()
}

// CloseIfIdle ends the tunnel in order unless it has streams, and says whether it is over.
func (t *Tunnel) CloseIfIdle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.streams) == 0 {
		t.end(errs.New(errs.ShuttingDown, "the tunnel was closed"), true)
	}
	return t.err != nil
}

// Wait returns when the tunnel is over and no goroutine serves its streams any more. Lanes are waited for by whoever
// runs them.
func (t *Tunnel) Wait() {
	<-t.done
	t.handlers.Wait()
}

// end marks the tunnel as over and lets the lane tell the peer. Called with mu held.
func (t *Tunnel) end(e *errs.Error, normal bool) {
	if t.err != nil {
		return
	}
	t.err = e
	for _, s := range t.streams {
		s.fail(e)
	}
	clear(t.streams)
	t.sched.init()
	t.acks = nil
	if t.ackTimer != nil {
		t.ackTimer.Stop()
	}
	close(t.done)
	if t.lane != nil {
		t.lane.leave(e, normal)
	}
	if t.cfg.Ended != nil {
		go t.cfg.Ended()
	}
}

// Renew hands a renewed token to the gateway, in-band. The answer comes through Config.Renewed.
func (t *Tunnel) Renew(token string) error {
	if len(token) == 0 || len(token) > maxToken {
		return errs.New(errs.TokenInvalid, "a token of %d bytes; allowed are 1 to %d", len(token), maxToken)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if most := int(t.peer.maxMessage) - headerSize; len(token) > most {
		return errs.New(errs.TokenInvalid, "a token of %d bytes; the gateway takes %d", len(token), most)
	}
	t.tctl.token = token
	t.wakeLane()
	return nil
}

// SendGoAway tells the sidecar to move; the gateway's end only. It is told again on each lane that follows.
func (t *Tunnel) SendGoAway(g GoAway) {
	if g.Reason == nil {
		g.Reason = errs.New(errs.Draining, "the gateway is going away")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tctl.goAway, t.tctl.goAwayAt, t.tctl.goAwayDue = &g, time.Now(), true
	t.wakeLane()
}

// wakeLane lets the lane's writer look for work. Called with mu held.
func (t *Tunnel) wakeLane() {
	if t.lane != nil && t.lane.idle {
		t.lane.wake.Signal()
	}
}

// unlocked calls f, which is foreign code and may use the tunnel, without mu. Called with mu held.
func (t *Tunnel) unlocked(f func()) {
	t.mu.Unlock()
	defer t.mu.Lock()
	f()
}

// due marks control frames of a stream as to be sent. Called with mu held.
func (t *Tunnel) due(s *Stream, bits dueBits) {
	s.due |= bits
	t.sched.addControl(s)
	t.wakeLane()
}

// forget drops a stream whose both directions are final. Its last control frames may still be queued; if the lane is
// lost before they are sent, the peer learns by SYNC that the stream is unknown here, hence finished. Called with mu held.
func (t *Tunnel) forget(s *Stream) {
	if t.streams[s.id] == s {
		delete(t.streams, s.id)
	}
}
