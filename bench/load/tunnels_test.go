package load

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/bench/peers"
	gateway "fairlead/gateway/app"
	gatewayconfig "fairlead/gateway/config"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// startGateway runs a gateway without routes until the test ends, and returns how to reach it and how to stop it before.
func startGateway(t *testing.T) (*gateway.App, peers.Access, *testbed.Issuer, func()) {
	t.Helper()
	ca, cert := testbed.NewTestCA(t)
	issuer := testbed.NewTestIssuer(t, "HS256")
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `listen: "127.0.0.1:0"
tls: {cert_file: %q, key_file: %q}
auth:
  issuers:
    - {issuer: %q, audience: %q, hmac_secret_file: %q}
tiers:
  default: {opens_per_minute: 0, burst: 0, tunnels: 0, streams: 0}
limits: {shedding: {enabled: false}}
admin: {listen: "127.0.0.1:0"}
shutdown: {drain: 0s}
`, cert.CertFile, cert.KeyFile, issuer.Issuer(), issuer.Audience(), issuer.SecretFile()), 0o600))
	loaded, err := sharedconfig.Load(gatewayconfig.Default(), sharedconfig.Input{Flags: sharedconfig.Flags{File: file}, Environ: []string{}})
	require.NoError(t, err)
	g, err := gateway.New(loaded.Config, gateway.Options{Logger: slog.New(slog.DiscardHandler), Instance: t.Name(), Version: "test"})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	token, err := issuer.Valid("bench", time.Minute)
	require.NoError(t, err)
	access := peers.Access{URL: "wss://" + g.Addr().String() + "/", CAFile: ca.CertFile(), TokenFile: filepath.Join(t.TempDir(), "token")}
	require.NoError(t, testbed.WriteToken(access.TokenFile, token))
	return g, access, issuer, stop
}

// tunnelsOf is how many tunnels the gateway says it has.
func tunnelsOf(t require.TestingT, g *gateway.App) int {
	answer, err := http.Get("http://" + g.AdminAddr().String() + "/api/tunnel/diagnostics")
	require.NoError(t, err)
	defer answer.Body.Close()
	var told struct{ Tunnels int }
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&told))
	return told.Tunnels
}

func TestOpenTunnelsHoldsThemUntilClosed(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	g, access, _, _ := startGateway(t)
	held, err := OpenTunnels(t.Context(), access, 40)
	require.NoError(t, err)
	require.Equal(t, 40, tunnelsOf(t, g))
	require.NoError(t, held.Close())
	require.Eventually(t, func() bool { return tunnelsOf(t, g) == 0 }, 10*time.Second, 10*time.Millisecond)
}

func TestOpenTunnelsReportsLostOnes(t *testing.T) {
	_, access, _, stop := startGateway(t)
	held, err := OpenTunnels(t.Context(), access, 3)
	require.NoError(t, err)
	stop()
	require.Eventually(t, func() bool { return held.(*heldTunnels).lost() != nil }, 10*time.Second, 10*time.Millisecond)
	require.ErrorContains(t, held.Close(), "of 3 tunnels")
}

func TestOpenTunnelsFailsAsAWhole(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	g, access, issuer, _ := startGateway(t)
	forged, err := issuer.WrongSignature("bench")
	require.NoError(t, err)
	require.NoError(t, testbed.WriteToken(access.TokenFile, forged))
	_, err = OpenTunnels(t.Context(), access, 3)
	require.ErrorIs(t, err, errs.TokenInvalid)
	require.Zero(t, tunnelsOf(t, g))
	for _, broken := range []peers.Access{
		{URL: "wss://\x7f", CAFile: access.CAFile, TokenFile: access.TokenFile},
		{URL: access.URL, CAFile: access.TokenFile, TokenFile: access.TokenFile},
		{URL: access.URL, CAFile: access.CAFile, TokenFile: filepath.Join(t.TempDir(), "none")},
	} {
		_, err := OpenTunnels(t.Context(), broken, 1)
		require.Error(t, err)
	}
}
