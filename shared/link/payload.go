package link

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"time"

	"fairlead/shared/errs"
)

// Sizes of the handshake's fixed fields, in bytes.
const (
	idSize    = 16
	keySize   = 32
	nonceSize = 32
	proofSize = 32
)

// Limits of what a peer may send in a control payload, in bytes.
const (
	maxRoute   = 255
	maxPeer    = 255
	maxTrace   = 255
	maxReplica = 255
	maxToken   = 16 << 10
	maxMessage = 1 << 10
)

// ID names a tunnel. It is no secret: taking a tunnel over needs its resume key and a token of its tenant.
type ID [idSize]byte

// String is the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads an ID in hexadecimal.
func ParseID(s string) (id ID, err error) {
	if n, err := hex.Decode(id[:], []byte(s[:min(len(s), 2*idSize)])); err != nil || n != idSize || len(s) != 2*idSize {
		return ID{}, errs.New(errs.BadRequest, "%.64q is no id of a tunnel: %d hexadecimal digits are needed", s, 2*idSize)
	}
	return id, nil
}

// hello is the sidecar's first message. A zero tunnel asks for a new one.
type hello struct {
	version uint16
	limits  limits
	tunnel  ID
	epoch   uint64
	proof   [proofSize]byte
	caps    capabilities
}

// capabilities are what a side can do beyond the first version. A peer that knows none sends none, and ignores them.
type capabilities uint32

const canCompress capabilities = 0x01 // compressed DATA, by zstd

// append adds the field at the end of a payload; without any capability it is left out.
func (c capabilities) append(b []byte) []byte {
	if c == 0 {
		return b
	}
	return binary.BigEndian.AppendUint32(b, uint32(c))
}

func (f *fields) capabilities() capabilities {
	if f.err != nil || len(f.b) < 4 {
		return 0
	}
	return capabilities(f.u32())
}

// limits is what a side accepts.
type limits struct {
	maxMessage uint32 // bytes in a message, header included
	window     uint32 // bytes that a new stream may receive before any CREDIT
}

func (l limits) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, l.maxMessage)
	return binary.BigEndian.AppendUint32(b, l.window)
}

func (f *fields) limits() limits { return limits{f.u32(), f.u32()} }

func (h hello) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, h.version)
	b = h.limits.append(b)
	b = append(b, h.tunnel[:]...)
	b = binary.BigEndian.AppendUint64(b, h.epoch)
	b = append(b, h.proof[:]...)
	return h.caps.append(b)
}

func parseHello(p []byte) (h hello, err error) {
	f := fields{b: p}
	h.version = f.u16()
	h.limits = f.limits()
	f.fixed(h.tunnel[:])
	h.epoch = f.u64()
	f.fixed(h.proof[:])
	h.caps = f.capabilities()
	return h, f.err
}

// welcome is the gateway's answer to HELLO. The key is zero on a resume.
type welcome struct {
	version   uint16
	limits    limits
	tunnel    ID
	key       [keySize]byte
	heartbeat time.Duration // the gateway's; milliseconds on the wire
	resumeTTL time.Duration // how long it holds the tunnel without a lane; milliseconds on the wire
	idle      time.Duration // after which it wants a tunnel without streams to be ended; 0: never; milliseconds on the wire
	replica   string
	caps      capabilities // that the sidecar has too
}

func (w welcome) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, w.version)
	b = w.limits.append(b)
	b = append(b, w.tunnel[:]...)
	b = append(b, w.key[:]...)
	b = appendMillis(b, w.heartbeat)
	b = appendMillis(b, w.resumeTTL)
	b = appendMillis(b, w.idle)
	b = appendText(b, w.replica[:min(len(w.replica), maxReplica)])
	return w.caps.append(b)
}

func parseWelcome(p []byte) (w welcome, err error) {
	f := fields{b: p}
	w.version = f.u16()
	w.limits = f.limits()
	f.fixed(w.tunnel[:])
	f.fixed(w.key[:])
	w.heartbeat = f.millis()
	w.resumeTTL = f.millis()
	w.idle = f.millis()
	w.replica = f.text()
	w.caps = f.capabilities()
	return w, f.err
}

func appendMillis(b []byte, d time.Duration) []byte {
	ms := min(max(d.Milliseconds(), 0), 1<<32-1)
	return binary.BigEndian.AppendUint32(b, uint32(ms))
}

func (f *fields) millis() time.Duration { return time.Duration(f.u32()) * time.Millisecond }

// OpenRequest is what OPEN asks for.
type OpenRequest struct {
	Route    string   // at most 255 bytes
	Priority Priority // orders the stream's bytes on the lane, both ways
	Peer     string   // the application's address, for logs; at most 255 bytes
	Trace    string   // W3C traceparent, or empty; at most 255 bytes

	Compression Compression // what the sidecar wishes for both directions
}

func (o OpenRequest) append(b []byte) []byte {
	b = append(b, byte(o.Priority))
	b = appendText(b, o.Route)
	b = appendText(b, o.Peer)
	b = appendText(b, o.Trace)
	if o.Compression != CompressOff {
		b = append(b, byte(o.Compression))
	}
	return b
}

func (o OpenRequest) check() error {
	if o.Route == "" || len(o.Route) > maxRoute || len(o.Peer) > maxPeer || len(o.Trace) > maxTrace {
		return violation("OPEN with a route of %d, a peer of %d and a trace of %d bytes; allowed are 1 to %d, %d and %d", len(o.Route), len(o.Peer), len(o.Trace), maxRoute, maxPeer, maxTrace)
	}
	if o.Priority >= priorities {
		return violation("OPEN with priority %d; allowed are 0 to %d", o.Priority, priorities-1)
	}
	return nil
}

func parseOpen(p []byte) (o OpenRequest, err error) {
	f := fields{b: p}
	o.Priority = Priority(f.u8())
	o.Route = f.text()
	o.Peer = f.text()
	o.Trace = f.text()
	if f.more() {
		o.Compression = Compression(f.u8())
	}
	if f.err != nil {
		return o, f.err
	}
	if o.Compression >= compressions { // a wish of a later version
		o.Compression = CompressOff
	}
	return o, o.check()
}

// appendFailure and parseFailure carry an error in RESET, GOAWAY and the answer to AUTH.
func appendFailure(b []byte, e *errs.Error) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(e.Code))
	b = appendMillis(b, e.RetryAfter)
	return appendText(b, clip(e.Message))
}

func (f *fields) failure() *errs.Error {
	return &errs.Error{Code: errs.Code(f.u16()), RetryAfter: f.millis(), Message: clip(f.text())}
}

const quotaSize = 12

// appendQuota follows the failure of a RESET when a limit was reached.
func appendQuota(b []byte, q *errs.Quota) []byte {
	if q == nil {
		return b
	}
	b = binary.BigEndian.AppendUint32(b, q.Limit)
	b = binary.BigEndian.AppendUint32(b, q.Remaining)
	return binary.BigEndian.AppendUint32(b, q.ResetMS)
}

// quota reads what appendQuota wrote; nil when it does not follow.
func (f *fields) quota() *errs.Quota {
	if f.err != nil || len(f.b) < quotaSize {
		return nil
	}
	return &errs.Quota{Limit: f.u32(), Remaining: f.u32(), ResetMS: f.u32()}
}

// clip bounds a message for people, without a torn rune at its end.
func clip(text string) string {
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "")
	}
	return text
}

// GoAway is a gateway's notice that it will stop: connect elsewhere after Delay, and be gone by Deadline.
type GoAway struct {
	Reason   *errs.Error
	Deadline time.Duration // from now, until remaining streams are ended
	Delay    time.Duration // jittered: when this sidecar should move
	Where    string        // an endpoint to go to, or empty; at most 1024 bytes, else it is not sent
}

func (g GoAway) append(b []byte) []byte {
	b = appendFailure(b, g.Reason)
	b = appendMillis(b, g.Deadline)
	b = appendMillis(b, g.Delay)
	if len(g.Where) > maxMessage {
		return appendText(b, "")
	}
	return appendText(b, g.Where)
}

// after is what is left of g when d has passed.
func (g GoAway) after(d time.Duration) GoAway {
	g.Deadline, g.Delay = max(g.Deadline-d, 0), max(g.Delay-d, 0)
	return g
}

func parseGoAway(p []byte) (g GoAway, err error) {
	f := fields{b: p}
	g.Reason = f.failure()
	g.Deadline = f.millis()
	g.Delay = f.millis()
	g.Where = f.text()
	return g, f.err
}

// syncEntry is the state of one stream as its sender sees it.
type syncEntry struct {
	stream   uint32
	flags    uint8
	code     errs.Code // of a reset
	received uint64    // contiguous bytes received
	consumed uint64    // bytes consumed
	limit    uint64    // credit granted
}

const syncEntrySize = 4 + 1 + 2 + 8 + 8 + 8

const (
	syncOpened      = 0x01 // OPENED was sent (gateway)
	syncFinReceived = 0x02 // the peer's final size is known
	syncFinConsumed = 0x04 // and everything up to it is consumed
	syncReset       = 0x08 // this side reset the stream, with code
	syncCompress    = 0x10 // OPENED let both sides compress the stream (gateway)
)

func (e syncEntry) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, e.stream)
	b = append(b, e.flags)
	b = binary.BigEndian.AppendUint16(b, uint16(e.code))
	b = binary.BigEndian.AppendUint64(b, e.received)
	b = binary.BigEndian.AppendUint64(b, e.consumed)
	return binary.BigEndian.AppendUint64(b, e.limit)
}

func parseSync(p []byte) ([]syncEntry, error) {
	if len(p)%syncEntrySize != 0 {
		return nil, violation("SYNC of %d bytes, not a multiple of %d", len(p), syncEntrySize)
	}
	entries := make([]syncEntry, 0, len(p)/syncEntrySize)
	f := fields{b: p}
	for len(f.b) > 0 {
		entries = append(entries, syncEntry{stream: f.u32(), flags: f.u8(), code: errs.Code(f.u16()), received: f.u64(), consumed: f.u64(), limit: f.u64()})
	}
	return entries, f.err
}
