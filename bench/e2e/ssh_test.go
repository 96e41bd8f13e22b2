package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

// tool is a command that a person would run, with what it needs.
type tool struct {
	dir   string
	env   []string
	stdin io.Reader
}

// run runs a command to its end, which must be good, and returns what it printed.
func (c tool) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, told, err := c.try(t, name, args...)
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), told)
	return out
}

func (c tool) try(t *testing.T, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var out, told bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.dir, c.stdin, &out, &told
	cmd.Env = append(os.Environ(), c.env...)
	cmd.WaitDelay = patience
	err = cmd.Run()
	return out.String(), told.String(), err
}

// writeContent makes a file of n bytes and returns its path and SHA-256.
func writeContent(t *testing.T, path string, seed uint64, n int64) (hash string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), contentOf(seed, n))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return hex.EncodeToString(sum.Sum(nil))
}

// hashOfFile is the SHA-256 of a file.
func hashOfFile(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	require.NoError(t, err)
	return hex.EncodeToString(sum.Sum(nil))
}

// Verifies: R10.2
func TestOpenSSHRunsCommands(t *testing.T) {
	w := newWorld(t, withSSHD())
	cfg := w.sshConfig(map[string][]string{"box": w.sshThrough(sshRoute)})
	assert.Equal(t, "through fairlead\n", tool{}.run(t, "ssh", "-F", cfg, "box", "echo through fairlead"))

	_, told, err := tool{}.try(t, "ssh", "-F", cfg, "box", "echo trouble >&2; exit 7")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 7, exit.ExitCode(), "the remote command's exit code arrives")
	assert.Equal(t, "trouble\n", told)

	raw, err := io.ReadAll(contentOf(1, 3<<20))
	require.NoError(t, err)
	back := tool{stdin: bytes.NewReader(raw)}.run(t, "ssh", "-F", cfg, "box", "cat")
	assert.True(t, back == string(raw), "3 MiB through standard input and output, of which %d bytes came back", len(back))

	ended := w.sidecar.logs.wait(t, "connection ended", "route", sshRoute)
	assert.Empty(t, ended.str("error"))
}

// Verifies: R10.2
func TestAPersonTalksToAShell(t *testing.T) {
	w := newWorld(t, withSSHD())
	cfg := w.sshConfig(map[string][]string{"box": w.sshThrough(sshRoute)})
	cmd := exec.CommandContext(t.Context(), "ssh", "-F", cfg, "-tt", "box", "PS1='ready> ' exec sh")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	screen := newLogs(t, "the terminal")
	cmd.Stdout, cmd.Stderr = screen, screen
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended when the test has passed
	sees := func(text string) {
		t.Helper()
		await(t, "the screen shows "+text, func() bool { return strings.Contains(screen.text(), text) })
	}
	sees("ready> ")
	for i := range 5 { // each line is typed only when the answer to the one before has been seen
		_, err := fmt.Fprintf(in, "echo answer $((%d * 111))\n", i+1)
		require.NoError(t, err)
		sees(fmt.Sprintf("answer %d\r", (i+1)*111))
	}
	_, err = io.WriteString(in, "exit 3\n")
	require.NoError(t, err)
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	assert.Equal(t, 3, exit.ExitCode())
}

// Verifies: R10.2, R10.6
func TestCopiesFilesBothWays(t *testing.T) {
	const size = 64 << 20
	w := newWorld(t, withSSHD())
	cfg := w.sshConfig(map[string][]string{"box": w.sshThrough(sshRoute)})
	dir := t.TempDir()
	local, remote, back := filepath.Join(dir, "local"), filepath.Join(dir, "remote"), filepath.Join(dir, "back")
	want := writeContent(t, local, 2, size)
	tool{}.run(t, "scp", "-q", "-F", cfg, local, "box:"+remote)
	assert.Equal(t, want, hashOfFile(t, remote), "up")
	tool{}.run(t, "scp", "-q", "-F", cfg, "box:"+remote, back)
	assert.Equal(t, want, hashOfFile(t, back), "down")

	batch := fmt.Sprintf("mkdir %[1]s/sub\nput %[2]s %[1]s/sub/put\nrename %[1]s/sub/put %[1]s/sub/renamed\nget %[1]s/sub/renamed %[1]s/got\nls -1 %[1]s/sub\n", dir, local)
	out := tool{stdin: strings.NewReader(batch)}.run(t, "sftp", "-q", "-b", "-", "-F", cfg, "box")
	assert.Contains(t, out, filepath.Join(dir, "sub", "renamed"))
	assert.NoFileExists(t, filepath.Join(dir, "sub", "put"))
	assert.Equal(t, want, hashOfFile(t, filepath.Join(dir, "sub", "renamed")))
	assert.Equal(t, want, hashOfFile(t, filepath.Join(dir, "got")))
}

// Verifies: R10.2
func TestGitClonesAndPushes(t *testing.T) {
	w := newWorld(t, withSSHD())
	cfg := w.sshConfig(map[string][]string{"box": w.sshThrough(sshRoute)})
	dir := t.TempDir()
	git := tool{dir: dir, env: []string{"GIT_SSH_COMMAND=ssh -F " + cfg, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@localhost", "GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@localhost"}}
	git.run(t, "git", "init", "-q", "-b", "main", "seed")
	want := writeContent(t, filepath.Join(dir, "seed", "large"), 3, 4<<20)
	seed := git
	seed.dir = filepath.Join(dir, "seed")
	seed.run(t, "git", "add", ".")
	seed.run(t, "git", "commit", "-q", "-m", "first")
	git.run(t, "git", "clone", "-q", "--bare", "seed", "origin.git")

	git.run(t, "git", "clone", "-q", "ssh://box"+filepath.Join(dir, "origin.git"), "clone")
	assert.Equal(t, want, hashOfFile(t, filepath.Join(dir, "clone", "large")))
	clone := git
	clone.dir = filepath.Join(dir, "clone")
	writeContent(t, filepath.Join(clone.dir, "more"), 4, 1<<20)
	clone.run(t, "git", "add", ".")
	clone.run(t, "git", "commit", "-q", "-m", "second")
	clone.run(t, "git", "push", "-q", "origin", "main")
	origin := git
	origin.dir = filepath.Join(dir, "origin.git")
	assert.Equal(t, clone.run(t, "git", "rev-parse", "HEAD"), origin.run(t, "git", "rev-parse", "main"))
	origin.run(t, "git", "fsck", "--strict", "--full")
}

// Verifies: R7.9
func TestForwardsTheAgent(t *testing.T) {
	w := newWorld(t, withSSHD())
	cfg := w.sshConfig(map[string][]string{"box": w.sshThrough(sshRoute)})
	dir := t.TempDir()
	key, socket := filepath.Join(dir, "key"), filepath.Join(dir, "agent")
	tool{}.run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "only in the agent", "-f", key)
	spawn(t, nil, "ssh-agent", "-D", "-a", socket)
	mine := tool{env: []string{"SSH_AUTH_SOCK=" + socket}}
	await(t, "the agent takes the key", func() bool {
		_, _, err := mine.try(t, "ssh-add", "-q", key)
		return err == nil
	})
	listed := mine.run(t, "ssh-add", "-l")
	assert.Contains(t, listed, "only in the agent")
	assert.Equal(t, listed, mine.run(t, "ssh", "-A", "-F", cfg, "box", "ssh-add -l"), "the far side sees the agent's keys")

	signed := mine.run(t, "ssh", "-A", "-F", cfg, "box", "ssh-add -T "+key+".pub && echo signs")
	assert.Contains(t, signed, "signs", "and can sign with them")

	_, _, err := mine.try(t, "ssh", "-a", "-F", cfg, "box", "ssh-add -l")
	require.Error(t, err, "without -A it does not")
}

// Verifies: R10.2
func TestConnectIsAProxyCommand(t *testing.T) {
	w := newWorld(t, withSSHD(), withoutSidecar())
	_, exe := binaries(t)
	file := configFile(w, "connect", w.sidecarConfig)
	cfg := w.sshConfig(map[string][]string{"box": {fmt.Sprintf("ProxyCommand=%s connect %s --config %s", exe, sshRoute, file)}})
	assert.Equal(t, "by stdin and stdout\n", tool{}.run(t, "ssh", "-F", cfg, "box", "echo by stdin and stdout"))

	dir := t.TempDir()
	local, remote, back := filepath.Join(dir, "local"), filepath.Join(dir, "remote"), filepath.Join(dir, "back")
	want := writeContent(t, local, 5, 16<<20)
	tool{}.run(t, "scp", "-q", "-F", cfg, local, "box:"+remote)
	tool{}.run(t, "scp", "-q", "-F", cfg, "box:"+remote, back)
	assert.Equal(t, want, hashOfFile(t, remote))
	assert.Equal(t, want, hashOfFile(t, back))
}

func TestServesAUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "e2e-") // a socket's path is limited to about 100 bytes
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "git.sock")
	w := newWorld(t, withSSHD(), func(w *world) { w.addListener("socket", sshRoute, "unix:"+socket, "high") })
	hostKey := w.ssh.HostKeys()[0]
	conn, chans, reqs, err := ssh.NewClientConn(w.dial("socket"), w.ssh.Addr(), &ssh.ClientConfig{User: w.ssh.User(),
		Auth: []ssh.AuthMethod{ssh.PublicKeys(w.ssh.Signer())}, HostKeyCallback: ssh.FixedHostKey(hostKey),
		HostKeyAlgorithms: []string{hostKey.Type()}, Timeout: patience})
	require.NoError(t, err)
	client := ssh.NewClient(conn, chans, reqs)
	session, err := client.NewSession()
	require.NoError(t, err)
	out, err := session.Output("echo by a socket")
	require.NoError(t, err)
	assert.Equal(t, "by a socket\n", string(out))
	require.NoError(t, client.Close())

	require.NoError(t, w.sidecar.stop())
	assert.NoFileExists(t, socket, "the socket goes with the sidecar")
}

func TestManyConnectionsAtOnce(t *testing.T) {
	const connections, size = 200, 64 << 10
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)), withSidecar(poolOf(1, 4)))
	type result struct {
		seed uint64
		line string
		err  error
	}
	var all []halfCloser
	results := make(chan result, connections)
	for i := range connections {
		c := w.dial("echo")
		all = append(all, c)
		go func() { // one round trip, then the connection stays open
			raw, _ := io.ReadAll(contentOf(uint64(i), size)) // does not fail
			answer := make([]byte, size)
			_, err := c.Write(raw)
			if err == nil {
				_, err = io.ReadFull(c, answer)
			}
			sum := sha256.Sum256(answer)
			results <- result{uint64(i), digestLine(sum[:], size), err}
		}()
	}
	for range connections {
		r := <-results
		require.NoError(t, r.err)
		require.Equal(t, lineOfContent(r.seed, size), r.line)
	}
	assert.Equal(t, connections, w.streamsAtGateway(), "all are open at the same time")
	for _, c := range all {
		require.NoError(t, c.CloseWrite())
		rest, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Empty(t, rest)
	}
	await(t, "all streams have ended", func() bool { return w.streamsAtGateway() == 0 })
	assert.Len(t, w.gateway.logs.find("stream opened"), connections)
	await(t, "each end is logged", func() bool { return len(w.gateway.logs.find("stream ended")) == connections })
	await(t, "each end is logged", func() bool { return len(w.sidecar.logs.find("connection ended")) == connections })
	assert.Empty(t, w.sidecar.logs.find("connection refused"))
}
