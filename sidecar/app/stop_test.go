package app

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/sidecar/config"
)

// start runs a sidecar and returns how to stop it, which returns what Run returned. It is stopped at the end of the test.
func start(t *testing.T, cfg config.Config, opts Options) (a *App, stop func() error) {
	t.Helper()
	a, err := New(cfg, opts)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var ran error
	go func() {
		defer close(done)
		ran = a.Run(ctx)
	}()
	stop = func() error {
		cancel()
		<-done
		return ran
	}
	t.Cleanup(func() { _ = stop() })
	return a, stop
}

// Verifies: R8.1, R8.6
func TestAfterTheSignalNewConnectionsAreServedUntilTheApplicationIsGone(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown = config.Shutdown{Drain: time.Minute, Quiet: 50 * time.Millisecond}
	opts, log := options(t)
	a, stop := start(t, cfg, opts)
	eventually(t, "ready", a.Ready)
	first := dial(t, a, "git")
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	eventually(t, "stopping", func() bool { return a.Status().Shutdown != nil })
	st := a.Status()
	assert.Equal(t, "serving", st.Shutdown.Phase)
	assert.Equal(t, 1, st.Shutdown.Connections)
	assert.False(t, st.Ready)
	assert.Contains(t, st.NotReady, "stopping")
	second := dial(t, a, "git")
	first.Close()
	echoes(t, second)
	assert.Empty(t, stopped)
	second.Close()
	require.NoError(t, <-stopped)
	for _, line := range []string{`"msg":"stopping","reason":"canceled","phase":"serving"`, `"msg":"listeners closed","reason":"quiet"`, `"msg":"stopped"`} {
		assert.Contains(t, log.String(), line)
	}
}

// Verifies: R8.1, R8.6
func TestWhatIsOpenWhenTimeIsUpIsCutAndSaid(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown = config.Shutdown{Drain: 20 * time.Millisecond, Quiet: time.Second}
	opts, log := options(t)
	a, stop := start(t, cfg, opts)
	eventually(t, "ready", a.Ready)
	c := dial(t, a, "git")
	require.NoError(t, stop())
	_, err := c.Read(make([]byte, 1))
	assert.Error(t, err)
	assert.NotErrorIs(t, err, io.EOF, "a cut is no orderly end")
	assert.Contains(t, log.String(), "1 connections of listener git were cut")
	assert.Contains(t, log.String(), `"msg":"listeners closed","reason":"deadline"`)
}

func TestQuitAcceptsNothingMore(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown = config.Shutdown{Drain: time.Minute, PodDrain: time.Hour, Quiet: time.Minute}
	opts, _ := options(t)
	opts.InPod = true
	a, stop := start(t, cfg, opts)
	eventually(t, "ready", a.Ready)
	assert.Equal(t, time.Hour, a.serveTime())
	c, at := dial(t, a, "git"), a.Addr("git").String()
	code, _ := ask(t, a, "POST", "/quitquitquit")
	assert.Equal(t, 202, code)
	eventually(t, "refusing", func() bool {
		late, err := net.Dial("tcp", at)
		if err == nil {
			late.Close()
		}
		return err != nil
	})
	assert.Equal(t, time.Minute, a.serveTime(), "an application that is done needs no pod's time")
	echoes(t, c)
	c.Close()
	require.NoError(t, stop(), "and it does not wait for the quiet")
}

func TestQuitCountsAfterAnotherWishToStop(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown = config.Shutdown{Drain: 50 * time.Millisecond, PodDrain: time.Hour, Quiet: time.Hour}
	opts, log := options(t)
	opts.InPod = true
	a, stop := start(t, cfg, opts)
	eventually(t, "ready", a.Ready)
	idle := dial(t, a, "git")
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	eventually(t, "stopping", func() bool { return a.Status().Shutdown != nil })
	echoes(t, idle)
	code, _ := ask(t, a, "POST", "/quitquitquit")
	assert.Equal(t, 202, code)
	require.NoError(t, <-stopped, "neither the pod's time nor the quiet is waited for")
	assert.Contains(t, log.String(), `"msg":"the application is done","reason":"api_quit","connections":1`)
	assert.Contains(t, log.String(), "1 connections of listener git were cut")
}

// Verifies: R1.9
func TestGivingUpCanEndTheProcess(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Gateway.Token, cfg.Reconnect.MaxAttempts, cfg.Reconnect.Exit = "bad", 2, true
	opts, log := options(t)
	a, err := New(cfg, opts)
	require.NoError(t, err)
	err = a.Run(context.Background())
	require.ErrorIs(t, err, errs.GaveUp)
	assert.Equal(t, 4, errs.ExitCode(err))
	assert.Contains(t, log.String(), `"reason":"gave_up"`)
}

// Verifies: R5.9, R8.1
func TestTheSpoolIsDeliveredBeforeTheEnd(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Spool.Dir = filepath.Join(t.TempDir(), "spool")
	cfg.Shutdown = config.Shutdown{Drain: time.Minute, Quiet: time.Millisecond}
	ship := another("ship")
	ship.Delivery, ship.Priority = config.DeliverySpool, "low"
	cfg.Listeners = append(cfg.Listeners, ship)
	opts, log := options(t)
	a, stop := start(t, cfg, opts)
	eventually(t, "ready", a.Ready)
	c, err := net.Dial("tcp", a.Addr("ship").String())
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write(make([]byte, 100_000))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "it is on disk")
	assert.EqualValues(t, 100_000, a.Status().Listeners[1].Sent)
	code, body := ask(t, a, "GET", "/api/spool")
	assert.Equal(t, 200, code)
	assert.Contains(t, body, `"size": 1073741824`)
	require.NoError(t, stop())
	assert.Contains(t, log.String(), `"msg":"spool closed","reason":"delivered","connections":0`)
}
