package link

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// A resume with a wrong proof, for another tunnel or with an epoch that was used is refused, and changes nothing: the
// tunnel's lane goes on.
//
// Verifies: R4.1
func TestRefusedResumesChangeNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: drained})
		defer p.stop()
		p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
		p.expect(typeOpened)
		before := p.tun.Stats()
		wrongKey := p.key
		wrongKey[0] ^= 1
		for _, c := range []struct {
			name string
			h    hello
			key  [keySize]byte
			code errs.Code
		}{
			{"wrong key", hello{tunnel: p.tun.ID(), epoch: 2}, wrongKey, errs.TunnelUnknown},
			{"no key", hello{tunnel: p.tun.ID(), epoch: 2}, [keySize]byte{}, errs.TunnelUnknown},
			{"proof for another tunnel", hello{tunnel: ID{9}, epoch: 2}, p.key, errs.TunnelUnknown},
			{"epoch of the lane there is", hello{tunnel: p.tun.ID(), epoch: 1}, p.key, errs.Displaced},
			{"epoch zero", hello{tunnel: p.tun.ID(), epoch: 0}, p.key, errs.Displaced},
		} {
			next, lane, err := p.resume(c.h, c.key)
			require.Nil(t, lane, c.name)
			isCode(t, c.code, err)
			isCode(t, c.code, next.end())
			next.conn.Abort()
		}
		after := p.tun.Stats()
		after.FramesReceived, after.FramesSent = before.FramesReceived, before.FramesSent
		require.Equal(t, before, after)
		p.send(header{kind: typePing, offset: 77}, nil)
		h, _ := p.until(typePong)
		require.Equal(t, uint64(77), h.offset)
	})
}

// A proof is worth nothing on another connection: each has a nonce of its own.
func TestProofCannotBeReplayed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{})
		defer p.stop()
		pair := newMemPair()
		done := make(chan error, 1)
		go func() {
			hs, err := Greet(context.Background(), pair.server)
			if err == nil {
				_, err = hs.Resume(p.tun)
			}
			done <- err
		}()
		next := &peer{t: t, conn: pair.client}
		next.expect(typeChallenge)
		overheard := hello{version: Version, limits: testLimits, tunnel: p.tun.ID(), epoch: 2, proof: proof(p.key, p.tun.ID(), 2, make([]byte, nonceSize))}
		next.send(header{kind: typeHello}, overheard.append(nil))
		isCode(t, errs.TunnelUnknown, <-done)
		pair.cut()
	})
}

// A higher epoch displaces the lane there is, though neither side knew that it was lost, and the old one is closed with the
// code for it.
//
// Verifies: R6.7
func TestHigherEpochDisplacesTheLane(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: drained})
		p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
		p.expect(typeOpened)
		next, lane, err := p.resume(hello{tunnel: p.tun.ID(), epoch: 5}, p.key)
		require.NoError(t, err)
		ran := run(lane)
		_, b := next.expect(typeWelcome)
		w, err := parseWelcome(b)
		require.NoError(t, err)
		require.Equal(t, [keySize]byte{}, w.key, "the key is not told again")
		isCode(t, errs.Displaced, p.end())
		isCode(t, errs.Displaced, <-p.ran)

		h, b := next.expect(typeSync)
		require.Equal(t, uint64(1), h.offset)
		entries, err := parseSync(b)
		require.NoError(t, err)
		require.Equal(t, []syncEntry{{stream: 1, flags: syncOpened, limit: defaultWindow}}, entries)
		next.send(header{kind: typeSync, offset: 1}, syncEntry{stream: 1, limit: defaultWindow}.append(nil))
		next.send(header{kind: typeData, flags: flagFin, stream: 1}, []byte("x"))
		next.until(typeCredit)
		require.Equal(t, uint64(5), p.tun.Stats().Epoch)
		require.NoError(t, p.tun.Err())
		p.tun.Close(nil)
		next.conn.Abort()
		<-ran
		p.tun.Wait()
	})
}

// The tunnel goes on over the new lane when the gateway notices the loss first (its side of the old lane has ended), and
// when the sidecar does (the gateway still has it).
//
// Verifies: R1.7
func TestResumeWhicheverSideNoticesFirst(t *testing.T) {
	for _, first := range []string{"sidecar", "gateway"} {
		t.Run(first, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				before := held.Load()
				var pairs []*memPair
				n := memNetwork(t, Config{Accept: func(s *Stream) {
					s.Accept()
					_ = readAll(s, 1, 300_000, 9_000)
					_ = s.CloseWrite()
					_ = s.Wait()
				}}, Config{})
				n.dial = func() (Conn, Conn, func()) {
					p := newMemPair()
					pairs = append(pairs, p)
					return p.client, p.server, p.cut
				}
				tun := n.connect()
				s, err := tun.Open(OpenRequest{Route: "git"})
				require.NoError(t, err)
				synctest.Wait()
				lost := pairs[0].client
				if first == "gateway" {
					lost = pairs[0].server
				}
				// Only one end hears of the break; the other one sees silence.
				lost.in.mu.Lock()
				lost.in.broken = true
				lost.in.cond.Broadcast()
				lost.in.mu.Unlock()
				require.NoError(t, sendAll(s, 1, 300_000, 50_000))
				require.NoError(t, readAll(s, 2, 0, 10))
				require.NoError(t, s.Wait())
				require.Equal(t, uint64(1), tun.Stats().Resumes)
				waitForgotten(t, tun)
				waitForgotten(t, n.gateway())
				n.finish(tun, before)
			})
		})
	}
}

// A tunnel that is over, or that the gateway never had, is told to be unknown.
func TestResumeOfATunnelThatIsOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{})
		p.stop()
		next, _, err := p.resume(hello{tunnel: p.tun.ID(), epoch: 2}, p.key)
		isCode(t, errs.TunnelUnknown, err)
		isCode(t, errs.TunnelUnknown, next.end())
		next.conn.Abort()
	})
}

// handshakeWith lets the gateway's half meet what answer sends instead of a HELLO.
func handshakeWith(t *testing.T, answer func(p *peer)) (served, seen error) {
	pair := newMemPair()
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := Greet(ctx, pair.server)
		if err != nil {
			pair.server.Close(errs.CloseFrame(err))
		}
		done <- err
	}()
	p := &peer{t: t, conn: pair.client}
	p.expect(typeChallenge)
	answer(p)
	seen = p.end()
	served = <-done
	pair.cut()
	return served, seen
}

// A handshake that is late, of another version, too small or not one at all is refused with its code.
//
// Verifies: R6.7
func TestBadHandshakesAreRefusedWithTheirCode(t *testing.T) {
	good := hello{version: Version, limits: testLimits}
	with := func(change func(*hello)) func(*peer) {
		h := good
		change(&h)
		return func(p *peer) { p.send(header{kind: typeHello}, h.append(nil)) }
	}
	for name, c := range map[string]struct {
		answer func(*peer)
		code   errs.Code
	}{
		"never":           {func(*peer) {}, errs.HandshakeLate},
		"half a HELLO":    {func(p *peer) { p.send(header{kind: typeHello}, good.append(nil)[:20]) }, errs.ProtocolViolation},
		"another frame":   {func(p *peer) { p.send(header{kind: typeOpen, stream: 1}, openPayload("git")) }, errs.ProtocolViolation},
		"another version": {with(func(h *hello) { h.version = 2 }), errs.VersionUnsupported},
		"small messages":  {with(func(h *hello) { h.limits.maxMessage = minMessage - 1 }), errs.ProtocolViolation},
		"small window":    {with(func(h *hello) { h.limits.window = minWindow - 1 }), errs.ProtocolViolation},
		"huge HELLO":      {func(p *peer) { p.send(header{kind: typeHello}, make([]byte, 1<<20)) }, errs.ProtocolViolation},
		"short message":   {func(p *peer) { _ = p.conn.Write([]byte("GET"), nil); _ = p.conn.Flush() }, errs.ProtocolViolation},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				served, seen := handshakeWith(t, c.answer)
				isCode(t, c.code, served)
				isCode(t, c.code, seen)
				code, _ := errs.CloseFrame(served)
				require.Equal(t, errs.CloseProtocol, code)
			})
		})
	}
}

// A sidecar refuses a gateway that breaks the handshake.
func TestSidecarRefusesABadGateway(t *testing.T) {
	for name, c := range map[string]struct {
		nonce   int
		welcome func(*welcome)
		code    errs.Code
	}{
		"short nonce":     {nonceSize - 1, nil, errs.ProtocolViolation},
		"long nonce":      {nonceSize + 1, nil, errs.ProtocolViolation},
		"another version": {nonceSize, func(w *welcome) { w.version = 7 }, errs.VersionUnsupported},
		"no window":       {nonceSize, func(w *welcome) { w.limits.window = 0 }, errs.ProtocolViolation},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				pair := newMemPair()
				done := make(chan error, 1)
				go func() {
					_, _, err := Connect(context.Background(), pair.client, Config{})
					done <- err
				}()
				p := &peer{t: t, conn: pair.server}
				p.send(header{kind: typeChallenge}, make([]byte, c.nonce))
				if c.welcome != nil {
					p.expect(typeHello)
					w := welcome{version: Version, limits: testLimits, tunnel: ID{1}}
					c.welcome(&w)
					p.send(header{kind: typeWelcome}, w.append(nil))
				}
				isCode(t, c.code, <-done)
				pair.cut()
			})
		})
	}
}

// A sidecar whose context ends gives the handshake up at once; a gateway of another tunnel is refused.
func TestSidecarGivesUpAResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		p.conn.Abort()
		<-p.ran
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := p.tun.Resume(ctx, newMemPair().client)
		isCode(t, errs.Canceled, err)
		ctx, cancel = context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err = p.tun.Resume(ctx, newMemPair().client)
		isCode(t, errs.HandshakeLate, err)
		require.Equal(t, 3*time.Second, time.Since(start))

		pair := newMemPair()
		done := make(chan error, 1)
		go func() {
			_, err := p.tun.Resume(context.Background(), pair.client)
			done <- err
		}()
		next := &peer{t: t, conn: pair.server}
		next.send(header{kind: typeChallenge}, make([]byte, nonceSize))
		next.expect(typeHello)
		next.send(header{kind: typeWelcome}, welcome{version: Version, limits: testLimits, tunnel: ID{99}}.append(nil))
		isCode(t, errs.ProtocolViolation, <-done)
		pair.cut()
		require.NoError(t, p.tun.Err(), "an attempt that failed does not end the tunnel")
		p.tun.Close(nil)
		p.tun.Wait()
	})
}
