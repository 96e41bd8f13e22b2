package profiles

import (
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// typing is the time between keystrokes; opening that between new connections.
const (
	typing  = 200 * time.Millisecond
	opening = time.Second
)

// tally gathers what the loads see.
type tally struct {
	mu     sync.Mutex
	echoes []time.Duration
	opens  []time.Duration
	failed int
	bulk   atomic.Int64
	lost   atomic.Int32
}

// load types, transfers and opens connections beside the weather until ctx ends.
func (s *site) load(ctx context.Context, weather func(context.Context)) Row {
	var t tally
	var tasks sync.WaitGroup
	start := time.Now()
	tasks.Go(func() { weather(ctx) })
	tasks.Go(func() { s.repeat(ctx, "low", &t, s.transfer) })
	tasks.Go(func() { s.repeat(ctx, "high", &t, s.typeKeys) })
	tasks.Go(func() { s.openOften(ctx, &t) })
	tasks.Wait()
	slices.Sort(t.echoes)
	slices.Sort(t.opens)
	return Row{Keys: len(t.echoes), P50: quantile(t.echoes, 50), P95: quantile(t.echoes, 95), Max: quantile(t.echoes, 100),
		Bulk:   float64(t.bulk.Load()) / (1 << 20) / time.Since(start).Seconds(),
		Opened: len(t.opens), Failed: t.failed, OpenP95: quantile(t.opens, 95), Lost: int(t.lost.Load()), Resumes: s.resumes()}
}

// quantile is the nearest rank of sorted samples.
func quantile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max((len(sorted)*percent+99)/100, 1)-1]
}

// repeat runs job over a connection to a listener, over a new one when the path ended it.
func (s *site) repeat(ctx context.Context, listener string, t *tally, job func(context.Context, net.Conn, *tally) error) {
	for ctx.Err() == nil {
		c, err := net.Dial("tcp", s.sidecar.Addr(listener).String())
		if err != nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		if err := job(ctx, c, t); err != nil && ctx.Err() == nil {
			t.lost.Add(1)
		}
		stop()
		c.Close()
	}
}

func (s *site) transfer(_ context.Context, c net.Conn, t *tally) error {
	if _, err := c.Write([]byte{bulk}); err != nil {
		return err
	}
	_, err := io.Copy(counter{&t.bulk}, c)
	if err == nil {
		err = io.ErrUnexpectedEOF // the target sends for ever
	}
	return err
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// typeKeys writes a byte now and then, and waits for its echo.
func (s *site) typeKeys(ctx context.Context, c net.Conn, t *tally) error {
	if _, err := c.Write([]byte{echo}); err != nil {
		return err
	}
	for pause(ctx, typing) {
		start := time.Now()
		if err := exchange(c); err != nil {
			return err
		}
		t.mu.Lock()
		t.echoes = append(t.echoes, time.Since(start))
		t.mu.Unlock()
	}
	return nil
}

func exchange(c net.Conn) error {
	b := []byte{'k'}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

// openOften opens a connection a second and waits for its first byte, each in a goroutine of its own.
func (s *site) openOften(ctx context.Context, t *tally) {
	var opens sync.WaitGroup
	defer opens.Wait()
	for pause(ctx, opening) {
		opens.Go(func() {
			start := time.Now()
			err := s.openOnce(ctx)
			t.mu.Lock()
			defer t.mu.Unlock()
			switch {
			case err == nil:
				t.opens = append(t.opens, time.Since(start))
			case ctx.Err() == nil:
				t.failed++
			}
		})
	}
}

func (s *site) openOnce(ctx context.Context) error {
	c, err := net.Dial("tcp", s.sidecar.Addr("normal").String())
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := c.Write([]byte{echo}); err != nil {
		return err
	}
	return exchange(c)
}
