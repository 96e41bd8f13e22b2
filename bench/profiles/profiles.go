// Package profiles measures what the sidecar's profiles do over bad paths.
package profiles

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"fairlead/shared/testbed/fault"
	"fairlead/sidecar/config"
)

// Path is a network between sidecar and gateway.
type Path struct {
	Name    string
	Doc     string
	Shape   fault.Shape   // each way
	Stalls  time.Duration // mean time between stalls; 0: none
	Stall   time.Duration // mean length of one
	Breaks  time.Duration // mean time between connections that break; 0: none
	Outages time.Duration // mean time between outages; 0: none
	Outage  time.Duration // length of one
}

// Paths are those that the profiles are meant for. TCP shows its users a lost packet as a stall: the retransmission
// timeout is 200 ms and a round trip at least, and doubles when the packet is lost again (RFC 6298).
func Paths() []Path {
	return []Path{
		{Name: "near", Doc: "2 ms round trip, nothing goes wrong", Shape: fault.Shape{Latency: time.Millisecond}},
		{Name: "lossy", Doc: "200 ms round trip, 4 MiB/s, a stall of 0.6 s every 3 s, a broken connection every 20 s, an outage of 5 s every 30 s",
			Shape: fault.Shape{Latency: 100 * time.Millisecond, Bandwidth: 4 << 20}, Stalls: 3 * time.Second, Stall: 600 * time.Millisecond,
			Breaks: 20 * time.Second, Outages: 30 * time.Second, Outage: 5 * time.Second},
		{Name: "slow", Doc: "600 ms round trip, 128 KiB/s", Shape: fault.Shape{Latency: 300 * time.Millisecond, Bandwidth: 128 << 10}},
	}
}

// Config says what to measure.
type Config struct {
	Paths []Path
	For   time.Duration // of each profile on each path
	Seed  uint64        // of what goes wrong when; the same for each profile
	Log   io.Writer     // of both programs
}

// Row is what one profile did on one path.
type Row struct {
	Path, Profile  string
	Keys           int           // keystrokes whose echo came
	P50, P95, Max  time.Duration // from keystroke to echo, beside a bulk transfer
	Bulk           float64       // MiB/s of the transfer
	Opened, Failed int           // new connections, one a second
	OpenP95        time.Duration // until the first byte came back
	Lost           int           // connections that the path ended
	Resumes        uint64
}

// Run measures each profile on each path. Every row is handed to each as soon as it is there.
func Run(ctx context.Context, cfg Config, each func(Row)) error {
	for _, path := range cfg.Paths {
		for _, sidecar := range append([]config.Config{config.Default()}, defaults()...) {
			row, err := measure(ctx, cfg, path, sidecar)
			if err != nil {
				return fmt.Errorf("path %s, profile %q: %w", path.Name, sidecar.Profile, err)
			}
			each(row)
		}
	}
	return nil
}

func defaults() (all []config.Config) {
	for _, p := range config.Default().Profiles() {
		all = append(all, p.Defaults)
	}
	return all
}

func measure(ctx context.Context, cfg Config, path Path, sidecar config.Config) (_ Row, err error) {
	s, err := newSite(sidecar, path.Shape, slog.New(slog.NewTextHandler(cfg.Log, nil)).With("path", path.Name, "profile", sidecar.Profile))
	if err != nil {
		return Row{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.ready(ctx); err != nil {
		return Row{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.For)
	defer cancel()
	row := s.load(ctx, func(ctx context.Context) { weather(ctx, s.proxy, path, cfg.Seed) })
	row.Path, row.Profile = path.Name, sidecar.Profile
	if row.Profile == "" {
		row.Profile = "(none)"
	}
	return row, context.Cause(context.WithoutCancel(ctx))
}

// weather lets the path go wrong until ctx ends, and mends it then.
func weather(ctx context.Context, proxy *fault.Proxy, path Path, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	next := func(mean time.Duration) time.Duration {
		if mean == 0 {
			return 1 << 62
		}
		return time.Duration(random.ExpFloat64() * float64(mean))
	}
	stall, cut, outage := next(path.Stalls), next(path.Breaks), next(path.Outages)
	for {
		wait := min(stall, cut, outage)
		if !pause(ctx, wait) {
			return
		}
		stall, cut, outage = stall-wait, cut-wait, outage-wait
		switch {
		case outage == 0:
			proxy.Blackhole()
			pause(ctx, path.Outage)
			proxy.Resume()
			outage = next(path.Outages)
		case cut == 0:
			proxy.Cut()
			cut = next(path.Breaks)
		default:
			proxy.Stall()
			pause(ctx, next(path.Stall))
			proxy.Resume()
			stall = next(path.Stalls)
		}
	}
}

// pause waits, and says whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
