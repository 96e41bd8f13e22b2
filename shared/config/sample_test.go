package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// sample has a field of every kind.
type sample struct {
	Listen   string                `koanf:"listen" doc:"address to listen on" example:":1"`
	Proxy    string                `koanf:"proxy" secret:"url" doc:"proxy" example:"http://proxy:3128"`
	Token    logging.Secret        `koanf:"token" doc:"token" example:"abc"`
	Enabled  bool                  `koanf:"enabled" doc:"switch" example:"false"`
	Attempts int                   `koanf:"attempts" min:"1" max:"16" doc:"attempts" example:"5"`
	Wait     time.Duration         `koanf:"wait" max:"1h" doc:"wait" example:"1m"`
	Gateway  sampleGateway         `koanf:"gateway" doc:"the gateway"`
	Items    []sampleItem          `koanf:"items" doc:"items | things"`
	Backends map[string]sampleItem `koanf:"backends" doc:"backends by name"`
}

type sampleGateway struct {
	Endpoints  []string     `koanf:"endpoints" doc:"endpoints" example:"a,b"`
	TokenFile  string       `koanf:"token_file" doc:"file" example:"/run/token"`
	Window     config.Bytes `koanf:"window" min:"16KiB" doc:"window" example:"1MiB"`
	config.Log `koanf:",squash"`
}

type sampleItem struct {
	Name     string        `koanf:"name" doc:"name" example:"x"`
	Priority string        `koanf:"priority" enum:"high|low" doc:"priority" example:"low"`
	Wait     time.Duration `koanf:"wait" doc:"wait" example:"2s"`
	Keys     sampleKeys    `koanf:"keys" doc:"keys"`
}

func (i *sampleItem) SetDefaults() {
	*i = sampleItem{Priority: "high", Wait: time.Second, Keys: sampleKeys{Mode: "strict"}}
}

type sampleKeys struct {
	Mode string `koanf:"mode" doc:"mode" example:"first-use"`
	File string `koanf:"file" doc:"file" example:"/f"`
}

func (s sample) Validate() []config.Problem {
	var c config.Check
	c.Listen("listen", s.Listen, true)
	if s.Token != "" && s.Gateway.TokenFile != "" {
		c.Refuse("token", "give either token or gateway.token_file")
	}
	for i, item := range s.Items {
		c.Required(config.At("items", i)+".name", item.Name)
	}
	return c.Problems
}

func sampleDefault() sample {
	return sample{Listen: ":80", Enabled: true, Attempts: 10, Wait: 90 * time.Second,
		Gateway:  sampleGateway{Window: 256 * config.KiB, Log: config.DefaultLog()},
		Backends: map[string]sampleItem{"default": {Priority: "low", Wait: time.Minute}}}
}

// source is where a test's configuration comes from.
type source struct {
	yaml string
	env  []string
	set  []string
}

func (s source) load(t *testing.T) (*config.Loaded[sample], error) {
	t.Helper()
	in := config.Input{Environ: append([]string{"PATH=/bin"}, s.env...)}
	if s.yaml != "" {
		in.Flags.File = writeFile(t, s.yaml)
	}
	for _, text := range s.set {
		require.NoError(t, in.Flags.Set(text))
	}
	return config.Load(sampleDefault(), in)
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	t.Chdir(t.TempDir()) // so that sources read as "c.yaml:1"
	require.NoError(t, os.WriteFile("c.yaml", []byte(text), 0o600))
	require.True(t, filepath.IsLocal("c.yaml"))
	return "c.yaml"
}

func (s source) mustLoad(t *testing.T) *config.Loaded[sample] {
	t.Helper()
	l, err := s.load(t)
	require.NoError(t, err)
	return l
}

// problems loads what must be refused and returns the problems as text.
func (s source) problems(t *testing.T) []string {
	t.Helper()
	l, err := s.load(t)
	require.Nil(t, l)
	require.ErrorIs(t, err, errs.ConfigInvalid)
	require.Equal(t, errs.ExitConfiguration, errs.ExitCode(err))
	var ps config.Problems
	require.True(t, errors.As(err, &ps))
	var out []string
	for _, p := range ps {
		require.Contains(t, err.Error(), p.String())
		out = append(out, p.String())
	}
	return out
}
