package config_test

import (
	"errors"
	"flag"
	"os"
	"testing"

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
		`c.yaml:10: tunnels.max: 17: allowed: a whole number from 1 to 16`,
		`c.yaml:12: queue.size: 0: allowed: a whole number from 1 to 100000`,
		`c.yaml:15: listeners[1].priority: "urgent": allowed: a string: high, normal or low`,
		`c.yaml:17: tunnel.heartbeat: 45s: allowed: a duration with its unit, such as 200ms, 30s or 5m, from 1s to 30s`,
		`c.yaml:1: profile: "unstable": not available in this version; allowed: "" (no profile)`,
		`c.yaml:4: gateway.endpoints[0]: "ws://a/": allowed: wss://; ws:// only with gateway.allow_plaintext: true`,
		`c.yaml:5: gateway.endpoints[1]: "wss://user:xxxxx@b/": allowed: a URL without user name, password and query; the token goes into gateway.token_file`,
		`c.yaml:6: gateway.endpoints[2]: "https://c": allowed: a URL that begins with wss:// or ws://`,
		`c.yaml:7: gateway.token: "***": allowed: either gateway.token or gateway.token_file, not both`,
		`c.yaml:9: gateway.proxy: "socks5://user:xxxxx@p": allowed: a URL that begins with http:// or https://`,
		`c.yaml:11: reconnect.cap: 1s: allowed: at least reconnect.base, which is 1m`,
		`c.yaml:14: listeners[0].delivery: "spool": not available in this version; allowed: stream`,
		`c.yaml:15: listeners[1].name: "git": used already by listeners[0]`,
		`c.yaml:15: listeners[1].listen: "127.0.0.1:1": used already by listeners[0]`,
		`c.yaml:15: listeners[1].delivery: "fast": allowed: stream`,
		`c.yaml:16: listeners[2].name: "A": allowed: a name such as git or orders-db: [a-z0-9][a-z0-9._-]{0,62}`,
		`c.yaml:16: listeners[2].listen: "unix:rel": allowed: host:port or unix:/absolute/path`,
		`c.yaml:16: listeners[2].route: "": allowed: a name such as git or orders-db: [a-z0-9][a-z0-9._-]{0,62}`,
		`c.yaml:17: tunnel.memory: 1MiB: allowed: at least max_window, which is 16MiB`,
		`c.yaml:18: admin.listen: "9901": allowed: host:port`,
	}, problems(t, `profile: unstable
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
