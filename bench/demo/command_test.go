package demo

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const patience = 90 * time.Second // for everything that happens on a busy machine

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// build builds the bench program.
func build(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "bench")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", exe, "./bench")
	cmd.Dir = filepath.Join("..", "..")
	told, err := cmd.CombinedOutput()
	require.NoError(t, err, string(told))
	return exe
}

// running is a demo in a process of its own.
type running struct {
	cmd    *exec.Cmd
	tmp    string // its directory for temporary files
	text   string // what it printed until it was ready
	stderr *buffer
	rest   chan string // what it printed later
}

// launch starts the demo and reads until it is ready, or ends.
func launch(t *testing.T, exe string, args ...string) *running {
	t.Helper()
	r := &running{tmp: t.TempDir(), stderr: new(buffer), rest: make(chan string, 1)}
	r.cmd = exec.CommandContext(t.Context(), exe, append([]string{"demo"}, args...)...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.tmp, "FAIRLEAD_GATEWAY__TOKEN=another-deployment")
	r.cmd.Stderr = r.stderr
	out, err := r.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, r.cmd.Start())
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		r.text += line
		if err != nil || strings.HasPrefix(line, "Ctrl-C ends") {
			break
		}
	}
	go func() {
		rest, _ := io.ReadAll(lines) // ends with the process
		r.rest <- string(rest)
	}()
	return r
}

// line is the printed command that begins with prefix.
func (r *running) line(t *testing.T, prefix string) string {
	t.Helper()
	for line := range strings.Lines(r.text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, prefix) {
			return line
		}
	}
	require.Fail(t, "not printed: "+prefix, r.text+r.stderr.String())
	return ""
}

// end sends a signal and asserts a clean end.
func (r *running) end(t *testing.T, sig os.Signal) {
	t.Helper()
	require.NoError(t, r.cmd.Process.Signal(sig))
	<-r.rest
	require.NoError(t, r.cmd.Wait(), r.stderr.String())
	left, err := os.ReadDir(r.tmp)
	require.NoError(t, err)
	assert.Empty(t, left, "the temporary directory is gone")
	assertAlone(t)
}

// adopt makes this process the parent of orphans below it, so that it sees the processes that a demo leaves behind.
func adopt(t *testing.T) {
	t.Helper()
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// children are the living children of this process.
func children(t *testing.T) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	var found []string
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // state, parent, …
		if fields[1] == strconv.Itoa(os.Getpid()) && fields[0] != "Z" {
			found = append(found, string(text))
		}
	}
	return found
}

// assertAlone asserts that no process is left behind. A killed one may take a moment to end.
func assertAlone(t *testing.T) {
	t.Helper()
	if !assert.Eventually(t, func() bool { return len(children(t)) == 0 }, 10*time.Second, 10*time.Millisecond, "a process is left") {
		t.Log(children(t))
	}
}

// sh runs a command line as a person would type it, in the project's root.
func sh(t *testing.T, line, stdin string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stdin = strings.NewReader(stdin)
	var told bytes.Buffer
	cmd.Stderr = &told
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, told.Bytes())
	}
	return string(out), err
}

// Everything that the demo prints works as it is printed, and Ctrl-C and SIGTERM leave nothing behind, also while a
// connection is open.
func TestPrintedCommands(t *testing.T) {
	adopt(t)
	exe := build(t)
	r := launch(t, exe)
	require.Contains(t, r.text, "OpenSSH's server")
	ssh := r.line(t, "ssh -F none -p ")

	t.Run("ssh", func(t *testing.T) {
		out, err := sh(t, ssh, "echo ok; exit 3\n")
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 3, exit.ExitCode())
		require.Equal(t, "ok\n", out)
	})
	t.Run("scp", func(t *testing.T) {
		line := r.line(t, "scp ")
		_, err := sh(t, line, "")
		require.NoError(t, err)
		copied, err := os.ReadFile(line[strings.LastIndex(line, ":")+1:])
		require.NoError(t, err)
		want, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
		require.NoError(t, err)
		require.Equal(t, want, copied)
	})
	t.Run("git", func(t *testing.T) {
		line := r.line(t, "GIT_SSH_COMMAND=")
		_, err := sh(t, line, "")
		require.NoError(t, err)
		require.FileExists(t, filepath.Join(line[strings.LastIndex(line, " ")+1:], "README"))
	})
	t.Run("ProxyCommand", func(t *testing.T) {
		out, err := sh(t, r.line(t, "ssh -F "+r.tmp)+" echo through the proxy command", "")
		require.NoError(t, err)
		require.Equal(t, "through the proxy command\n", out)
	})
	t.Run("curl", func(t *testing.T) {
		require.Equal(t, page, get(t, strings.TrimPrefix(r.line(t, "curl "), "curl ")))
	})
	t.Run("addresses", func(t *testing.T) {
		for kind, want := range map[string]string{"status": `"state"`, "metrics": "fairlead_"} {
			urls := regexp.MustCompile(kind+` +(http://\S+)`).FindAllStringSubmatch(r.text, -1)
			require.Len(t, urls, 2)
			for _, url := range urls {
				require.Contains(t, get(t, url[1]), want)
			}
		}
	})
	t.Run("page", func(t *testing.T) {
		url := regexp.MustCompile(`page +(http://\S+/)\n`).FindStringSubmatch(r.text)
		require.NotNil(t, url, r.text)
		require.Contains(t, get(t, url[1]), "<title>fairlead gateway</title>")
	})
	t.Run("audit log", func(t *testing.T) {
		line := r.line(t, "go run ./gateway audit verify ")
		file := line[strings.LastIndex(line, " ")+1:]
		recorded, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Contains(t, string(recorded), `"action":"open","result":"allowed","actor":"demo"`)
		out, err := sh(t, line, "")
		require.NoError(t, err)
		require.Contains(t, out, ": ok\n")

		changed := filepath.Join(t.TempDir(), auditFile)
		require.NoError(t, os.WriteFile(changed, bytes.Replace(recorded, []byte(`"actor":"demo"`), []byte(`"actor":"deno"`), 1), 0o600))
		out, err = sh(t, strings.Replace(line, file, changed, 1), "")
		require.Error(t, err)
		require.Contains(t, out, ": BROKEN\n")
	})

	open := exec.CommandContext(t.Context(), "sh", "-c", "exec "+ssh+" 'echo open; exec sleep 1000'")
	out, err := open.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, open.Start())
	said, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "open\n", said)
	ended := make(chan error, 1)
	go func() { ended <- open.Wait() }()
	r.end(t, os.Interrupt)
	require.Error(t, <-ended, "the demo cuts what is open")
}

func TestGivenPortsAndDirectory(t *testing.T) {
	adopt(t)
	exe := build(t)
	ports := freePorts(t, 4)
	dir := filepath.Join(t.TempDir(), "kept")
	r := launch(t, exe, "--port", ports[0], "--gateway-port", ports[1], "--admin-port", ports[2], "--sidecar-admin-port", ports[3], "--dir", dir, "--verbose")
	ssh := r.line(t, "ssh -F none -p "+ports[0]+" ")
	out, err := sh(t, ssh+" echo ok", "")
	require.NoError(t, err)
	require.Equal(t, "ok\n", out)
	require.Contains(t, r.text, "wss://127.0.0.1:"+ports[1]+"\n")
	require.Contains(t, get(t, "http://127.0.0.1:"+ports[2]+"/metrics"), "fairlead_gateway_")
	require.Contains(t, get(t, "http://127.0.0.1:"+ports[3]+"/metrics"), "fairlead_sidecar_")
	require.NotContains(t, r.text, "removed at the end")
	r.end(t, syscall.SIGTERM)
	require.FileExists(t, filepath.Join(dir, "gateway.yaml"))
	out, err = sh(t, r.line(t, "go run ./gateway audit verify "+filepath.Join(dir, auditFile)), "")
	require.NoError(t, err)
	require.Contains(t, out, "end       closed\n", "it stays, and is whole")
	require.NoFileExists(t, filepath.Join(dir, logFile))
	require.Contains(t, r.stderr.String(), "component=gateway")
	require.Contains(t, r.stderr.String(), "component=sidecar")
}

// freePorts returns ports that nobody listened on a moment ago.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for range n {
		l, err := net.Listen("tcp", at(0))
		require.NoError(t, err)
		defer l.Close() // only when all are found, so that they differ
		_, port, err := net.SplitHostPort(l.Addr().String())
		require.NoError(t, err)
		ports = append(ports, port)
	}
	return ports
}

func TestRefusals(t *testing.T) {
	adopt(t)
	exe := build(t)
	l, err := net.Listen("tcp", at(0))
	require.NoError(t, err)
	defer l.Close()
	_, busy, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	inUse := l.Addr().String() + ": bind: address already in use"
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--port", busy}, inUse},
		{[]string{"--gateway-port", busy}, inUse},
		{[]string{"--admin-port", busy}, inUse},
		{[]string{"--sidecar-admin-port", busy}, inUse},
		{[]string{"--port", "65536"}, "--port is 65536; allowed: 0 to 65535"},
		{[]string{"--port", "ssh"}, "invalid argument"},
		{[]string{"--nonsense"}, "unknown flag"},
	} {
		r := launch(t, exe, c.args...)
		<-r.rest
		var exit *exec.ExitError
		require.ErrorAs(t, r.cmd.Wait(), &exit, c.args)
		assert.Equal(t, 2, exit.ExitCode(), c.args)
		assert.Contains(t, r.stderr.String(), c.want, c.args)
		assert.Equal(t, 1, strings.Count(r.stderr.String(), "\n"), "one line that says it: %s", r.stderr)
		left, err := os.ReadDir(r.tmp)
		require.NoError(t, err)
		assert.Empty(t, left)
	}
	assertAlone(t)
}

func TestCheck(t *testing.T) {
	adopt(t)
	exe := build(t)
	r := launch(t, exe, "--check", "--port", "0")
	<-r.rest
	require.NoError(t, r.cmd.Wait(), r.text+r.stderr.String())
	assert.Equal(t, 3, strings.Count(r.text, ": ok ("), r.text)
	left, err := os.ReadDir(r.tmp)
	require.NoError(t, err)
	assert.Empty(t, left)

	// A check without an SSH client fails, and says what is missing.
	empty := t.TempDir()
	t.Setenv("PATH", empty)
	r = launch(t, exe, "--check", "--port", "0")
	<-r.rest
	var exit *exec.ExitError
	require.ErrorAs(t, r.cmd.Wait(), &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Contains(t, r.stderr.String(), "install openssh-client")
	assert.NotContains(t, r.text, "git clone", "a machine without git")
	assertAlone(t)
}

// get returns what an address answers; the connection is not kept.
func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode, string(body))
	return string(body)
}
