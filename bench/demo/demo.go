package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	gateway "fairlead/gateway/app"
	gatewayconfig "fairlead/gateway/config"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
	"fairlead/shared/testbed"
	sidecar "fairlead/sidecar/app"
	sidecarconfig "fairlead/sidecar/config"
)

const (
	readyTimeout = 20 * time.Second
	stopTimeout  = 20 * time.Second // the programs' own bounds are shorter
)

// config is what a demo is started with. Port 0 takes any free one.
type config struct {
	dir                                            string // must exist
	port, gatewayPort, adminPort, sidecarAdminPort int
	anyPort                                        bool      // another port will do if port is in use
	log                                            io.Writer // of both programs; one Write a line
	startSSH                                       func(ctx context.Context, dir string) (testbed.SSHServer, error)
}

// demo is a running gateway and sidecar with what they lead to.
type demo struct {
	cfg         config
	site        *site
	log         *slog.Logger
	stack       *lifecycle.Stack
	server      testbed.SSHServer
	gateway     *gateway.App
	sidecar     *sidecar.App
	gatewayPart *part
	sidecarPart *part
}

// start starts everything and returns when connections are carried. ctx bounds the start only.
func start(ctx context.Context, cfg config) (_ *demo, err error) {
	d := &demo{cfg: cfg}
	if d.log, err = d.logger("demo"); err != nil {
		return nil, err
	}
	if d.stack, err = lifecycle.NewStack(lifecycle.StackConfig{Log: d.log}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
		}
	}()
	if d.site, err = newSite(ctx, cfg.dir); err != nil {
		return nil, err
	}
	if d.server, err = cfg.startSSH(ctx, d.site.sshDir); err != nil {
		return nil, fmt.Errorf("start an SSH server: %w", err)
	}
	d.stack.Push("SSH server", d.stopServer)
	if err = d.startGateway(); err != nil {
		return nil, err
	}
	if err = d.startSidecar(); err != nil {
		return nil, err
	}
	d.stack.Push("SSH sessions", d.stopServer)
	if err = d.site.writeSSHConfig(d.server, d.port(routeSSH)); err != nil {
		return nil, err
	}
	return d, d.awaitReady(ctx)
}

// stopServer may run twice. Once the sidecar runs it comes first: sshd lets a command go on whose connection was cut, and
// only as long as it is connected can it be found and ended with the server.
func (d *demo) stopServer(context.Context) error {
	d.server.Stop()
	return nil
}

// logger makes the logger of one part.
func (d *demo) logger(component string) (*slog.Logger, error) {
	log, _, err := logging.New(logging.Config{Format: logging.FormatText, Writer: d.cfg.log, Component: component})
	return log, err
}

// startGateway starts the target of the forward route and the gateway, from the file that it would be deployed with.
func (d *demo) startGateway() error {
	target, err := startTarget()
	if err != nil {
		return err
	}
	d.stack.Push("target", target.stop)
	if err := d.site.writeGatewayConfig(d.cfg, d.server, target.addr()); err != nil {
		return err
	}
	loaded, err := load(gatewayconfig.Default(), d.site.gatewayConfigFile)
	if err != nil {
		return err
	}
	log, err := d.logger("gateway")
	if err != nil {
		return err
	}
	d.gateway, err = gateway.New(loaded.Config, gateway.Options{Logger: log, Instance: "demo", Version: "demo", Loaded: loaded})
	if err != nil {
		return err
	}
	d.gatewayPart = d.run("gateway", d.gateway.Run)
	return nil
}

// startSidecar starts the sidecar, at another port if the one that it prefers is in use.
func (d *demo) startSidecar() (err error) {
	d.sidecar, err = d.newSidecar(d.cfg.port)
	if errors.Is(err, errs.ListenFailed) && d.cfg.anyPort {
		d.sidecar, err = d.newSidecar(0)
	}
	if err != nil {
		return err
	}
	d.sidecarPart = d.run("sidecar", d.sidecar.Run)
	return nil
}

func (d *demo) newSidecar(port int) (*sidecar.App, error) {
	if err := d.site.writeSidecarConfig(d.cfg, d.gateway.Addr(), port); err != nil {
		return nil, err
	}
	loaded, err := load(sidecarconfig.Default(), d.site.sidecarConfigFile)
	if err != nil {
		return nil, err
	}
	log, err := d.logger("sidecar")
	if err != nil {
		return nil, err
	}
	return sidecar.New(loaded.Config, sidecar.Options{Logger: log, Instance: "demo", Version: "demo"})
}

// load reads a configuration from its file alone: what the environment says about fairlead is not about the demo.
func load[T sharedconfig.Validator](defaults T, file string) (*sharedconfig.Loaded[T], error) {
	return sharedconfig.Load(defaults, sharedconfig.Input{Flags: sharedconfig.Flags{File: file}, Environ: []string{}})
}

// port is the port of a listener of the sidecar.
func (d *demo) port(listener string) int { return d.sidecar.Addr(listener).(*net.TCPAddr).Port }

func (d *demo) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		changed := d.sidecar.Changed()
		if d.sidecar.Ready() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errs.Wrap(errs.NoTunnel, ctx.Err(), "the sidecar has no tunnel to the gateway")
		case <-d.gatewayPart.done:
			return d.gatewayPart.ended()
		case <-d.sidecarPart.done:
			return d.sidecarPart.ended()
		}
	}
}

// wait returns when ctx ends, or a program does: by itself, which is an error, or because its API was asked to stop it.
func (d *demo) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.gatewayPart.done:
		return d.gatewayPart.err
	case <-d.sidecarPart.done:
		return d.sidecarPart.err
	}
}

// stop ends everything: SSH sessions with all that they started, then sidecar and gateway, each after a short drain.
func (d *demo) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return d.stack.Stop(ctx)
}

// part is a program that runs in a goroutine.
type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // read after done
}

// run runs a program until the demo stops.
func (d *demo) run(name string, f func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		if err := lifecycle.Guard(d.log, name, func() error { return f(ctx) }); err != nil {
			p.err = fmt.Errorf("the %s ended: %w", name, err)
		}
	}()
	d.stack.Push(name, p.stop)
	return p
}

// ended is why a part has ended that should run.
func (p *part) ended() error {
	if p.err == nil {
		return fmt.Errorf("the %s ended before it was ready", p.name)
	}
	return p.err
}

func (p *part) stop(ctx context.Context) error {
	defer p.cancel()
	select {
	case <-p.done:
		return nil // how it ended has been told by whoever saw it
	default:
	}
	p.cancel()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
