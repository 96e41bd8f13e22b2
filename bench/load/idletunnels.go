package load

import (
	"context"
	"errors"
	"fmt"
	"io"

	"fairlead/bench/peers"
	"fairlead/bench/proc"
)

// TunnelOpener opens n tunnels to the gateway that access describes and returns when all are up. They stay, and answer
// heartbeats, until the closer is closed.
type TunnelOpener func(ctx context.Context, access peers.Access, n int) (io.Closer, error)

// IdleTunnels measures the gateway's memory for tunnels that carry nothing, opened by open in this process.
func IdleTunnels(sizes Sizes, open TunnelOpener) Scenario {
	s := Scenario{Name: "idle-tunnels", Fits: hasAccess}
	for _, n := range sizes.Tunnels {
		s.Metrics = append(s.Metrics,
			Metric{fmt.Sprintf("tunnels.%d.gateway", n), fmt.Sprintf("Memory per idle tunnel of %d, gateway", n), "KiB", false, false})
	}
	s.Run = func(ctx context.Context, b *Bench) (samples []Sample, err error) {
		before, err := b.used(ctx)
		if err != nil {
			return nil, err
		}
		for _, n := range sizes.Tunnels {
			after, err := b.tunnels(ctx, n, sizes, open)
			if err != nil {
				return samples, fmt.Errorf("%d idle tunnels: %w", n, err)
			}
			samples = append(samples, Sample{fmt.Sprintf("tunnels.%d.gateway", n), kibEach(after.PSS-before.gateway.PSS, n)})
		}
		return samples, nil
	}
	return s
}

func (b *Bench) tunnels(ctx context.Context, n int, sizes Sizes, open TunnelOpener) (u proc.Usage, err error) {
	held, err := open(ctx, *b.In.Access, n)
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	if err := sleep(ctx, sizes.IdleRest); err != nil {
		return u, err
	}
	after, err := b.used(ctx)
	return after.gateway, err
}
