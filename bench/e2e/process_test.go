package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// version is what the programs under test call themselves.
const version = "e2e"

// built are the paths of both programs.
type built struct {
	gateway, sidecar string
	err              error
}

var (
	// buildDir is where the programs are built; made at the first call.
	buildDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "fairlead-e2e-") })
	// programs builds both programs at the first call; with the race detector if this test has it.
	programs = sync.OnceValue(build)
)

func build() built {
	dir, err := buildDir()
	if err != nil {
		return built{err: err}
	}
	args := []string{"build", "-ldflags", "-X main.version=" + version, "-o", dir}
	if withRaceDetector() {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./gateway", "./sidecar")...)
	cmd.Dir = filepath.Join("..", "..")
	if told, err := cmd.CombinedOutput(); err != nil {
		return built{err: fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, told)}
	}
	return built{gateway: filepath.Join(dir, "gateway"), sidecar: filepath.Join(dir, "sidecar")}
}

func withRaceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}

// binaries returns the paths of both programs.
func binaries(t *testing.T) (gateway, sidecar string) {
	t.Helper()
	b := programs()
	require.NoError(t, b.err)
	return b.gateway, b.sidecar
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.Cleanup(func(code int) {
			if dir, err := buildDir(); err == nil {
				_ = os.RemoveAll(dir)
			}
			os.Exit(code)
		}),
		// What libraries leave behind: hystrix for good, fasthttp for the process or until a sleep is over.
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*metricExchange).Monitor"),
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*poolMetrics).Monitor"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// process is a program in a process of its own.
type process struct {
	cmd    *exec.Cmd
	stdout *logs
	stderr *logs
	done   chan struct{} // closed once it has been waited for
	code   int           // exit code, once done is closed; -1 when a signal killed it
}

// spawn starts a program. It is killed at the end of the test if it still runs, and a report of the race detector fails
// the test. env are further variables, "NAME=value".
func spawn(t *testing.T, env []string, exe string, args ...string) *process {
	t.Helper()
	return spawnWith(t, nil, env, exe, args...)
}

// spawnWith is spawn with a standard input.
func spawnWith(t *testing.T, stdin io.Reader, env []string, exe string, args ...string) *process {
	t.Helper()
	name := filepath.Base(exe)
	p := &process{cmd: exec.Command(exe, args...), stdout: newLogs(t, name+", output"), stderr: newLogs(t, name+", errors"), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, p.stdout, p.stderr
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the code tells
		p.code = p.cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		p.kill()
		assert.NotContains(t, p.stderr.text(), "DATA RACE", name)
	})
	return p
}

// signal sends a signal to a process that runs.
func (p *process) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(sig))
}

// kill ends the process at once, as a crash does, and returns when it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// exited reports whether the process has ended.
func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// exit waits for the process to end by itself and returns its code.
func (p *process) exit(t *testing.T) int {
	t.Helper()
	await(t, filepath.Base(p.cmd.Path)+" ends", p.exited)
	return p.code
}

// command runs a program to its end and returns what it printed and its exit code.
func command(t *testing.T, env []string, exe string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	p := spawn(t, env, exe, args...)
	code = p.exit(t)
	return p.stdout.text(), p.stderr.text(), code
}

// node makes a running program of a process.
func (p *process) node() *running {
	ended := sync.OnceFunc(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	})
	return &running{logs: p.stdout, end: context.CancelFunc(ended), done: p.done, proc: p}
}

// gatewayProcess starts the gateway's binary with the configuration in a file.
func (w *world) gatewayProcess() *gatewayNode {
	w.t.Helper()
	exe, _ := binaries(w.t)
	p := spawn(w.t, nil, exe, "run", "--config", configFile(w, "gateway", w.gatewayConfig))
	said := p.started(w.t, "serving")
	n := &gatewayNode{running: p.node(), address: said.str("listen")}
	n.admin = said.str("admin")
	return n
}

// sidecarProcess starts the sidecar's binary with the configuration in a file.
func (w *world) sidecarProcess() *sidecarNode {
	w.t.Helper()
	_, exe := binaries(w.t)
	p := spawn(w.t, nil, exe, "run", "--config", configFile(w, "sidecar", w.sidecarConfig))
	return w.sidecarOf(p)
}

// sidecarOf makes a node of a sidecar's process once it listens.
func (w *world) sidecarOf(p *process) *sidecarNode {
	w.t.Helper()
	said := p.started(w.t, "listening")
	n := &sidecarNode{running: p.node(), addresses: map[string]string{}}
	n.admin = said.str("admin")
	for field, value := range said {
		if name, ok := strings.CutPrefix(field, "listener."); ok {
			n.addresses[name] = fmt.Sprint(value)
			if strings.HasPrefix(n.addresses[name], "/") {
				n.addresses[name] = "unix:" + n.addresses[name]
			}
		}
	}
	return n
}

// started waits for the line that tells the addresses.
func (p *process) started(t *testing.T, msg string) entry {
	t.Helper()
	await(t, filepath.Base(p.cmd.Path)+" says "+msg, func() bool { return p.exited() || len(p.stdout.find(msg)) > 0 })
	found := p.stdout.find(msg)
	require.NotEmpty(t, found, "%s ended with %d: %s", p.cmd.Path, p.code, bytes.TrimSpace([]byte(p.stderr.text())))
	return found[0]
}
