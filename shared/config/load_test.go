package config_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

func TestDefaultsAlone(t *testing.T) {
	l := source{env: []string{"FAIRLEAD_CONFIG="}}.mustLoad(t)
	want := sampleDefault()
	assert.Empty(t, config.Diff(want, l.Config))
	assert.Equal(t, want.Backends, l.Config.Backends)
	assert.Empty(t, l.File)
	for key, source := range l.Sources {
		assert.Equal(t, config.SourceDefault, source, key)
	}
}

func TestFileSetsEveryKind(t *testing.T) {
	l := source{yaml: `
listen: "unix:/run/x.sock"
proxy: http://user:pw@proxy:3128
token: &t s3cret
enabled: false
attempts: 3
wait: 1m30s
gateway:
  endpoints: [a, b]
  window: 1MiB
  level: debug
items:
  - {name: one, priority: low, keys: {file: /k}}
  - name: two
backends:
  a.b: {wait: 0s, name: *t}
  plain:
`}.mustLoad(t)
	assert.Equal(t, sample{
		Listen: "unix:/run/x.sock", Proxy: "http://user:pw@proxy:3128", Token: "s3cret", Attempts: 3, Wait: 90 * time.Second,
		Gateway: sampleGateway{Endpoints: []string{"a", "b"}, Window: config.MiB, Log: config.Log{Level: "debug", Format: "json"}},
		Items: []sampleItem{
			{Name: "one", Priority: "low", Wait: time.Second, Keys: sampleKeys{"strict", "/k"}},
			{Name: "two", Priority: "high", Wait: time.Second, Keys: sampleKeys{Mode: "strict"}}},
		Backends: map[string]sampleItem{
			"a.b":     {Name: "s3cret", Priority: "high", Keys: sampleKeys{Mode: "strict"}},
			"default": {Priority: "low", Wait: time.Minute},
			"plain":   {Priority: "high", Wait: time.Second, Keys: sampleKeys{Mode: "strict"}}},
	}, l.Config)
	assert.Equal(t, "c.yaml:9", l.Sources["gateway.endpoints"])
	assert.Equal(t, "c.yaml:13", l.Sources["items[0].keys.file"])
	assert.Equal(t, config.SourceDefault, l.Sources["items[0].keys.mode"])
	assert.Equal(t, "c.yaml:16", l.Sources["backends.a.b.wait"])
}

// Verifies: R9.4
func TestEachLayerOverridesTheOneBelow(t *testing.T) {
	s := source{}
	assert.Equal(t, 90*time.Second, s.mustLoad(t).Config.Wait)
	s.yaml = "wait: 1s\ngateway: {token_file: /file, endpoints: [x]}\nitems: [{name: a}, {name: b}]\n"
	l := s.mustLoad(t)
	assert.Equal(t, time.Second, l.Config.Wait)
	s.env = []string{"FAIRLEAD_WAIT=2s", "FAIRLEAD_GATEWAY__ENDPOINTS=y, z", "FAIRLEAD_ITEMS__1__PRIORITY=low"}
	l = s.mustLoad(t)
	assert.Equal(t, 2*time.Second, l.Config.Wait)
	assert.Equal(t, []string{"y", "z"}, l.Config.Gateway.Endpoints, "a list replaces the one below")
	assert.Equal(t, "/file", l.Config.Gateway.TokenFile, "what a layer does not name stays")
	s.set = []string{"wait=3s", "wait=4s", "items[0].wait=9s"}
	l = s.mustLoad(t)
	assert.Equal(t, 4*time.Second, l.Config.Wait, "of two flags the last one wins")
	assert.Equal(t, "a", l.Config.Items[0].Name)
	assert.Equal(t, 9*time.Second, l.Config.Items[0].Wait)
	assert.Equal(t, "low", l.Config.Items[1].Priority)
	for key, want := range map[string]string{
		"wait": "--set wait", "gateway.endpoints": "FAIRLEAD_GATEWAY__ENDPOINTS", "gateway.token_file": "c.yaml:2",
		"items[0].name": "c.yaml:3", "items[0].wait": "--set items[0].wait", "items[1].priority": "FAIRLEAD_ITEMS__1__PRIORITY",
		"attempts": config.SourceDefault} {
		assert.Equal(t, want, l.Sources[key], key)
	}
}

func TestEnvironment(t *testing.T) {
	l := source{
		yaml: "backends: {a.b: {name: x}, a-b.c: {name: y}}\n",
		env: []string{
			`FAIRLEAD_ITEMS=[{"name":"json"},{"name":"two"}]`,
			"FAIRLEAD_ITEMS__2__NAME=three", "FAIRLEAD_ITEMS__10__NAME=eleven",
			"FAIRLEAD_ITEMS__3__NAME=4", "FAIRLEAD_ITEMS__4__NAME=5", "FAIRLEAD_ITEMS__5__NAME=6", "FAIRLEAD_ITEMS__6__NAME=7",
			"FAIRLEAD_ITEMS__7__NAME=8", "FAIRLEAD_ITEMS__8__NAME=9", "FAIRLEAD_ITEMS__9__NAME=10",
			"FAIRLEAD_BACKENDS__A_B__WAIT=5s", "FAIRLEAD_BACKENDS__A_B_C__WAIT=6s", "FAIRLEAD_BACKENDS__NEW__NAME=n",
			"FAIRLEAD_GATEWAY={window: 32KiB, endpoints: [\"a,b\"]}", "FAIRLEAD_TOKEN=12345", "FAIRLEAD_ENABLED=false",
			"FAIRLEAD_GATEWAY__TOKEN_FILE=", "FAIRLEAD_ATTEMPTS=2",
			// what Kubernetes adds for services named fairlead and fairlead-gateway
			"FAIRLEAD_SERVICE_HOST=10.0.0.1", "FAIRLEAD_PORT=tcp://10.0.0.1:443", "FAIRLEAD_GATEWAY_PORT_8443_TCP_ADDR=10.0.0.1",
			"FAIRLEAD_GATEWAY_SERVICE_PORT_HTTPS=443", "FAIRLEAD_GATEWAY_PORT_8443_TCP=tcp://10.0.0.1:8443",
		}}.mustLoad(t)
	require.Len(t, l.Config.Items, 11)
	assert.Equal(t, "json", l.Config.Items[0].Name)
	assert.Equal(t, "eleven", l.Config.Items[10].Name)
	assert.Equal(t, sampleItem{"x", "high", 5 * time.Second, sampleKeys{Mode: "strict"}}, l.Config.Backends["a.b"])
	assert.Equal(t, 6*time.Second, l.Config.Backends["a-b.c"].Wait)
	assert.Equal(t, "n", l.Config.Backends["new"].Name)
	assert.Equal(t, 32*config.KiB, l.Config.Gateway.Window)
	assert.Equal(t, []string{"a,b"}, l.Config.Gateway.Endpoints)
	assert.Equal(t, logging.Secret("12345"), l.Config.Token)
	assert.Equal(t, 2, l.Config.Attempts)
	assert.False(t, l.Config.Enabled)
}

func TestFlags(t *testing.T) {
	var f config.Flags
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	f.Register(fs)
	path := writeFile(t, "gateway: {log_level: x}\nlisten: ':1'\n")
	require.NoError(t, fs.Parse([]string{"--set", "backends.default.wait=7s", "--set=gateway.format=text", "--config", path}))
	_, err := config.Load(sampleDefault(), config.Input{Flags: f, Environ: []string{}})
	assert.ErrorContains(t, err, "c.yaml:1: gateway.log_level: unknown key")

	require.NoError(t, os.WriteFile("d.yaml", []byte("listen: ':2'\n"), 0o600))
	f.File = ""
	l, err := config.Load(sampleDefault(), config.Input{Flags: f, Environ: []string{"FAIRLEAD_CONFIG=d.yaml"}})
	require.NoError(t, err)
	assert.Equal(t, "d.yaml", l.File)
	assert.Equal(t, ":2", l.Config.Listen)
	assert.Equal(t, "text", l.Config.Gateway.Format)
	assert.Equal(t, 7*time.Second, l.Config.Backends["default"].Wait)
	require.Error(t, fs.Parse([]string{"--set", "nonsense"}))
	require.ErrorIs(t, f.Set("=x"), errs.ConfigInvalid)
}

type logged struct {
	Log config.Log `koanf:"log" doc:"log"`
}

func (logged) Validate() []config.Problem { return nil }

func TestLogFlags(t *testing.T) {
	var f config.Flags
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	f.Register(fs)
	require.NoError(t, fs.Parse([]string{"--log-level=trace", "--log-format", "auto"}))
	l, err := config.Load(logged{config.DefaultLog()}, config.Input{Flags: f, Environ: []string{"FAIRLEAD_LOG__LEVEL=warn"}})
	require.NoError(t, err)
	assert.Equal(t, config.Log{Level: "trace", Format: "auto"}, l.Config.Log)
	assert.Equal(t, "--log-level", l.Sources["log.level"])
	f = config.Flags{}
	require.NoError(t, fs.Parse([]string{"--log-level=loud"}))
	_, err = config.Load(logged{config.DefaultLog()}, config.Input{Flags: f, Environ: []string{}})
	assert.ErrorContains(t, err, `--log-level: log.level: "loud": allowed: a string: error, warn, info, debug or trace`)
}

func TestUsesTheProcessEnvironmentByDefault(t *testing.T) {
	t.Setenv("FAIRLEAD_ATTEMPTS", "4")
	l, err := config.Load(sampleDefault(), config.Input{})
	require.NoError(t, err)
	assert.Equal(t, 4, l.Config.Attempts)
}

func TestMissingFile(t *testing.T) {
	_, err := config.Load(sampleDefault(), config.Input{Flags: config.Flags{File: "/nonexistent/c.yaml"}, Environ: []string{}})
	require.ErrorIs(t, err, errs.ConfigUnreadable)
	assert.Contains(t, err.Error(), "/nonexistent/c.yaml")
	_, err = config.Load(sampleDefault(), config.Input{Flags: config.Flags{File: t.TempDir()}, Environ: []string{}})
	require.ErrorIs(t, err, errs.ConfigUnreadable)
	assert.Equal(t, errs.ExitConfiguration, errs.ExitCode(err))
}

func TestEntriesMaskSecrets(t *testing.T) {
	l := source{env: []string{"FAIRLEAD_TOKEN=s3cret", "FAIRLEAD_PROXY=http://user:s3cret@proxy:1"}}.mustLoad(t)
	entries := map[string]config.Entry{}
	for _, e := range l.Entries() {
		entries[e.Key] = e
		assert.NotContains(t, fmt.Sprint(e), "s3cret")
	}
	assert.Equal(t, config.Entry{"token", "***", "FAIRLEAD_TOKEN"}, entries["token"])
	assert.Equal(t, "http://user:xxxxx@proxy:1", entries["proxy"].Value)
	assert.Equal(t, config.Entry{"wait", "1m30s", config.SourceDefault}, entries["wait"])
	assert.Equal(t, "256KiB", entries["gateway.window"].Value)
	assert.Equal(t, "1m", entries["backends.default.wait"].Value)
	assert.Len(t, l.Sources, len(entries))
}

func TestDiff(t *testing.T) {
	old, changed := sampleDefault(), sampleDefault()
	changed.Wait, changed.Gateway.Window = time.Second, config.MiB
	changed.Token = "new"
	changed.Gateway.Endpoints = []string{}
	changed.Items = []sampleItem{{Name: "a"}}
	changed.Backends = map[string]sampleItem{"default": {Priority: "high", Wait: time.Minute}}
	keys := config.Diff(old, changed)
	assert.Equal(t, []string{"backends.default.priority", "gateway.window", "items", "items[0].keys.file", "items[0].keys.mode",
		"items[0].name", "items[0].priority", "items[0].wait", "token", "wait"}, keys)
	assert.Empty(t, config.Diff(old, sampleDefault()))
}
