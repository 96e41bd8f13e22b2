package link

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// A stream that finishes between the attaching of a lane and the peer's SYNC owes its last CREDIT all the same: in this
// side's SYNC it was still open.
func TestStreamThatFinishesInTheMiddleOfAResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		read := make(chan struct{})
		p := playSidecar(t, Config{Accept: func(s *Stream) {
			s.Accept()
			_ = s.CloseWrite()
			<-read
			_, _ = io.Copy(io.Discard, s)
			_ = s.Wait()
		}})
		p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
		p.until(typeFin)
		p.send(header{kind: typeCredit, flags: flagFin, stream: 1, offset: defaultWindow}, u64(0))
		p.send(header{kind: typeData, flags: flagFin, stream: 1}, []byte("x"))
		synctest.Wait()
		next, lane, err := p.resume(hello{tunnel: p.tun.ID(), epoch: 2}, p.key)
		require.NoError(t, err)
		ran := run(lane)
		next.expect(typeWelcome)
		_, b := next.expect(typeSync)
		entries, err := parseSync(b)
		require.NoError(t, err)
		require.Equal(t, []syncEntry{{stream: 1, flags: syncOpened | syncFinReceived, received: 1, limit: defaultWindow}}, entries)
		close(read)
		synctest.Wait()
		require.Zero(t, p.tun.Stats().Streams)
		next.send(header{kind: typeSync, offset: 1}, syncEntry{stream: 1, flags: syncFinReceived | syncFinConsumed, limit: defaultWindow}.append(nil))
		h, b := next.expect(typeCredit)
		require.Equal(t, header{kind: typeCredit, flags: flagFin, stream: 1, offset: defaultWindow + 1}, h)
		require.Equal(t, uint64(1), binary.BigEndian.Uint64(b))
		p.conn.Abort()
		<-p.ran
		p.tun.Close(nil)
		next.conn.Abort()
		<-ran
		p.tun.Wait()
	})
}

// failingSink is a destination that is gone.
type failingSink struct{ *sink }

func (failingSink) Write([]byte) (int, error) { return 0, errors.New("gone") }

// A destination that fails resets the stream, with the code of the side it is on.
func TestFailingDestinationResetsTheStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playSidecar(t, Config{Accept: func(s *Stream) {
			s.Accept()
			s.SetSink(failingSink{newSink("")})
			_ = s.Wait()
		}})
		p.send(header{kind: typeOpen, stream: 1}, openPayload("git"))
		p.send(header{kind: typeData, stream: 1}, []byte("x"))
		_, b := p.until(typeReset)
		f := fields{b: b}
		isCode(t, errs.BackendBroken, f.failure())
		p.stop()

		g := playGateway(t, Config{})
		s, err := g.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		s.SetSink(failingSink{newSink("")})
		g.send(header{kind: typeData, stream: 1}, []byte("x"))
		isCode(t, errs.ConnectionBroken, s.Wait())
		g.stop()
	})
}

// Waiting for the backend ends with the context, without ending the stream.
func TestWaitOpenedEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		s, err := p.tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		go func() {
			for {
				h, _, err := p.recv()
				if err != nil {
					return
				}
				if h.kind == typePing {
					_ = p.try(header{kind: typePong, offset: h.offset}, nil)
				}
			}
		}()
		require.ErrorIs(t, s.WaitOpened(ctx), context.DeadlineExceeded)
		p.send(header{kind: typeOpened, stream: 1}, nil)
		require.NoError(t, s.WaitOpened(context.Background()))
		p.stop()
	})
}

// What the gateway told of itself, and the names of things.
func TestNamesAndFacts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		require.Equal(t, "gw-0", p.tun.Replica())
		require.Zero(t, p.tun.ResumeTTL())
		require.Zero(t, p.tun.Idle())
		require.Equal(t, "01000000000000000000000000000000", p.tun.Name())
		p.stop()
	})
	for _, p := range []Priority{High, Normal, Low} {
		back, err := ParsePriority(p.String())
		require.NoError(t, err)
		require.Equal(t, p, back)
	}
	p, err := ParsePriority("")
	require.NoError(t, err)
	require.Equal(t, Normal, p)
	_, err = ParsePriority("urgent")
	require.ErrorContains(t, err, "high, normal and low")
	require.Equal(t, "priority 9", Priority(9).String())
}
