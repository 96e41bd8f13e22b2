// Package rules checks who imports whom in this module. It has tests only.
package rules_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestImportRules(t *testing.T) {
	for _, broken := range check(list(t)) {
		t.Error(broken)
	}
}

// list returns every package of the module and everything that they import.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = "../.."
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	require.NoError(t, err, problems.String())
	var graph []pkg
	decoder := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		graph = append(graph, p)
	}
	require.Contains(t, paths(graph), module+"/shared/errs", "the listing is of this module")
	return graph
}

func paths(graph []pkg) []string {
	all := make([]string, 0, len(graph))
	for _, p := range graph {
		all = append(all, p.ImportPath)
	}
	return all
}

// graphOf makes a graph from lines "from: to to …"; a line that begins with "test " has imports of tests. Paths without
// a dot are of this module.
func graphOf(lines ...string) []pkg {
	var graph []pkg
	for _, line := range lines {
		line, test := strings.CutPrefix(line, "test ")
		from, imports, _ := strings.Cut(line, ": ")
		p := pkg{ImportPath: full(from)}
		for to := range strings.FieldsSeq(imports) {
			if test {
				p.XTestImports = append(p.XTestImports, full(to))
			} else {
				p.Imports = append(p.Imports, full(to))
			}
		}
		graph = append(graph, p)
	}
	return graph
}

func full(path string) string {
	if strings.Contains(path, ".") {
		return path
	}
	return module + "/" + path
}

func TestGoodGraphsPass(t *testing.T) {
	assert.Empty(t, check(graphOf(
		"sidecar: sidecar/app sidecar/config shared/errs github.com/spf13/cobra",
		"sidecar/app: sidecar/listener sidecar/tunnel sidecar/config shared/link",
		"sidecar/listener: sidecar/queue sidecar/config shared/relay",
		"sidecar/queue: sidecar/spool",
		"sidecar/doctor: sidecar/tunnel",
		"test sidecar/listener: sidecar/tunnel shared/testbed github.com/fasthttp/websocket",
		"gateway: gateway/app gateway/audit",
		"gateway/session: gateway/store",
		"gateway/store: github.com/redis/go-redis/v9",
		"gateway/backend: gateway/breaker golang.org/x/crypto/ssh/knownhosts github.com/skeema/knownhosts go.uber.org/ratelimit",
		"gateway/breaker: github.com/afex/hystrix-go/hystrix",
		"gateway/auth: gateway/auth/keys",
		"shared/ws: github.com/fasthttp/websocket shared/errs",
		"shared/config: github.com/knadh/koanf/v2 github.com/knadh/koanf/providers/file",
		"shared/testbed: shared/testbed/fault golang.org/x/crypto/ssh",
		"test shared/link: shared/testbed",
		"bench: bench/demo sidecar/app gateway/app gateway/config shared/testbed",
		"test bench/e2e: sidecar/app gateway/app shared/testbed",
	)))
}

func TestEveryRuleCanBeBroken(t *testing.T) {
	for line, rule := range map[string]string{
		"shared/link: sidecar/config":                           "rule 1 layers",
		"test shared/link: gateway/config":                      "rule 1 layers",
		"sidecar/app: bench/report":                             "rule 1 layers",
		"sidecar/tunnel: sidecar/app":                           "rule 1 layers",
		"sidecar/config: sidecar/queue":                         "rule 1 layers",
		"gateway/app: gateway":                                  "rule 1 layers",
		"sidecar/tunnel: gateway/config":                        "rule 2 programs apart",
		"test gateway/server: sidecar/tunnel":                   "rule 2 programs apart",
		"bench/load: gateway/session":                           "rule 2 programs apart",
		"test bench/e2e: sidecar/tunnel":                        "rule 2 programs apart",
		"sidecar/queue: sidecar/listener":                       "rule 3 features apart",
		"gateway/server: gateway/backend":                       "rule 3 features apart",
		"gateway/session: github.com/redis/go-redis/v9":         "rule 4 owners",
		"sidecar/config: github.com/knadh/koanf/v2":             "rule 4 owners",
		"gateway/backend: github.com/afex/hystrix-go/hystrix":   "rule 4 owners",
		"gateway/session: github.com/fasthttp/websocket":        "rule 4 owners",
		"gateway/session: golang.org/x/crypto/ssh":              "rule 4 owners",
		"gateway/session: go.uber.org/ratelimit":                "rule 4 owners",
		"gateway/app: shared/testbed":                           "rule 6 test bed",
		"shared/link: shared/testbed/fault":                     "rule 6 test bed",
		"sidecar: shared/testbed":                               "rule 5 light sidecar",
		"sidecar: example.org/innocent":                         "",
		"bench: gateway/app sidecar/app":                        "",
		"gateway/backendless: golang.org/x/crypto/sshagentlike": "",
	} {
		found := strings.Join(check(graphOf(line)), "\n")
		if rule == "" {
			assert.Empty(t, found, line)
			continue
		}
		assert.Contains(t, found, rule, line)
	}
}

func TestSidecarLinksThroughLibraries(t *testing.T) {
	found := check(graphOf(
		"sidecar: sidecar/app",
		"sidecar/app: shared/telemetry",
		"shared/telemetry: example.org/metrics",
		"example.org/metrics: github.com/redis/go-redis/v9",
	))
	require.Len(t, found, 1)
	assert.Contains(t, found[0], "fairlead/sidecar → fairlead/sidecar/app → fairlead/shared/telemetry → example.org/metrics → github.com/redis/go-redis/v9")
}
