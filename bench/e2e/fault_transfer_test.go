package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"fairlead/shared/testbed/fault"
)

// vandal breaks the network again and again, each time in another way.
type vandal struct {
	w    *world
	rng  *rand.Rand
	cuts int
}

// work breaks the network once bytes have moved since the last time, until it has done so often enough.
func (v *vandal) work(ctx context.Context, cuts int) {
	for ctx.Err() == nil && v.cuts < cuts {
		from := v.w.proxy.Stats()
		until(ctx, func() bool { now := v.w.proxy.Stats(); return now.Up+now.Down > from.Up+from.Down+64<<10 })
		v.cut(ctx)
		v.cuts++
	}
}

func (v *vandal) cut(ctx context.Context) {
	p, d := v.w.proxy, fault.Direction(v.rng.IntN(2))
	switch v.rng.IntN(10) {
	case 0, 1: // at any moment
		p.Cut()
	case 2, 3: // inside a frame
		untilCut(ctx, p.CutAfter(d, 1+v.rng.Int64N(1<<20)))
	case 4, 5, 6: // the next connection inside its TLS handshake, its upgrade or its resume
		v.refused(ctx, func() <-chan struct{} { return p.CutAfter(d, 1+v.rng.Int64N(4<<10)) })
	case 7:
		v.silence(ctx, p.Stall)
	case 8:
		v.silence(ctx, p.Blackhole)
	case 9: // and nothing can connect until the sidecar has tried twice
		v.refused(ctx, func() <-chan struct{} {
			tried := len(v.w.sidecar.logs.find("resuming"))
			until(ctx, func() bool { return len(v.w.sidecar.logs.find("resuming")) >= tried+2 })
			return nil
		})
	}
}

// refused resets everything, does f while nothing can connect, and then waits for the cut that f has prepared, if any.
func (v *vandal) refused(ctx context.Context, f func() <-chan struct{}) {
	_ = v.w.proxy.Refuse() // closing a listener does not fail
	v.w.proxy.Cut()
	until(ctx, func() bool { return v.w.proxy.Stats().Active == 0 })
	prepared := f()
	if v.w.proxy.Accept() == nil && prepared != nil {
		untilCut(ctx, prepared)
	}
}

// silence lasts until the sidecar has noticed.
func (v *vandal) silence(ctx context.Context, begin func()) {
	all := v.w.sidecarConfig.Tunnels.Min
	until(ctx, func() bool { return len(v.w.connected()) == all })
	begin()
	until(ctx, func() bool { return len(v.w.connected()) < all })
	v.w.proxy.Resume()
}

// until returns when ok holds or ctx ends.
func until(ctx context.Context, ok func() bool) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// untilCut waits for a cut after a number of bytes, but not for ever: they may not flow any more.
func untilCut(ctx context.Context, done <-chan struct{}) {
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Eight transfers at a time, both ways, far above the window, by scp through a real sshd and by plain TCP, directly and
// through a channel on the gateway's SSH connection, while the network is broken again and again.
//
// Verifies: R1.7, R10.5, R10.6
func TestTransfersSurviveABreakingNetwork(t *testing.T) {
	const cuts, size = 30, 5 << 20
	hashes, mirrors := newTracked(t, hashing), newTracked(t, echoing)
	w := newWorld(t, withQuickLink(), withTunnels(2), withSSHD(), withTarget("hash", hashes.addr), withTarget("mirror", mirrors.addr),
		withForward("behind", hashes.addr), withListener("background", "hash", "low"))
	began := w.waitConnected(2)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	v := &vandal{w: w, rng: rand.New(rand.NewPCG(1, 2))}
	broken, group := make(chan struct{}), new(errgroup.Group)
	breaking, enough := context.WithCancel(ctx)
	defer enough()
	go func() {
		defer close(broken)
		v.work(breaking, cuts)
	}()
	defer func() { <-broken }()
	defer enough()
	addr := func(name string) string { return w.sidecar.addr(t, name) }
	kinds := []func(ctx context.Context, n int) error{
		func(ctx context.Context, n int) error { return transferBoth(ctx, addr("hash"), uint64(n), size, size) },
		func(ctx context.Context, n int) error { return mirrored(ctx, addr("mirror"), uint64(n), size) },
		func(ctx context.Context, n int) error {
			return transferBoth(ctx, addr("behind"), uint64(n), size, size)
		},
		func(ctx context.Context, n int) error { return w.scpBothWays(ctx, n, size) },
		func(ctx context.Context, n int) error {
			return transferBoth(ctx, addr("background"), uint64(n), size, 0)
		},
	}
	group, ctx = errgroup.WithContext(ctx)
	for worker := range 8 {
		group.Go(func() error {
			for n := 1000 * worker; ; n++ {
				if err := kinds[worker%len(kinds)](ctx, n); err != nil {
					return fmt.Errorf("transfer %d: %w", n, err)
				}
				select {
				case <-broken:
					return nil
				default:
				}
			}
		})
	}
	require.NoError(t, group.Wait())
	<-broken
	require.Equal(t, cuts, v.cuts)
	require.Empty(t, hashes.errors(), "no connection of a target was lost")
	require.Empty(t, mirrors.errors(), "no connection of a target was lost")
	require.Equal(t, began, w.waitConnected(2), "the tunnels are those of the beginning")
	require.GreaterOrEqual(t, w.resumes(), uint64(cuts/2), "which were resumed")
	w.waitQuiet()
}

// scpBothWays copies a file to sshd and back, and compares both copies with it.
func (w *world) scpBothWays(ctx context.Context, n int, size int64) (err error) {
	dir, err := os.MkdirTemp(w.dir, "scp")
	if err != nil {
		return err
	}
	file, there, back := filepath.Join(dir, "file"), filepath.Join(dir, "there"), filepath.Join(dir, "back")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, contentOf(uint64(n), size))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(w.sidecar.addr(w.t, sshRoute))
	if err != nil {
		return err
	}
	for _, ends := range [][]string{{file, host + ":" + there}, {host + ":" + there, back}} {
		args := append(append([]string{"-q", "-P", port}, w.ssh.SSHArgs()...), ends...)
		if said, err := exec.CommandContext(ctx, "scp", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("scp: %w: %s", err, said)
		}
	}
	for _, path := range []string{there, back} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		got, err := copyHashed(io.Discard, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if want := contentHash(uint64(n), size); got != want {
			return errors.New(path + " differs from file " + strconv.Itoa(n))
		}
	}
	return os.RemoveAll(dir)
}

// A connection whose application has ended its direction stays half-closed over cuts: the target knows the end and goes on
// sending. And the other way round.
//
// Verifies: R1.7
func TestHalfClosedConnectionsSurviveCuts(t *testing.T) {
	const size = 3 << 20
	ended, goOn := make(chan [32]byte, 1), make(chan struct{})
	open := sync.OnceFunc(func() { close(goOn) })
	replies := newTracked(t, func(c halfCloser) error { // reads to the end, then sends
		sum, err := copyHashed(io.Discard, c)
		ended <- sum
		<-goOn
		return errors.Join(err, <-sending(c, 11, size))
	})
	speaks := newTracked(t, func(c halfCloser) error { // sends to the end, then reads
		if err := <-sending(c, 12, size); err != nil {
			return err
		}
		sum, err := copyHashed(io.Discard, c)
		ended <- sum
		return err
	})
	t.Cleanup(open) // before the targets are waited for
	w := newWorld(t, withQuickLink(), withTarget("replies", replies.addr), withTarget("speaks", speaks.addr))
	began := w.waitConnected(1)

	app := w.dial("replies")
	require.NoError(t, <-sending(app, 13, size))
	require.Equal(t, contentHash(13, size), <-ended, "the target knows the application's end")
	for range 3 {
		w.cutAndResume()
	}
	open()
	w.cutAndResume()
	got, err := copyHashed(io.Discard, app)
	require.NoError(t, err)
	require.Equal(t, contentHash(11, size), got, "the target's direction went on")

	app = w.dial("speaks")
	got, err = copyHashed(io.Discard, app)
	require.NoError(t, err)
	require.Equal(t, contentHash(12, size), got, "the application knows the target's end")
	for range 3 {
		w.cutAndResume()
	}
	sent := sending(app, 14, size)
	w.cutAndResume()
	require.NoError(t, <-sent)
	require.Equal(t, contentHash(14, size), <-ended, "the application's direction went on")

	require.Equal(t, began, w.connected(), "the tunnel is that of the beginning")
	require.Empty(t, replies.errors())
	require.Empty(t, speaks.errors())
	w.waitQuiet()
}
