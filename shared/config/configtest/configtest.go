// Package configtest holds the checks that the configuration of every program has to pass. For tests only.
package configtest

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/config"
)

// LoadFile loads a file over the defaults with an empty environment and fails the test on any problem.
func LoadFile[T config.Validator](t *testing.T, defaults T, path string) *config.Loaded[T] {
	t.Helper()
	l, err := config.Load(defaults, config.Input{Flags: config.Flags{File: path}, Environ: []string{}})
	require.NoError(t, err)
	return l
}

// NamesEveryKey fails for each key of the struct that the loaded file does not set.
func NamesEveryKey[T config.Validator](t *testing.T, defaults T, l *config.Loaded[T]) {
	t.Helper()
	for _, k := range values(t, defaults) {
		pattern := regexp.QuoteMeta(k.Path)
		pattern = strings.ReplaceAll(pattern, `\[\]`, `\[[0-9]+\]`)
		pattern = strings.ReplaceAll(pattern, "<name>", config.NameRule)
		named := false
		for key, source := range l.Sources {
			ok, err := regexp.MatchString("^"+pattern+"$", key)
			require.NoError(t, err)
			named = named || ok && strings.HasPrefix(source, l.File+":")
		}
		assert.True(t, named, "%s does not name %s", l.File, k.Path)
	}
}

// SettableByEnvironment sets each key to its example through its environment variable, and checks that the value
// arrives. T should validate nothing, since one example alone need not fit the other keys.
func SettableByEnvironment[T config.Validator](t *testing.T, defaults T) {
	t.Helper()
	for _, k := range values(t, defaults) {
		env := strings.NewReplacer("<n>", "0", "<NAME>", "X").Replace(k.Env)
		key := strings.NewReplacer("[]", "[0]", "<name>", "x").Replace(k.Path)
		l, err := config.Load(defaults, config.Input{Environ: []string{env + "=" + k.Example}})
		if !assert.NoError(t, err) {
			continue
		}
		assert.Equal(t, env, l.Sources[key], key)
		if !onlyOne(k) {
			assert.NotEqual(t, k.Default, k.Example, "%s: the example is the default, which shows nothing", key)
			assert.NotEmpty(t, config.Diff(defaults, l.Config), "%s: the value did not arrive", key)
		}
	}
}

// onlyOne reports whether this version takes only one value for a key: its default, which is then the example too.
func onlyOne(k config.Key) bool { return strings.HasSuffix(k.Type, "in this version") }

// values are the keys that hold a value.
func values[T config.Validator](t *testing.T, defaults T) []config.Key {
	t.Helper()
	keys, err := config.Keys(defaults)
	require.NoError(t, err)
	var out []config.Key
	for _, k := range keys {
		if k.Value {
			assert.True(t, k.Example != "" || onlyOne(k), "%s needs an example", k.Path)
			out = append(out, k)
		}
	}
	require.NotEmpty(t, out)
	return out
}

// ReferenceIsCurrent compares the page at path with what the code generates, or writes it if update is set.
func ReferenceIsCurrent[T config.Validator](t *testing.T, program, path string, defaults T, update bool) {
	t.Helper()
	var page bytes.Buffer
	require.NoError(t, config.WriteReference(&page, config.ReferenceTitle(program), defaults))
	if update {
		require.NoError(t, os.WriteFile(path, page.Bytes(), 0o644))
	}
	have, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(have), page.String(), "%s is out of date: go test ./%s/config -args -update", path, program)
}

// DefaultsAreComplete writes the defaults as a file and checks that it loads as exactly them and names every single key.
func DefaultsAreComplete[T config.Validator](t *testing.T, defaults T) {
	t.Helper()
	var text bytes.Buffer
	require.NoError(t, config.WriteDefaults(&text, defaults))
	path := t.TempDir() + "/defaults.yaml"
	require.NoError(t, os.WriteFile(path, text.Bytes(), 0o600))
	l := LoadFile(t, defaults, path)
	assert.Empty(t, config.Diff(defaults, l.Config))
	for _, k := range values(t, defaults) {
		if strings.ContainsAny(k.Path, "[<") {
			leaf := k.Path[strings.LastIndex(k.Path, ".")+1:]
			assert.Contains(t, text.String(), leaf+": ", "the comment of the list or map names its defaults")
			continue
		}
		assert.True(t, strings.HasPrefix(l.Sources[k.Path], path+":"), "the defaults do not name %s", k.Path)
	}
}
