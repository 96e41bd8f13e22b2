package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// opens has job.Workers loop over connect, 64-byte echo, close, until job.Count connections were made. The latency is
// from connect to the first byte of the echo.
func opens(ctx context.Context, job Job) (Outcome, error) {
	var (
		begun   atomic.Int64
		mu      sync.Mutex // guards samples
		samples = make([]time.Duration, 0, job.Count)
	)
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for range job.Workers {
		group.Go(func() error {
			var mine []time.Duration
			for {
				seed := begun.Add(1)
				if seed > int64(job.Count) {
					break
				}
				took, err := openOnce(ctx, job.Addr, uint64(seed))
				if err != nil {
					return err
				}
				mine = append(mine, took)
			}
			mu.Lock()
			defer mu.Unlock()
			samples = append(samples, mine...)
			return nil
		})
	}
	err := group.Wait()
	return Outcome{Count: len(samples), Seconds: time.Since(start).Seconds(), Latency: quantiles(samples)}, err
}

func openOnce(ctx context.Context, addr string, seed uint64) (time.Duration, error) {
	start := time.Now()
	_, release, err := openEcho(ctx, addr, seed)
	if err != nil {
		return 0, err
	}
	took := time.Since(start)
	release()
	return took, nil
}

// hold opens job.Count connections with one echo on each, says ready, and keeps them until ctx ends.
func hold(ctx context.Context, job Job, ready func() error) (Outcome, error) {
	var (
		begun atomic.Int64
		mu    sync.Mutex // guards held
		held  []func()
	)
	defer func() {
		for _, release := range held {
			release()
		}
	}()
	group, opening := errgroup.WithContext(ctx) // opening ends with the opening; the connections live as long as ctx
	for range job.Workers {
		group.Go(func() error {
			for seed := begun.Add(1); seed <= int64(job.Count) && opening.Err() == nil; seed = begun.Add(1) {
				_, release, err := openEcho(ctx, job.Addr, uint64(seed))
				if err != nil {
					return err
				}
				mu.Lock()
				held = append(held, release)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return Outcome{}, err
	}
	if err := ready(); err != nil {
		return Outcome{}, err
	}
	<-ctx.Done()
	return Outcome{Count: len(held)}, nil
}
