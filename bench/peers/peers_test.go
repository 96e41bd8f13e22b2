package peers

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"
)

// TestMain makes the test binary serve as the relay too, as the bench binary does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "relay" {
		root := &cobra.Command{Use: "bench"}
		root.AddCommand(RelayCommand())
		if root.Execute() != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// Every peer that this machine has carries bytes both ways, keeps half-close, and leaves no process behind.
func TestPeersCarryConnections(t *testing.T) {
	for _, peer := range []Peer{Relay{}, Relay{TLS: true}, OpenSSH{}, Chisel{}, WSTunnel{}} {
		if ok, why := peer.Available(); !ok {
			t.Logf("%s: %s", peer.Name(), why)
			continue
		}
		t.Run(peer.Name(), func(t *testing.T) {
			var through []string
			in, err := peer.Start(t.Context(), env(t, &through))
			require.NoError(t, err)
			defer in.Stop()
			require.Len(t, through, 1, "the path between the sides was offered for a proxy")
			require.NoError(t, in.Err())
			require.NotEmpty(t, PIDs(in.Sidecar))
			require.NotEmpty(t, PIDs(in.Gateway))
			require.Equal(t, "got ping", ask(t, in.Addrs.Normal, "ping"))
			in.Stop()
			require.Error(t, in.Err())
			_, err = net.Dial("tcp", in.Addrs.Normal)
			require.Error(t, err)
		})
	}
}

func TestRelaySideThatCannotStart(t *testing.T) {
	e := env(t, nil)
	e.Exe = "/bin/false"
	_, err := Relay{}.Start(t.Context(), e)
	require.ErrorContains(t, err, "false ended: exit status 1")
}

func TestProgramsThatAreMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, peer := range []Peer{OpenSSH{}, Chisel{}, WSTunnel{}} {
		ok, why := peer.Available()
		require.False(t, ok)
		require.NotEmpty(t, why)
	}
	ok, why := NewFairlead(t.TempDir(), "").Available()
	require.False(t, ok)
	require.Contains(t, why, "sidecar")
	ok, why = NewFairlead("", t.TempDir()).Available()
	require.False(t, ok)
	require.Contains(t, why, "go is not on the PATH")
	_, err := Chisel{}.Start(t.Context(), env(t, nil))
	require.ErrorIs(t, err, exec.ErrNotFound)
}

func TestFairleadConfigurations(t *testing.T) {
	e := env(t, nil)
	site, err := newFairleadSite(newStarter(t.Context(), e))
	require.NoError(t, err)
	site.endpoint = "127.0.0.1:5"
	var gateway struct {
		Listen   string
		Auth     struct{ Issuers []map[string]any }
		Backends map[string]map[string]string
		Routes   map[string]map[string]string
		Tiers    map[string]map[string]int
	}
	require.NoError(t, yaml.Unmarshal(site.gatewayConfig(), &gateway))
	require.Equal(t, site.gateway, gateway.Listen)
	require.Equal(t, e.Target, gateway.Backends["target"]["address"])
	require.Equal(t, map[string]string{"backend": "target", "mode": "passthrough"}, gateway.Routes[fairleadRoute])
	require.Equal(t, site.secretFile, gateway.Auth.Issuers[0]["hmac_secret_file"])
	require.Len(t, gateway.Tiers["default"], 5)
	var sidecar struct {
		Gateway struct {
			Endpoints []string
			CAFile    string `yaml:"ca_file"`
			TokenFile string `yaml:"token_file"`
		}
		Tunnels   map[string]int
		Listeners []map[string]string
		Admin     map[string]string
	}
	require.NoError(t, yaml.Unmarshal(site.sidecarConfig(), &sidecar))
	require.Equal(t, []string{"wss://127.0.0.1:5/"}, sidecar.Gateway.Endpoints)
	require.Equal(t, site.files.ca, sidecar.Gateway.CAFile)
	require.Equal(t, site.tokenFile, sidecar.Gateway.TokenFile)
	require.Equal(t, map[string]int{"min": 1, "max": 4}, sidecar.Tunnels)
	for i, want := range []struct{ priority, addr string }{{"high", site.addrs.High}, {"normal", site.addrs.Normal}, {"low", site.addrs.Low}} {
		require.Equal(t, map[string]string{"name": want.priority, "listen": want.addr, "route": fairleadRoute, "priority": want.priority}, sidecar.Listeners[i])
	}
	require.Equal(t, site.sidecarAdmin, sidecar.Admin["listen"])
}

func TestModuleRoot(t *testing.T) {
	root, err := moduleRoot()
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(root, "bench", "peers", "peer.go"))
	t.Chdir(t.TempDir())
	_, err = moduleRoot()
	require.Error(t, err)
}

func TestMakeCert(t *testing.T) {
	files, err := makeCert(t.TempDir())
	require.NoError(t, err)
	pair, err := tls.LoadX509KeyPair(files.cert, files.key)
	require.NoError(t, err)
	pem, err := os.ReadFile(files.ca)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(pem))
	for _, name := range []string{"127.0.0.1", "localhost"} {
		_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name})
		require.NoError(t, err)
	}
}

func TestPickPorts(t *testing.T) {
	var a, b, c string
	require.NoError(t, pickPorts(&a, &b, &c))
	require.Len(t, map[string]bool{a: true, b: true, c: true}, 3)
	for _, address := range []string{a, b, c} {
		l, err := net.Listen("tcp", address)
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
}

// env is an environment whose target answers with what it got when the other direction has ended.
func env(t *testing.T, through *[]string) Env {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(conn)
			_, _ = conn.Write(append([]byte("got "), all...))
			_ = conn.Close()
		}
	}()
	exe, err := os.Executable()
	require.NoError(t, err)
	return Env{
		Exe: exe, Dir: t.TempDir(), Target: l.Addr().String(),
		Via: func(address string) (string, error) {
			*through = append(*through, address)
			return address, nil
		},
	}
}

// ask sends a question, ends its direction and returns the answer.
func ask(t *testing.T, addr, question string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, question)
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	return string(answer)
}
