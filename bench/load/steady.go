package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// steady runs one connection at full rate and measures what arrives at its receiving end for job.Duration after
// job.Warmup.
func steady(ctx context.Context, job Job) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, job.Warmup+job.Duration+echoTimeout)
	defer cancel()
	w := newWindow(job.Warmup, job.Duration)
	move := steadyDown
	if job.Up {
		move = steadyUp
	}
	if err := move(ctx, job.Addr, w); err != nil {
		return Outcome{}, err
	}
	return w.outcome()
}

// errMeasured ends a steady transfer whose time is over.
var errMeasured = errors.New("measured long enough")

// window takes totals as they grow and keeps those at the begin and the end of the measured time.
type window struct {
	begin, end           time.Time
	first, last          uint64
	firstTime, lastTime  time.Time
	haveFirst, completed bool
}

func newWindow(warmup, duration time.Duration) *window {
	begin := time.Now().Add(warmup)
	return &window{begin: begin, end: begin.Add(duration)}
}

// add takes a total; it returns errMeasured when the time is over.
func (w *window) add(total uint64, now time.Time) error {
	switch {
	case now.Before(w.begin):
		return nil
	case !w.haveFirst:
		w.first, w.firstTime, w.haveFirst = total, now, true
	default:
		w.last, w.lastTime = total, now
	}
	if now.Before(w.end) {
		return nil
	}
	w.completed = true
	return errMeasured
}

func (w *window) outcome() (Outcome, error) {
	if !w.completed || !w.lastTime.After(w.firstTime) {
		return Outcome{}, errors.New("the transfer ended before its measured time")
	}
	return Outcome{Bytes: int64(w.last - w.first), Seconds: w.lastTime.Sub(w.firstTime).Seconds()}, nil
}

func steadyDown(ctx context.Context, addr string, w *window) error {
	conn, release, err := connect(ctx, addr)
	if err != nil {
		return err
	}
	defer release()
	h := header{op: opDownload, seed: 1}
	if _, err := conn.Write(h.encode()); err != nil {
		return err
	}
	v := newVerifier(h.seed)
	buf := make([]byte, blockSize)
	for {
		n, err := conn.Read(buf)
		if err := v.check(buf[:n]); err != nil {
			return err
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", v.offset, err)
		}
		if w.add(v.offset, time.Now()) != nil {
			return nil
		}
	}
}

// steadyUp counts by what the target says it received: what was sent may wait in buffers on the way.
func steadyUp(ctx context.Context, addr string, w *window) error {
	conn, release, err := connect(ctx, addr)
	if err != nil {
		return err
	}
	h := header{op: opProgress, seed: 1}
	if _, err := conn.Write(h.encode()); err != nil {
		release()
		return err
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	defer release() // before the wait: it ends the sending
	sending.Go(func() { _ = send(ctx, conn, h) })
	for {
		total, err := readCount(conn)
		if err != nil {
			return fmt.Errorf("read the target's count: %w", err)
		}
		if w.add(total, time.Now()) != nil {
			return nil
		}
	}
}

// echo measures 64-byte round trips on one connection.
func echo(ctx context.Context, job Job) (Outcome, error) {
	conn, release, err := openEcho(ctx, job.Addr, 1)
	if err != nil {
		return Outcome{}, err
	}
	defer release()
	start := time.Now()
	end := start.Add(job.Duration)
	var samples []time.Duration
	message := make([]byte, headerSize)
	for n := byte(0); time.Now().Before(end) || len(samples) == 0; n++ {
		message[0] = n // so that a late or repeated echo shows
		sent := time.Now()
		if err := roundTrip(conn, message); err != nil {
			return Outcome{}, fmt.Errorf("echo %d: %w", len(samples), err)
		}
		samples = append(samples, time.Since(sent))
		select {
		case <-ctx.Done():
			return Outcome{}, ctx.Err()
		case <-time.After(job.Pause):
		}
	}
	return Outcome{Count: len(samples), Seconds: time.Since(start).Seconds(), Latency: quantiles(samples)}, nil
}

// bulk keeps job.Streams connections busy in each of its directions until ctx ends, which is its success. It says ready
// after job.Warmup, and its outcome is what arrived since.
func bulk(ctx context.Context, job Job, ready func() error) (Outcome, error) {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	group, running := errgroup.WithContext(running)
	var arrived atomic.Int64
	for i := range job.Streams {
		if job.Up {
			group.Go(func() error { return unlessOver(running, bulkUp(running, job.Addr, uint64(i)+1, &arrived)) })
		}
		if job.Down {
			group.Go(func() error { return unlessOver(running, bulkDown(running, job.Addr, uint64(i)+1, &arrived)) })
		}
	}
	select {
	case <-running.Done():
		return Outcome{}, errors.Join(errors.New("bulk ended before it was measured"), group.Wait())
	case <-time.After(job.Warmup):
	}
	before, start := arrived.Load(), time.Now()
	if err := ready(); err != nil {
		cancel()
		return Outcome{}, errors.Join(err, group.Wait())
	}
	<-running.Done()
	outcome := Outcome{Bytes: arrived.Load() - before, Seconds: time.Since(start).Seconds()}
	return outcome, group.Wait()
}

// unlessOver drops the error of a transfer that was ended on purpose.
func unlessOver(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, errContent) {
		return nil
	}
	if err == nil {
		return io.ErrUnexpectedEOF // an unlimited transfer never ends by itself
	}
	return err
}

func bulkDown(ctx context.Context, addr string, seed uint64, arrived *atomic.Int64) error {
	conn, release, err := connect(ctx, addr)
	if err != nil {
		return err
	}
	defer release()
	if _, err := conn.Write(header{op: opDownload, seed: seed}.encode()); err != nil {
		return err
	}
	return receive(conn, newVerifier(seed), func(n int) { arrived.Add(int64(n)) })
}

func bulkUp(ctx context.Context, addr string, seed uint64, arrived *atomic.Int64) error {
	conn, release, err := connect(ctx, addr)
	if err != nil {
		return err
	}
	h := header{op: opProgress, seed: seed}
	if _, err := conn.Write(h.encode()); err != nil {
		release()
		return err
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	defer release()
	sending.Go(func() { _ = send(ctx, conn, h) })
	return countUp(conn, arrived)
}

// countUp adds up what the target says it received.
func countUp(conn *net.TCPConn, arrived *atomic.Int64) error {
	var last uint64
	for {
		total, err := readCount(conn)
		if err != nil {
			return err
		}
		arrived.Add(int64(total - last))
		last = total
	}
}
