package e2e

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayapp "fairlead/gateway/app"
	"fairlead/shared/logging"
	sidecarapp "fairlead/sidecar/app"
)

// running is a program that runs: inside this process, or as one of its own.
type running struct {
	logs  *logs
	admin string // address of the admin API
	end   context.CancelFunc
	done  chan struct{} // closed once the program has ended
	err   error         // what Run returned, once done is closed
	proc  *process      // nil inside this process
}

// url is an address of the admin API.
func (r *running) url(path string) string { return "http://" + r.admin + path }

// stop asks the program to stop, as SIGTERM does, and returns when it has. It may be called twice.
func (r *running) stop() error {
	r.end()
	<-r.done
	return r.err
}

// gatewayNode is a gateway.
type gatewayNode struct {
	*running
	app     *gatewayapp.App // nil for a process
	address string          // of the public listener
}

// sidecarNode is a sidecar.
type sidecarNode struct {
	*running
	app       *sidecarapp.App   // nil for a process
	addresses map[string]string // of the listeners by name: "host:port" or "unix:/path"
}

// addr is the address of a listener.
func (s *sidecarNode) addr(t *testing.T, listener string) string {
	t.Helper()
	require.Contains(t, s.addresses, listener, "the sidecar has this listener")
	return s.addresses[listener]
}

// startGateway starts a gateway with the configuration as it is, and lets the proxy before it lead to it.
func (w *world) startGateway() {
	w.t.Helper()
	if w.processes {
		w.gateway = w.gatewayProcess()
	} else {
		w.gateway = w.gatewayInside("gateway")
	}
	if w.inner != nil {
		w.inner.SetTarget(w.gateway.address)
		return
	}
	w.proxy.SetTarget(w.gateway.address)
}

// gatewayInside runs a gateway inside this process; tests with several give each an instance name of its own.
func (w *world) gatewayInside(instance string) *gatewayNode {
	w.t.Helper()
	captured := newLogs(w.t, instance)
	log, level := newLogger(w.t, w.gatewayConfig.Log.Level, "gateway", instance, captured)
	app, err := gatewayapp.New(w.gatewayConfig, gatewayapp.Options{Logger: log, SetLevel: level.Set, Level: level.String, Instance: instance, Version: version})
	require.NoError(w.t, err)
	r := run(w.t, captured, app.Run)
	if a := app.AdminAddr(); a != nil {
		r.admin = a.String()
	}
	return &gatewayNode{running: r, app: app, address: app.Addr().String()}
}

// startSidecar starts a sidecar with the configuration as it is. It does not wait until it is ready.
func (w *world) startSidecar() {
	w.t.Helper()
	if w.processes {
		w.sidecar = w.sidecarProcess()
	} else {
		w.sidecar = w.sidecarInside("sidecar")
	}
}

// sidecarInside runs a sidecar inside this process.
func (w *world) sidecarInside(instance string) *sidecarNode {
	w.t.Helper()
	captured := newLogs(w.t, instance)
	log, level := newLogger(w.t, w.sidecarConfig.Log.Level, "sidecar", instance, captured)
	app, err := sidecarapp.New(w.sidecarConfig, sidecarapp.Options{Logger: log, SetLevel: level.Set, Instance: instance, Version: version})
	require.NoError(w.t, err)
	n := &sidecarNode{app: app, addresses: map[string]string{}}
	for _, l := range w.sidecarConfig.Listeners {
		n.addresses[l.Name] = app.Addr(l.Name).String()
		if strings.HasPrefix(l.Listen, "unix:") {
			n.addresses[l.Name] = l.Listen
		}
	}
	n.running = run(w.t, captured, app.Run)
	if a := app.AdminAddr(); a != nil {
		n.admin = a.String()
	}
	return n
}

func newLogger(t *testing.T, level, component, instance string, to *logs) (*slog.Logger, *logging.Level) {
	t.Helper()
	log, l, err := logging.New(logging.Config{Level: level, Format: logging.FormatJSON, Writer: to, Instance: instance, Version: version, Component: component})
	require.NoError(t, err)
	return log, l
}

// run runs a program until the test ends or stop is called.
func run(t *testing.T, captured *logs, f func(context.Context) error) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{logs: captured, end: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = f(ctx)
	}()
	t.Cleanup(func() { assert.NoError(t, r.stop()) })
	return r
}

// writeAtomic replaces a file in one step.
func writeAtomic(path string, content []byte) error {
	next := path + ".next"
	if err := os.WriteFile(next, content, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(raw)
}
