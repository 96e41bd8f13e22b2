package spool

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// restart closes the spool and opens it again, as the next process would.
func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.open()
}

// Verifies: R5.10, R5.9
func TestARestartDeliversInOrderOfPriorityThenAge(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Concurrency = 1 })
	var want []string
	for i, prio := range []link.Priority{link.Low, link.Normal, link.High, link.Low, link.High, link.Normal} {
		o := origin
		o.Priority, o.Peer = prio, fmt.Sprintf("%v %d", prio, i)
		r.send(o, []byte(o.Peer))
		want = append(want, o.Peer)
	}
	want = []string{want[2], want[4], want[1], want[5], want[0], want[3]}
	r.restart()
	var listed []string
	for _, it := range r.List() {
		listed = append(listed, it.Peer)
		assert.Equal(t, "waiting", it.State)
	}
	assert.Equal(t, want, listed)
	r.start()
	r.eventually("all are delivered", func() bool { return r.Status().Connections == 0 })
	var got []string
	arrivals := r.b.arrivals()
	slices.SortFunc(arrivals, func(a, b *arrival) int { return int(a.stream) - int(b.stream) })
	for _, a := range arrivals {
		got = append(got, string(a.bytes()))
	}
	assert.Equal(t, want, got)
	r.eventually("nothing is left", func() bool { return r.Status().Bytes == 0 })
	assert.Empty(t, r.files())
}

// A connection that stays open is delivered while it is being written, and what was delivered does not stay on disk.
func TestAConnectionThatStaysOpenIsDeliveredAsItComes(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Segment, c.Overlap, c.Size = 64<<10, 128<<10, 1<<20 }).start()
	s := r.dial(origin)
	sum, n := sha256.New(), 0
	for i := range 40 {
		part := content(uint64(i), 100<<10)
		sum.Write(part)
		n += len(part)
		_, err := s.Write(part)
		require.NoError(t, err)
		r.eventually("it arrives", func() bool { a := r.b.arrivals(); return len(a) == 1 && a[0].len() == n })
		assert.LessOrEqual(t, r.Status().Bytes, int64(1<<20))
	}
	r.eventually("only the overlap stays", func() bool { return r.Status().Bytes < 512<<10 })
	require.NoError(t, s.finish())
	require.NoError(t, <-s.done)
	r.eventually("delivered", func() bool { return r.Status().Delivered == 1 })
	assert.Equal(t, sum.Sum(nil), hash(r.b.arrivals()[0].bytes()))
}

func hash(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

// More senders than workers that never end: none keeps the others from their turns.
func TestOpenConnectionsDoNotHoldWorkers(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Concurrency = 2 }).start()
	var all []*sender
	for i := range 10 {
		s := r.dial(origin)
		_, err := fmt.Fprintf(s, "hello %d\n", i)
		require.NoError(t, err)
		all = append(all, s)
	}
	got := func(suffix string) func() bool {
		return func() bool {
			n := 0
			for _, a := range r.b.arrivals() {
				if strings.HasSuffix(string(a.bytes()), suffix) {
					n++
				}
			}
			return n == len(all)
		}
	}
	r.eventually("all arrive", func() bool { return len(r.b.arrivals()) == 10 })
	for _, s := range all {
		_, err := io.WriteString(s, "again\n")
		require.NoError(t, err)
	}
	r.eventually("all arrive again", got("again\n"))
	for _, s := range all {
		require.NoError(t, s.finish())
		require.NoError(t, <-s.done)
	}
	r.eventually("delivered", func() bool { return r.Status().Delivered == 10 })
}

// limited takes n bytes, then nothing more until the stream ends.
func limited(n int) func(*link.Stream, *arrival) error {
	return func(s *link.Stream, a *arrival) error {
		buf := make([]byte, n)
		m, err := io.ReadFull(s, buf)
		a.add(buf[:m])
		if err != nil {
			return err
		}
		return s.Wait()
	}
}

// When the tunnel is lost, or the process dies, delivery goes on before what was consumed, and from nowhere else.
func TestDeliveryGoesOnInsideABigConnection(t *testing.T) {
	const part = 700 << 10
	data := lines(1 << 20)
	for _, lost := range []bool{true, false} {
		for mode, overlap := range map[string]int64{ResumeOffset: 256 << 10, ResumeLine: 256<<10 + 3, ResumeStart: 1} {
			r := newRig(t, func(c *Config) { c.Resume, c.Overlap, c.Segment, c.Size = mode, overlap, 100<<10, 16<<20 })
			r.b.with(func() { r.b.serve = limited(part) })
			r.start()
			rec := r.send(origin, data)
			acked := func() int {
				it, err := r.Show(rec.ID)
				require.NoError(t, err)
				return int(it.Delivered)
			}
			r.eventually("a part is consumed", func() bool { return acked() >= part })
			if lost {
				r.b.lose()
				r.eventually("it is noticed", func() bool { return r.Status().Delivering == 0 })
				r.b.with(func() { r.b.serve = nil })
				r.b.find(r.Spool)
			} else {
				r.stop()
				r.b.with(func() { r.b.serve = nil })
				r.open()
				assert.Equal(t, part, acked(), "progress is written down")
				r.start()
			}
			r.eventually("the rest is delivered", func() bool { return r.Status().Connections == 0 })
			got := r.b.arrivals()
			require.Len(t, got, 2)
			first, second := got[0].bytes(), got[1].bytes()
			assert.Equal(t, data[:part], first)
			require.True(t, bytes.HasSuffix(data, second), "no gap and nothing else")
			begin := len(data) - len(second)
			switch mode {
			case ResumeOffset:
				assert.Equal(t, part-256<<10, begin)
			case ResumeLine:
				at := part - int(overlap)
				assert.Equal(t, bytes.LastIndexByte(data[:at], '\n')+1, begin)
			case ResumeStart:
				assert.Zero(t, begin)
			}
			assert.Equal(t, uint64(part-begin), r.count.repeated.Get())
			r.stop()
		}
	}
}

// A backend that resets is named as what it is, and gets the connection again; others do not wait for it.
func TestABackendThatResets(t *testing.T) {
	r := newRig(t, nil)
	times := 0
	r.b.serve = func(s *link.Stream, a *arrival) error {
		if a.req.Peer == "bad" {
			r.b.mu.Lock()
			times++
			fail := times <= 5
			r.b.mu.Unlock()
			if fail {
				_, _ = io.ReadFull(s, make([]byte, 10))
				return errors.New("no")
			}
		}
		return takeAll(s, a)
	}
	r.start()
	bad := origin
	bad.Peer = "bad"
	r.send(bad, content(1, 1000))
	r.send(origin, content(2, 1000))
	r.eventually("both are delivered", func() bool { return r.Status().Delivered == 2 })
	r.eventually("whole", func() bool {
		all := r.b.hashes()
		return all[sha256.Sum256(content(1, 1000))] == 1 && all[sha256.Sum256(content(2, 1000))] == 1
	})
	assert.Contains(t, r.log.String(), `"reason":"backend_reset"`)
	assert.Equal(t, 6, times)
	assert.Equal(t, uint64(5), r.count.deliveryErrors.Get())
}

// What is refused is kept, said, and tried again: soon when it may pass by itself, slowly when somebody has to act, and not
// before the gateway's own delay. A route that is refused does not hold up another, nor is it asked for each connection.
func TestRefusals(t *testing.T) {
	r := newRig(t, func(c *Config) { c.RetryDenied = time.Hour })
	r.b.refuse = func(req link.OpenRequest) error {
		switch req.Route {
		case "forbidden":
			return errs.New(errs.RouteForbidden, "not yours")
		case "later":
			return errs.New(errs.OpenRate, "slow down").After(time.Hour)
		}
		return nil
	}
	r.start()
	for _, route := range []string{"forbidden", "later", "fine", "forbidden", "later", "forbidden"} {
		o := origin
		o.Route = route
		r.send(o, []byte(route))
	}
	r.eventually("the good one is delivered", func() bool { return r.Status().Delivered == 1 })
	r.eventually("the others are told why", func() bool {
		for _, it := range r.List() {
			if it.Error == "" || time.Until(it.Retry) < 9*time.Minute {
				return false
			}
		}
		return true
	})
	assert.Contains(t, r.Status().Error, "FL-")
	for _, it := range r.List() {
		assert.Contains(t, it.Error, map[string]string{"forbidden": "FL-A204", "later": "FL-S411"}[it.Route])
	}
	assert.LessOrEqual(t, r.b.opened(), 3+2*r.Spool.cfg.Concurrency)
	r.b.with(func() { r.b.refuse = nil })
	require.NoError(t, r.Retry(r.List()[0].ID))
	r.eventually("the route is open for all that wait", func() bool { return r.Status().Delivered == 4 })
}

// Without a tunnel nothing fails, and nothing burns.
func TestWithoutATunnel(t *testing.T) {
	r := newRig(t, func(c *Config) { c.RetryBase, c.RetryCap = time.Hour, time.Hour })
	r.b.lose()
	r.start()
	for i := range 20 {
		r.send(origin, content(uint64(i), 10))
	}
	r.eventually("they wait", func() bool { return r.List()[19].Error != "" })
	assert.LessOrEqual(t, r.b.opened(), r.Spool.cfg.Concurrency)
	r.b.find(r.Spool)
	r.eventually("they are delivered", func() bool { return r.Status().Delivered == 20 })
	r.eventually("each once", func() bool { return len(r.b.hashes()) == 20 })
}

// A backend that takes nothing holds no worker for long, one that does not end its side none at all; the latter is said.
func TestABackendThatStallsOrDoesNotEnd(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Concurrency, c.EndWait, c.Stall = 1, 10*time.Millisecond, 10*time.Millisecond })
	release := make(chan struct{})
	r.b.serve = func(s *link.Stream, a *arrival) error {
		switch a.req.Route {
		case "stalls":
			select {
			case <-release:
			case <-s.Tunnel().Done():
			}
		case "stays":
			if len(r.b.arrivals()) < 4 {
				_, _ = io.Copy(io.Discard, s)
				return s.Wait()
			}
		}
		return takeAll(s, a)
	}
	r.start()
	big := origin
	big.Route = "stalls"
	r.send(big, content(1, 1<<20))
	r.eventually("it has begun", func() bool { return len(r.b.arrivals()) == 1 })
	stays := origin
	stays.Route = "stays"
	r.send(stays, []byte("stays"))
	r.send(origin, []byte("passes"))
	r.eventually("the others pass", func() bool { return r.Status().Delivered == 2 })
	assert.Contains(t, r.log.String(), "FL-S444")
	assert.Equal(t, "stalled", r.List()[0].State)
	close(release)
	r.eventually("it goes on", func() bool { return r.Status().Delivered == 3 })
	r.eventually("whole", func() bool { return r.b.hashes()[sha256.Sum256(content(1, 1<<20))] == 1 })
}

// What the backend answers is read and dropped.
func TestAnswersAreDiscarded(t *testing.T) {
	r := newRig(t, nil)
	r.b.serve = func(s *link.Stream, a *arrival) error {
		if _, err := s.Write(make([]byte, 4<<20)); err != nil {
			return err
		}
		return takeAll(s, a)
	}
	r.start()
	r.send(origin, []byte("x"))
	r.eventually("delivered", func() bool { return r.Status().Delivered == 1 })
	assert.Equal(t, uint64(4<<20), r.count.answered.Get())
}

// Verifies: R8.1
func TestDrain(t *testing.T) {
	r := newRig(t, nil).start()
	open := r.dial(origin)
	_, err := io.WriteString(open, "still here")
	require.NoError(t, err)
	for i := range 5 {
		r.send(origin, content(uint64(i), 1<<20))
	}
	drained := make(chan Status, 1)
	go func() { drained <- r.Drain(t.Context(), nil) }()
	require.NoError(t, open.finish())
	left := <-drained
	assert.Zero(t, left.Connections)
	assert.Equal(t, uint64(6), left.Delivered)
	r.eventually("each once", func() bool { return len(r.b.hashes()) == 6 })

	r.b.lose()
	r.send(origin, []byte("kept"))
	ctx, cancel := contextWithTimeout(t, 50*time.Millisecond)
	defer cancel()
	left = r.Drain(ctx, nil)
	assert.Equal(t, 1, left.Connections)
	assert.Contains(t, r.log.String(), "connections stay in the spool")
	r.restart()
	r.b.find(r.Spool)
	r.start()
	r.eventually("delivered after the restart", func() bool { return r.b.hashes()[sha256.Sum256([]byte("kept"))] == 1 })
}

// A stop cuts applications with a reset; what they had sent is kept and delivered.
func TestAStopCutsAndKeeps(t *testing.T) {
	for _, network := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", t.TempDir() + "/sock"}} {
		r := newRig(t, nil)
		s := r.dialOver(network[0], network[1], origin)
		_, err := io.WriteString(s, "unfinished")
		require.NoError(t, err)
		r.kept(10)
		r.restart()
		assert.ErrorIs(t, <-s.done, errs.ShuttingDown)
		if network[0] == "tcp" {
			_, err = s.Read(make([]byte, 1))
			assert.ErrorContains(t, err, "reset")
		}
		r.start()
		r.eventually("delivered", func() bool { return r.b.hashes()[sha256.Sum256([]byte("unfinished"))] == 1 })
		r.stop()
	}
}

// A connection that brings nothing leaves nothing.
func TestAnEmptyConnection(t *testing.T) {
	r := newRig(t, nil).start()
	rec := r.send(origin, nil)
	assert.Zero(t, rec)
	assert.Zero(t, r.Status().Connections)
	assert.Empty(t, r.files())
	assert.Empty(t, r.b.arrivals())
}

// Bytes over a Unix socket are looked at, kept and then taken.
func TestUnixSocket(t *testing.T) {
	r := newRig(t, nil).start()
	s := r.dialOver("unix", t.TempDir()+"/sock", origin)
	data := content(5, 3<<20+17)
	_, err := s.Write(data)
	require.NoError(t, err)
	require.NoError(t, s.finish())
	r.eventually("delivered", func() bool { return r.b.hashes()[sha256.Sum256(data)] == 1 })
}

// With FsyncInterval a connection may be delivered before its end is acknowledged: that it then is, in order.
func TestDeliveredBeforeItIsAcknowledged(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Fsync, c.Interval = FsyncInterval, 300*time.Millisecond }).start()
	s := r.dial(origin)
	_, err := io.WriteString(s, "quick")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- s.finish() }()
	r.eventually("delivered", func() bool { return r.Status().Delivered == 1 })
	require.NoError(t, <-ended)
	require.NoError(t, <-s.done)
	r.eventually("nothing is left", func() bool { return len(r.files()) == 0 && r.Status().Bytes == 0 })
}

// A connection that stays open and sends nothing costs a goroutine that waits for the application and one that waits for the
// stream's end, and no buffer.
func TestIdleConnectionsAreCheap(t *testing.T) {
	const many = 200
	r := newRig(t, nil).start()
	for range many {
		_, err := io.WriteString(r.dial(origin), "x")
		require.NoError(t, err)
	}
	r.eventually("all are delivered and idle", func() bool {
		n := 0
		for _, it := range r.List() {
			if it.Delivered == 1 && it.State == "receiving" {
				n++
			}
		}
		return n == many
	})
	buf := make([]byte, 16<<20)
	stacks := string(buf[:runtime.Stack(buf, true)])
	spools := 0
	for _, stack := range strings.Split(stacks, "\n\n") {
		if strings.Contains(stack, "spool.(*Spool)") {
			spools++
		}
	}
	assert.LessOrEqual(t, spools, 2*many+10)
	made := 0
	for range batchesMost {
		if b := <-r.batches; b != nil {
			made++
		}
		r.batches <- nil
	}
	assert.LessOrEqual(t, made, batchesMost)
	assert.Positive(t, made)
}
