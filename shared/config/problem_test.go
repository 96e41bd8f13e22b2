package config_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/config"
)

const durationRule = "allowed: a duration with its unit, such as 200ms, 30s or 5m, from 0s to 1h"

// Verifies: R9.3
func TestAllProblemsAtOnceWithSourceKeyValueAndRule(t *testing.T) {
	got := source{
		yaml: `listen: nowhere
wait: 5
attempts: 99
enabled: yes
gatewey: {}
gateway:
  endpoint: [x]
  window: 65536
  token_file: /f
  level: [loud]
items:
  - {priority: urgent, nam: x}
  - 7
`,
		env: []string{"FAIRLEAD_WAIT=5", "FAIRLEAD_GATEWAY__TOKENFILE=x", "FAIRLEAD_BACKENDS__DEFAULT__WAIT=10"},
		set: []string{"gateway.window=1M", "token=abc", "nothing=1"},
	}.problems(t)
	assert.Equal(t, []string{
		"c.yaml:2: wait: 5: " + durationRule,
		`c.yaml:4: enabled: "yes": allowed: true or false`,
		"c.yaml:5: gatewey: unknown key; did you mean gateway?",
		"c.yaml:7: gateway.endpoint: unknown key; did you mean endpoints?",
		"c.yaml:8: gateway.window: 65536: allowed: a size with its unit (B, KiB, MiB, GiB), such as 64KiB, from 16KiB",
		"c.yaml:10: gateway.level: a list: allowed: a string: error, warn, info, debug or trace",
		"c.yaml:12: items[0].nam: unknown key; did you mean name?",
		"c.yaml:13: items[1]: a single value: allowed: a mapping",
		`FAIRLEAD_BACKENDS__DEFAULT__WAIT: backends.default.wait: "10": allowed: a duration with its unit, such as 200ms, 30s or 5m, from 0s`,
		"FAIRLEAD_GATEWAY__TOKENFILE: gateway.tokenfile: unknown key; did you mean token_file?",
		`FAIRLEAD_WAIT: wait: "5": ` + durationRule,
		`--set gateway.window: gateway.window: "1M": allowed: a size with its unit (B, KiB, MiB, GiB), such as 64KiB, from 16KiB`,
		"--set nothing: nothing: unknown key; allowed here: listen, proxy, token, enabled, attempts, wait, gateway, items or backends",
		"c.yaml:3: attempts: 99: allowed: a whole number from 1 to 16",
		`c.yaml:12: items[0].priority: "urgent": allowed: a string: high or low`,
		`c.yaml:1: listen: "nowhere": allowed: host:port or unix:/absolute/path`,
		`--set token: token: "***": give either token or gateway.token_file`,
		`c.yaml:12: items[0].name: "": required`,
	}, got)
}

// Verifies: R9.3
func TestRefusesInEveryLayer(t *testing.T) {
	for _, tc := range []struct {
		name, path, value string // value as in YAML
		want              string
	}{
		{"bare integer", "wait", "5", durationRule},
		{"quoted number", "wait", `"5"`, durationRule},
		{"bare zero", "wait", "0", durationRule},
		{"float", "wait", "1.5", durationRule},
		{"too long", "wait", "2h", durationRule},
		{"negative", "wait", "-1s", durationRule},
		{"number for a size", "gateway.window", "1024", "allowed: a size with its unit"},
		{"huge size", "gateway.window", "99999999999GiB", "allowed: a size with its unit"},
		{"small size", "gateway.window", "1B", "from 16KiB"},
		{"octal", "attempts", "010", "allowed: a whole number"},
		{"float for a number", "attempts", "1.0", "allowed: a whole number"},
		{"word for a switch", "enabled", "on", "allowed: true or false"},
		{"mapping for a scalar", "listen", "{a: b}", ""},
		{"bad enum in a map", "backends.default.priority", "HIGH", "high or low"},
		{"unknown in a map", "backends.default.keys.mod", "x", "did you mean mode?"},
		{"bad name", "backends.UPPER.name", "x", config.NameRule},
		{"deeper than a scalar", "wait.unit", "s", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inYAML := nest(strings.Split(tc.path, "."), tc.value)
			for _, p := range (source{yaml: inYAML}).problems(t) {
				assert.Contains(t, p, tc.want)
				assert.Contains(t, p, "c.yaml:1: "+strings.Split(tc.path, ".")[0])
			}
			value := strings.Trim(tc.value, `"`)
			if tc.path == "listen" || strings.Contains(tc.path, "UPPER") {
				return // any text is a string there; capitals are folded in variables
			}
			env := "FAIRLEAD_" + strings.ToUpper(strings.ReplaceAll(tc.path, ".", "__"))
			for _, p := range (source{env: []string{env + "=" + value}}).problems(t) {
				assert.True(t, strings.HasPrefix(p, env+": "+strings.Split(tc.path, ".")[0]), p)
				assert.Contains(t, p, tc.want)
			}
			for _, p := range (source{set: []string{tc.path + "=" + value}}).problems(t) {
				assert.True(t, strings.HasPrefix(p, "--set "+tc.path+": "), p)
				assert.Contains(t, p, tc.want)
			}
		})
	}
}

func nest(path []string, value string) string {
	if len(path) == 1 {
		return path[0] + ": " + value + "\n"
	}
	return path[0] + ": {" + strings.TrimSuffix(nest(path[1:], value), "\n") + "}\n"
}

func TestFileProblems(t *testing.T) {
	for _, tc := range []struct{ name, yaml, want string }{
		{"open list", "listen: ':1'\nproxy: [1\nwait: 1s\n", "c.yaml:2: not valid YAML: did not find expected ',' or ']'"},
		{"stray brace", "wait: 1s\n}\n", "c.yaml:2: not valid YAML: did not find expected key"},
		{"two colons", "wait: 1s\n listen: 2\n", "c.yaml:2: not valid YAML: mapping values are not allowed in this context"},
		{"unknown anchor", "wait: 1s\nlisten: *x\n", "c.yaml:2: not valid YAML: unknown anchor 'x' referenced"},
		{"bad first line", "\twait: 1s", "c.yaml:1: not valid YAML: found character that cannot start any token"},
		{"tab", "gateway:\n\tlevel: x\n", "c.yaml:2: not valid YAML: found character that cannot start any token"},
		{"second document", "listen: ':1'\n---\nlisten: ':2'\n", "c.yaml:2: not valid YAML: a second document; allowed: one"},
		{"bad second document", "listen: ':1'\n---\n\t", "not valid YAML"},
		{"root is a list", "- a\n", "c.yaml:1: a list: allowed: a mapping"},
		{"key twice", "wait: 1s\nwait: 2s\n", "c.yaml:2: wait: given twice, first in line 1"},
		{"null scalar", "wait:\n", "c.yaml:1: wait: nothing: " + durationRule},
		{"number as string", "listen: 80\n", "c.yaml:1: listen: 80: allowed: a string; put it in quotes"},
		{"quoted number", "attempts: '3'\n", `c.yaml:1: attempts: "3": allowed: a whole number from 1 to 16, without quotes`},
		{"string for a list", "gateway: {endpoints: a}\n", `c.yaml:1: gateway.endpoints: "a": allowed: a list of strings`},
		{"number in a list", "gateway: {endpoints: [a, 1]}\n", "c.yaml:1: gateway.endpoints[1]: 1: allowed: a string; put it in quotes"},
		{"mapping for a list", "items: {a: b}\n", "c.yaml:1: items: a mapping: allowed: a list of mappings"},
		{"capital name", "backends: {Git: {}}\n", "c.yaml:1: backends.Git: not a name; allowed: " + config.NameRule},
		{"merge key", "gateway: {<<: {level: x}}\n", "c.yaml:1: gateway.<<: unknown key"},
		{"key that would forge a line", "\"a\\nb\": 1\n", `c.yaml:1: "a\nb": unknown key`},
		{"alias to itself", "gateway: &a {endpoints: *a}\n", "c.yaml:1: gateway.endpoints: a mapping: allowed: a list of strings"},
		{"secret in a wrong place", "token: [s3cret]\n", "c.yaml:1: token: a list: allowed: a string"},
		{"numeric secret", "token: 1234\n", "c.yaml:1: token: ***: allowed: a string; put it in quotes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := source{yaml: tc.yaml}.problems(t)
			require.Len(t, got, 1)
			assert.Contains(t, got[0], tc.want)
			assert.NotContains(t, got[0], "s3cret")
			assert.True(t, strings.HasPrefix(got[0], "c.yaml"), got[0])
		})
	}
}

func TestEmptyFilesAndSectionsSetNothing(t *testing.T) {
	for _, text := range []string{"\n", "# nothing\n", "---\n", "{}", "gateway:\nitems:\nbackends:\n", "gateway: {endpoints: }\n"} {
		assert.Empty(t, config.Diff(sampleDefault(), source{yaml: text}.mustLoad(t).Config), "%q", text)
	}
}

func TestEnvironmentAndFlagProblems(t *testing.T) {
	for _, tc := range []struct {
		s    source
		want string
	}{
		{source{env: []string{"FAIRLEAD_ITEMS__1__NAME=x"}}, "FAIRLEAD_ITEMS__1__NAME: items.1: not an element; allowed: 0 to 0"},
		{source{set: []string{"items[x].name=x"}}, "--set items[x].name: items[x]: unknown key; did you mean items?"},
		{source{env: []string{"FAIRLEAD_ITEMS=[{"}}, "FAIRLEAD_ITEMS: items: not valid YAML or JSON: "},
		{source{env: []string{"FAIRLEAD_ITEMS="}}, `FAIRLEAD_ITEMS: items: "": allowed: a list of mappings as YAML or JSON`},
		{source{env: []string{"FAIRLEAD_GATEWAY__ENDPOINTS=[a"}}, "FAIRLEAD_GATEWAY__ENDPOINTS: gateway.endpoints: not valid YAML or JSON"},
		{source{env: []string{"FAIRLEAD_WAIT="}}, `FAIRLEAD_WAIT: wait: "": ` + durationRule},
		{source{env: []string{"FAIRLEAD_=x"}}, "FAIRLEAD_: no key is named; allowed: listen,"},
		{source{env: []string{"FAIRLEAD_GATEWAY_LEVEL=x"}}, "FAIRLEAD_GATEWAY_LEVEL: gateway_level: unknown key; did you mean gateway?"},
		{source{set: []string{"wait=" + strings.Repeat("9", 500)}}, strings.Repeat("9", 80) + `…"`},
	} {
		got := tc.s.problems(t)
		require.Len(t, got, 1)
		assert.Contains(t, got[0], tc.want)
	}
}

func TestProblemsDoNotRevealSecrets(t *testing.T) {
	const s = "s3cret"
	for _, src := range []source{
		{yaml: "tokn: " + s + "\n"},
		{yaml: "token: [" + s + "\n"},
		{yaml: "gateway: " + s + "\n"},
		{env: []string{"FAIRLEAD_TOKEN__X=" + s}},
		{env: []string{"FAIRLEAD_TOKEN=" + s, "FAIRLEAD_GATEWAY__TOKEN_FILE=/x"}},
		{set: []string{"tokn=" + s}},
	} {
		for _, p := range src.problems(t) {
			assert.NotContains(t, p, s)
		}
	}
}

func TestAliasesCannotMakeAFileHuge(t *testing.T) {
	text := "gateway: {endpoints: [&a x" + strings.Repeat(", *a", 100_000) + "]}\n"
	got := source{yaml: text}.problems(t)
	require.Len(t, got, 1)
	assert.Contains(t, got[0], "too large; allowed: 100000 values")

	text = "backends:\n  a0: &a {name: x}\n"
	for i := range 100 {
		text += fmt.Sprintf("  b%d: *a\n", i)
	}
	assert.Len(t, source{yaml: text}.mustLoad(t).Config.Backends, 102)
}

func TestSizes(t *testing.T) {
	for size, text := range map[config.Bytes]string{0: "0B", 1: "1B", 1023: "1023B", config.KiB: "1KiB", 1536: "1536B",
		config.MiB: "1MiB", 3 * config.GiB: "3GiB", config.GiB + config.KiB: "1048577KiB"} {
		assert.Equal(t, text, size.String())
		b, err := size.MarshalText()
		require.NoError(t, err)
		assert.Equal(t, text, string(b))
	}
}

func TestFormatDurationIsReadBack(t *testing.T) {
	for d, text := range map[time.Duration]string{0: "0s", time.Minute: "1m", time.Hour: "1h", 90 * time.Minute: "1h30m",
		10 * time.Second: "10s", time.Hour + 10*time.Second: "1h0m10s", 20 * time.Minute: "20m", 200 * time.Millisecond: "200ms"} {
		assert.Equal(t, text, config.FormatDuration(d))
	}
	rapid.Check(t, func(rt *rapid.T) {
		d := time.Duration(rapid.Int64().Draw(rt, "d"))
		back, err := time.ParseDuration(config.FormatDuration(d))
		if err != nil || back != d {
			rt.Fatalf("%v became %v: %v", d, back, err)
		}
	})
}
