package link

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// loaded is a tunnel whose streams always have a full buffer to send; the test takes frames from it.
func loaded(t *testing.T, priorities ...Priority) (*Tunnel, []*Stream) {
	tun := newTunnel(Config{Window: 1 << 20, MaxWindow: 1 << 20}.withDefaults(), true, limits{1 << 20, 1 << 30})
	var streams []*Stream
	for _, p := range priorities {
		s, err := tun.Open(OpenRequest{Route: "git", Priority: p})
		require.NoError(t, err)
		require.NoError(t, s.SendBuffer(GetBuffer(MaxPayload), MaxPayload))
		streams = append(streams, s)
	}
	t.Cleanup(func() { tun.Close(nil) })
	return tun, streams
}

// take takes the next frame of data and lets its stream send the same bytes again.
func take(t *testing.T, tun *Tunnel, limit int) (id uint32, n int) {
	tun.mu.Lock()
	defer tun.mu.Unlock()
	var out outgoing
	require.True(t, tun.nextData(&out, limit))
	h, err := parseHeader(&out.head)
	require.NoError(t, err)
	out.buf.Release()
	s := tun.streams[h.stream]
	if s.send.next == s.send.end {
		s.send.next = 0
		s.ready()
	}
	return h.stream, len(out.payload)
}

// Each priority gets 8 times the bytes of the next lower one, and none starves; in a priority all get the same.
//
// Verifies: R5.2
func TestPrioritiesShareTheLaneAndNobodyStarves(t *testing.T) {
	tun, _ := loaded(t, High, High, Normal, Normal, Low)
	sent := map[uint32]int{}
	for range 20_000 {
		id, n := take(t, tun, 8<<10)
		sent[id] += n
	}
	require.InEpsilon(t, sent[1], sent[2], 0.01)
	require.InEpsilon(t, sent[3], sent[4], 0.01)
	require.InEpsilon(t, 8, float64(sent[1]+sent[2])/float64(sent[3]+sent[4]), 0.05)
	require.InEpsilon(t, 8, float64(sent[3]+sent[4])/float64(sent[5]), 0.05)
}

// A stream that has been idle is served next, however long the others have been sending, but gets no credit for it.
//
// Verifies: R5.2
func TestInteractiveStreamWaitsForAtMostOneFrame(t *testing.T) {
	tun, streams := loaded(t, Low, Normal)
	for range 1000 {
		take(t, tun, MaxPayload)
	}
	shell, err := tun.Open(OpenRequest{Route: "git", Priority: High})
	require.NoError(t, err)
	_, err = shell.Write([]byte("x"))
	require.NoError(t, err)
	id, n := take(t, tun, MaxPayload)
	require.Equal(t, shell.ID(), id)
	require.Equal(t, 1, n)

	late, err := tun.Open(OpenRequest{Route: "git", Priority: Normal})
	require.NoError(t, err)
	require.NoError(t, late.SendBuffer(GetBuffer(MaxPayload), MaxPayload))
	shell.Reset(nil)
	counts := map[uint32]int{}
	for range 1000 {
		id, _ := take(t, tun, MaxPayload)
		counts[id]++
	}
	require.InDelta(t, counts[streams[1].ID()], counts[late.ID()], 2, "streams of one priority take turns from the first frame on")
}

// Control frames leave before data, OPENs in the order of their ids, and twice due is sent once.
func TestControlGoesFirstAndOnlyOnce(t *testing.T) {
	tun, streams := loaded(t, High, High)
	tun.mu.Lock()
	defer tun.mu.Unlock()
	tun.due(streams[0], dueCredit)
	tun.due(streams[0], dueCredit)
	var kinds []frameType
	var out outgoing
	for tun.nextControl(&out, nil) {
		kinds = append(kinds, frameType(out.head[0]))
	}
	require.Equal(t, []frameType{typeOpen, typeCredit, typeOpen}, kinds)
}

// On a slow lane frames are so short that a keystroke waits for about 20 ms of bulk.
func TestFramesFitTheRateOfTheLane(t *testing.T) {
	require.Equal(t, MaxPayload, frameFor(100<<20, time.Second))
	require.Equal(t, 20_000, frameFor(1_000_000, time.Second))
	require.Equal(t, minFrame, frameFor(10_000, time.Second))
}

// No message is larger than the other side takes: neither DATA nor SYNC.
func TestFramesFitTheMessagesOfThePeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{MaxStreams: 4096, Accept: drained})
		defer p.stop()
		for id := range uint32(1500) {
			p.send(header{kind: typeOpen, stream: id + 1}, openPayload("git"))
		}
		for range 1500 {
			p.until(typeOpened)
		}
		p.tun.mu.Lock()
		p.tun.peer.maxMessage = minMessage
		l := p.tun.newLane(newMemPair().server, 2, false)
		old := p.tun.lane
		p.tun.attach(l)
		seen := 0
		for l.sync.due {
			var out outgoing
			l.nextSync(&out)
			require.LessOrEqual(t, headerSize+len(out.payload), minMessage)
			entries, err := parseSync(out.payload)
			require.NoError(t, err)
			seen += len(entries)
			require.Equal(t, l.sync.due, out.head[1]&flagMore != 0, "the last frame alone ends the state")
		}
		p.tun.mu.Unlock()
		require.Equal(t, 1500, seen)
		require.NotNil(t, old)
		require.ErrorContains(t, p.tun.Renew(string(make([]byte, minMessage))), "the gateway takes 4080")
	})
}
