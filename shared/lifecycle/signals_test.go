package lifecycle_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/lifecycle"
)

func TestFirstSignalCancelsSecondEnds(t *testing.T) {
	for _, tc := range []struct {
		first, second syscall.Signal
		reason        string
		code          int
	}{
		{syscall.SIGTERM, syscall.SIGTERM, "signal_term", 143},
		{syscall.SIGINT, syscall.SIGTERM, "signal_int", 143},
		{syscall.SIGTERM, syscall.SIGINT, "signal_term", 130},
	} {
		source := make(chan os.Signal)
		exited := make(chan int, 1)
		ctx, stop, err := lifecycle.HandleSignals(t.Context(), lifecycle.SignalConfig{
			Log: quiet(), Source: source, Exit: func(code int) { exited <- code }})
		require.NoError(t, err)
		source <- syscall.SIGHUP // ignored without a reload
		source <- tc.first
		<-ctx.Done()
		sig, ok := lifecycle.SignalOf(ctx)
		require.True(t, ok)
		assert.Equal(t, tc.reason, sig.Reason())
		assert.Equal(t, 128+int(tc.first), sig.ExitCode())
		assert.Empty(t, exited)
		source <- tc.second
		assert.Equal(t, tc.code, <-exited)
		stop()
		stop() // harmless
	}
}

func TestStopEndsTheContextWithoutASignal(t *testing.T) {
	ctx, stop, err := lifecycle.HandleSignals(t.Context(), lifecycle.SignalConfig{Log: quiet()})
	require.NoError(t, err)
	stop()
	<-ctx.Done()
	_, ok := lifecycle.SignalOf(ctx)
	assert.False(t, ok)
}

func TestReloadsAreCoalescedAndDelayNoStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := make(chan os.Signal)
		next := make(chan struct{})
		runs := 0
		ctx, stop, err := lifecycle.HandleSignals(t.Context(), lifecycle.SignalConfig{
			Log: quiet(), Source: source, Reload: func(ctx context.Context) {
				runs++
				if runs == 3 {
					panic("a bad reload")
				}
				select {
				case <-next:
				case <-ctx.Done():
				}
			}})
		require.NoError(t, err)
		source <- syscall.SIGHUP
		synctest.Wait() // the first reload is running, or one of the next four would be it
		for range 4 {
			source <- syscall.SIGHUP
		}
		next <- struct{}{}
		synctest.Wait()
		assert.Equal(t, 2, runs, "four signals during the first reload are one more")
		next <- struct{}{}
		source <- syscall.SIGHUP // panics, and the next one still runs
		synctest.Wait()
		source <- syscall.SIGHUP
		synctest.Wait()
		assert.Equal(t, 4, runs)
		source <- syscall.SIGTERM // while the fourth is running
		<-ctx.Done()
		stop()
	})
}

const childEnv = "LIFECYCLE_TEST_CHILD"

// childMain is a process that answers signals and never finishes its own stop.
func childMain() bool {
	if os.Getenv(childEnv) == "" {
		return false
	}
	ctx, _, err := lifecycle.HandleSignals(context.Background(), lifecycle.SignalConfig{Log: quiet()})
	if err != nil {
		return true
	}
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println(context.Cause(ctx))
	select {}
}

func TestRealSignalsEndAProcess(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	pipe, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(pipe)
	require.True(t, lines.Scan())
	assert.Equal(t, "ready", lines.Text())
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.True(t, lines.Scan())
	assert.Equal(t, "received signal terminated", lines.Text())
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	_, err = io.Copy(io.Discard, pipe)
	require.NoError(t, err)
	var exit *exec.ExitError
	require.True(t, errors.As(cmd.Wait(), &exit))
	assert.Equal(t, 130, exit.ExitCode())
}
