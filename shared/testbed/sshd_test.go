package testbed_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"fairlead/shared/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 10 * time.Second
	moment   = 5 * time.Millisecond
)

// remote runs a command by OpenSSH's client and returns what it wrote, and its exit code.
func remote(t *testing.T, s testbed.SSHServer, stdin string, command ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	host, port, err := net.SplitHostPort(s.Addr())
	require.NoError(t, err)
	args := append(s.SSHArgs(), "-p", port, host)
	cmd := exec.CommandContext(ctx, "ssh", append(args, command...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errors bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errors
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, "%s", errors.String())
		return out.String() + errors.String(), exit.ExitCode()
	}
	return out.String(), 0
}

// client connects with x/crypto/ssh, checking the host key.
func client(t *testing.T, s testbed.SSHServer) *ssh.Client {
	t.Helper()
	raw, err := os.ReadFile(s.KeyFile())
	require.NoError(t, err)
	key, err := ssh.ParsePrivateKey(raw)
	require.NoError(t, err)
	known, err := knownhosts.New(s.KnownHostsFile())
	require.NoError(t, err)
	c, err := ssh.Dial("tcp", s.Addr(), &ssh.ClientConfig{
		User: s.User(), Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: known, Timeout: patience,
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// servers runs a test against both kinds of server: what holds for one has to hold for the other.
func servers(t *testing.T, test func(*testing.T, testbed.SSHServer)) {
	t.Run("sshd", func(t *testing.T) { test(t, testbed.NewSSHD(t, testbed.SSHDConfig{})) })
	t.Run("embedded", func(t *testing.T) { test(t, testbed.NewEmbedded(t)) })
}

func TestSSHRunsCommands(t *testing.T) {
	servers(t, func(t *testing.T, s testbed.SSHServer) {
		out, code := remote(t, s, "some input", "cat; echo; exit 7")
		assert.Equal(t, "some input\n", out)
		assert.Equal(t, 7, code)
		out, code = remote(t, s, "echo from a shell\n")
		assert.Contains(t, out, "from a shell\n")
		assert.Zero(t, code)
		out, code = remote(t, s, "", "kill -TERM $$")
		assert.NotZero(t, code, out)
	})
}

func TestSSHCarriesManyBytes(t *testing.T) {
	servers(t, func(t *testing.T, s testbed.SSHServer) {
		data := strings.Repeat("0123456789abcdef", 4<<20/16)
		out, code := remote(t, s, data, "cat")
		require.Zero(t, code)
		require.True(t, data == out, "%d bytes came back", len(out))
	})
}

func TestSSHForwardsConnections(t *testing.T) {
	servers(t, func(t *testing.T, s testbed.SSHServer) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		c := client(t, s)
		forwarded, err := c.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		target, err := l.Accept()
		require.NoError(t, err)
		defer target.Close()
		_, err = forwarded.Write([]byte("there"))
		require.NoError(t, err)
		require.NoError(t, forwarded.(interface{ CloseWrite() error }).CloseWrite())
		got := new(bytes.Buffer)
		_, err = got.ReadFrom(target) // up to the half-close
		require.NoError(t, err)
		assert.Equal(t, "there", got.String())
		_, err = target.Write([]byte("and back"))
		require.NoError(t, err)
		require.NoError(t, target.Close())
		got.Reset()
		_, err = got.ReadFrom(forwarded)
		require.NoError(t, err)
		assert.Equal(t, "and back", got.String())

		require.NoError(t, l.Close())
		_, err = c.Dial("tcp", l.Addr().String())
		var refused *ssh.OpenChannelError
		require.ErrorAs(t, err, &refused)
		assert.Equal(t, ssh.ConnectionFailed, refused.Reason)
	})
}

func TestSSHAnswersKeepalivesAndServesFiles(t *testing.T) {
	servers(t, func(t *testing.T, s testbed.SSHServer) {
		c := client(t, s)
		_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(path, []byte("by sftp"), 0o600))
		host, port, err := net.SplitHostPort(s.Addr())
		require.NoError(t, err)
		out, err := exec.Command("sftp", append(s.SSHArgs(), "-q", "-P", port, host+":"+path, path+".copy")...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		got, err := os.ReadFile(path + ".copy")
		require.NoError(t, err)
		assert.Equal(t, "by sftp", string(got))
	})
}

func TestSSHRefusesStrangers(t *testing.T) {
	servers(t, func(t *testing.T, s testbed.SSHServer) {
		stranger, err := testbed.StartEmbedded(testbed.EmbeddedConfig{Dir: t.TempDir()})
		require.NoError(t, err)
		defer stranger.Stop()
		_, err = ssh.Dial("tcp", s.Addr(), &ssh.ClientConfig{
			User: s.User(), Auth: []ssh.AuthMethod{ssh.PublicKeys(stranger.Signer())}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		})
		require.ErrorContains(t, err, "unable to authenticate")
	})
}

func TestSSHCountsAndKillsConnections(t *testing.T) {
	servers(t, func(t *testing.T, s testbed.SSHServer) {
		require.Eventually(t, func() bool { return s.Connections() == 0 }, patience, moment)
		first, second := client(t, s), client(t, s)
		require.Equal(t, 2, s.Connections())
		session, err := first.NewSession()
		require.NoError(t, err)
		marker := filepath.Join(t.TempDir(), "pid")
		require.NoError(t, session.Start("echo $$ > "+marker+"; exec sleep 1000"))
		var pid string
		require.Eventually(t, func() bool {
			raw, err := os.ReadFile(marker)
			pid = strings.TrimSpace(string(raw))
			return err == nil && pid != ""
		}, patience, moment)

		assert.Equal(t, 2, s.KillConnections())
		require.Error(t, first.Wait())
		require.Error(t, second.Wait())
		require.Eventually(t, func() bool { return s.Connections() == 0 && gone(pid) }, patience, moment)
		_, code := remote(t, s, "", "true")
		assert.Zero(t, code)
	})
}

// gone reports whether a process has ended; a zombie has.
func gone(pid string) bool {
	raw, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	return err != nil || bytes.Contains(raw, []byte("State:\tZ"))
}

func TestSSHStopEndsConnections(t *testing.T) {
	servers(t, func(t *testing.T, s testbed.SSHServer) {
		c := client(t, s)
		s.Stop()
		s.Stop()
		require.Error(t, c.Wait())
		_, err := net.Dial("tcp", s.Addr())
		require.Error(t, err)
		assert.Zero(t, s.Connections())
	})
}

func TestSSHDStartsAgainAtTheSameAddress(t *testing.T) {
	s := testbed.NewSSHD(t, testbed.SSHDConfig{})
	require.Error(t, s.Start(t.Context()), "it runs already")
	s.Stop()
	require.NoError(t, s.Start(t.Context()))
	_, code := remote(t, s, "", "true")
	assert.Zero(t, code)
	assert.Contains(t, s.Log(), "Accepted publickey")
	s.Stop()

	changed := testbed.NewSSHD(t, testbed.SSHDConfig{Listen: s.Addr()})
	require.Equal(t, s.Addr(), changed.Addr())
	out, code := remote(t, s, "", "true") // still knows the keys of the first
	assert.Equal(t, 255, code)
	assert.Contains(t, out, "REMOTE HOST IDENTIFICATION HAS CHANGED")
}

func TestSSHDOptions(t *testing.T) {
	s := testbed.NewSSHD(t, testbed.SSHDConfig{NoTCPForwarding: true, NoSFTP: true, Extra: []string{"ForceCommand echo forced"}})
	out, code := remote(t, s, "", "echo asked")
	assert.Equal(t, "forced\n", out)
	assert.Zero(t, code)
	_, err := client(t, s).Dial("tcp", s.Addr())
	var refused *ssh.OpenChannelError
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, ssh.Prohibited, refused.Reason)

	narrow := testbed.NewSSHD(t, testbed.SSHDConfig{MaxStartups: "1:100:1"})
	waiting, err := net.Dial("tcp", narrow.Addr()) // says nothing and so stays unauthenticated
	require.NoError(t, err)
	defer waiting.Close()
	_, err = waiting.Read(make([]byte, 1))
	require.NoError(t, err)
	_, err = ssh.Dial("tcp", narrow.Addr(), &ssh.ClientConfig{User: narrow.User(), HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	require.Error(t, err)
}

func TestSSHDThatCannotStartSaysWhy(t *testing.T) {
	_, err := testbed.StartSSHD(t.Context(), testbed.SSHDConfig{Dir: t.TempDir(), Extra: []string{"NoSuchOption yes"}})
	require.ErrorContains(t, err, "NoSuchOption")
}

func TestStartSSHTakesTheRealServer(t *testing.T) {
	s, err := testbed.StartSSH(t.Context(), t.TempDir())
	require.NoError(t, err)
	defer s.Stop()
	require.IsType(t, &testbed.SSHD{}, s)
}
