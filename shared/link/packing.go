package link

import (
	"time"
)

const (
	// Fewer bytes than this are somebody at a keyboard: they are not worth a moment. Of a stream that has more to send, a
	// frame may be smaller.
	packPending = 4 << 10
	packLeast   = 1 << 10

	// A frame that does not lose a tenth goes as it is, and so do this many bytes after it, twice as many each time.
	packPause    = 64 << 10
	packMaxPause = 64 << 20

	// Compressing must save this many times the time that it takes: the peer has to decompress, and both have other work.
	packMargin = 4

	// After so many bytes that were not compressed because the lane was too fast, it is not relied on any more what
	// compressing them would bring; twice as many each time, up to packMaxPause, until so many frames in a row were worth it.
	packForget = 4 << 20
	packWorth  = 16

	// On a slow lane, a frame is cut to so many times what the lane takes in frameTime at most, because it shrinks.
	packStretch = 4
)

// packing decides what of a stream is compressed on its way to the peer. It is guarded by the tunnel's mutex.
type packing struct {
	on      bool  // both sides know that they may
	skip    int   // bytes to send as they are before the next try
	pause   int   // what skip was after the last try, if that was in vain
	plain   int   // bytes sent as they are, because the lane was too fast
	forget  int   // how many of them are enough
	worth   int   // frames that shrank since
	stretch int   // how many times smaller frames become
	gain    meter // bytes saved, and the time that it took
}

// meter measures a rate; what was long ago counts for little.
type meter struct {
	bytes int64
	spent time.Duration
}

const (
	meterBytes = 1 << 20
	meterTime  = 50 * time.Millisecond
	meterMost  = 10 * time.Second // a stall that is longer tells no more
)

func (m *meter) add(bytes int, spent time.Duration) {
	if m.bytes > meterBytes || m.spent > meterTime {
		m.bytes, m.spent = m.bytes/2, m.spent/2
	}
	m.bytes += int64(bytes)
	m.spent += min(spent, meterMost)
}

// slower says whether m's rate times margin is below that of other. One that has measured nothing is not slow.
func (m *meter) slower(other *meter, margin int64) bool {
	return m.bytes > 0 && m.bytes*margin*int64(other.spent) < other.bytes*int64(m.spent)
}

// expectedGain is assumed until it is measured.
func expectedGain() meter { return meter{bytes: 300 << 10, spent: time.Millisecond} }

// start lets the stream be compressed from here on.
func (p *packing) start() {
	p.on, p.stretch, p.forget, p.gain = true, 1, packForget, expectedGain()
}

// wants says whether the next frame is to be compressed, of a stream that has so many bytes to send, on a lane of that rate.
func (p *packing) wants(pending uint64, lane *meter) bool {
	return p.on && pending >= packPending && p.skip == 0 && lane.slower(&p.gain, packMargin)
}

// passed notes bytes that were sent as they are.
func (p *packing) passed(n int) {
	if p.skip > 0 {
		p.skip -= min(p.skip, n)
		return
	}
	p.worth = 0
	if p.plain += n; p.plain >= p.forget {
		p.plain, p.forget, p.gain = 0, min(2*p.forget, packMaxPause), expectedGain()
	}
}

// tried notes how compressing went: whether it was in vain.
func (p *packing) tried(plain, packed int, spent time.Duration) {
	p.plain = 0
	if shrinks(plain, packed) {
		p.pause = 0
		if p.worth++; p.worth >= packWorth {
			p.forget = packForget
		}
		p.stretch = min(max(plain/max(packed, 1), 1), packStretch)
		p.gain.add(plain-packed, spent)
		return
	}
	p.pause = min(max(2*p.pause, packPause), packMaxPause)
	p.skip, p.stretch = p.pause, 1
}

// shrinks says whether a tenth is saved.
func shrinks(plain, packed int) bool { return 10*packed <= 9*plain }

// packed is what the writer finds out about a frame that was to be compressed, without the mutex.
type packed struct {
	stream *Stream // nil: the frame goes as it is
	plain  int
	size   int // 0: it was not tried
	spent  time.Duration
}

// note tells the stream how it went. Called with mu held.
func (r *packed) note() {
	if r.stream == nil {
		return
	}
	if r.size > 0 {
		r.stream.packing.tried(r.plain, r.size, r.spent)
	} else {
		r.stream.packing.passed(r.plain)
	}
	*r = packed{}
}

// write puts a frame into the connection's buffer, compressed if it is to be and shrinks. Called by the writer, without mu.
func (l *Lane) write(out *outgoing) error {
	if out.packed.stream == nil {
		return l.conn.Write(out.head[:], out.payload)
	}
	// What is written must fit into the buffer: an encoder is not to be held while the network is waited for.
	if gathered := l.conn.Buffered(); gathered > 0 && gathered+len(out.payload) > flushAt {
		if err := l.flush(); err != nil {
			return err
		}
	}
	c := l.t.cfg.Compressor
	e := c.encoder()
	if e == nil {
		return l.conn.Write(out.head[:], out.payload)
	}
	defer c.giveBack(e)
	start := time.Now()
	frame := e.pack(out.payload)
	r := &out.packed
	r.size, r.spent = len(frame), time.Since(start)
	vain := !shrinks(r.plain, r.size)
	c.count.sent(r.plain, r.size, vain, r.spent)
	l.t.count.compression.sent(r.plain, r.size, vain, r.spent)
	if vain {
		return l.conn.Write(out.head[:], out.payload)
	}
	out.head[1] |= flagCompressed
	return l.conn.Write(out.head[:], frame)
}

// unpack replaces the payload of a compressed DATA frame, buf.b[:n], by what it stands for. It takes buf over and returns the
// buffer to go on with, also with an error. A frame that is dropped anyway stays as it is. Called by the reader, without mu.
func (l *Lane) unpack(h *header, buf *Buffer, n int) (*Buffer, int, error) {
	t := l.t
	if !t.packs {
		return buf, n, violation("stream %d: compressed DATA, which was not agreed on", h.stream)
	}
	size, err := unpackedSize(buf.b[:n])
	if err != nil {
		return buf, n, err
	}
	if wanted, err := l.wantsPacked(h, size); !wanted {
		return buf, n, err
	}
	plain := GetBuffer(size)
	start := time.Now()
	if err := t.cfg.Compressor.unpack(plain.b[:size], buf.b[:n]); err != nil {
		plain.Release()
		return buf, n, err
	}
	spent := time.Since(start)
	t.cfg.Compressor.count.received(n, size, spent)
	t.count.compression.received(n, size, spent)
	buf.Release()
	h.flags &^= flagCompressed
	return plain, size, nil
}

// wantsPacked says whether a compressed DATA frame is worth the work: one that breaks the rules, or is of a stream that is over, is
// not. It must bring size new bytes, so that a peer cannot have more decompressed than it has credit for.
func (l *Lane) wantsPacked(h *header, size int) (bool, error) {
	t := l.t
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.streams[h.stream]
	if t.lane != l || t.err != nil || !l.synced || s == nil || s.over {
		return false, nil // dispatch knows what to do with it
	}
	switch d := &s.recv; {
	case !s.packing.on:
		return false, violation("stream %d: compressed DATA, which was not agreed on", s.id)
	case h.offset != d.next:
		return false, violation("stream %d: compressed DATA at %d, expected %d", s.id, h.offset, d.next)
	case h.offset+uint64(size) > d.limit:
		return false, violation("stream %d: DATA to %d over the limit of %d", s.id, h.offset+uint64(size), d.limit)
	}
	return true, nil
}
