package config_test

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gateway "fairlead/gateway/config"
	"fairlead/shared/config"
	"fairlead/shared/config/configtest"
	"fairlead/shared/errs"
)

var update = flag.Bool("update", false, "write the generated reference")

// unchecked is the configuration without its validation.
type unchecked struct {
	gateway.Config `koanf:",squash"`
}

func (unchecked) Validate() []config.Problem { return nil }

func TestExamplesLoad(t *testing.T) {
	l := configtest.LoadFile(t, gateway.Default(), "../../configs/gateway.minimal.yaml")
	assert.NotEmpty(t, l.Config.Routes)
	l = configtest.LoadFile(t, gateway.Default(), "../../configs/gateway.complete.yaml")
	configtest.NamesEveryKey(t, gateway.Default(), l)
	l = configtest.LoadFile(t, gateway.Default(), "../../configs/gateway.cluster.yaml")
	assert.Equal(t, gateway.StoreRedis, l.Config.Store.Kind)
	assert.NotEmpty(t, l.Config.Peer.SecretFile)
}

// Verifies: R9.5
func TestEveryKeyHasAnEnvironmentVariable(t *testing.T) {
	configtest.SettableByEnvironment(t, unchecked{gateway.Default()})
}

// Verifies: R9.9
func TestDefaultsPrintEveryDefault(t *testing.T) {
	configtest.DefaultsAreComplete(t, unchecked{gateway.Default()})
}

// Verifies: R9.10
func TestReferenceIsCurrent(t *testing.T) {
	configtest.ReferenceIsCurrent(t, "gateway", "../../docs/configuration-gateway.md", gateway.Default(), *update)
}

// load reads text as the file c.yaml and returns the problems as text.
func load(t *testing.T, text string) (*config.Loaded[gateway.Config], []string) {
	t.Helper()
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("c.yaml", []byte(text), 0o600))
	l, err := config.Load(gateway.Default(), config.Input{Flags: config.Flags{File: "c.yaml"}, Environ: []string{}})
	if err == nil {
		return l, nil
	}
	require.ErrorIs(t, err, errs.ConfigInvalid)
	var ps config.Problems
	require.True(t, errors.As(err, &ps))
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return nil, out
}

// base is valid; cases add to it.
const base = `tls: {disabled: true}
auth: {issuers: [{issuer: i, audience: a, jwks_file: /j}]}
`

func problems(t *testing.T, text string) []string {
	t.Helper()
	_, out := load(t, text)
	return out
}

func TestElementDefaults(t *testing.T) {
	l, ps := load(t, base+`backends: {git: {address: "g:22"}}
routes: {git: {backend: git}}
tiers: {default: {tunnels: 9}, gold: {opens_per_minute: 0}}
`)
	require.Empty(t, ps)
	c := l.Config
	assert.Equal(t, "passthrough", c.Routes["git"].Mode)
	assert.Equal(t, "10s", c.Backends["git"].DialTimeout.String())
	assert.Equal(t, "30s", c.Auth.Issuers[0].Leeway.String())
	assert.Equal(t, gateway.Tier{OpensPerMinute: 100, Burst: 100, Tunnels: 9, Streams: 100}, c.Tiers[gateway.DefaultTier])
	assert.Equal(t, gateway.Tier{OpensPerMinute: 0, Burst: 100, Tunnels: 3, Streams: 100}, c.Tiers["gold"])
}

// Verifies: R9.3
func TestReportsAllProblemsAtOnce(t *testing.T) {
	const name = "[a-z0-9][a-z0-9._-]{0,62}"
	assert.Equal(t, []string{
		"c.yaml:8: backends.Bad: not a name; allowed: " + name,
		"c.yaml:14: tiers.default.bandwidth: 5: allowed: a size with its unit (B, KiB, MiB, GiB), such as 64KiB, from 0B",
		"c.yaml:18: colour: unknown key; allowed here: listen, trusted_proxies, deflate, tls, auth, backends, routes, policy, opens, tiers, limits, revocations, breaker, ssh_pool, tunnel, store, peer, balance, audit, metrics, reload, admin, shutdown or log",
		"c.yaml:15: breaker.failures: 0: allowed: a whole number from 1",
		`c.yaml:1: listen: "8443": allowed: host:port`,
		`c.yaml:2: trusted_proxies[1]: "10.0.0.1": allowed: a network such as 10.0.0.0/8 or fd00::/8`,
		`c.yaml:3: tls.key_file: "": required, unless tls.disabled is true`,
		"default: auth.issuers: nothing: allowed: at least one issuer; without any, nobody could connect",
		`c.yaml:5: backends.bastion.address: "bastion": allowed: host:port`,
		`c.yaml:6: backends.git.certificate_file: "/cert": allowed: only together with key_file`,
		`c.yaml:10: routes.db.target: "": allowed: host:port`,
		`c.yaml:11: routes.git.target: "x:1": allowed: nothing, since the mode is passthrough; a target needs mode: forward`,
		`c.yaml:12: routes.lost.backend: "gti": no such backend; allowed: bastion, git`,
		`c.yaml:5: backends.bastion.user: "": required, since route db uses mode: forward`,
		`c.yaml:5: backends.bastion.key_file: "": required, since route db uses mode: forward`,
		`c.yaml:5: backends.bastion.host_keys.known_hosts_file: "": required, since route db uses mode: forward`,
		`c.yaml:13: policy[0].tenants[0]: "a/[": allowed: a tenant such as payments/orders, or a glob such as payments/*`,
		`c.yaml:13: policy[0].routes[0]: "nope": no such route; allowed: * and db, git, lost`,
		`c.yaml:13: policy[1].tenants: []: allowed: at least one tenant or glob`,
		`c.yaml:13: policy[1].routes: []: allowed: at least one route, or *`,
		`c.yaml:16: store.address: "": required`,
		`default: peer.secret_file: "": required`,
		`c.yaml:17: admin.token_file: "": this or admin.tokens is required, since admin.listen can be reached from other machines`,
	}, problems(t, `listen: "8443"
trusted_proxies: [10.0.0.0/8, 10.0.0.1]
tls: {cert_file: /c, client_ca_file: /c}
backends:
  bastion: {address: bastion}
  git: {address: "git:22", certificate_file: /cert}

  Bad: {address: "x:1"}
routes:
  db: {backend: bastion, mode: forward}
  git: {backend: git, target: "x:1"}
  lost: {backend: gti}
policy: [{tenants: ['a/['], routes: [nope]}, {}]
tiers: {default: {bandwidth: 5}}
breaker: {failures: 0}
store: {kind: redis}
admin: {listen: ":9902"}
colour: red
`))
}

func TestIssuers(t *testing.T) {
	const oneSource = "key sources; allowed: exactly one of jwks_url, jwks_file, jwks, kubernetes and hmac_secret_file"
	const template = "allowed: text in which {claim} or {claim.inner} stands for a claim of the token"
	for _, tc := range []struct {
		issuer string
		want   []string // key and rule
	}{
		{`jwks_file: /j, algorithms: [RS256, ES256, EdDSA]`, nil},
		{`jwks_url: "https://i/keys"`, nil},
		{`jwks_url: "http://127.0.0.1:8080/keys"`, nil},
		{`jwks_url: "http://localhost/keys"`, nil},
		{`hmac_secret_file: /h, algorithms: [HS256]`, nil},
		{`hmac_secret_file: /h`, nil},
		{`jwks_file: /j, tenant: "{a.b}/{c}-x", tier: gold, leeway: 0s`, nil},
		{``, []string{`: 0 ` + oneSource}},
		{`jwks_file: /j, hmac_secret_file: /h`, []string{`: 2 ` + oneSource}},
		{`jwks_url: "http://i/keys"`, []string{`.jwks_url: "http://i/keys": allowed: https://; http:// only to a loopback address`}},
		{`jwks_url: "i"`, []string{`.jwks_url: "i": allowed: a URL that begins with https:// or http://`}},
		{`jwks_file: /j, algorithms: [RS256, HS256]`, []string{`.algorithms[1]: "HS256": allowed: RS256, ES256 and EdDSA; HS256 only with hmac_secret_file`}},
		{`hmac_secret_file: /h, algorithms: [HS256, EdDSA]`, []string{`.algorithms[1]: "EdDSA": allowed with hmac_secret_file: only HS256`}},
		{`jwks_file: /j, algorithms: [none]`, []string{`.algorithms: [none]: allowed: a list of strings out of RS256, ES256, EdDSA or HS256`}},
		{`jwks_file: /j, algorithms: [ES256, ES256]`, []string{`.algorithms[1]: "ES256": given twice`}},
		{`jwks_file: /j, tenant: ""`, nil},
		{`jwks: '{"keys":[]}'`, nil},
		{`kubernetes: {enabled: true}, issuer: ""`, nil},
		{`kubernetes: {enabled: true, api_server: "http://k"}`, []string{`.kubernetes.api_server: "http://k": allowed: a URL that begins with https://`}},
		{`jwks_file: /j, tenant: "{sub"`, []string{`.tenant: "{sub": ` + template}},
		{`jwks_file: /j, tenant: "sub}"`, []string{`.tenant: "sub}": ` + template}},
		{`jwks_file: /j, tier: "{}"`, []string{`.tier: "{}": ` + template}},
		{`jwks_file: /j, tier: "{a{b}}"`, []string{`.tier: "{a{b}}": ` + template}},
		{`jwks_file: /j, leeway: 10m`, []string{`.leeway: 10m: allowed: a duration with its unit, such as 200ms, 30s or 5m, from 0s to 5m`}},
	} {
		var want []string
		for _, w := range tc.want {
			want = append(want, "c.yaml:2: auth.issuers[0]"+w)
		}
		assert.Equal(t, want, problems(t, "tls: {disabled: true}\nauth: {issuers: [{"+issuer(tc.issuer)+"audience: a, "+tc.issuer+"}]}\n"), tc.issuer)
	}
	assert.Equal(t, []string{
		`c.yaml:2: auth.issuers[1].issuer: "i": used already by auth.issuers[0]`,
		`c.yaml:2: auth.issuers[2].issuer: "": required`,
		`c.yaml:2: auth.issuers[2].audience: "": required`,
	}, problems(t, `tls: {disabled: true}
auth: {issuers: [{issuer: i, audience: a, jwks_file: /j}, {issuer: i, audience: a, jwks_file: /k}, {jwks_file: /j}]}
`))
}

// issuer is the key that a case needs unless it has one of its own.
func issuer(given string) string {
	if strings.Contains(given, "issuer:") {
		return ""
	}
	return "issuer: i, "
}

func TestAllowedAlgorithms(t *testing.T) {
	assert.Equal(t, []string{"RS256", "ES256", "EdDSA"}, gateway.Issuer{JWKSFile: "/j"}.AllowedAlgorithms())
	assert.Equal(t, []string{"HS256"}, gateway.Issuer{HMACSecretFile: "/h"}.AllowedAlgorithms())
	assert.Equal(t, []string{"EdDSA"}, gateway.Issuer{JWKSFile: "/j", Algorithms: []string{"EdDSA"}}.AllowedAlgorithms())
}

func TestTLSIsEitherFilesOrDisabled(t *testing.T) {
	const issuers = "auth: {issuers: [{issuer: i, audience: a, jwks_file: /j}]}\n"
	assert.Empty(t, problems(t, issuers+"tls: {cert_file: /c, key_file: /k}\n"))
	assert.Empty(t, problems(t, issuers+"tls: {disabled: true}\n"))
	assert.Len(t, problems(t, issuers), 2)
	assert.Equal(t, []string{`c.yaml:2: tls.cert_file: "/c": allowed: nothing, since tls.disabled is true`},
		problems(t, issuers+"tls: {disabled: true, cert_file: /c}\n"))
}

func TestAdminBeyondLoopbackNeedsAToken(t *testing.T) {
	for listen, ok := range map[string]bool{`""`: true, `"127.0.0.1:0"`: true, `"[::1]:9902"`: true, `"localhost:1"`: true,
		`":9902"`: false, `"0.0.0.0:9902"`: false, `"10.1.2.3:1"`: false, `"x"`: false} {
		assert.Equal(t, ok, len(problems(t, base+"admin: {listen: "+listen+"}\n")) == 0, listen)
	}
	assert.Empty(t, problems(t, base+`admin: {listen: ":9902", token_file: /t}`))
}

func TestFirstUseNeedsNoKnownHosts(t *testing.T) {
	assert.Empty(t, problems(t, base+`backends: {b: {address: "b:22", user: u, key_file: /k, host_keys: {mode: first-use}}}
routes: {r: {backend: b, mode: forward, target: "db:5432"}}
policy: [{tenants: ["*", "a/*"], routes: ["*"]}]
`))
}

// Verifies: R9.3
func TestWhatHoldsBetweenKeys(t *testing.T) {
	assert.Equal(t, []string{
		`c.yaml:4: tls.client_ca_file: "/ca": allowed: nothing, since tls.disabled is true`,
		`c.yaml:5: backends.b.identity.ca_key_file: "/ca": allowed: instead of key_file, not together with it`,
		`c.yaml:5: backends.b.identity.principals: []: allowed: at least one; without any, no backend accepts the certificate`,
		`c.yaml:5: backends.b.dialing.queue_per_tenant: 9: allowed: up to dialing.queue, which is 8`,
		`c.yaml:6: limits.exempt[0]: allowed: tenants, addresses or both; without any, nobody is exempt`,
		`c.yaml:6: limits.exempt[1].tenants[0]: "a//b": allowed: a tenant such as payments/orders, or a glob such as payments/*`,
		`c.yaml:6: limits.exempt[1].addresses[0]: "10": allowed: a network such as 10.0.0.0/8 or fd00::/8`,
		`c.yaml:7: admin.tokens[1].name: "a": used already`,
		`c.yaml:7: admin.tokens[1].file: "": required`,
	}, problems(t, `auth: {issuers: [{issuer: i, audience: a, jwks_file: /j}]}
tls:
  disabled: true
  client_ca_file: /ca
backends: {b: {address: "b:22", key_file: /k, identity: {ca_key_file: /ca, principals: []}, dialing: {queue: 8, queue_per_tenant: 9}}}
limits: {exempt: [{limits: [opens]}, {tenants: [a//b], addresses: ["10"]}]}
admin: {tokens: [{name: a, file: /a}, {name: a}]}
`))
}

func TestNoLimitIsWrittenAsInTheContract(t *testing.T) {
	l, ps := load(t, base+"tiers: {default: {bandwidth: 0, memory: 64MiB}}\n")
	require.Empty(t, ps)
	assert.Zero(t, l.Config.Tiers[gateway.DefaultTier].Bandwidth)
	assert.Equal(t, 64*config.MiB, l.Config.Tiers[gateway.DefaultTier].Memory)
}
