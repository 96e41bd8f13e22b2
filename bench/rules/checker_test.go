package rules_test

import (
	"fmt"
	"slices"
	"strings"
)

const module = "fairlead"

// pkg is what of `go list -json` the rules look at.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// rule is one sentence of "Who may import whom".
type rule struct {
	name   string
	reason string
	// broken says what is wrong with an import of one of our packages, or "".
	broken func(from, to string, test bool) string
}

// rules are those that can be told from a single import.
func rules() []rule {
	return []rule{
		{
			name:   "1 layers",
			reason: "construction knows everything and is known by nobody, so a feature can be read, tested and replaced alone",
			broken: layers,
		},
		{
			name:   "2 programs apart",
			reason: "sidecar and gateway meet on the wire only; a shared type between them would bypass the protocol and its versions",
			broken: apart,
		},
		{
			name:   "3 features apart",
			reason: "a feature that needs another declares an interface and app wires it; the declared edges are the design",
			broken: featuresApart,
		},
		{
			name:   "4 owners",
			reason: "a heavy library, with its traps, is behind one package, so that it can be replaced there",
			broken: owned,
		},
		{
			name:   "6 test bed",
			reason: "the test bed starts processes and forges tokens; nothing that is deployed may contain it",
			broken: testbedOnlyInTests,
		},
	}
}

// edges are the features of one program that may import another feature.
func edges() map[string][]string {
	return map[string][]string{
		"sidecar/listener": {"sidecar/queue"},
		"sidecar/queue":    {"sidecar/spool"},
		"sidecar/doctor":   {"sidecar/tunnel"},
		"sidecar/admin":    {"sidecar/status"},                   // what the API answers, also for those who ask it
		"gateway/server":   {"gateway/session", "gateway/audit"}, // whoever acts speaks in the words of the audit log
		"gateway/session":  {"gateway/store", "gateway/audit"},
		"gateway/admin":    {"gateway/audit"},
		"gateway/backend":  {"gateway/breaker"},
	}
}

// owner says which of our packages may import a library outside of tests.
type owner struct {
	library string // an import path, with everything below it
	allowed []string
}

func owners() []owner {
	return []owner{
		{"github.com/redis", []string{"gateway/store"}},
		{"github.com/go-redis", []string{"gateway/store"}},
		{"github.com/knadh/koanf", []string{"shared/config"}},
		{"github.com/afex/hystrix-go", []string{"gateway/breaker"}},
		{"go.uber.org/ratelimit", []string{"gateway/limit", "gateway/backend", "sidecar/tunnel"}},                    // the latter two pace dials
		{"github.com/fasthttp/websocket", []string{"shared/ws", "gateway/server", "gateway/peer", "shared/testbed"}}, // all but the first upgrade, fasthttp being what they serve with
		{"golang.org/x/crypto/ssh", []string{"gateway/backend", "sidecar/doctor", "shared/testbed", "bench"}},        // the doctor tries what is behind routes
		{"github.com/skeema/knownhosts", []string{"gateway/backend", "shared/testbed", "bench"}},
	}
}

// forbiddenInSidecar are libraries that the sidecar's binary must not link, directly or not.
func forbiddenInSidecar() []string {
	return []string{"github.com/redis", "github.com/go-redis", "github.com/afex/hystrix-go", module + "/shared/testbed"}
}

const sidecarReason = "rule 5 light sidecar: it runs in every pod, and needs neither a database client nor circuits of global state"

// check returns a sentence for each broken rule.
func check(graph []pkg) []string {
	var found []string
	for _, p := range graph {
		from, ours := inModule(p.ImportPath)
		if !ours {
			continue
		}
		for _, r := range rules() {
			found = append(found, apply(r, from, p.Imports, false)...)
			found = append(found, apply(r, from, p.TestImports, true)...)
			found = append(found, apply(r, from, p.XTestImports, true)...)
		}
	}
	return append(found, sidecarLinks(graph)...)
}

func apply(r rule, from string, imports []string, test bool) []string {
	var found []string
	for _, to := range imports {
		if what := r.broken(from, to, test); what != "" {
			found = append(found, fmt.Sprintf("rule %s: %s imports %s: %s (%s)", r.name, from, to, what, r.reason))
		}
	}
	return found
}

// inModule turns an import path into a folder of this module; "." for its root.
func inModule(path string) (string, bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

func top(folder string) string { return strings.SplitN(folder, "/", 2)[0] }

// below reports whether a path is root or below it.
func below(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func isProgram(name string) bool { return name == "sidecar" || name == "gateway" }

// height of a folder in its program: main 3, app 2, a feature 1, config 0.
func height(folder string) int {
	switch {
	case isProgram(folder):
		return 3
	case below(folder, top(folder)+"/app"):
		return 2
	case below(folder, top(folder)+"/config"):
		return 0
	}
	return 1
}

func layers(from, to string, test bool) string {
	target, ours := inModule(to)
	switch {
	case !ours:
		return ""
	case top(from) == "shared" && top(target) != "shared":
		return "shared imports only shared"
	case top(target) == "bench" && top(from) != "bench":
		return "nothing imports bench"
	case test || !isProgram(top(from)) || top(from) != top(target):
		return ""
	case height(target) > height(from):
		return "imports go from main to app to features to config"
	}
	return ""
}

func apart(from, to string, _ bool) string {
	target, ours := inModule(to)
	switch {
	case !ours || !isProgram(top(target)) || top(from) == top(target):
		return ""
	case isProgram(top(from)):
		return "the two programs never import each other"
	case top(from) == "bench" && height(target) != 2 && height(target) != 0:
		return "bench sees app and config of a program only"
	}
	return ""
}

func featuresApart(from, to string, test bool) string {
	target, ours := inModule(to)
	if test || !ours || !isProgram(top(from)) || top(from) != top(target) || height(from) != 1 || height(target) != 1 {
		return ""
	}
	mine, other := feature(from), feature(target)
	if mine == other || slices.Contains(edges()[mine], other) {
		return ""
	}
	return "this edge is not declared"
}

// feature is the folder of the feature that a package belongs to, which may have packages below it.
func feature(folder string) string { return strings.Join(strings.SplitN(folder, "/", 3)[:2], "/") }

func owned(from, to string, test bool) string {
	if test {
		return ""
	}
	for _, o := range owners() {
		if below(to, o.library) && !slices.ContainsFunc(o.allowed, func(a string) bool { return below(from, a) }) {
			return "only " + strings.Join(o.allowed, ", ") + " may"
		}
	}
	return ""
}

func testbedOnlyInTests(from, to string, test bool) string {
	target, ours := inModule(to)
	if test || !ours || !below(target, "shared/testbed") || below(from, "shared/testbed") || top(from) == "bench" {
		return ""
	}
	return "only tests and bench may"
}

// sidecarLinks follows the imports of the sidecar's main package through the whole graph, libraries included.
func sidecarLinks(graph []pkg) []string {
	imports := make(map[string][]string, len(graph))
	for _, p := range graph {
		imports[p.ImportPath] = p.Imports
	}
	root := module + "/sidecar"
	cameFrom := map[string]string{root: ""}
	var found []string
	for queue := []string{root}; len(queue) > 0; queue = queue[1:] {
		for _, next := range imports[queue[0]] {
			if _, seen := cameFrom[next]; seen {
				continue
			}
			cameFrom[next] = queue[0]
			queue = append(queue, next)
			if slices.ContainsFunc(forbiddenInSidecar(), func(lib string) bool { return below(next, lib) }) {
				found = append(found, fmt.Sprintf("%s: %s", sidecarReason, chain(cameFrom, next)))
			}
		}
	}
	return found
}

// chain tells how the sidecar comes to import a package.
func chain(cameFrom map[string]string, path string) string {
	steps := []string{path}
	for from := cameFrom[path]; from != ""; from = cameFrom[from] {
		steps = append(steps, from)
	}
	slices.Reverse(steps)
	return strings.Join(steps, " → ")
}
