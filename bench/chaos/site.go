package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"time"

	gatewayapp "fairlead/gateway/app"
	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/fault"
	sidecarapp "fairlead/sidecar/app"
	sidecarconfig "fairlead/sidecar/config"
)

// tunnels is how many the sidecar keeps: a cut hits all of them, or the one that happens to carry the byte.
const tunnels = 2

// connected is the state, in the sidecar's status, of a tunnel that carries streams.
const connected = "connected"

// Reconnecting is quick, because each cut waits for it, and never given up: a run without hope is found by its patience.
const (
	reconnectBase  = 20 * time.Millisecond
	reconnectCap   = 500 * time.Millisecond
	connectTimeout = 2 * time.Second
	stopTime       = 10 * time.Second
	settleTime     = 15 * time.Second
	look           = 10 * time.Millisecond
)

// site is a gateway with a backend, a sidecar, and the network between them.
type site struct {
	target  *target
	gateway *gatewayapp.App
	proxy   *fault.Proxy
	sidecar *sidecarapp.App
	stops   []func() error
	codes   *tally         // of the sidecar's log
	began   map[string]int // tunnels at the beginning, by id
	size    [2]int64       // bytes of one handshake, TLS to WELCOME, by fault.Direction
}

// newSite starts everything. What was started is stopped when something fails.
func newSite(cfg Config) (_ *site, err error) {
	s := &site{codes: newTally(), began: map[string]int{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	log, _, err := logging.New(logging.Config{Format: logging.FormatJSON, Writer: cfg.Log})
	if err != nil {
		return nil, err
	}
	ca, err := testbed.NewCA(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(testbed.CertificateConfig{})
	if err != nil {
		return nil, err
	}
	issuer, err := testbed.NewIssuer(testbed.IssuerConfig{Dir: cfg.Dir})
	if err != nil {
		return nil, err
	}
	token, err := issuer.Valid("chaos", 24*time.Hour)
	if err != nil {
		return nil, err
	}
	if s.target, err = newTarget(); err != nil {
		return nil, err
	}
	s.defers(s.target.close)
	if err = s.startGateway(cfg, log, cert, issuer); err != nil {
		return nil, err
	}
	if s.proxy, err = fault.New(fault.Config{Target: s.gateway.Addr().String()}); err != nil {
		return nil, err
	}
	s.defers(func() error { s.proxy.Close(); return nil })
	return s, s.startSidecar(cfg, log, ca, token)
}

func (s *site) defers(stop func() error) { s.stops = append(s.stops, stop) }

// close stops everything in reverse order. It may be called once.
func (s *site) close() error {
	var failed []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		failed = append(failed, s.stops[i]())
	}
	return errors.Join(failed...)
}

const (
	route  = "target"
	tenant = "chaos"
)

func (s *site) startGateway(cfg Config, log *slog.Logger, cert *testbed.Certificate, issuer *testbed.Issuer) (err error) {
	c := gatewayconfig.Default()
	c.Listen, c.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0"
	c.TLS = gatewayconfig.TLS{CertFile: cert.CertFile, KeyFile: cert.KeyFile}
	c.Auth.Issuers = []gatewayconfig.Issuer{{Issuer: issuer.Issuer(), Audience: issuer.Audience(), HMACSecretFile: issuer.SecretFile(), Tenant: "{sub}"}}
	c.Backends = map[string]gatewayconfig.Backend{route: {Address: s.target.addr()}}
	c.Routes = map[string]gatewayconfig.Route{route: {Backend: route, Mode: gatewayconfig.ModePassthrough}}
	c.Policy = []gatewayconfig.Rule{{Tenants: []string{tenant}, Routes: []string{route}}}
	c.Tiers = map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {}}
	c.Limits.Shedding.Enabled = false // a machine that is short of CPU breaks no connection
	c.Tunnel.Heartbeat = cfg.Heartbeat
	c.Shutdown.Drain = stopTime
	s.gateway, err = gatewayapp.New(c, gatewayapp.Options{Logger: log.With(logging.FieldComponent, "gateway"), Instance: "chaos"})
	if err != nil {
		return err
	}
	s.defers(running("gateway", s.gateway.Run))
	return nil
}

func (s *site) startSidecar(cfg Config, log *slog.Logger, ca *testbed.CA, token string) (err error) {
	c := sidecarconfig.Default()
	c.Gateway.Endpoints = []string{"wss://" + s.proxy.Addr() + "/"}
	c.Gateway.CAFile, c.Gateway.Token, c.Gateway.ConnectTimeout = ca.CertFile(), logging.Secret(token), connectTimeout
	c.Tunnels = sidecarconfig.Tunnels{Min: tunnels, Max: tunnels}
	c.Reconnect = sidecarconfig.Reconnect{Base: reconnectBase, Cap: reconnectCap, Enabled: true}
	for _, priority := range priorities() {
		c.Listeners = append(c.Listeners, sidecarconfig.Listener{Name: priority, Listen: "127.0.0.1:0", Route: route, Priority: priority, Delivery: sidecarconfig.DeliveryStream, Compression: "auto"})
	}
	c.Tunnel.Heartbeat = cfg.Heartbeat
	c.Admin.Listen = ""
	c.Shutdown.Drain = stopTime
	counted := slog.New(s.codes.handler(log.Handler())).With(logging.FieldComponent, "sidecar")
	if s.sidecar, err = sidecarapp.New(c, sidecarapp.Options{Logger: counted, Instance: "chaos"}); err != nil {
		return err
	}
	s.defers(running("sidecar", s.sidecar.Run))
	return nil
}

func priorities() []string { return []string{"high", "normal", "low"} }

// running starts run and returns how to stop it.
func running(name string, run func(context.Context) error) func() error {
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- run(ctx) }()
	return func() error {
		cancel()
		select {
		case err := <-ran:
			return err
		case <-time.After(2 * stopTime):
			return fmt.Errorf("the %s does not stop", name)
		}
	}
}

// ready waits until all tunnels are up, and learns how many bytes a handshake takes.
func (s *site) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := s.until(ctx, func() bool { return len(s.up()) == tunnels }); err != nil {
		return fmt.Errorf("no tunnels at the beginning: %w", err)
	}
	for _, id := range s.up() {
		s.began[id] = 0
	}
	st := s.proxy.Stats()
	s.size = [2]int64{st.Up / tunnels, st.Down / tunnels}
	return nil
}

// up lists the ids of the connected tunnels.
func (s *site) up() (ids []string) {
	for _, t := range s.sidecar.Status().Tunnels {
		if t.State == connected {
			ids = append(ids, t.ID)
		}
	}
	return ids
}

// until waits for a condition over the sidecar's tunnels.
func (s *site) until(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.sidecar.Changed():
		case <-tick.C:
		}
	}
	return nil
}

// settle waits until the transfers are forgotten on both sides, and compares what both say.
func (s *site) settle(ctx context.Context, r *Result) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	var gateway []gatewayTunnel
	var window float64
	err := s.until(ctx, func() bool {
		streams := 0
		for _, t := range s.sidecar.Status().Tunnels {
			streams += t.Streams
		}
		var err error
		if gateway, window, err = s.askGateway(ctx); err != nil {
			return false
		}
		for _, t := range gateway {
			streams += t.Streams
		}
		return streams == 0 && window == 0 && len(s.up()) == tunnels
	})
	if err != nil {
		r.fail("not quiet %v after the last transfer: sidecar %+v, gateway %+v, windows %.0f bytes", settleTime, s.sidecar.Status().Tunnels, gateway, window)
	}
	for _, t := range gateway {
		r.GatewayResumes += t.Resumes
	}
}

// note takes down what the sidecar says about its tunnels.
func (s *site) note(r *Result) {
	if s.sidecar == nil {
		return
	}
	same := 0
	for _, t := range s.sidecar.Status().Tunnels {
		r.Resumes += t.Resumes
		r.Replayed += t.Replayed
		if _, ok := s.began[t.ID]; ok {
			same++
		}
	}
	if same != tunnels {
		r.fail("%d of the %d tunnels are those of the beginning; the others were lost", same, tunnels)
	}
	r.Codes = s.codes.counts()
}

// gatewayTunnel is what of GET /api/tunnels is looked at.
type gatewayTunnel struct {
	ID      string `json:"id"`
	Streams int    `json:"streams"`
	Resumes uint64 `json:"resumes"`
}

var windowMetric = regexp.MustCompile(`(?m)^fairlead_gateway_window_bytes(?:\{[^}]*\})? ([0-9.e+]+)$`)

// askGateway reads the tunnels, and the bytes of windows beyond their initial size, from the admin API.
func (s *site) askGateway(ctx context.Context) (list []gatewayTunnel, window float64, err error) {
	body, err := s.get(ctx, "/api/tunnels")
	if err != nil {
		return nil, 0, err
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, 0, err
	}
	if body, err = s.get(ctx, "/metrics"); err != nil {
		return nil, 0, err
	}
	found := windowMetric.FindSubmatch(body)
	if found == nil {
		return nil, 0, errs.New(errs.Internal, "the gateway's metrics lack the windows")
	}
	window, err = strconv.ParseFloat(string(found[1]), 64)
	return list, window, err
}

func (s *site) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.gateway.AdminAddr().String()+path, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
