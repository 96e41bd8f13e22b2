package link

import (
	"bytes"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// FuzzFrame: no message makes the parsers panic, and what they accept survives being encoded and decoded again.
func FuzzFrame(f *testing.F) {
	for _, g := range goldenFrames() {
		f.Add(g.message())
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		buf := make([]byte, MaxPayload)
		h, n, err := readMessage(bytes.NewReader(message), buf)
		if err != nil {
			require.ErrorIs(t, err, errs.ProtocolViolation)
			return
		}
		require.Less(t, n, len(message))
		once, err := recode(h, buf[:n])
		if err != nil {
			require.ErrorIs(t, err, errs.ProtocolViolation)
			return
		}
		twice, err := recode(h, once)
		require.NoError(t, err)
		require.Equal(t, once, twice)
	})
}

// records packs messages as FuzzLane takes them: a length of two bytes before each.
func records(frames ...golden) []byte {
	var b []byte
	for _, g := range frames {
		m := g.message()
		b = binary.BigEndian.AppendUint16(b, uint16(len(m)))
		b = append(b, m...)
	}
	return b
}

// FuzzLane: whatever a peer sends on an established lane, or on one that resumes, no side panics or holds more than its
// limits allow; the tunnel goes on, or ends with a code; and nothing stays behind.
func FuzzLane(f *testing.F) {
	open := golden{head: header{kind: typeOpen, stream: 1}, payload: openPayload("git")}
	data := golden{head: header{kind: typeData, stream: 1}, payload: []byte("hello")}
	fin := golden{head: header{kind: typeFin, stream: 1, offset: 5}}
	credit := golden{head: header{kind: typeCredit, stream: 1, offset: 1 << 40}, payload: make([]byte, 8)}
	reset := golden{head: header{kind: typeReset, stream: 1}, payload: appendFailure(nil, errs.New(errs.Canceled, "no"))}
	f.Add(byte(0), records(open, data, fin, credit))
	f.Add(byte(1), records(credit, data, reset))
	f.Add(byte(0), records(open, reset, open, data, data))
	f.Add(byte(2), records(golden{head: header{kind: typeSync}}, open, data))
	f.Add(byte(3), records(golden{head: header{kind: typeSync, offset: 1}, payload: syncEntry{stream: 1, flags: syncOpened, limit: 1 << 20}.append(nil)}, data, fin))
	for i, g := range goldenFrames() {
		f.Add(byte(i), records(open, g, data))
		f.Add(byte(i), records(g))
	}
	f.Fuzz(func(t *testing.T, side byte, stream []byte) {
		synctest.Test(t, func(t *testing.T) { hostile(t, side, stream) })
	})
}

func hostile(t *testing.T, side byte, stream []byte) {
	before := held.Load()
	cfg := Config{Window: minWindow, MaxWindow: 4 * minWindow, Memory: 8 * minWindow, MaxStreams: 8, Accept: drained,
		Renew: func(string) (time.Time, error) { return time.Unix(1800000000, 0), nil }}
	var p *played
	if side&1 == 0 {
		p = playSidecar(t, cfg)
	} else {
		p = playGateway(t, cfg)
		for range 2 {
			s, err := p.tun.Open(OpenRequest{Route: "git"})
			require.NoError(t, err)
			_, err = s.Write(make([]byte, 3000))
			require.NoError(t, err)
		}
	}
	if side&2 != 0 { // the lane is a resumed one, whose SYNC has not come
		synctest.Wait()
		p.tun.mu.Lock()
		p.lane.synced = false
		p.tun.mu.Unlock()
	}
	answered := make(chan error, 1)
	go func() { answered <- p.end() }()
	for len(stream) >= 2 {
		n := min(int(binary.BigEndian.Uint16(stream)), len(stream)-2)
		message := stream[2 : 2+n]
		stream = stream[2+n:]
		if p.conn.Write(message, nil) != nil || p.conn.Flush() != nil {
			break
		}
	}
	synctest.Wait()
	p.tun.mu.Lock()
	require.LessOrEqual(t, p.tun.waiting, 2*cfg.Memory+MaxPayload)
	require.LessOrEqual(t, len(p.tun.streams), 2*cfg.MaxStreams)
	require.LessOrEqual(t, len(p.tun.sched.resetAcks), 4*cfg.MaxStreams)
	p.tun.mu.Unlock()
	require.LessOrEqual(t, p.tun.budget.Used(), cfg.Memory)
	p.stop()
	require.Error(t, p.tun.Err())
	<-answered
	synctest.Wait()
	require.Equal(t, before, held.Load(), "buffers left behind")
}
