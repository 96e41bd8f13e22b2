package link

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// greeted is what a gateway that does not hold the tunnel has after HELLO, and the sidecar's end.
func greeted(t *testing.T, p *played, h hello, key [keySize]byte) (*Handshake, *peer, *memPair) {
	pair := newMemPair()
	type greeting struct {
		hs  *Handshake
		err error
	}
	done := make(chan greeting, 1)
	go func() {
		hs, err := Greet(context.Background(), pair.server)
		done <- greeting{hs, err}
	}()
	next := &peer{t: t, conn: pair.client}
	_, nonce := next.expect(typeChallenge)
	pause(20 * time.Millisecond)
	h.version, h.limits = Version, testLimits
	h.proof = proof(key, h.tunnel, h.epoch, nonce)
	next.send(header{kind: typeHello}, append(h.append(nil), "for a later version"...))
	g := <-done
	require.NoError(t, g.err)
	return g.hs, next, pair
}

// A handshake goes on where the tunnel is, with what was said elsewhere: the proof holds for the nonce of the gateway that greeted, and
// the sidecar gets its WELCOME over the same connection.
func TestAHandshakeGoesOnElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: drained})
		hs, next, pair := greeted(t, p, hello{tunnel: p.tun.ID(), epoch: 7, caps: canCompress}, p.key)
		require.Equal(t, uint64(7), hs.Epoch())
		moved := hs.Transfer()
		require.LessOrEqual(t, len(moved), MaxTransfer)
		there, err := Transferred(pair.server, moved)
		require.NoError(t, err)
		require.Equal(t, hs, there, "nothing is lost on the way")
		require.Equal(t, 20*time.Millisecond, there.rtt)
		id, resumes := there.Tunnel()
		require.True(t, resumes)
		require.Equal(t, p.tun.ID(), id)
		lane, err := there.Resume(p.tun)
		require.NoError(t, err)
		ran := run(lane)
		next.expect(typeWelcome)
		isCode(t, errs.Displaced, p.end())
		isCode(t, errs.Displaced, <-p.ran)
		next.expect(typeSync)
		next.send(header{kind: typeSync}, nil)
		require.Equal(t, uint64(7), p.tun.Stats().Epoch)
		p.tun.Close(nil)
		next.conn.Abort()
		<-ran
		p.tun.Wait()
	})
}

// What was transferred is worth no more than what was said: a changed nonce, tunnel or epoch makes the proof wrong, and a
// second use finds the epoch used.
func TestATransferredHandshakeProvesNoMoreThanItself(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: drained})
		defer p.stop()
		hs, _, pair := greeted(t, p, hello{tunnel: p.tun.ID(), epoch: 7}, p.key)
		defer pair.cut()
		good := hs.Transfer()
		for _, at := range []int{transferHead - nonceSize, transferHead - 1, transferHead + 2 + 8 + idSize + 7, transferHead + 2 + 8 + idSize + 8} {
			changed := bytes.Clone(good)
			changed[at] ^= 1
			there, err := Transferred(pair.server, changed)
			require.NoError(t, err)
			_, err = there.Resume(p.tun)
			isCode(t, errs.TunnelUnknown, err)
		}
		require.Equal(t, uint64(1), p.tun.Stats().Epoch)
		require.NoError(t, p.tun.Err())
	})
}

func TestTransfersThatAreNone(t *testing.T) {
	whole := func(h hello) []byte {
		return (&Handshake{raw: h.append(nil)}).Transfer()
	}
	good := hello{version: Version, limits: testLimits, tunnel: ID{1}, epoch: 2}
	with := func(change func(*hello)) []byte {
		h := good
		change(&h)
		return whole(h)
	}
	_, err := Transferred(nil, whole(good))
	require.NoError(t, err)
	version2 := whole(good)
	version2[0] = 2
	for name, c := range map[string]struct {
		data []byte
		code errs.Code
	}{
		"nothing":        {nil, errs.ProtocolViolation},
		"no HELLO":       {whole(good)[:transferHead], errs.ProtocolViolation},
		"half a HELLO":   {whole(good)[:transferHead+65], errs.ProtocolViolation},
		"too long":       {append(whole(good), make([]byte, minMessage)...), errs.ProtocolViolation},
		"version":        {version2, errs.VersionUnsupported},
		"a new tunnel":   {with(func(h *hello) { h.tunnel = ID{} }), errs.ProtocolViolation},
		"another link":   {with(func(h *hello) { h.version = 9 }), errs.VersionUnsupported},
		"small messages": {with(func(h *hello) { h.limits.maxMessage = 1 }), errs.ProtocolViolation},
		"small windows":  {with(func(h *hello) { h.limits.window = 1 }), errs.ProtocolViolation},
	} {
		_, err := Transferred(nil, c.data)
		require.ErrorIs(t, err, c.code, name)
	}
}

// FuzzTransferred: whatever another replica sends, it is refused with a code, or it is a handshake that transfers to the same.
func FuzzTransferred(f *testing.F) {
	h := hello{version: Version, limits: testLimits, tunnel: ID{1}, epoch: 2}
	f.Add((&Handshake{rtt: time.Millisecond, raw: h.append(nil)}).Transfer())
	h.caps = canCompress
	f.Add((&Handshake{rtt: time.Hour, raw: h.append(nil)}).Transfer())
	f.Add([]byte{transferVersion})
	f.Fuzz(func(t *testing.T, data []byte) {
		hs, err := Transferred(nil, data)
		if err != nil {
			code := errs.CodeOf(err)
			require.True(t, code == errs.ProtocolViolation || code == errs.VersionUnsupported, "%v", err)
			return
		}
		again, err := Transferred(nil, hs.Transfer())
		require.NoError(t, err)
		require.Equal(t, hs, again)
		require.LessOrEqual(t, hs.rtt, maxTransferRTT)
	})
}
