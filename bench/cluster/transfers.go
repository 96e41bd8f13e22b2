package cluster

import (
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// Transfers are connections through the sidecars that are made one after another, each verified by hashes.
type Transfers struct {
	t     *traffic
	wrong atomic.Pointer[error]
	tell  func(error)
}

// Transfer starts so many workers, each with one connection at a time of up to most bytes each way, written in pieces with
// pauses, so that it lasts. lost is told how a connection broke, from several goroutines. Finish must be called.
func (s *Site) Transfer(ctx context.Context, workers int, most int64, lost func(error)) *Transfers {
	ts := &Transfers{t: newTraffic(ctx, &Result{}, rand.Uint64()), tell: lost}
	for n := range workers {
		do := s.through(RouteEcho)
		ts.t.worker(n, func(rng *rand.Rand) exchange {
			return exchange{size: 1 + rng.Int64N(most), piece: 8 << 10, pause: 10 * time.Millisecond}
		}, func(ctx context.Context, e exchange, rng *rand.Rand) (time.Duration, error) {
			took, err := do(ctx, e, rng)
			if err != nil && ctx.Err() == nil {
				ts.broke(err)
			}
			return took, err
		}, 100*time.Millisecond)
	}
	return ts
}

func (ts *Transfers) broke(err error) {
	if isWrong(err) {
		ts.wrong.CompareAndSwap(nil, &err)
	}
	ts.tell(err)
}

// Counts are the connections that ended well, those that broke, and the bytes that came back.
func (ts *Transfers) Counts() (done, lost, bytes int64) {
	return ts.t.done.Load(), ts.t.lost.Load(), ts.t.moved.Load()
}

// Wrong is the first hash that differed; nil while there is none.
func (ts *Transfers) Wrong() error {
	if err := ts.wrong.Load(); err != nil {
		return *err
	}
	return nil
}

// Finish cuts what is open and waits for it.
func (ts *Transfers) Finish() { ts.t.abandon() }

// ForgetEnvironment removes what the environment says about fairlead, which is not about the programs of a site: they inherit it.
func ForgetEnvironment() error {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "FAIRLEAD_") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return nil
}
