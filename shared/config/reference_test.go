package config_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/config"
	"fairlead/shared/errs"
)

// Verifies: R9.5, R9.10
func TestEveryKeyIsDocumentedAndSettable(t *testing.T) {
	keys, err := config.Keys(sampleDefault())
	require.NoError(t, err)
	byPath := map[string]config.Key{}
	for _, k := range keys {
		byPath[k.Path] = k
		assert.NotEmpty(t, k.Doc, k.Path)
		if !k.Value {
			continue
		}
		assert.NotEmpty(t, k.Example, k.Path)
		env := strings.NewReplacer("<n>", "0", "<NAME>", "DEFAULT").Replace(k.Env)
		key := strings.NewReplacer("[]", "[0]", "<name>", "default").Replace(k.Path)
		s := source{env: []string{env + "=" + k.Example}}
		if strings.HasPrefix(k.Path, "items") {
			s.yaml = "items: [{name: x}]"
		}
		assert.Equal(t, env, s.mustLoad(t).Sources[key])
	}
	assert.Equal(t, config.Key{Path: "items[].keys.mode", Env: "FAIRLEAD_ITEMS__<n>__KEYS__MODE", Type: "a string",
		Default: "strict", Doc: "mode", Example: "first-use", Value: true}, byPath["items[].keys.mode"])
	assert.Equal(t, "a whole number from 1 to 16", byPath["attempts"].Type)
	assert.Equal(t, "a duration from 0s to 1h", byPath["wait"].Type)
	assert.Equal(t, "a size from 16KiB", byPath["gateway.window"].Type)
	assert.Equal(t, "1m30s", byPath["wait"].Default)
	assert.Equal(t, `""`, byPath["token"].Default)
	assert.Len(t, keys, 9+5+2*6)
}

func TestReferenceIsAPageOfTables(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, config.WriteReference(&b, config.ReferenceTitle("sample"), sampleDefault()))
	page := b.String()
	assert.True(t, strings.HasPrefix(page, "# Configuration of the sample\n"))
	for _, want := range []string{
		"\n## Single keys\n", "\n## `gateway`\n\nthe gateway\n", "\n## `items`\n\nitems | things\n",
		"| `wait` | `FAIRLEAD_WAIT` | a duration from 0s to 1h | `1m30s` | wait | `1m` |\n",
		"| `backends` | `FAIRLEAD_BACKENDS` | a mapping from names to mappings | `{default: …}` | the whole section |  |\n",
		"| `backends.<name>.keys.file` | `FAIRLEAD_BACKENDS__<NAME>__KEYS__FILE` | a string | `\"\"` | file | `/f` |\n",
	} {
		assert.Contains(t, page, want)
	}
	columns := 0
	for line := range strings.SplitSeq(page, "\n") {
		if strings.HasPrefix(line, "|") {
			columns = strings.Count(strings.ReplaceAll(line, `\|`, ""), "|")
			assert.Equal(t, 7, columns, line)
		}
	}
	assert.Equal(t, 7, columns)
}

// Verifies: R9.9
func TestDefaultsAreAFileThatLoadsAsTheDefaults(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, config.WriteDefaults(&b, sampleDefault()))
	text := b.String()
	assert.Contains(t, text, "# wait\nwait: 1m30s\n")
	assert.Contains(t, text, "window: 256KiB\n")
	assert.Contains(t, text, `# Each has these defaults: {name: "", priority: high, wait: 1s, keys: {mode: strict, file: ""}}`)
	l := source{yaml: text}.mustLoad(t)
	assert.Empty(t, config.Diff(sampleDefault(), l.Config))

	keys, err := config.Keys(sampleDefault())
	require.NoError(t, err)
	for _, k := range keys {
		if k.Value && !strings.ContainsAny(k.Path, "[<") {
			assert.Equal(t, "c.yaml:", l.Sources[k.Path][:7], "%s is not in the file", k.Path)
		}
	}
}

func TestDefaultsMaskSecretsAndShowLists(t *testing.T) {
	d := sampleDefault()
	d.Token = "s3cret"
	d.Items = []sampleItem{{Name: "one"}}
	d.Gateway.Endpoints = []string{"a"}
	var b bytes.Buffer
	require.NoError(t, config.WriteDefaults(&b, d))
	assert.NotContains(t, b.String(), "s3cret")
	assert.Contains(t, b.String(), "- name: one\n")
}

func run(t *testing.T, environ []string, args ...string) (string, error) {
	t.Helper()
	var flags config.Flags
	var out bytes.Buffer
	root := &cobra.Command{Use: "x", SilenceErrors: true}
	flags.Register(root.PersistentFlags())
	root.AddCommand(config.Command(config.Program[sample]{Name: "sample", Default: sampleDefault, Flags: &flags, Environ: environ}))
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"config"}, args...))
	err := root.Execute()
	return out.String(), err
}

// Verifies: R9.9
func TestCommands(t *testing.T) {
	path := writeFile(t, "wait: 1s\n")
	out, err := run(t, []string{}, "check", "--config", path)
	require.NoError(t, err)
	assert.Equal(t, "ok\n", out)

	require.NoError(t, os.WriteFile(path, []byte("wait: 1\nwhat: 2\n"), 0o600))
	out, err = run(t, []string{"FAIRLEAD_ATTEMPTS=x"}, "check", "--config", path, "--set", "enabled=no")
	require.ErrorIs(t, err, errs.ConfigInvalid)
	assert.Equal(t, 2, errs.ExitCode(err))
	assert.Empty(t, out)
	var ps config.Problems
	require.True(t, errors.As(err, &ps))
	assert.Len(t, ps, 4)
	assert.Equal(t, 5, len(strings.Split(err.Error(), "\n")), "one line each: %s", err)

	out, err = run(t, []string{}, "defaults")
	require.NoError(t, err)
	assert.Contains(t, out, "wait: 1m30s")
	out, err = run(t, []string{}, "reference")
	require.NoError(t, err)
	assert.Contains(t, out, "# Configuration of the sample\n")
}

type badType struct {
	X float64 `koanf:"x" doc:"x"`
}
type badTag struct {
	X int `doc:"x"`
}
type badDoc struct {
	X int `koanf:"x"`
}
type badMin struct {
	X time.Duration `koanf:"x" doc:"x" min:"1"`
}
type badMax struct {
	X string `koanf:"x" doc:"x" max:"1"`
}
type badInner struct {
	X []badType `koanf:"x" doc:"x"`
}
type notStruct int

func (badType) Validate() []config.Problem   { return nil }
func (badTag) Validate() []config.Problem    { return nil }
func (badDoc) Validate() []config.Problem    { return nil }
func (badMin) Validate() []config.Problem    { return nil }
func (badMax) Validate() []config.Problem    { return nil }
func (badInner) Validate() []config.Problem  { return nil }
func (notStruct) Validate() []config.Problem { return nil }

func TestMalformedStructsAreRefused(t *testing.T) {
	refuses[badType](t)
	refuses[badTag](t)
	refuses[badDoc](t)
	refuses[badMin](t)
	refuses[badMax](t)
	refuses[badInner](t)
	refuses[notStruct](t)
}

func refuses[T config.Validator](t *testing.T) {
	t.Helper()
	var zero T
	_, err := config.Load(zero, config.Input{Environ: []string{}})
	require.ErrorIs(t, err, errs.Internal)
	_, err = config.Keys(zero)
	require.ErrorIs(t, err, errs.Internal)
	require.ErrorIs(t, config.WriteDefaults(&bytes.Buffer{}, zero), errs.Internal)
	require.ErrorIs(t, config.WriteReference(&bytes.Buffer{}, "x", zero), errs.Internal)
}
