package link

import (
	"encoding/binary"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// transfer sends size bytes to the gateway, and says how far windows had grown at most, on both sides together.
func transfer(t *testing.T, server, client Config, size int) (most int64) {
	before := held.Load()
	n := &network{}
	server.Accept = func(s *Stream) {
		s.Accept()
		p := make([]byte, 64<<10)
		for {
			_, err := s.Read(p)
			most = max(most, s.Tunnel().Stats().Retained)
			if err != nil {
				break
			}
		}
		_ = s.CloseWrite()
		_ = s.Wait()
	}
	n = memNetwork(t, server, client)
	tun := n.connect()
	s, err := tun.Open(OpenRequest{Route: "sink"})
	require.NoError(t, err)
	require.NoError(t, sendAll(s, 1, size, 64<<10))
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, s.Wait())
	waitForgotten(t, tun)
	waitForgotten(t, n.gateway())
	require.Zero(t, tun.Stats().Retained)
	require.Zero(t, n.gateway().Stats().Retained, "what windows had grown is given back")
	n.finish(tun, before)
	return most
}

// Windows grow on a quick path up to their greatest size, and never beyond the budgets of tunnel, tenant and process.
func TestWindowsGrowWithinTheirBudgets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		require.Equal(t, int64(defaultMaxWindow-defaultWindow), transfer(t, Config{}, Config{}, 64<<20))
	})
	bubble(t, func(t *testing.T) {
		require.Equal(t, int64(defaultWindow), transfer(t, Config{Memory: 300 << 10}, Config{}, 16<<20), "the tunnel's budget")
	})
	bubble(t, func(t *testing.T) {
		process := NewBudget(3*defaultWindow+5, nil)
		tenant := NewBudget(1<<30, process)
		require.Equal(t, int64(3*defaultWindow), transfer(t, Config{Budget: tenant}, Config{}, 16<<20), "the process's budget")
		require.Zero(t, process.Used())
		require.Zero(t, tenant.Used())
	})
	bubble(t, func(t *testing.T) {
		require.Zero(t, transfer(t, Config{MaxWindow: minWindow}, Config{MaxWindow: minWindow, Memory: 1}, 4<<20), "a greatest window below the initial one")
	})
}

// A window of the least size works, and so do windows of different sizes at the two ends, with a small budget.
func TestSmallWindows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		transfer(t, Config{Window: minWindow, MaxWindow: minWindow}, Config{Window: 3 * minWindow, Memory: minWindow}, 1_000_000)
	})
	bubble(t, func(t *testing.T) {
		transfer(t, Config{Window: 1 << 20}, Config{Window: minWindow, MaxWindow: minWindow}, 1_000_000)
	})
}

func TestBudgetTakesAllOrNothing(t *testing.T) {
	process := NewBudget(10, nil)
	a, b := NewBudget(8, process), NewBudget(8, process)
	require.True(t, a.take(8))
	require.False(t, a.take(1))
	require.False(t, b.take(3), "the process has 2 left")
	require.Zero(t, b.Used())
	require.True(t, b.take(2))
	a.give(8)
	require.Equal(t, int64(2), process.Used())
	require.True(t, (*Budget)(nil).take(1<<60))
}

// A CREDIT leaves at once when an eighth of the window (at least 128 KiB, at most half) is consumed, and else 50 ms after
// the first byte that is consumed, once for all streams.
func TestAcknowledgementsAreNeitherEagerNorForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: func(s *Stream) {
			s.Accept()
			_, _ = io.Copy(io.Discard, s)
			_ = s.Wait()
		}})
		for id := uint32(1); id <= 2; id++ {
			p.send(header{kind: typeOpen, stream: id}, openPayload("sink"))
			p.expect(typeOpened)
		}
		start := time.Now()
		for id := uint32(1); id <= 2; id++ {
			p.send(header{kind: typeData, stream: id}, make([]byte, 10))
		}
		for range 2 {
			h, b := p.expect(typeCredit)
			require.Equal(t, uint64(defaultWindow+10), h.offset)
			require.Equal(t, uint64(10), binary.BigEndian.Uint64(b))
		}
		require.Equal(t, ackDelay, time.Since(start))

		for sent := 10; sent < 10+128<<10; sent += 32 << 10 {
			p.send(header{kind: typeData, stream: 1, offset: uint64(sent)}, make([]byte, 32<<10))
		}
		h, _ := p.expect(typeCredit)
		require.Equal(t, ackDelay, time.Since(start), "no delay for half a window")
		require.GreaterOrEqual(t, h.offset, uint64(defaultWindow+10+128<<10))
		p.send(header{kind: typeFin, stream: 2, offset: 10}, nil)
		h, b := p.expect(typeCredit)
		require.Equal(t, uint8(flagFin), h.flags, "the end is acknowledged at once")
		require.Equal(t, uint64(10), binary.BigEndian.Uint64(b))
		p.stop()
	})
}

func TestAckThreshold(t *testing.T) {
	for window, want := range map[uint64]uint64{minWindow: minWindow / 2, 128 << 10: 64 << 10, 256 << 10: 128 << 10, 1 << 20: 128 << 10, 16 << 20: 2 << 20} {
		require.Equal(t, want, (&Stream{recv: recvState{window: window}}).ackThreshold())
	}
}

// Both sides forget a stream when both directions are final and consumed; what still comes for it is late, not wrong.
func TestFinishedStreamsAreForgottenByBothSides(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: drained})
		p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
		p.expect(typeOpened)
		p.send(header{kind: typeData, flags: flagFin, stream: 1}, []byte("bye"))
		for range 2 { // FIN and CREDIT, in either order
			h, _, err := p.recv()
			for err == nil && (h.kind == typePing || h.kind == typePong) {
				h, _, err = p.recv()
			}
			require.NoError(t, err)
			require.Contains(t, []frameType{typeFin, typeCredit}, h.kind)
		}
		require.Equal(t, 1, p.tun.Stats().Streams, "its end is not acknowledged")
		p.send(header{kind: typeCredit, flags: flagFin, stream: 1, offset: defaultWindow}, make([]byte, 8))
		synctest.Wait()
		require.Zero(t, p.tun.Stats().Streams)
		for _, late := range []header{{kind: typeOpen, stream: 1}, {kind: typeData, stream: 1, offset: 3}, {kind: typeFin, stream: 1, offset: 3}, {kind: typeCredit, stream: 1}, {kind: typeReset, flags: flagAck, stream: 1}} {
			p.send(late, openPayload("git"))
		}
		p.send(header{kind: typeReset, stream: 1}, appendFailure(nil, errs.New(errs.Canceled, "late")))
		h, _ := p.expect(typeReset)
		require.Equal(t, header{kind: typeReset, flags: flagAck, stream: 1}, h, "a late RESET is answered, so that the peer can forget")
		synctest.Wait()
		require.Zero(t, p.tun.Stats().Streams)
		require.NoError(t, p.tun.Err())
		p.stop()
	})
}

// A stream that this side reset is known until the peer has answered; data that comes meanwhile is dropped.
func TestResetStreamIsKnownUntilItIsAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		s, err := p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		p.until(typeOpen)
		s.Reset(nil)
		p.until(typeReset)
		p.send(header{kind: typeData, stream: 1}, make([]byte, 1000))
		p.send(header{kind: typeCredit, stream: 1, offset: 1 << 20}, make([]byte, 8))
		synctest.Wait()
		require.Equal(t, 1, p.tun.Stats().Streams)
		require.Zero(t, p.tun.waiting)
		p.send(header{kind: typeReset, flags: flagAck, stream: 1}, nil)
		synctest.Wait()
		require.Zero(t, p.tun.Stats().Streams)
		p.stop()
	})
}

// A stream that was reset before its OPEN left the sidecar is only a number to the gateway.
func TestStreamThatWasResetBeforeItsOpenLeft(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: drained})
		p.send(header{kind: typeReset, stream: 3}, appendFailure(nil, errs.New(errs.Canceled, "never mind")))
		h, _ := p.expect(typeReset)
		require.Equal(t, header{kind: typeReset, flags: flagAck, stream: 3}, h)
		p.send(header{kind: typeOpen, stream: 4}, openPayload("git"))
		p.expect(typeOpened)
		require.Equal(t, 1, p.tun.Stats().Streams)
		p.stop()
	})
}

// Many small reads or frames that wait do not hold a buffer each.
func TestSmallPiecesShareBuffers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		block := make(chan struct{})
		p := playSidecar(t, Config{Accept: func(s *Stream) { <-block; drained(s) }})
		before := held.Load()
		p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
		for i := range 5000 {
			p.send(header{kind: typeData, stream: 1, offset: uint64(i)}, []byte{byte(i)})
		}
		synctest.Wait()
		require.LessOrEqual(t, held.Load()-before, int64(5000/classSmall+1), "received")
		close(block)
		p.stop()

		g := playGateway(t, Config{})
		before = held.Load()
		s, err := g.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		for i := range 5000 {
			b := GetBuffer(1)
			b.Bytes()[0] = byte(i)
			require.NoError(t, s.SendBuffer(b, 1))
		}
		require.LessOrEqual(t, held.Load()-before, int64(5000/classSmall+1), "sent")
		next := 0
		for next < 5000 {
			h, b := g.until(typeData)
			require.Equal(t, uint64(next), h.offset)
			for _, c := range b {
				require.Equal(t, byte(next), c)
				next++
			}
		}
		g.stop()
	})
}

// Totals, limits on what may be sent, and errors of wrong use.
func TestSendingOverTheRoomIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{Window: minWindow, MaxWindow: minWindow})
		s, err := p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		room, err := s.WaitRoom()
		require.NoError(t, err)
		require.Equal(t, minWindow, room)
		isCode(t, errs.Internal, s.SendBuffer(GetBuffer(room+1), room+1))
		require.NoError(t, s.SendBuffer(GetBuffer(room), room))
		sent, received := s.Totals()
		require.Equal(t, uint64(minWindow), sent)
		require.Zero(t, received)
		waiting := make(chan error, 1)
		go func() { _, err := s.WaitRoom(); waiting <- err }()
		synctest.Wait()
		require.Empty(t, waiting)
		require.NoError(t, s.CloseWrite())
		require.ErrorIs(t, <-waiting, io.ErrClosedPipe)
		require.ErrorIs(t, s.SendBuffer(GetBuffer(1), 1), io.ErrClosedPipe)
		_, err = p.tun.Open(OpenRequest{})
		require.Error(t, err)
		p.stop()
		isCode(t, errs.ShuttingDown, s.SendBuffer(GetBuffer(1), 1))
		_, err = p.tun.Open(OpenRequest{Route: "git"})
		isCode(t, errs.ShuttingDown, err)
	})
}

// A sidecar opens no more streams than a tunnel may have, instead of being cut off for it.
func TestSidecarKeepsToTheLimitOfStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{MaxStreams: 2})
		first, err := p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		_, err = p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		_, err = p.tun.Open(OpenRequest{Route: "git"})
		isCode(t, errs.StreamLimit, err)
		first.Reset(nil)
		p.until(typeReset)
		p.send(header{kind: typeReset, flags: flagAck, stream: 1}, nil)
		synctest.Wait()
		_, err = p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		p.tun.mu.Lock()
		p.tun.highest = 1<<32 - 1
		clear(p.tun.streams)
		p.tun.mu.Unlock()
		_, err = p.tun.Open(OpenRequest{Route: "git"})
		isCode(t, errs.StreamsExhausted, err)
		p.stop()
	})
}
