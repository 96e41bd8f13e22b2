package link

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"fairlead/shared/errs"
)

// proof shows the possession of the resume key: HMAC-SHA256 over the tunnel, the epoch and the gateway's nonce.
func proof(key [keySize]byte, id ID, epoch uint64, nonce []byte) (p [proofSize]byte) {
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte("fairlead.link.v1 resume\x00"))
	m.Write(id[:])
	m.Write(binary.BigEndian.AppendUint64(nil, epoch))
	m.Write(nonce)
	m.Sum(p[:0])
	return p
}

// handshaking bounds f, which reads from conn, by ctx: when ctx ends, end is called, which makes reads fail.
func handshaking(ctx context.Context, end func(), f func() error) error {
	stop := context.AfterFunc(ctx, end)
	err := f()
	if stop() || ctx.Err() == nil {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
		return errs.Wrap(errs.Canceled, cause, "the handshake of the link")
	}
	return late(err)
}

func late(cause error) error {
	return errs.Wrap(errs.HandshakeLate, cause, "the peer did not complete the handshake of the link in time")
}

func send(conn Conn, kind frameType, payload []byte) error {
	var head [headerSize]byte
	header{kind: kind}.put(&head)
	err := conn.Write(head[:], payload)
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		return errs.Wrap(errs.LaneLost, err, "sending %v", kind)
	}
	return nil
}

// expect reads the next frame, which must be of the given type.
func expect(conn Conn, kind frameType) ([]byte, error) {
	r, err := conn.NextReader()
	if err != nil {
		return nil, err
	}
	p := make([]byte, minMessage)
	h, n, err := readMessage(r, p)
	if err != nil {
		return nil, err
	}
	if h.kind != kind {
		return nil, violation("%v where %v was expected", h.kind, kind)
	}
	return p[:n], nil
}

func (l limits) check() error {
	if l.maxMessage < minMessage || l.window < minWindow {
		return violation("a peer that takes messages of %d and windows of %d bytes; at least %d and %d are needed", l.maxMessage, l.window, minMessage, minWindow)
	}
	return nil
}

// greetGateway is the sidecar's half of the handshake: it answers the gateway's CHALLENGE with HELLO.
func greetGateway(ctx context.Context, conn Conn, h hello, key [keySize]byte) (w welcome, rtt time.Duration, err error) {
	err = handshaking(ctx, conn.Abort, func() error {
		nonce, err := expect(conn, typeChallenge)
		if err != nil {
			return err
		}
		if len(nonce) != nonceSize {
			return violation("CHALLENGE with a nonce of %d bytes, not %d", len(nonce), nonceSize)
		}
		if h.tunnel != (ID{}) {
			h.proof = proof(key, h.tunnel, h.epoch, nonce)
		}
		sent := time.Now()
		if err := send(conn, typeHello, h.append(nil)); err != nil {
			return err
		}
		p, err := expect(conn, typeWelcome)
		if err != nil {
			return err
		}
		rtt = time.Since(sent)
		if w, err = parseWelcome(p); err != nil {
			return err
		}
		if w.version != Version {
			return errs.New(errs.VersionUnsupported, "the gateway speaks version %d of the link, this sidecar %d", w.version, Version)
		}
		return w.limits.check()
	})
	return w, rtt, err
}

// Connect makes a new tunnel over conn, at the sidecar. The lane is to be run by the caller. On an error the caller
// closes conn.
func Connect(ctx context.Context, conn Conn, cfg Config) (*Tunnel, *Lane, error) {
	cfg = cfg.withDefaults()
	w, rtt, err := greetGateway(ctx, conn, hello{version: Version, limits: cfg.limits(), caps: cfg.capabilities()}, [keySize]byte{})
	if err != nil {
		return nil, nil, err
	}
	t := newTunnel(cfg, true, w.limits)
	t.id, t.key, t.hello = w.tunnel, w.key, w
	t.agree(w.caps)
	t.rtt.add(rtt)
	l := t.newLane(conn, 1, true)
	t.attach(l)
	return t, l, nil
}

// Resume carries the tunnel on over conn, at the sidecar. The lane is to be run by the caller. Errors with the code
// TunnelUnknown mean that the gateway has given the tunnel up: the caller closes it. On any error the caller closes conn.
func (t *Tunnel) Resume(ctx context.Context, conn Conn) (*Lane, error) {
	t.mu.Lock()
	t.epoch++ // a number is never used twice, also when this attempt fails
	h := hello{version: Version, limits: t.cfg.limits(), tunnel: t.id, epoch: t.epoch, caps: t.cfg.capabilities()}
	t.mu.Unlock()
	w, rtt, err := greetGateway(ctx, conn, h, t.key)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return nil, t.err
	}
	if w.tunnel != t.id {
		return nil, violation("the gateway resumed another tunnel than was asked for")
	}
	if t.lane != nil && t.lane.epoch > h.epoch {
		return nil, errs.New(errs.Displaced, "lane %d comes after lane %d", h.epoch, t.lane.epoch)
	}
	t.peer = w.limits
	t.rtt.add(rtt)
	l := t.newLane(conn, h.epoch, false)
	t.attach(l)
	return l, nil
}

// Handshake is the gateway's half of a handshake, after the sidecar's HELLO.
type Handshake struct {
	conn  Conn
	hello hello
	raw   []byte // HELLO's payload
	nonce [nonceSize]byte
	rtt   time.Duration
}

// Greet sends CHALLENGE on a new connection and reads HELLO, at the gateway. On an error the caller closes conn.
func Greet(ctx context.Context, conn Conn) (*Handshake, error) {
	hs := &Handshake{conn: conn}
	rand.Read(hs.nonce[:]) // never fails (crypto/rand)
	end := func() {
		if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			conn.Close(errs.CloseFrame(late(nil))) // says why, and lets reads fail soon
		} else {
			conn.Abort()
		}
	}
	err := handshaking(ctx, end, func() error {
		sent := time.Now()
		if err := send(conn, typeChallenge, hs.nonce[:]); err != nil {
			return err
		}
		p, err := expect(conn, typeHello)
		if err != nil {
			return err
		}
		hs.rtt = time.Since(sent)
		return hs.take(p)
	})
	if err != nil {
		return nil, err
	}
	return hs, nil
}

// Tunnel is the tunnel that the sidecar wants to resume; ok is false when it wants a new one.
func (hs *Handshake) Tunnel() (id ID, ok bool) { return hs.hello.tunnel, hs.hello.tunnel != ID{} }

// Accept makes a new tunnel. Its lane answers WELCOME and is to be run by the caller.
func (hs *Handshake) Accept(cfg Config) (*Tunnel, *Lane, error) {
	t := newTunnel(cfg.withDefaults(), false, hs.hello.limits)
	t.agree(hs.hello.caps)
	t.rtt.add(hs.rtt)
	l := t.newLane(hs.conn, 1, true)
	t.attach(l)
	if t.cfg.Made != nil {
		t.cfg.Made(t)
	}
	if err := hs.welcome(t, t.key); err != nil {
		t.Close(err)
		return nil, nil, err
	}
	return t, l, nil
}

func (hs *Handshake) welcome(t *Tunnel, key [keySize]byte) error {
	return send(hs.conn, typeWelcome, welcome{version: Version, limits: t.cfg.limits(), tunnel: t.id, key: key,
		heartbeat: t.cfg.Heartbeat, resumeTTL: t.cfg.ResumeTTL, idle: t.cfg.Idle, replica: t.cfg.Replica, caps: t.caps()}.append(nil))
}

// agree settles what the tunnel can: what both sides can. A resume does not change it.
func (t *Tunnel) agree(peer capabilities) {
	t.packs = t.cfg.capabilities()&peer&canCompress != 0
}

// caps are the capabilities that were agreed on.
func (t *Tunnel) caps() (caps capabilities) {
	if t.packs {
		caps |= canCompress
	}
	return caps
}

// Prove says whether the sidecar has the tunnel's resume key; TunnelUnknown: it has not.
func (hs *Handshake) Prove(t *Tunnel) error {
	want := proof(t.key, t.id, hs.hello.epoch, hs.nonce[:])
	if !hmac.Equal(want[:], hs.hello.proof[:]) {
		return errs.New(errs.TunnelUnknown, "the proof of the resume is wrong")
	}
	return nil
}

// Resume carries t on over the handshake's connection, displacing the lane it has, if the sidecar proves that the tunnel
// is its own. A refusal changes nothing. The lane is to be run by the caller.
func (hs *Handshake) Resume(t *Tunnel) (*Lane, error) {
	if err := hs.Prove(t); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.err != nil:
		return nil, errs.Wrap(errs.TunnelUnknown, t.err, "the tunnel is over")
	case hs.hello.epoch <= t.epoch:
		return nil, errs.New(errs.Displaced, "lane %d comes after lane %d", hs.hello.epoch, t.epoch)
	}
	// WELCOME must be the lane's first frame, and the lane must be the tunnel's before a still newer one can be: both under
	// the lock. A new connection's send buffer is empty, so the write does not wait for the peer.
	if err := hs.welcome(t, [keySize]byte{}); err != nil {
		return nil, err
	}
	t.peer = hs.hello.limits
	t.rtt.add(hs.rtt)
	l := t.newLane(hs.conn, hs.hello.epoch, false)
	t.attach(l)
	return l, nil
}
