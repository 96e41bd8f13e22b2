package link

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// nullSink takes everything at once.
type nullSink struct{ n int }

func (k *nullSink) Write(p []byte) (int, error)    { return k.TryWrite(p) }
func (k *nullSink) TryWrite(p []byte) (int, error) { k.n += len(p); return len(p), nil }
func (k *nullSink) CloseWrite() error              { return nil }
func (k *nullSink) Abort(error)                    {}

// bare is a tunnel with one open stream and a lane that nobody runs.
func bare(t *testing.T, client bool) (*Tunnel, *Lane, *Stream) {
	tun := newTunnel(Config{MaxWindow: defaultWindow}.withDefaults(), client, testLimits)
	l := tun.newLane(newMemPair().client, 1, true)
	tun.attach(l)
	tun.mu.Lock()
	defer tun.mu.Unlock()
	tun.highest = 1
	s := tun.addStream(1, OpenRequest{Route: "git"})
	return tun, l, s
}

// Sending payload allocates nothing once the buffer is filled.
func TestEncodingDataAllocatesNothing(t *testing.T) {
	tun, l, s := bare(t, true)
	buf := GetBuffer(MaxPayload)
	require.NoError(t, s.SendBuffer(buf, 100_000))
	l.pulse.timer = time.AfterFunc(time.Hour, func() {})
	defer l.pulse.timer.Stop()
	var out outgoing
	scratch := make([]byte, 0, 512)
	allocs := testing.AllocsPerRun(1000, func() {
		tun.mu.Lock()
		defer tun.mu.Unlock()
		s.send.next = 0
		s.ready()
		if !l.next(&out, scratch) || out.buf == nil || len(out.payload) != 100_000 {
			t.Fatal("no DATA")
		}
		out.buf.Release()
	})
	require.Zero(t, allocs)
	tun.Close(nil)
}

// Taking payload and answering it with CREDIT allocates nothing.
func TestDispatchingDataAndEncodingCreditAllocateNothing(t *testing.T) {
	tun, l, s := bare(t, false)
	sink := &nullSink{}
	s.SetSink(sink)
	buf := GetBuffer(MaxPayload)
	defer buf.Release()
	var out outgoing
	scratch := make([]byte, 0, 512)
	h, sent, credits := header{kind: typeData, stream: 1}, 0, 0
	size := 32 << 10
	allocs := testing.AllocsPerRun(1000, func() {
		tun.mu.Lock()
		defer tun.mu.Unlock()
		keep, err := l.dispatch(h, buf, size)
		if keep || err != nil {
			t.Fatal(keep, err)
		}
		h.offset += uint64(size)
		sent += size
		for tun.nextControl(&out, scratch) {
			credits++
		}
	})
	require.Zero(t, allocs)
	require.Equal(t, sent, sink.n)
	require.NotZero(t, credits)
	tun.Close(nil)
}

// Taking CREDIT allocates nothing.
func TestDispatchingCreditAllocatesNothing(t *testing.T) {
	tun, l, s := bare(t, true)
	big := GetBuffer(MaxPayload)
	require.NoError(t, s.SendBuffer(big, MaxPayload))
	s.send.highest, s.send.next = MaxPayload, MaxPayload
	buf := GetBuffer(8)
	defer buf.Release()
	h, consumed := header{kind: typeCredit, stream: 1, offset: defaultWindow}, uint64(0)
	allocs := testing.AllocsPerRun(1000, func() {
		tun.mu.Lock()
		defer tun.mu.Unlock()
		consumed++
		h.offset++
		binary.BigEndian.PutUint64(buf.b, consumed)
		if _, err := l.dispatch(h, buf, 8); err != nil {
			t.Fatal(err)
		}
	})
	require.Zero(t, allocs)
	require.Equal(t, consumed, s.send.acked)
	tun.Close(nil)
}

// A queue of a steady length moves each element a bounded number of times, whatever its length.
func TestQueueDoesNotMoveItsElementsAtEachPush(t *testing.T) {
	var q fifo[int]
	for i := range 1023 {
		q.push(i)
	}
	full := cap(q.items)
	q.push(1023)
	for i := 1024; i < 200_000; i++ {
		require.Equal(t, i-1024, q.pop())
		q.push(i)
	}
	require.Equal(t, 1024, q.len())
	require.LessOrEqual(t, cap(q.items), 4*full)
	q.pushFront(-1)
	require.Equal(t, -1, q.pop())
}
