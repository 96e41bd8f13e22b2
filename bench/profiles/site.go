package profiles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	gatewayapp "fairlead/gateway/app"
	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/logging"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/fault"
	sidecarapp "fairlead/sidecar/app"
	"fairlead/sidecar/config"
)

const (
	name     = "profiles" // of the route, its backend, the tenant and the instances
	stopTime = 5 * time.Second
	patience = time.Minute // for the first tunnel
)

// site is a target behind a gateway, a path, and a sidecar with one listener for each priority.
type site struct {
	proxy   *fault.Proxy
	sidecar *sidecarapp.App
	stops   []func() error
}

func newSite(cfg config.Config, shape fault.Shape, log *slog.Logger) (_ *site, err error) {
	s := &site{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	dir, err := os.MkdirTemp("", "fairlead-profiles-")
	if err != nil {
		return nil, err
	}
	s.stops = append(s.stops, func() error { return os.RemoveAll(dir) })
	issuer, err := testbed.NewIssuer(testbed.IssuerConfig{Dir: dir})
	if err != nil {
		return nil, err
	}
	token, err := issuer.Valid(name, time.Hour)
	if err != nil {
		return nil, err
	}
	address, err := s.startTarget()
	if err != nil {
		return nil, err
	}
	gateway, err := s.startGateway(address, issuer, log)
	if err != nil {
		return nil, err
	}
	if s.proxy, err = fault.New(fault.Config{Target: gateway, Up: shape, Down: shape}); err != nil {
		return nil, err
	}
	s.stops = append(s.stops, func() error { s.proxy.Close(); return nil })
	return s, s.startSidecar(cfg, token, log)
}

func (s *site) startGateway(target string, issuer *testbed.Issuer, log *slog.Logger) (address string, err error) {
	c := gatewayconfig.Default()
	c.Listen, c.Admin.Listen, c.TLS = "127.0.0.1:0", "", gatewayconfig.TLS{Disabled: true}
	c.Auth.Issuers = []gatewayconfig.Issuer{{Issuer: issuer.Issuer(), Audience: issuer.Audience(), HMACSecretFile: issuer.SecretFile(), Tenant: "{sub}"}}
	c.Backends = map[string]gatewayconfig.Backend{name: {Address: target}}
	c.Routes = map[string]gatewayconfig.Route{name: {Backend: name, Mode: gatewayconfig.ModePassthrough}}
	c.Policy = []gatewayconfig.Rule{{Tenants: []string{name}, Routes: []string{name}}}
	c.Tiers = map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {}}
	c.Shutdown.Drain = 0
	g, err := gatewayapp.New(c, gatewayapp.Options{Logger: log.With(logging.FieldComponent, "gateway"), Instance: name})
	if err != nil {
		return "", err
	}
	s.stops = append(s.stops, running("gateway", g.Run))
	return g.Addr().String(), nil
}

func (s *site) startSidecar(c config.Config, token string, log *slog.Logger) (err error) {
	c.Gateway.Endpoints, c.Gateway.AllowPlaintext, c.Gateway.Token = []string{"ws://" + s.proxy.Addr() + "/"}, true, logging.Secret(token)
	for _, priority := range []string{"high", "normal", "low"} {
		var l config.Listener
		l.SetDefaults()
		l.Name, l.Listen, l.Route, l.Priority = priority, "127.0.0.1:0", name, priority
		c.Listeners = append(c.Listeners, l)
	}
	c.Admin.Listen, c.Shutdown.Drain, c.Shutdown.PodDrain = "", 0, 0
	if s.sidecar, err = sidecarapp.New(c, sidecarapp.Options{Logger: log.With(logging.FieldComponent, "sidecar"), Instance: name}); err != nil {
		return err
	}
	s.stops = append(s.stops, running("sidecar", s.sidecar.Run))
	return nil
}

// running starts run and returns how to stop it.
func running(what string, run func(context.Context) error) func() error {
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- run(ctx) }()
	return func() error {
		cancel()
		select {
		case err := <-ran:
			return err
		case <-time.After(2 * stopTime):
			return fmt.Errorf("the %s does not stop", what)
		}
	}
}

// ready waits for the first tunnel.
func (s *site) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !s.sidecar.Ready() {
		changed := s.sidecar.Changed()
		if s.sidecar.Ready() {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no tunnel: %w", context.Cause(ctx))
		case <-changed:
		}
	}
	return nil
}

func (s *site) resumes() (n uint64) {
	for _, t := range s.sidecar.Status().Tunnels {
		n += t.Resumes
	}
	return n
}

// close stops everything in reverse order.
func (s *site) close() error {
	var failed []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		failed = append(failed, s.stops[i]())
	}
	return errors.Join(failed...)
}
