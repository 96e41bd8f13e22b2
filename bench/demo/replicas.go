package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"fairlead/bench/cluster"
	"fairlead/shared/errs"
	"fairlead/shared/testbed/balancer"
)

const (
	mostReplicas = 9
	transfers    = 8
	largest      = 8 << 20                // bytes of a transfer each way
	countEvery   = 5 * time.Second        // between two lines with counts
	lookEvery    = 100 * time.Millisecond // for what the sidecar says
	killEvery    = 12 * time.Second
	downFor      = 4 * time.Second // of a killed replica
	cutEvery     = 5 * time.Second // with kill: so that tunnels come to another replica than their owner
	checkedMoves = 16 << 20        // bytes that a check waits for, after each trouble
)

// replicas is the demo of several gateways.
type replicas struct {
	site      *cluster.Site
	transfers *cluster.Transfers
	kill      bool

	mu   sync.Mutex // guards what follows
	out  io.Writer
	last time.Time // of the last event of the sidecar that was told
}

// showReplicas runs the demo of several gateways until ctx ends, or a check is over.
func (o *options) showReplicas(ctx context.Context, dir string, out io.Writer) (err error) {
	if err := cluster.ForgetEnvironment(); err != nil {
		return err
	}
	fmt.Fprintln(out, "Building sidecar and gateway, and starting them …")
	site, err := cluster.Start(ctx, cluster.Config{Dir: dir, Replicas: o.replicas, Sidecars: 1, SSH: true, Check: balancer.TLS, Seed: rand.Uint64()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, site.Close()) }()
	d := &replicas{site: site, kill: o.kill, out: out}
	if _, err := io.WriteString(out, d.instructions(o.dir == "", o.check, dir)); err != nil {
		return err
	}
	d.transfers = site.Transfer(ctx, transfers, largest, func(err error) { d.say("a connection broke: %v", err) })
	defer d.transfers.Finish()
	running, end := context.WithCancelCause(ctx)
	defer end(nil)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer end(nil)
	tasks.Go(func() { d.watch(running, end) })
	if o.check {
		err = d.check(running)
	} else {
		err = d.trouble(running)
	}
	if cause := context.Cause(running); errors.Is(err, context.Canceled) {
		err = cause
	}
	if ctx.Err() != nil && !o.check {
		err = nil // it was asked to end
	}
	end(nil)
	tasks.Wait()
	d.transfers.Finish()
	d.count(context.WithoutCancel(ctx))
	return errors.Join(err, d.transfers.Wrong())
}

// say prints a line with the time.
func (d *replicas) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// watch tells what the sidecar sees, and counts. It ends the demo when a program has ended by itself, or a hash is wrong.
func (d *replicas) watch(ctx context.Context, end context.CancelCauseFunc) {
	look, count := time.NewTicker(lookEvery), time.NewTicker(countEvery)
	defer look.Stop()
	defer count.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-count.C:
			d.count(ctx)
		case <-look.C:
			d.events(ctx)
			if err := errors.Join(d.site.Err(), d.transfers.Wrong()); err != nil {
				end(err)
				return
			}
		}
	}
}

// events tells what has happened to the sidecar's tunnels.
func (d *replicas) events(ctx context.Context) {
	st, err := d.site.Sidecars[0].Status(ctx)
	if err != nil {
		return // it tells when it has ended
	}
	d.mu.Lock()
	since := d.last
	if n := len(st.Events); n > 0 {
		d.last = st.Events[n-1].Time
	}
	d.mu.Unlock()
	for _, e := range st.Events {
		if !e.Time.After(since) || e.Reason == "attempt" {
			continue
		}
		line := fmt.Sprintf("sidecar: tunnel %d %s", e.Tunnel, e.State)
		if e.Code != "" {
			line += ", " + e.Code
		}
		if e.Reason != "" {
			line += ": " + e.Reason
		}
		d.say("%s", line)
	}
}

// count tells how many connections there were, and where tunnels have come back to.
func (d *replicas) count(ctx context.Context) {
	done, lost, bytes := d.transfers.Counts()
	same, _ := d.site.Sum(ctx, "fairlead_gateway_resumes_total", `kind="same"`)
	relayed, err := d.site.Sum(ctx, "fairlead_gateway_resumes_total", `kind="relayed"`)
	line := fmt.Sprintf("%d transfers done, %d MiB each way, every hash equal; %d broken", done, bytes>>20, lost)
	if err == nil {
		line += fmt.Sprintf("; resumed: %.0f at their owner, %.0f relayed", same, relayed)
	}
	d.say("%s", line)
}

// trouble kills a replica now and then, if that was asked for.
func (d *replicas) trouble(ctx context.Context) error {
	if !d.kill {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	for {
		for range int(killEvery / cutEvery) {
			if err := wait(ctx, cutEvery); err != nil {
				return err
			}
			d.say("%d connections of the sidecar are cut", d.site.Balancer.Cut())
		}
		if err := d.killOne(ctx, downFor); err != nil {
			return err
		}
	}
}

// killOne kills a replica, and starts it again after a while.
func (d *replicas) killOne(ctx context.Context, down time.Duration) error {
	one := d.site.Replicas[rand.IntN(len(d.site.Replicas))]
	owned := 0
	if list, err := one.Tunnels(ctx); err == nil {
		owned = len(list)
	}
	d.say("%s is killed; it owned %d tunnels", one.Name, owned)
	began := time.Now()
	one.Kill()
	if err := wait(ctx, down); err != nil {
		return err
	}
	if err := one.Launch(ctx); err != nil {
		return err
	}
	if err := one.Ready(ctx); err != nil {
		return err
	}
	d.say("%s is back, after %v", one.Name, time.Since(began).Round(time.Millisecond))
	return nil
}

// check waits for transfers, after a cut and, if that was asked for, after a kill.
func (d *replicas) check(ctx context.Context) error {
	if err := d.moved(ctx); err != nil {
		return err
	}
	d.say("%d connections of the sidecar are cut", d.site.Balancer.Cut())
	if err := d.moved(ctx); err != nil {
		return err
	}
	if !d.kill {
		return nil
	}
	if err := d.killOne(ctx, 0); err != nil {
		return err
	}
	return d.moved(ctx)
}

// moved waits until so many bytes have come back, or fails.
func (d *replicas) moved(ctx context.Context) error {
	_, _, from := d.transfers.Counts()
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, errs.New(errs.NoTunnel, "the transfers do not go on"))
	defer cancel()
	for {
		if _, _, now := d.transfers.Counts(); now-from >= checkedMoves {
			return nil
		}
		if err := wait(ctx, lookEvery); err != nil {
			return err
		}
	}
}

// wait waits, unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
