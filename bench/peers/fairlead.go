package peers

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"fairlead/bench/proc"
)

// Fairlead is this project's sidecar and gateway, with a passthrough route and no limits.
type Fairlead struct {
	window   string // to which windows grow, as in the configuration; empty: the default
	bin      string // directory of the two programs
	given    bool   // bin was given: nothing to build
	once     sync.Once
	buildErr error // read after once
}

// NewFairlead returns the peer over the binaries in bin, or, when bin is empty, over binaries that the first Start
// builds into buildDir from the module that the working directory is in.
func NewFairlead(bin, buildDir string) *Fairlead {
	if bin != "" {
		return &Fairlead{bin: bin, given: true}
	}
	return &Fairlead{bin: buildDir}
}

// NewWideFairlead is NewFairlead with windows that grow to window, as "64MiB": for long paths.
func NewWideFairlead(bin, buildDir, window string) *Fairlead {
	f := NewFairlead(bin, buildDir)
	f.window = window
	return f
}

// Name implements Peer.
func (f *Fairlead) Name() string {
	if f.window != "" {
		return "fairlead-" + f.window
	}
	return "fairlead"
}

// Scenarios implements Picky: wide windows matter on long paths only.
func (f *Fairlead) Scenarios() []string {
	if f.window != "" {
		return []string{"rtt"}
	}
	return nil
}

// Available implements Peer.
func (f *Fairlead) Available() (bool, string) {
	dir, suffix := f.bin, ""
	if !f.given {
		if ok, why := onPath("go"); !ok {
			return false, why
		}
		root, err := moduleRoot()
		if err != nil {
			return false, err.Error()
		}
		dir, suffix = root, "/main.go"
	}
	for _, program := range []string{"sidecar", "gateway"} {
		if _, err := os.Stat(filepath.Join(dir, program+suffix)); err != nil {
			return false, err.Error()
		}
	}
	return true, ""
}

// Start implements Peer.
func (f *Fairlead) Start(ctx context.Context, env Env) (*Instance, error) {
	if !f.given {
		f.once.Do(func() { f.buildErr = Build(ctx, f.bin) })
	}
	if f.buildErr != nil {
		return nil, f.buildErr
	}
	s := newStarter(ctx, env)
	return s.finish(f.start(s))
}

// fairleadSite is what the two configurations are made of.
type fairleadSite struct {
	files                                certFiles
	secretFile, tokenFile                string
	gateway, gatewayAdmin, sidecarAdmin  string // addresses
	endpoint, target                     string // what the sidecar dials; what the route leads to
	addrs                                Addrs
	tunnel                               string // block of both configurations
	gatewayConfigFile, sidecarConfigFile string
}

func (f *Fairlead) start(s *starter) error {
	site, err := newFairleadSite(s)
	if err != nil {
		return err
	}
	if f.window != "" {
		site.tunnel = fmt.Sprintf("tunnel: {max_window: %s, memory: 1GiB}\n", f.window)
	}
	if err := os.WriteFile(site.gatewayConfigFile, site.gatewayConfig(), 0o600); err != nil {
		return err
	}
	if err := f.token(s.ctx, site); err != nil {
		return err
	}
	gateway, err := s.gateway("gateway", filepath.Join(f.bin, "gateway"), "run", "--config", site.gatewayConfigFile)
	if err != nil {
		return err
	}
	if err := awaitReady(s.ctx, gateway, site.gatewayAdmin); err != nil {
		return err
	}
	if site.endpoint, err = s.env.Via(site.gateway); err != nil {
		return err
	}
	if err := os.WriteFile(site.sidecarConfigFile, site.sidecarConfig(), 0o600); err != nil {
		return err
	}
	sidecar, err := s.sidecar("sidecar", filepath.Join(f.bin, "sidecar"), "run", "--config", site.sidecarConfigFile)
	if err != nil {
		return err
	}
	s.in.Addrs = site.addrs
	s.in.Access = &Access{URL: "wss://" + site.endpoint + "/", CAFile: site.files.ca, TokenFile: site.tokenFile, Route: fairleadRoute}
	return awaitReady(s.ctx, sidecar, site.sidecarAdmin)
}

func newFairleadSite(s *starter) (*fairleadSite, error) {
	site := &fairleadSite{
		target: s.env.Target, secretFile: s.file("secret"), tokenFile: s.file("token"),
		gatewayConfigFile: s.file("gateway.yaml"), sidecarConfigFile: s.file("sidecar.yaml"),
	}
	err := pickPorts(&site.gateway, &site.gatewayAdmin, &site.sidecarAdmin, &site.addrs.High, &site.addrs.Normal, &site.addrs.Low)
	if err != nil {
		return nil, err
	}
	if site.files, err = makeCert(s.env.Dir); err != nil {
		return nil, err
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	return site, os.WriteFile(site.secretFile, []byte(hex.EncodeToString(secret)), 0o600)
}

const (
	fairleadRoute  = "target"
	fairleadTenant = "bench"
)

func (f *fairleadSite) gatewayConfig() []byte {
	return fmt.Appendf(nil, `listen: %q
tls: {cert_file: %q, key_file: %q}
auth:
  issuers:
    - issuer: https://bench.invalid
      audience: fairlead
      hmac_secret_file: %q
      algorithms: [HS256]
      tenant: "{sub}"
backends:
  target: {address: %q}
routes:
  %s: {backend: target, mode: passthrough}
policy:
  - {tenants: [%s], routes: [%s]}
tiers:
  default: {opens_per_minute: 0, burst: 0, tunnels: 0, streams: 0, bandwidth: 0}
limits: {shedding: {enabled: false}}
store: {kind: memory}
admin: {listen: %q}
%s`, f.gateway, f.files.cert, f.files.key, f.secretFile, f.target, fairleadRoute, fairleadTenant, fairleadRoute, f.gatewayAdmin, f.tunnel)
}

func (f *fairleadSite) sidecarConfig() []byte {
	return fmt.Appendf(nil, `gateway:
  endpoints: ["wss://%[1]s/"]
  ca_file: %[2]q
  token_file: %[3]q
tunnels: {min: 1, max: 4}
listeners:
  - {name: high, listen: %[4]q, route: %[7]s, priority: high}
  - {name: normal, listen: %[5]q, route: %[7]s, priority: normal}
  - {name: low, listen: %[6]q, route: %[7]s, priority: low}
admin: {listen: %[8]q}
%[9]s`, f.endpoint, f.files.ca, f.tokenFile, f.addrs.High, f.addrs.Normal, f.addrs.Low, fairleadRoute, f.sidecarAdmin, f.tunnel)
}

// token has the gateway make a token, as a developer would.
func (f *Fairlead) token(ctx context.Context, site *fairleadSite) error {
	cmd := exec.CommandContext(ctx, filepath.Join(f.bin, "gateway"), "token", "--tenant", fairleadTenant, "--ttl", "1h", "--config", site.gatewayConfigFile)
	var told bytes.Buffer
	cmd.Stderr = &told
	token, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("make a token: %w: %s", err, told.Bytes())
	}
	return os.WriteFile(site.tokenFile, bytes.TrimSpace(token), 0o600)
}

// awaitReady waits until the admin listener's /readyz answers 200.
func awaitReady(ctx context.Context, p *proc.Process, admin string) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	url := "http://" + admin + "/readyz"
	return await(ctx, p, url+" does not say ready", func() bool {
		answer, err := client.Get(url)
		if err != nil {
			return false
		}
		_ = answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

// Build builds both programs, "sidecar" and "gateway", into dir, from the module that the working directory is in.
func Build(ctx context.Context, dir string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	compiler, err := exec.LookPath("go")
	if err != nil {
		return err
	}
	p, err := proc.Start(ctx, proc.Spec{
		Path: compiler, Args: []string{"build", "-C", root, "-o", dir + string(filepath.Separator), "./sidecar", "./gateway"},
		LogFile: filepath.Join(dir, "build.log"),
	})
	if err != nil {
		return err
	}
	defer p.Stop()
	<-p.Done()
	if err := p.Err(); err != nil {
		return fmt.Errorf("build sidecar and gateway: %w", err)
	}
	return nil
}

// moduleRoot finds this module's directory from the working directory upwards.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module fairlead\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside fairlead's module, and no directory with its binaries was given")
		}
		dir = parent
	}
}
