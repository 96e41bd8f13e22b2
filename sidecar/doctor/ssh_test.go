package doctor

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// sshPatient has a route "git" to OpenSSH's server.
func sshPatient(t *testing.T) (*patient, *testbed.SSHD) {
	d := testbed.NewSSHD(t, testbed.SSHDConfig{})
	p := newPatient(t)
	p.listener("git", "127.0.0.1:2222")
	p.gateway(&gateway{routes: map[string]string{"git": d.Addr()}})
	return p, d
}

// listed writes a file that lists keys under a name.
func listed(t *testing.T, name string, keys ...ssh.PublicKey) string {
	var text strings.Builder
	for _, k := range keys {
		text.WriteString(name + " " + string(ssh.MarshalAuthorizedKey(k)))
	}
	file := filepath.Join(t.TempDir(), "known_hosts")
	require.NoError(t, os.WriteFile(file, []byte(text.String()), 0o600))
	return file
}

func fingerprints(keys []ssh.PublicKey) (all []string) {
	for _, k := range keys {
		all = append(all, ssh.FingerprintSHA256(k))
	}
	return all
}

// The server behind a route is looked at up to its host key, without a login that nobody asked for.
//
// Verifies: R2.6
func TestSSHIsTriedUpToTheHostKey(t *testing.T) {
	p, d := sshPatient(t)
	r := p.examine()
	res := r.hop(HopSSH)
	assert.Equal(t, OK, res.Status, res.Detail)
	assert.Contains(t, res.Data["banner"], "SSH-2.0-OpenSSH")
	assert.Contains(t, fingerprints(d.HostKeys()), res.Data["host_key"])
	assert.Equal(t, "not compared", res.Data["known"])
	assert.Contains(t, res.Data["key_exchange"], "curve25519")
	assert.NotEmpty(t, res.Data["offered"].(map[string]any)["cipher"])
	assert.Equal(t, Skipped, r.hop(HopSSHLogin).Status)
	assert.Contains(t, r.hop(HopSSHLogin).Detail, "--ssh-user")
	assert.True(t, r.OK)
	assert.NotContains(t, d.Log(), "Failed", "no login was tried")
}

// Verifies: R2.6
func TestSSHLogin(t *testing.T) {
	p, d := sshPatient(t)
	p.cfg.SSH = SSH{User: d.User(), KeyFile: d.KeyFile(), KnownHosts: d.KnownHostsFile(), KnownAs: testbed.HostAlias}
	r := p.examine()
	assert.Equal(t, OK, r.hop(HopSSH).Status)
	assert.Equal(t, "yes", r.hop(HopSSH).Data["known"])
	assert.Equal(t, OK, r.hop(HopSSHLogin).Status)
	assert.True(t, r.OK)

	p.cfg.SSH.User = "nobody-here"
	r = p.examine()
	assert.Equal(t, OK, r.hop(HopSSH).Status, "the login alone fails")
	login := r.hop(HopSSHLogin)
	assert.Equal(t, Fail, login.Status)
	assert.Equal(t, errs.BackendAuth.String(), login.Code)
	assert.Equal(t, HopSSHLogin, r.Culprit)

	p.cfg.SSH.KeyFile = filepath.Join(t.TempDir(), "missing")
	r = p.examine()
	assert.Equal(t, errs.KeyUnreadable.String(), r.hop(HopSSHLogin).Code)
	assert.Equal(t, errs.ExitConfiguration, r.Exit)

	p.cfg.SSH.User, p.cfg.SSH.KeyFile = d.User(), ""
	r = p.examine()
	assert.Contains(t, r.hop(HopSSHLogin).Detail, "neither --ssh-key nor an agent")
	p.environ["SSH_AUTH_SOCK"] = serveAgent(t, d.KeyFile())
	r = p.examine()
	assert.Equal(t, OK, r.hop(HopSSHLogin).Status, r.hop(HopSSHLogin).Detail)
}

// serveAgent has one key, and returns its socket.
func serveAgent(t *testing.T, keyFile string) string {
	pem, err := os.ReadFile(keyFile)
	require.NoError(t, err)
	key, err := ssh.ParseRawPrivateKey(pem)
	require.NoError(t, err)
	ring := agent.NewKeyring()
	require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: key}))
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = agent.ServeAgent(ring, c) // ends with io.EOF
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	return path
}

// Host keys are compared under the names that an application may use, and a change is told with both fingerprints.
//
// Verifies: R2.6
func TestHostKeysAreCompared(t *testing.T) {
	p, d := sshPatient(t)
	keys := d.HostKeys()
	stranger := testbed.NewSSHD(t, testbed.SSHDConfig{}).HostKeys()
	var other []ssh.PublicKey // of the same types, but not the server's
	for _, k := range stranger {
		for _, own := range keys {
			if own.Type() == k.Type() {
				other = append(other, k)
			}
		}
	}
	require.NotEmpty(t, other)
	home := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(home, ".ssh"), 0o700))
	for name, c := range map[string]struct {
		file   string
		as     string
		status Status
		known  string
	}{
		"listener":       {listed(t, "[127.0.0.1]:2222", keys...), "", OK, "yes"},
		"localhost":      {listed(t, "[localhost]:2222", keys...), "", OK, "yes"},
		"route":          {listed(t, "git", keys...), "", OK, "yes"},
		"alias":          {listed(t, "git.internal", keys...), "git.internal", OK, "yes"},
		"other name":     {listed(t, "git.internal", keys...), "", OK, "under another name"},
		"changed":        {listed(t, "git", other...), "", Fail, "changed"},
		"changed, alias": {listed(t, "git.internal", other...), "git.internal", Fail, "changed"},
		"only one":       {listed(t, "git.internal", other...), "", Fail, "changed"},
		"others":         {listed(t, "a,b", append(other, newKeys(t, other)...)...), "", Warn, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			p.cfg.SSH = SSH{KnownHosts: c.file, KnownAs: c.as}
			r := p.examine()
			res := r.hop(HopSSH)
			assert.Equal(t, c.status, res.Status, res.Detail)
			assert.Equal(t, c.known, res.Data["known"], res.Detail)
			now := res.Data["host_key"].(string)
			assert.Contains(t, fingerprints(keys), now)
			assert.Contains(t, res.Detail, now)
			if c.status == Fail {
				assert.Equal(t, errs.HostKeyRefused.String(), res.Code)
				assert.Contains(t, fingerprints(other), res.Data["host_key_listed"].([]string)[0])
				assert.Contains(t, res.Detail, res.Data["host_key_listed"].([]string)[0])
				assert.Contains(t, r.Conclusion, "host key: it was changed")
				assert.Equal(t, 1, r.Exit)
			}
		})
	}
	p.t = t
	p.cfg.SSH = SSH{User: d.User(), KeyFile: d.KeyFile(), KnownHosts: listed(t, "git", other...)}
	r := p.examine()
	assert.Equal(t, Skipped, r.hop(HopSSHLogin).Status, "nobody logs in where the key is wrong")

	// The user's own file is found.
	p.cfg.SSH = SSH{}
	p.environ["HOME"] = home
	assert.Equal(t, "not compared", p.examine().hop(HopSSH).Data["known"])
	raw, err := os.ReadFile(listed(t, "git", keys...))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "known_hosts"), raw, 0o600))
	assert.Equal(t, "yes", p.examine().hop(HopSSH).Data["known"])
	p.cfg.SSH.KnownHosts = filepath.Join(home, "missing")
	assert.Equal(t, errs.KeyUnreadable.String(), p.examine().hop(HopSSH).Code)
}

// newKeys makes further keys of the types given.
func newKeys(t *testing.T, like []ssh.PublicKey) (more []ssh.PublicKey) {
	for _, k := range testbed.NewSSHD(t, testbed.SSHDConfig{}).HostKeys() {
		for _, l := range like {
			if k.Type() == l.Type() {
				more = append(more, k)
			}
		}
	}
	return more
}

// speaker is a server that says something and then waits for the client's end.
func speaker(t *testing.T, says string, closes bool) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, says)
			if !closes {
				_, _ = io.Copy(io.Discard, c)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	return l.Addr().String()
}

// What is behind a route need not be SSH, and what is SSH may not work.
func TestServersThatAreNoSSH(t *testing.T) {
	for name, c := range map[string]struct {
		says   string
		closes bool
		status Status
		detail string
	}{
		"waits":     {"", false, Skipped, "waits for its client to speak first"},
		"redis":     {"-ERR max number of clients reached\r\n", true, Skipped, `it said "-ERR max number of clients reached`},
		"talks":     {strings.Repeat("blah blah\r\n", 500), false, Skipped, `it says "blah blah`},
		"closes":    {"", true, Fail, "before it said who it is"},
		"startups":  {"SSH-2.0-OpenSSH_9.2p1\r\n", true, Fail, "broke off the handshake"},
		"preamble":  {"welcome\r\nSSH-2.0-odd\r\n", true, Fail, "broke off the handshake"},
		"old":       {"SSH-1.5-ancient\r\n", true, Fail, "broke off the handshake"},
		"malformed": {"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\x00\x00", true, Fail, "broke off the handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t)
			p.listener("git", "127.0.0.1:2222")
			p.gateway(&gateway{routes: map[string]string{"git": speaker(t, c.says, c.closes)}})
			r := p.examine()
			res := r.hop(HopSSH)
			assert.Equal(t, c.status, res.Status, res.Detail)
			assert.Contains(t, res.Detail, c.detail)
			assert.Equal(t, OK, r.hop(HopBackend).Status)
			assert.Equal(t, c.status != Fail, r.OK)
			assert.Empty(t, r.all(HopSSHLogin))
		})
	}
}

// However short the probes are, a server that waits for its client is none that failed.
func TestAServerThatWaitsIsNoFailure(t *testing.T) {
	p := newPatient(t)
	r := run{cfg: p.cfg, ctx: t.Context(), stopped: t.Context().Err}
	r.cfg.Timeout = time.Millisecond
	near, far := net.Pipe()
	defer far.Close()
	r.trySSH("db", pipe{near})
	require.Len(t, r.results, 1)
	assert.Equal(t, Skipped, r.results[0].Status, r.results[0].Detail)
}

// pipe is a stream in memory.
type pipe struct{ net.Conn }

func (p pipe) abort() { p.Close() }

// A server with old algorithms only is told so, with what it offers.
func TestNoAlgorithmInCommon(t *testing.T) {
	d := testbed.NewSSHD(t, testbed.SSHDConfig{Extra: []string{"KexAlgorithms diffie-hellman-group14-sha256"}})
	p := newPatient(t)
	p.listener("git", "127.0.0.1:2222")
	p.gateway(&gateway{routes: map[string]string{"git": d.Addr()}})
	res := p.examine().hop(HopSSH)
	assert.Equal(t, Fail, res.Status)
	assert.Equal(t, errs.SSHHandshake.String(), res.Code)
	assert.Contains(t, res.Detail, "no secure algorithm in common for key exchange: the server offers diffie-hellman-group14-sha256")
}
