package config_test

import (
	"errors"
	"flag"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/config"
	"fairlead/shared/config/configtest"
	"fairlead/shared/errs"
	sidecar "fairlead/sidecar/config"
)

var update = flag.Bool("update", false, "write the generated reference")

// unchecked is the configuration without its validation.
type unchecked struct {
	sidecar.Config `koanf:",squash"`
}

func (unchecked) Validate() []config.Problem { return nil }

func TestExamplesLoad(t *testing.T) {
	l := configtest.LoadFile(t, sidecar.Default(), "../../configs/sidecar.minimal.yaml")
	assert.NotEmpty(t, l.Config.Listeners)
	l = configtest.LoadFile(t, sidecar.Default(), "../../configs/sidecar.complete.yaml")
	configtest.NamesEveryKey(t, sidecar.Default(), l)
}

// Verifies: R9.5
func TestEveryKeyHasAnEnvironmentVariable(t *testing.T) {
	configtest.SettableByEnvironment(t, unchecked{sidecar.Default()})
}

// Verifies: R9.9
func TestDefaultsPrintEveryDefault(t *testing.T) {
	configtest.DefaultsAreComplete(t, unchecked{sidecar.Default()})
}

// Verifies: R9.10
func TestReferenceIsCurrent(t *testing.T) {
	configtest.ReferenceIsCurrent(t, "sidecar", "../../docs/configuration-sidecar.md", sidecar.Default(), *update)
}

func problems(t *testing.T, text string) []string {
	t.Helper()
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("c.yaml", []byte(text), 0o600))
	_, err := config.Load(sidecar.Default(), config.Input{Flags: config.Flags{File: "c.yaml"}, Environ: []string{}})
	if err == nil {
		return nil
	}
	require.ErrorIs(t, err, errs.ConfigInvalid)
	var ps config.Problems
	require.True(t, errors.As(err, &ps))
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

// Verifies: R9.3
func TestReportsAllProblemsAtOnce(t *testing.T) {
	assert.Equal(t, []string{
		`c.yaml:16: listeners[2].prio: unknown key; did you mean priority?`,
		`c.yaml:1: profile: "mobile": allowed: a string: stable, unstable, low-bandwidth or ""`,
		`c.yaml:10: tunnels.max: 17: allowed: a whole number from 1 to 16`,
		`c.yaml:12: queue.size: 0: allowed: a whole number from 1 to 100000`,
		`c.yaml:15: listeners[1].priority: "urgent": allowed: a string: high, normal or low`,
		`c.yaml:15: listeners[1].delivery: "fast": allowed: a string: stream or spool`,
		`c.yaml:17: tunnel.heartbeat: 45s: allowed: a duration with its unit, such as 200ms, 30s or 5m, from 1s to 30s`,
		`c.yaml:4: gateway.endpoints[0]: "ws://a/": allowed: wss://; ws:// only with gateway.allow_plaintext: true`,
		`c.yaml:5: gateway.endpoints[1]: "wss://user:xxxxx@b/": allowed: a URL without user name, password and query; the token goes into gateway.token_file`,
		`c.yaml:6: gateway.endpoints[2]: "https://c": allowed: a URL that begins with wss:// or ws://`,
		`c.yaml:7: gateway.token: "***": allowed: either gateway.token or gateway.token_file, not both`,
		`c.yaml:9: gateway.proxy: "socks5://user:xxxxx@p": allowed: a URL that begins with http:// or https://`,
		`c.yaml:11: reconnect.cap: 1s: allowed: at least reconnect.base, which is 1m`,
		`c.yaml:15: listeners[1].name: "git": used already by listeners[0]`,
		`c.yaml:15: listeners[1].listen: "127.0.0.1:1": used already by listeners[0]`,
		`c.yaml:16: listeners[2].name: "A": allowed: a name such as git or orders-db: [a-z0-9][a-z0-9._-]{0,62}`,
		`c.yaml:16: listeners[2].listen: "unix:rel": allowed: host:port or unix:/absolute/path`,
		`c.yaml:16: listeners[2].route: "": allowed: a name such as git or orders-db: [a-z0-9][a-z0-9._-]{0,62}`,
		`default: spool.dir: "": required, since a listener has delivery: spool`,
		`c.yaml:17: tunnel.memory: 1MiB: allowed: at least max_window, which is 16MiB`,
		`c.yaml:18: admin.listen: "9901": allowed: host:port`,
	}, problems(t, `profile: mobile
gateway:
  endpoints:
  - ws://a/
  - wss://user:s3cret@b/
  - https://c
  token: s3cret
  token_file: /t
  proxy: socks5://user:s3cret@p
tunnels: {min: 2, max: 17}
reconnect: {base: 1m, cap: 1s}
queue: {size: 0}
listeners:
- {name: git, listen: "127.0.0.1:1", route: git, delivery: spool}
- {name: git, listen: "127.0.0.1:1", route: git, delivery: fast, priority: urgent}
- {name: A, listen: "unix:rel", prio: high}
tunnel: {heartbeat: 45s, memory: 1MiB}
admin: {listen: "9901"}
`))
}

func TestAcceptsWhatIsAllowed(t *testing.T) {
	assert.Empty(t, problems(t, `
gateway: {endpoints: ["ws://127.0.0.1:8080", "wss://[::1]:8443/tunnel"], allow_plaintext: true, proxy: "http://u:p@proxy:3128"}
tunnels: {min: 16, max: 16}
reconnect: {max_attempts: 0, enabled: false}
queue: {wait: 0s}
listeners:
- {name: a, listen: "127.0.0.1:0", route: r, priority: low}
- {name: b, listen: "127.0.0.1:0", route: r, priority: high, delivery: stream}
- {name: c, listen: "unix:/run/c.sock", route: r}
admin: {listen: ""}
shutdown: {drain: 0s}
`))
}

func TestNeedsAnEndpoint(t *testing.T) {
	assert.Equal(t, []string{"default: gateway.endpoints: []: allowed: at least one URL that begins with wss://"}, problems(t, ""))
	assert.Equal(t, []string{
		`c.yaml:1: gateway.endpoints[1]: "wss://a": given twice`,
		`c.yaml:1: tunnels.max: 4: allowed: at least tunnels.min, which is 5`,
	}, problems(t, "{gateway: {endpoints: [wss://a, wss://a]}, tunnels: {min: 5}}"))
}

func TestRefusesWhatDoesNotFitTogether(t *testing.T) {
	assert.Equal(t, []string{
		`c.yaml:1: gateway.weights: [1]: 1 numbers for 2 endpoints; allowed: one for each, in their order`,
		`c.yaml:2: state_file: "x": allowed: an absolute path`,
		`c.yaml:3: spool.dir: "x": allowed: an absolute path`,
		`c.yaml:3: spool.key_file: "": required, since spool.old_key_files is set`,
	}, sorted(problems(t, "gateway: {endpoints: [wss://a, wss://b], weights: [\"1\"]}\nstate_file: x\nspool: {dir: x, old_key_files: [/k]}")))
	assert.Equal(t, []string{`c.yaml:1: gateway.weights[1]: "-1": allowed: a whole number from 0 to 1000`},
		problems(t, `gateway: {endpoints: [wss://a, wss://b], weights: ["1", "-1"]}`))
	assert.Equal(t, []string{`c.yaml:1: gateway.weights: [0, 0]: allowed: at least one number above 0`},
		problems(t, `gateway: {endpoints: [wss://a, wss://b], weights: ["0", "0"]}`))
}

func load(t *testing.T, args ...string) *config.Loaded[sidecar.Config] {
	t.Helper()
	environ := append([]string{"FAIRLEAD_GATEWAY__ENDPOINTS=wss://a"}, args...)
	l, err := config.Load(sidecar.Default(), config.Input{Environ: environ})
	require.NoError(t, err)
	return l
}

// Verifies: R9.2
func TestAProfileChangesDefaultsOnly(t *testing.T) {
	plain := load(t).Config
	for _, p := range plain.Profiles() {
		l := load(t, "FAIRLEAD_PROFILE="+p.Name)
		want := p.Defaults
		want.Gateway.Endpoints = []string{"wss://a"}
		assert.Empty(t, config.Diff(want, l.Config), p.Name)
		changed := config.Diff(sidecar.Default(), p.Defaults)
		assert.Greater(t, len(changed), 4, "%s differs from the defaults", p.Name)
		for _, key := range changed {
			if key != "profile" {
				assert.Equal(t, "profile "+p.Name, l.Sources[key], key)
			}
		}
		assert.Equal(t, "FAIRLEAD_PROFILE", l.Sources["profile"])
		l = load(t, "FAIRLEAD_PROFILE="+p.Name, "FAIRLEAD_QUEUE__WAIT=7s")
		assert.Equal(t, 7*time.Second, l.Config.Queue.Wait, "what is set counts more than the profile")
		assert.Equal(t, "FAIRLEAD_QUEUE__WAIT", l.Sources["queue.wait"])
	}
}

// A value that only the profile's defaults make right, or wrong, is judged with them.
func TestAProfileIsThereBeforeTheChecks(t *testing.T) {
	l := load(t, "FAIRLEAD_PROFILE=low-bandwidth", "FAIRLEAD_TUNNEL__MEMORY=1MiB") // max_window is 16 MiB without the profile
	assert.Equal(t, config.MiB, l.Config.Tunnel.Memory)
	_, err := config.Load(sidecar.Default(), config.Input{Environ: []string{"FAIRLEAD_GATEWAY__ENDPOINTS=wss://a", "FAIRLEAD_PROFILE=unstable", "FAIRLEAD_TUNNELS__MAX=1"}})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	assert.ErrorContains(t, err, "tunnels.max: 1: allowed: at least tunnels.min, which is 2")
}

// Verifies: R9.1
func TestAttemptsTimeoutsSizesAndLimitsCanBeSet(t *testing.T) {
	keys, err := config.Keys(sidecar.Default())
	require.NoError(t, err)
	there := map[string]config.Key{}
	for _, k := range keys {
		there[k.Path] = k
	}
	for _, key := range []string{"reconnect.max_attempts", "reconnect.base", "reconnect.cap", "gateway.connect_timeout", "gateway.failback", "gateway.probe", "queue.wait", "queue.size",
		"queue.pressure", "queue.early_bytes", "queue.release", "tunnels.min", "tunnels.max", "tunnel.heartbeat", "tunnel.idle", "tunnel.max_message", "tunnel.window", "tunnel.max_window",
		"tunnel.memory", "spool.size", "spool.overlap", "spool.receiving", "spool.connections", "spool.concurrency", "spool.opens_per_minute",
		"spool.interval", "spool.end_wait", "spool.stall", "spool.retry.cap", "spool.retry.denied", "shutdown.drain", "shutdown.pod_drain", "shutdown.quiet"} {
		k, ok := there[key]
		require.True(t, ok, key)
		assert.NotEmpty(t, k.Default, key)
		l := load(t, k.Env+"="+k.Example, "FAIRLEAD_SPOOL__SIZE=10GiB")
		assert.Contains(t, config.Diff(sidecar.Default(), l.Config), key)
	}
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}
