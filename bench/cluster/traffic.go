package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// traffic is applications that make one connection after another, each verified by hashes, through listeners of sidecars or
// whatever else do connects with.
type traffic struct {
	r     *Result
	seed  uint64
	moved atomic.Int64 // bytes that came back
	done  atomic.Int64 // connections that ended well
	lost  atomic.Int64 // that did not

	stop  context.CancelFunc // no new connections
	give  context.CancelFunc // and none that are open
	ctx   context.Context    // ends with stop
	open  context.Context    // ends with give
	tasks sync.WaitGroup

	mu     sync.Mutex
	delays []delay
}

// delay is how long an open took.
type delay struct {
	at   time.Time // of its end
	took time.Duration
}

func newTraffic(ctx context.Context, r *Result, seed uint64) *traffic {
	t := &traffic{r: r, seed: seed}
	t.open, t.give = context.WithCancel(ctx)
	t.ctx, t.stop = context.WithCancel(t.open)
	return t
}

// worker makes connections that next plans, one after another, until the traffic stops. each is called with the delay of
// an open and what became of the connection.
func (t *traffic) worker(id int, next func(*rand.Rand) exchange, do func(ctx context.Context, e exchange, rng *rand.Rand) (time.Duration, error), rest time.Duration) {
	t.tasks.Go(func() {
		rng := rand.New(rand.NewPCG(t.seed, uint64(id)))
		for t.ctx.Err() == nil {
			e := next(rng)
			e.seed, e.moved = rng.Uint64(), &t.moved
			took, err := do(t.open, e, rng)
			if t.open.Err() != nil {
				return
			}
			if err != nil {
				t.lost.Add(1)
				t.r.fail("a connection of %d bytes: %v", e.size, err)
				if isWrong(err) {
					t.give()
				}
			} else {
				t.done.Add(1)
				t.note(took)
			}
			if rest > 0 && pause(t.ctx, rest) != nil {
				return
			}
		}
	})
}

// isWrong says whether bytes were lost, added or changed, which is worse than a connection that broke.
func isWrong(err error) bool { return errors.Is(err, ErrHash) }

func (t *traffic) note(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.delays = append(t.delays, delay{time.Now(), took})
}

// delaysBetween lists the opens that ended in a time.
func (t *traffic) delaysBetween(from, to time.Time) (list []time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.delays {
		if d.at.After(from) && d.at.Before(to) {
			list = append(list, d.took)
		}
	}
	return list
}

// finish lets open connections end and waits for them.
func (t *traffic) finish() {
	t.stop()
	t.tasks.Wait()
	t.give()
}

// abandon cuts open connections and waits for them.
func (t *traffic) abandon() {
	t.give()
	t.tasks.Wait()
}

// through connects to the sidecars' listeners for a route, at random.
func (s *Site) through(route string) func(context.Context, exchange, *rand.Rand) (time.Duration, error) {
	return func(ctx context.Context, e exchange, rng *rand.Rand) (time.Duration, error) {
		return e.dial(ctx, s.Sidecars[rng.IntN(len(s.Sidecars))].Addr(route))
	}
}

// small is a connection that only opens, says a word and ends.
func small(*rand.Rand) exchange { return exchange{size: 32} }

// sized plans connections up to most bytes: some that open and end at once, most of them large.
func sized(most int64) func(*rand.Rand) exchange {
	return func(rng *rand.Rand) exchange {
		size := most
		if rng.IntN(4) == 0 {
			size = min(size, 64<<10)
		}
		return exchange{size: 1 + rng.Int64N(size)}
	}
}

// lasting plans connections that take up to d, with a write every so often.
func lasting(d time.Duration) func(*rand.Rand) exchange {
	const every = 50 * time.Millisecond
	return func(rng *rand.Rand) exchange {
		writes := 1 + rng.Int64N(int64(d/every))
		piece := 1 << (8 + rng.IntN(7)) // to 16 KiB
		return exchange{size: writes * int64(piece), piece: piece, pause: every}
	}
}
