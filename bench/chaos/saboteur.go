package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"fairlead/shared/testbed/fault"
)

// Kind is a way to cut the network.
type Kind string

// The kinds.
const (
	Reset     Kind = "reset"     // every connection is reset at once
	Frame     Kind = "frame"     // one is reset after some bytes, mostly inside a frame
	Handshake Kind = "handshake" // all are reset, and a new one inside its TLS handshake or its upgrade
	Resume    Kind = "resume"    // all are reset, and a new one about where it resumes
	Stall     Kind = "stall"     // silence until it is noticed; then what was held back arrives late
	Blackhole Kind = "blackhole" // silence until it is noticed; what was sent is lost
	Refuse    Kind = "refuse"    // all are reset, and new ones are refused for a while
)

// shares is how often each kind comes, in per cent. Silence takes long to be noticed, so it is rarer.
func shares() []struct {
	kind  Kind
	share int
} {
	return []struct {
		kind  Kind
		share int
	}{{Reset, 20}, {Frame, 28}, {Handshake, 16}, {Resume, 18}, {Stall, 8}, {Blackhole, 6}, {Refuse, 4}}
}

// Kinds lists the kinds in the order in which they are reported.
func Kinds() (kinds []Kind) {
	for _, s := range shares() {
		kinds = append(kinds, s.kind)
	}
	return kinds
}

const (
	mostInFrames = 1 << 20                // bytes after which a connection is reset, at most
	mostRefused  = 300 * time.Millisecond // that connections are refused, at most
	mostSilent   = 300 * time.Millisecond // that silence goes on after it was noticed, at most
	frameWait    = 2 * time.Second        // for the bytes of a Frame cut to flow

	// A resume takes up to so many bytes more than the handshake of a new tunnel: SYNC.
	syncBytes = 300
)

// saboteur cuts the network by a plan that follows from the seed.
type saboteur struct {
	cfg     Config
	s       *site
	t       *traffic
	rng     *rand.Rand
	cuts    int
	by      map[Kind]int
	longest time.Duration // from a cut until bytes moved again
}

func newSaboteur(cfg Config, s *site, t *traffic) *saboteur {
	return &saboteur{cfg: cfg, s: s, t: t, rng: rand.New(rand.NewPCG(cfg.Seed, 1<<32)), by: map[Kind]int{}}
}

// work cuts, each time after some bytes have moved, so that every cut hits traffic and every one is recovered from. After
// the last one it still watches that the transfers go on.
func (b *saboteur) work(ctx context.Context) error {
	gap := 2 * b.cfg.Bytes / int64(b.cfg.Cuts)
	for b.cuts < b.cfg.Cuts {
		if err := b.moved(ctx, 1+b.rng.Int64N(gap+1)); err != nil {
			return err
		}
		kind := b.pick()
		if err := b.cut(ctx, kind); err != nil {
			return fmt.Errorf("a cut of kind %s: %w", kind, err)
		}
		b.cuts++
		b.by[kind]++
		b.cfg.Progress(Progress{Cuts: b.cuts, Up: b.t.target.moved.Load(), Down: b.t.moved.Load(), Kind: kind})
		from := time.Now()
		if err := b.moved(ctx, 1); err != nil {
			return err
		}
		b.longest = max(b.longest, time.Since(from))
	}
	b.t.cutDone.Store(true)
	for !b.t.enough() {
		if err := b.moved(ctx, 1); err != nil {
			return err
		}
	}
	return nil
}

// pick draws a kind.
func (b *saboteur) pick() Kind {
	n := b.rng.IntN(100)
	for _, s := range shares() {
		if n -= s.share; n < 0 {
			return s.kind
		}
	}
	return Reset
}

// moved waits until n more bytes have arrived anywhere, or the traffic is over.
func (b *saboteur) moved(ctx context.Context, n int64) error {
	total := func() int64 { return b.t.moved.Load() + b.t.target.moved.Load() }
	from, last, since := total(), int64(0), time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for total()-from < n && !b.t.enough() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			if sum := total(); sum != last {
				last, since = sum, now
			} else if now.Sub(since) > b.cfg.Patience {
				return fmt.Errorf("%w for %v, after %d cuts: sidecar %+v, network %+v", errStuck, b.cfg.Patience, b.cuts, b.s.sidecar.Status().Tunnels, b.s.proxy.Stats())
			}
		}
	}
	return nil
}

// cut does one cut, and leaves the network as it was.
func (b *saboteur) cut(ctx context.Context, kind Kind) error {
	switch kind {
	case Frame:
		return b.cutFrame(ctx)
	case Handshake:
		d := b.direction()
		return b.cutNew(ctx, d, 1+b.rng.Int64N(b.s.size[d]*3/4))
	case Resume:
		d := b.direction()
		return b.cutNew(ctx, d, b.s.size[d]*3/4+b.rng.Int64N(b.s.size[d]/4+syncBytes))
	case Stall:
		return b.silence(ctx, b.s.proxy.Stall)
	case Blackhole:
		return b.silence(ctx, b.s.proxy.Blackhole)
	case Refuse:
		return b.refuse(ctx, func() error { return pause(ctx, time.Duration(b.rng.Int64N(int64(mostRefused)))) })
	}
	b.s.proxy.Cut()
	return nil
}

func (b *saboteur) direction() fault.Direction { return fault.Direction(b.rng.IntN(2)) }

// cutFrame lets some bytes through. Where they do not flow, because the applications send the other way, it cuts at once.
func (b *saboteur) cutFrame(ctx context.Context) error {
	done := b.s.proxy.CutAfter(b.direction(), 1+b.rng.Int64N(mostInFrames))
	timer := time.NewTimer(frameWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		b.s.proxy.Cut()
	}
	return nil
}

// refuse resets everything, does f while nothing can connect, and lets connections in again.
func (b *saboteur) refuse(ctx context.Context, f func() error) error {
	if err := b.s.proxy.Refuse(); err != nil {
		return err
	}
	b.s.proxy.Cut()
	if err := b.s.until(ctx, func() bool { return b.s.proxy.Stats().Active == 0 }); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return b.s.proxy.Accept()
}

// cutNew resets everything, and then what connects next once n bytes of a direction have passed.
func (b *saboteur) cutNew(ctx context.Context, d fault.Direction, n int64) error {
	var done <-chan struct{}
	err := b.refuse(ctx, func() error {
		done = b.s.proxy.CutAfter(d, n)
		return nil
	})
	if err != nil {
		return err
	}
	timer := time.NewTimer(b.cfg.Patience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("%w: nothing has connected for %v", errStuck, b.cfg.Patience)
	}
}

// silence begins while all tunnels are up, and goes on until the sidecar has noticed, and a little longer.
func (b *saboteur) silence(ctx context.Context, begin func()) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.cfg.Patience, fmt.Errorf("%w: silence, which the sidecar does not notice", errStuck))
	defer cancel()
	if err := b.s.until(ctx, func() bool { return len(b.s.up()) == tunnels }); err != nil {
		return err
	}
	begin()
	defer b.s.proxy.Resume()
	if err := b.s.until(ctx, func() bool { return len(b.s.up()) < tunnels }); err != nil {
		return err
	}
	return pause(ctx, time.Duration(b.rng.Int64N(int64(mostSilent))))
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// note takes down what was cut.
func (b *saboteur) note(r *Result) {
	r.Cuts, r.Kinds, r.LongestMS = b.cuts, b.by, b.longest.Milliseconds()
}
