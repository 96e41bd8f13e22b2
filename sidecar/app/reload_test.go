package app

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/sidecar/config"
)

// dial connects to a listener and sees that it echoes.
func dial(t *testing.T, a *App, name string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", a.Addr(name).String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	echoes(t, c)
	return c
}

func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	b := make([]byte, 5)
	for n := 0; n < len(b); {
		k, err := c.Read(b[n:])
		require.NoError(t, err)
		n += k
	}
	assert.Equal(t, "hello", string(b))
}

func refused(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err == nil {
		c.Close()
	}
	assert.Error(t, err, "%s is not listened at", address)
}

func another(name string) (l config.Listener) {
	l.SetDefaults()
	l.Name, l.Listen, l.Route = name, "127.0.0.1:0", "git"
	return l
}

// Verifies: R9.4
func TestReloadDropsNoConnection(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Listeners = append(cfg.Listeners, another("gone"))
	a, log, _ := run(t, cfg)
	onGit, onGone, goneAt, gitAt := dial(t, a, "git"), dial(t, a, "gone"), a.Addr("gone").String(), a.Addr("git").String()

	next := cfg
	next.Listeners = []config.Listener{cfg.Listeners[0], another("new")}
	next.Listeners[0].Priority, next.Queue.Size, next.Log.Level, next.StateFile = "high", 5, "debug", "/elsewhere"
	r, err := a.Reload(next)
	require.NoError(t, err)
	assert.Subset(t, r.Applied, []string{"listeners[0].priority", "listeners[1].name", "log.level", "queue.size"})
	assert.Equal(t, []string{"state_file"}, r.NeedsRestart)
	assert.Contains(t, log.String(), `"needs_restart":"state_file"`)

	echoes(t, onGit)
	echoes(t, onGone)
	refused(t, goneAt)
	assert.Nil(t, a.Addr("gone"))
	assert.Equal(t, gitAt, a.Addr("git").String(), "the socket goes over, so that no connection is refused")
	dial(t, a, "git")
	dial(t, a, "new")
	st := a.Status()
	assert.Equal(t, 5, st.Queue.Size)
	assert.Equal(t, "high", st.Listeners[0].Priority)

	r, err = a.Reload(next)
	require.NoError(t, err)
	assert.Equal(t, []string{"state_file"}, r.NeedsRestart, "it still waits for the restart")
	assert.Empty(t, r.Applied)
}

// Verifies: R9.4
func TestReloadIsWholeOrNotAtAll(t *testing.T) {
	cfg := newConfig(newGateway(t))
	a, log, _ := run(t, cfg)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	before := a.Status().Listeners
	for what, change := range map[string]func(*config.Config){
		"level":   func(c *config.Config) { c.Log.Level = "loud" },
		"address": func(c *config.Config) { c.Listeners[1].Listen = taken.Addr().String() },
		"spool": func(c *config.Config) {
			c.Listeners[1].Delivery, c.Spool.Dir = config.DeliverySpool, t.TempDir()
		},
		"ca":       func(c *config.Config) { c.Gateway.CAFile = filepath.Join(t.TempDir(), "none") },
		"token":    func(c *config.Config) { c.Gateway.Token = "" },
		"endpoint": func(c *config.Config) { c.Gateway.Endpoints = nil },
	} {
		next := cfg
		next.Listeners = []config.Listener{cfg.Listeners[0], another("second")}
		next.Listeners[0].Priority, next.Queue.Size = "low", 3
		change(&next)
		_, err := a.Reload(next)
		assert.Error(t, err, what)
		assert.Equal(t, before, a.Status().Listeners, what)
		assert.Equal(t, cfg.Queue.Size, a.Status().Queue.Size, what)
		assert.Nil(t, a.Addr("second"), what)
	}
	assert.Contains(t, log.String(), "what was loaded before stays in force")
	dial(t, a, "git")
}

func TestReloadFile(t *testing.T) {
	cfg := newConfig(newGateway(t))
	opts, log := options(t)
	loaded := &sharedconfig.Loaded[config.Config]{Config: cfg}
	opts.Loaded = loaded
	var fails error
	opts.Load = func() (*sharedconfig.Loaded[config.Config], error) {
		next := *loaded
		next.Config.Queue.Size = 7
		return &next, fails
	}
	a, _ := start(t, cfg, opts)
	eventually(t, "ready", a.Ready)
	code, body := ask(t, a, "POST", "/api/reload")
	assert.Equal(t, 200, code)
	assert.Contains(t, body, `"queue.size"`)
	code, body = ask(t, a, "GET", "/api/config")
	assert.Equal(t, 200, code)
	assert.Contains(t, body, `"key": "gateway.token"`)
	assert.NotContains(t, body, "good", "secrets are masked")
	fails = errs.New(errs.ConfigInvalid, "c.yaml:1: queue.size: 0")
	code, body = ask(t, a, "POST", "/api/reload")
	assert.Equal(t, errs.ConfigInvalid.Info().HTTP, code)
	assert.Contains(t, body, "c.yaml:1: queue.size: 0")
	assert.Contains(t, log.String(), "what was loaded before stays in force")
}

func TestAStopWaitsForTheReloadUnderWay(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown = config.Shutdown{Drain: time.Minute, Quiet: time.Millisecond}
	opts, _ := options(t)
	reloading, goOn := make(chan struct{}), make(chan struct{})
	opts.SetLevel = func(string) error {
		close(reloading)
		<-goOn
		return nil
	}
	a, stop := start(t, cfg, opts)
	eventually(t, "ready", a.Ready)
	next := cfg
	next.Listeners = append([]config.Listener{}, cfg.Listeners[0], another("late"))
	next.Log.Level = "debug"
	reloaded, stopped := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := a.Reload(next)
		reloaded <- err
	}()
	<-reloading
	go func() { stopped <- stop() }()
	assert.Never(t, func() bool { return a.Status().Shutdown != nil }, 50*time.Millisecond, 5*time.Millisecond)
	close(goOn)
	require.NoError(t, <-reloaded)
	late := a.Addr("late").String()
	require.NoError(t, <-stopped)
	refused(t, late)
	_, err := a.Reload(cfg)
	assert.ErrorIs(t, err, errs.ShuttingDown)
}

func TestReloadLeavesAListener(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown.Quiet = time.Millisecond
	a, _, _ := run(t, cfg)
	next := cfg
	next.Listeners = nil
	_, err := a.Reload(next)
	require.ErrorIs(t, err, errs.ConfigInvalid)
	dial(t, a, "git")
}

func TestReloadsOfTheFileComeOneAfterTheOther(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown.Quiet = time.Millisecond
	opts, _ := options(t)
	opts.Loaded = &sharedconfig.Loaded[config.Config]{Config: cfg}
	loading, goOn := make(chan int, 2), make(chan struct{})
	size := 10
	opts.Load = func() (*sharedconfig.Loaded[config.Config], error) { // what it reads gets newer and newer
		size++
		next := *opts.Loaded
		next.Config.Queue.Size = size
		loading <- size
		<-goOn
		return &next, nil
	}
	a, _ := start(t, cfg, opts)
	done := make(chan error, 2)
	reload := func() {
		_, err := a.ReloadFile()
		done <- err
	}
	go reload()
	<-loading
	go reload()
	assert.Never(t, func() bool { return len(loading) > 0 }, 50*time.Millisecond, 5*time.Millisecond)
	close(goOn)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	assert.Equal(t, 12, a.Status().Queue.Size)
}

func TestTheConfigurationThatIsShownIsInForce(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown.Quiet = time.Millisecond
	opts, _ := options(t)
	opts.Loaded = &sharedconfig.Loaded[config.Config]{Config: cfg, Sources: map[string]string{"queue.size": "c.yaml:1"}}
	opts.Load = func() (*sharedconfig.Loaded[config.Config], error) {
		next := *opts.Loaded
		next.Config.Queue.Size, next.Config.StateFile = 7, "/elsewhere"
		next.Sources = map[string]string{"queue.size": "c.yaml:2", "state_file": "c.yaml:3"}
		return &next, nil
	}
	a, _ := start(t, cfg, opts)
	r, err := a.ReloadFile()
	require.NoError(t, err)
	assert.Equal(t, []string{"state_file"}, r.NeedsRestart)
	shown := map[string]sharedconfig.Entry{}
	for _, e := range a.effective() {
		shown[e.Key] = e
	}
	assert.EqualValues(t, 7, shown["queue.size"].Value)
	assert.Equal(t, "c.yaml:2", shown["queue.size"].Source)
	assert.Equal(t, "", shown["state_file"].Value, "it waits for the restart")
	assert.Equal(t, sharedconfig.SourceDefault, shown["state_file"].Source)
}

func TestReloadEndsHavingGivenUp(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown.Quiet = time.Millisecond
	good := cfg
	cfg.Gateway.Token, cfg.Reconnect.MaxAttempts = "bad", 2
	a, _, _ := run(t, cfg)
	eventually(t, "given up", func() bool { return a.Status().State == "failed" })
	_, err := a.Reload(good)
	require.NoError(t, err)
	eventually(t, "ready", a.Ready)
	dial(t, a, "git")
}

func TestReloadCanLetGivingUpEndTheProcess(t *testing.T) {
	cfg := newConfig(newGateway(t))
	cfg.Shutdown.Quiet = time.Millisecond
	cfg.Gateway.Token, cfg.Reconnect.MaxAttempts = "bad", 1
	opts, _ := options(t)
	a, err := New(cfg, opts)
	require.NoError(t, err)
	ran := make(chan error, 1)
	go func() { ran <- a.Run(context.Background()) }()
	eventually(t, "given up", func() bool { return a.Status().State == "failed" })
	cfg.Reconnect.Exit = true
	_, err = a.Reload(cfg)
	require.NoError(t, err)
	assert.ErrorIs(t, <-ran, errs.GaveUp)
}
