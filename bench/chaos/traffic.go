package chaos

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"
)

// traffic is the applications: each worker makes one connection after another.
type traffic struct {
	cfg     Config
	target  *target
	addrs   []string // of the sidecar's listeners
	result  *Result
	giveUp  func()
	next    atomic.Uint64
	moved   atomic.Int64 // bytes that arrived at applications
	done    atomic.Int64 // connections that ended well
	cutDone atomic.Bool  // no more cuts are to come
}

func newTraffic(cfg Config, s *site, r *Result, giveUp func()) *traffic {
	t := &traffic{cfg: cfg, target: s.target, result: r, giveUp: giveUp}
	for _, p := range priorities() {
		t.addrs = append(t.addrs, s.sidecar.Addr(p).String())
	}
	return t
}

// enough says whether the counts are reached.
func (t *traffic) enough() bool {
	return t.cutDone.Load() && t.moved.Load() >= t.cfg.Bytes && t.target.moved.Load() >= t.cfg.Bytes
}

// work carries connections until there have been enough.
func (t *traffic) work(ctx context.Context, worker int) error {
	rng := rand.New(rand.NewPCG(t.cfg.Seed, uint64(worker)))
	for ctx.Err() == nil && !t.enough() {
		c := t.plan(rng)
		t.target.expect(c)
		t.carry(ctx, c, t.addrs[rng.IntN(len(t.addrs))])
		if ctx.Err() != nil {
			break
		}
		if err := c.verify(); err != nil {
			if t.result.fail("%v", err) >= mostFailures {
				t.giveUp()
			}
			continue
		}
		t.done.Add(1)
	}
	return context.Cause(ctx)
}

// plan makes a connection of any size: most of them far above the window, some that open and end between two cuts.
func (t *traffic) plan(rng *rand.Rand) *connection {
	c := &connection{id: t.next.Add(1), seed: rng.Uint64(), order: order(rng.IntN(int(orders))), piece: 1 << (9 + rng.IntN(9)), met: make(chan struct{})}
	most := min(int64(32<<20), max(t.cfg.Bytes/int64(t.cfg.Streams), 1))
	switch rng.IntN(5) {
	case 0:
		most = min(most, 64<<10)
	case 1:
		most = min(most, 4<<20)
	}
	c.up, c.down = rng.Int64N(most+1), rng.Int64N(most+1)
	if c.up+c.down > 1<<20 {
		c.piece = max(c.piece, 16<<10)
	}
	return c
}

// carry plays the application's part, and waits for the backend's.
func (t *traffic) carry(ctx context.Context, c *connection, addr string) {
	dialed, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		c.app.err = err
		return
	}
	conn := dialed.(*net.TCPConn)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var header [headerSize]byte
	binary.BigEndian.PutUint64(header[:], c.id)
	if _, err := conn.Write(header[:]); err != nil {
		c.app.err = fmt.Errorf("sending the header: %w", err)
		return
	}
	c.app = carry(conn, c.up, c.seed, c.piece, c.order == ask, c.order == tell, &t.moved)
	if c.app.err != nil {
		return
	}
	late := time.NewTimer(t.cfg.Patience)
	defer late.Stop()
	select {
	case <-c.met:
	case <-ctx.Done():
	case <-late.C: // met is not closed, so backend stays untouched
		c.app.err = fmt.Errorf("the backend's end was not over %v after the application's", t.cfg.Patience)
	}
}

// note takes down what arrived.
func (t *traffic) note(r *Result) {
	r.Connections = t.done.Load()
	r.Up, r.Down = t.target.moved.Load(), t.moved.Load()
	for _, err := range t.target.unknown() {
		r.fail("%v", err)
	}
}
