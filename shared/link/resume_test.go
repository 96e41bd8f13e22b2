package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// cutter breaks its lane at the first frame of a kind that it writes: before the frame leaves, or right after.
type cutter struct {
	Conn
	kind, flags uint8 // flags: all of these set
	lost        bool
	cut         func()
	hit         *bool
}

func (c *cutter) Write(head, payload []byte) error {
	if *c.hit || head[0] != c.kind || head[1]&c.flags != c.flags {
		return c.Conn.Write(head, payload)
	}
	*c.hit = true
	if c.lost {
		c.cut()
		return errMem
	}
	if err := c.Conn.Write(head, payload); err != nil {
		return err
	}
	err := c.Conn.Flush()
	synctest.Wait() // until the other side has taken it
	c.cut()
	return err
}

// scenario is what one stream does in the tests of lost frames.
type scenario struct {
	name    string
	gateway func(*Stream) error
	sidecar func(*Stream) error
}

const lostSize = 700_000 // more than two windows

var refusal = errs.New(errs.OpenRate, "too fast").After(7 * time.Second)

func scenarios() []scenario {
	return []scenario{
		{"half-close", func(s *Stream) error {
			s.Accept()
			if err := readAll(s, 1, lostSize, 10_000); err != nil { // to the end, before anything is answered
				return err
			}
			return errors.Join(sendAll(s, 2, lostSize, 100_000), s.Wait())
		}, func(s *Stream) error {
			if err := sendAll(s, 1, lostSize, 100_000); err != nil {
				return err
			}
			return errors.Join(readAll(s, 2, lostSize, 10_000), s.Wait())
		}},
		{"late ends", func(s *Stream) error {
			s.Accept()
			if err := readAll(s, 1, 5000, 1000); err != nil {
				return err
			}
			return errors.Join(sendThenEnd(s, 2, 5000), s.Wait())
		}, func(s *Stream) error {
			if err := sendThenEnd(s, 1, 5000); err != nil {
				return err
			}
			return errors.Join(readAll(s, 2, 5000, 1000), s.Wait())
		}},
		{"refused", func(s *Stream) error {
			s.Reset(refusal)
			return nil
		}, func(s *Stream) error {
			if err := s.WaitOpened(context.Background()); !errors.Is(err, errs.OpenRate) {
				return fmt.Errorf("refused with %v", err)
			}
			return nil
		}},
		{"given up", func(s *Stream) error {
			s.Accept()
			if err := s.Wait(); !errors.Is(err, errs.Canceled) {
				return fmt.Errorf("ended with %v", err)
			}
			return nil
		}, func(s *Stream) error {
			if err := s.WaitOpened(context.Background()); err != nil {
				return err
			}
			s.Reset(nil)
			return nil
		}},
	}
}

// sendThenEnd ends the direction when everything before has left, so that the end is a frame of its own.
func sendThenEnd(s *Stream, seed uint64, n int) error {
	p, b := pattern{seed: seed}, make([]byte, n)
	p.fill(b)
	if _, err := s.Write(b); err != nil {
		return err
	}
	pause(time.Second)
	return s.CloseWrite()
}

// Whichever frame is the last one of its lane, lost or not: streams go on where they were, half-closed directions
// included, resets arrive with their codes, and both sides forget.
//
// Verifies: R1.7
func TestLaneCutAtEachKindOfFrame(t *testing.T) {
	cuts := []struct {
		side  string
		kind  frameType
		flags uint8
		in    []string
	}{
		{"sidecar", typeOpen, 0, []string{"half-close", "refused", "given up"}},
		{"sidecar", typeData, 0, []string{"half-close"}},
		{"sidecar", typeFin, 0, []string{"late ends"}},
		{"sidecar", typeCredit, 0, []string{"half-close"}},
		{"sidecar", typeCredit, flagFin, []string{"half-close"}},
		{"sidecar", typeReset, 0, []string{"given up"}},
		{"sidecar", typeReset, flagAck, []string{"refused"}},
		{"gateway", typeOpened, 0, []string{"half-close", "given up"}},
		{"gateway", typeData, 0, []string{"half-close"}},
		{"gateway", typeFin, 0, []string{"late ends"}},
		{"gateway", typeCredit, 0, []string{"half-close"}},
		{"gateway", typeCredit, flagFin, []string{"half-close"}},
		{"gateway", typeReset, 0, []string{"refused"}},
		{"gateway", typeReset, flagAck, []string{"given up"}},
	}
	byName := map[string]scenario{}
	for _, sc := range scenarios() {
		byName[sc.name] = sc
	}
	for _, c := range cuts {
		for _, name := range c.in {
			for _, lost := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %v flags %d lost %v %s", c.side, c.kind, c.flags, lost, name), func(t *testing.T) {
					bubble(t, func(t *testing.T) { cutOnce(t, c.side, uint8(c.kind), c.flags, lost, byName[name]) })
				})
			}
		}
	}
}

func cutOnce(t *testing.T, side string, kind, flags uint8, lost bool, sc scenario) {
	before := held.Load()
	served := make(chan error, 2)
	n := memNetwork(t, Config{Accept: func(s *Stream) { served <- sc.gateway(s); _ = s.Wait() }}, Config{})
	hit := false
	n.dial = func() (Conn, Conn, func()) {
		p := newMemPair()
		c := cutter{kind: kind, flags: flags, lost: lost, cut: p.cut, hit: &hit}
		if side == "sidecar" {
			c.Conn = p.client
			return &c, p.server, p.cut
		}
		c.Conn = p.server
		return p.client, &c, p.cut
	}
	tun := n.connect()
	s, err := tun.Open(OpenRequest{Route: "git"})
	require.NoError(t, err)
	require.NoError(t, sc.sidecar(s))
	waitForgotten(t, tun)
	waitForgotten(t, n.gateway())
	require.True(t, hit, "the frame was never sent")
	pause(time.Second) // the resume
	require.Equal(t, uint64(1), n.gateway().Stats().Resumes)
	n.finish(tun, before)
	select {
	case err := <-served:
		require.NoError(t, err)
	default: // the gateway may never have seen a stream that was reset before its OPEN arrived
		require.Equal(t, "given up", sc.name)
	}
}

// A reset carries its code, message and delay to the other side, in both directions.
func TestResetsCarryTheirCodesBothWays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		before := held.Load()
		ended := make(chan error, 1)
		n := memNetwork(t, Config{Accept: func(s *Stream) {
			if s.Request().Route == "refused" {
				s.Reset(refusal)
				return
			}
			s.Accept()
			_, err := s.Read(make([]byte, 1))
			ended <- err
		}}, Config{})
		tun := n.connect()
		s, err := tun.Open(OpenRequest{Route: "refused"})
		require.NoError(t, err)
		_, err = s.Read(make([]byte, 1))
		isCode(t, errs.OpenRate, err)
		require.Equal(t, "too fast", errs.From(err).Message)
		require.Equal(t, 7*time.Second, errs.From(err).RetryAfter)
		_, err = s.Write([]byte("x"))
		isCode(t, errs.OpenRate, err)
		isCode(t, errs.OpenRate, s.CloseWrite())
		isCode(t, errs.OpenRate, s.Wait())

		s, err = tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		require.NoError(t, s.WaitOpened(context.Background()))
		s.Reset(errs.New(errs.ConnectionBroken, "the application went away"))
		err = <-ended
		isCode(t, errs.ConnectionBroken, err)
		require.Equal(t, "the application went away", errs.From(err).Message)
		waitForgotten(t, tun)
		waitForgotten(t, n.gateway())
		n.finish(tun, before)
	})
}

// A direction that was ended stays ended, and the other one open, over a resume.
//
// Verifies: R1.7
func TestHalfClosedStreamsStaySoOverAResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		before := held.Load()
		ended, goOn := make(chan error, 1), make(chan struct{})
		n := memNetwork(t, Config{Accept: func(s *Stream) {
			s.Accept()
			_, err := io.ReadAll(s)
			ended <- err
			<-goOn
			_, _ = s.Write([]byte("still here"))
			_ = s.CloseWrite()
			_ = s.Wait()
		}}, Config{})
		tun := n.connect()
		s, err := tun.Open(OpenRequest{Route: "git"})
		require.NoError(t, err)
		require.NoError(t, s.CloseWrite())
		require.NoError(t, <-ended)
		n.cutLane()
		pause(time.Second)
		require.Equal(t, uint64(1), tun.Stats().Resumes)
		_, err = s.Write([]byte("x"))
		require.ErrorIs(t, err, io.ErrClosedPipe)
		close(goOn)
		got, err := io.ReadAll(s)
		require.NoError(t, err)
		require.Equal(t, "still here", string(got))
		require.NoError(t, s.Wait())
		waitForgotten(t, tun)
		waitForgotten(t, n.gateway())
		n.finish(tun, before)
	})
}

// The state of more streams than one SYNC frame describes is exchanged too, and streams opened without a lane are opened
// on the next one.
//
// Verifies: R1.7
func TestResumeOfThousandsOfStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		before := held.Load()
		const count = 2*syncChunk + 500
		n := memNetwork(t, Config{Accept: func(s *Stream) {
			s.Accept()
			_, _ = io.Copy(s, s)
			_ = s.CloseWrite()
			_ = s.Wait()
		}}, Config{})
		tun := n.connect()
		streams := make([]*Stream, count)
		for i := range streams {
			if i == count/2 {
				synctest.Wait()
				n.cutLane()
			}
			s, err := tun.Open(OpenRequest{Route: "echo"})
			require.NoError(t, err)
			_, err = fmt.Fprintf(s, "stream %d", i)
			require.NoError(t, err)
			streams[i] = s
		}
		pause(time.Second)
		n.cutLane()
		pause(time.Second)
		for i, s := range streams {
			require.NoError(t, s.CloseWrite())
			got, err := io.ReadAll(s)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("stream %d", i), string(got))
		}
		require.Equal(t, uint64(2), tun.Stats().Resumes)
		waitForgotten(t, tun)
		waitForgotten(t, n.gateway())
		n.finish(tun, before)
	})
}

// A tunnel that is closed while its resume is under way stays closed, and the resume says why.
func TestResumeThatRacesWithClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		p.conn.Abort()
		require.Error(t, <-p.ran)
		pair := newMemPair()
		resumed := make(chan error, 1)
		go func() {
			_, err := p.tun.Resume(context.Background(), pair.client)
			resumed <- err
		}()
		next := &peer{t: t, conn: pair.server}
		next.send(header{kind: typeChallenge}, make([]byte, nonceSize))
		next.expect(typeHello)
		p.tun.Close(errs.New(errs.GaveUp, "enough"))
		next.send(header{kind: typeWelcome}, welcome{version: Version, limits: testLimits, tunnel: p.tun.ID()}.append(nil))
		isCode(t, errs.GaveUp, <-resumed)
		pair.cut()
		p.tun.Wait()
		require.False(t, p.tun.Attached())
	})
}

// Of two resumes that run at once the one with the higher epoch wins, also when it is answered first.
func TestResumesThatOvertakeEachOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playGateway(t, Config{})
		p.conn.Abort()
		<-p.ran
		type attempt struct {
			peer *peer
			lane *Lane
			err  error
		}
		attempts := [2]chan attempt{}
		peers := [2]*peer{}
		for i := range attempts {
			attempts[i] = make(chan attempt, 1)
			pair := newMemPair()
			peers[i] = &peer{t: t, conn: pair.server}
			go func() {
				lane, err := p.tun.Resume(context.Background(), pair.client)
				attempts[i] <- attempt{peers[i], lane, err}
			}()
			synctest.Wait() // epochs are taken in this order
		}
		for _, i := range []int{1, 0} {
			peers[i].send(header{kind: typeChallenge}, make([]byte, nonceSize))
			_, b := peers[i].expect(typeHello)
			h, err := parseHello(b)
			require.NoError(t, err)
			require.Equal(t, uint64(i+2), h.epoch)
			peers[i].send(header{kind: typeWelcome}, welcome{version: Version, limits: testLimits, tunnel: p.tun.ID()}.append(nil))
			a := <-attempts[i]
			if i == 1 {
				require.NoError(t, a.err)
				ran := run(a.lane)
				defer func() { peers[1].conn.Abort(); <-ran; p.tun.Close(nil) }()
			} else {
				isCode(t, errs.Displaced, a.err)
				peers[0].conn.Abort()
			}
		}
		require.Equal(t, uint64(3), p.tun.Stats().Epoch)
	})
}
