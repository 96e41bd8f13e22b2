package peer_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/peer"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
)

func nobody(context.Context, peer.Call) (func(link.Conn, *link.Handshake), error) {
	return nil, errs.New(errs.TunnelUnknown, "admitted, but there is nothing")
}

// Replicas with different secrets refuse each other, whichever of them is called, and the call is not told to a stranger.
func TestDifferentSecrets(t *testing.T) {
	admitted := make(chan peer.Call, 10)
	admit := func(ctx context.Context, c peer.Call) (func(link.Conn, *link.Handshake), error) {
		admitted <- c
		return nobody(ctx, c)
	}
	file := secretFile(t, secret)
	a := startPort(t, peer.Config{SecretFile: file, Replica: "a/1", Name: "a", Admit: admit})
	b := startPort(t, peer.Config{SecretFile: secretFile(t, other), Replica: "b/1", Name: "b", Admit: admit})
	c := startPort(t, peer.Config{SecretFile: file, Replica: "c/1", Name: "c", Admit: admit})
	for from, to := range map[*port]*port{a: b, b: a} {
		_, err := from.Dial(t.Context(), to.address(), "", call(), transfer())
		require.ErrorIs(t, err, errs.PeerRefused, "%v", err)
		require.NotContains(t, err.Error(), "a-token-of-alice")
		require.True(t, from.metric(`fairlead_gateway_peer_refused_total{side="dialling"} 1`))
	}
	require.Empty(t, admitted)
	_, err := c.Dial(t.Context(), a.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.TunnelUnknown, "who knows the secret gets through")
	require.Equal(t, call(), <-admitted)
}

// A caller that is refused although it accepts the other end learns that it was refused, every time, and not that the connection broke.
func TestACallerIsToldThatItWasRefused(t *testing.T) {
	a := startPort(t, peer.Config{SecretFile: secretFile(t, secret), Replica: "a/1", Name: "a", Admit: nobody})
	b := startPort(t, peer.Config{SecretFile: secretFile(t, other, secret), Replica: "b/1", Name: "b", Admit: nobody})
	c := call()
	c.Certificate = make([]byte, 16<<10) // so that there is something to be left unread
	for range 50 {
		_, err := b.Dial(t.Context(), a.address(), "a/1", c, transfer())
		require.ErrorIs(t, err, errs.PeerRefused, "%v", err)
	}
	require.True(t, b.metric(`fairlead_gateway_peer_refused_total{side="dialling"} 50`))
	require.Eventually(t, func() bool {
		return a.metric(`fairlead_gateway_peer_refused_total{side="accepting"} 50`) && strings.Contains(a.log.String(), "FL-S436")
	},
		10*time.Second, time.Millisecond)
	_, err := a.Dial(t.Context(), b.address(), "b/1", call(), transfer())
	require.ErrorIs(t, err, errs.PeerRefused, "a does not know what b shows")
}

func TestASecretIsReplacedWithoutAGap(t *testing.T) {
	fileA, fileB := secretFile(t, secret), secretFile(t, secret)
	a := startPort(t, peer.Config{SecretFile: fileA, Replica: "a/1", Name: "a", Admit: nobody})
	b := startPort(t, peer.Config{SecretFile: fileB, Replica: "b/1", Name: "b", Admit: nobody})
	through := func() {
		t.Helper()
		for from, to := range map[*port]*port{a: b, b: a} {
			_, err := from.Dial(t.Context(), to.address(), "", call(), transfer())
			require.ErrorIs(t, err, errs.TunnelUnknown, "%v", err)
		}
	}
	step := func(p *port, file string, lines ...string) {
		t.Helper()
		write(t, file, lines...)
		require.NoError(t, p.Reload())
	}
	through()
	step(a, fileA, secret, other)
	through()
	step(b, fileB, "", "  "+secret+"\r", other)
	through()
	step(a, fileA, other, secret)
	through()
	step(b, fileB, other, secret)
	through()
	step(a, fileA, other)
	through()
	step(b, fileB, other)
	through()
	step(b, fileB, secret)
	_, err := a.Dial(t.Context(), b.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.PeerRefused)
	write(t, fileB, "short")
	require.ErrorIs(t, b.Reload(), errs.KeyUnreadable)
	_, err = a.Dial(t.Context(), b.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.PeerRefused, "what was read before is in force")
}

// A file that holds no secret is refused with its name and never its content.
func TestSecretFilesThatAreNone(t *testing.T) {
	file := secretFile(t, "x")
	long := strings.Repeat("0123456789abcdef", 4)
	for name, content := range map[string]string{
		"empty": "", "blank": " \n\n\t\n", "short": "tooshort-5f2a\n", "31": strings.Repeat("x", 31) + "\n", "the second is short": long + "\ntooshort-5f2a\n",
		"seventeen": strings.Repeat(long+"\n", 17), "huge": strings.Repeat("x", 70_000),
	} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		_, err := peer.New(peer.Config{Listen: "127.0.0.1:0", SecretFile: file, Logger: slog.Default(), Metrics: metrics.NewSet()})
		require.ErrorIs(t, err, errs.KeyUnreadable, name)
		require.Contains(t, err.Error(), file)
		for line := range strings.FieldsSeq(content) {
			require.NotContains(t, err.Error(), line, name)
		}
	}
	require.NoError(t, os.Remove(file))
	_, err := peer.New(peer.Config{Listen: "127.0.0.1:0", SecretFile: file, Logger: slog.Default(), Metrics: metrics.NewSet()})
	require.ErrorIs(t, err, errs.KeyUnreadable)
	_, err = peer.New(peer.Config{Listen: "127.0.0.1:99999", SecretFile: secretFile(t, secret), Logger: slog.Default(), Metrics: metrics.NewSet()})
	require.ErrorIs(t, err, errs.ListenFailed)
}

// certificate is a self-signed one that the port has no reason to accept.
func certificate(t *testing.T, key interface{ Public() any }, private any) tls.Certificate {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), private)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

type edPublic struct{ ed25519.PrivateKey }

func (k edPublic) Public() any { return k.PrivateKey.Public() }

type ecPublic struct{ *ecdsa.PrivateKey }

func (k ecPublic) Public() any { return k.PrivateKey.Public() }

// Nobody who does not know the secret gets to HTTP: not without a certificate, with any other, nor with one that was seen at a
// replica, whose key is missing.
func TestStrangersDoNotGetToHTTP(t *testing.T) {
	p := startPort(t, peer.Config{SecretFile: secretFile(t, secret), Replica: "a/1", Name: "a", Admit: func(context.Context, peer.Call) (func(link.Conn, *link.Handshake), error) {
		t.Error("a stranger was let in")
		return nil, errs.New(errs.Internal, "")
	}})
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	var seen []byte // the port's own certificate, which it shows to everybody
	probe := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		seen = s.PeerCertificates[0].Raw
		return nil
	}}
	refused := 0
	for name, c := range map[string]struct {
		certs []tls.Certificate
		max   uint16
	}{
		"none":             {},
		"a key of its own": {certs: []tls.Certificate{certificate(t, edPublic{ed}, ed)}},
		"of another kind":  {certs: []tls.Certificate{certificate(t, ecPublic{ec}, ec)}},
		"TLS 1.2":          {max: tls.VersionTLS12},
	} {
		cfg := probe.Clone()
		cfg.Certificates, cfg.MaxVersion = c.certs, c.max
		require.Error(t, request(t, p, cfg), name)
		refused++
	}
	stolen := probe.Clone()
	stolen.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{seen}, PrivateKey: ed}, nil
	}
	require.Error(t, request(t, p, stolen), "the port's own certificate without its key")
	refused++
	require.Eventually(t, func() bool {
		return p.metric(`fairlead_gateway_peer_refused_total{side="accepting"} 5`)
	}, 10*time.Second, time.Millisecond, "%d were refused", refused)
}

// request asks for a tunnel and returns why there was no answer.
func request(t *testing.T, p *port, cfg *tls.Config) error {
	t.Helper()
	tcp, err := net.Dial("tcp", p.address())
	require.NoError(t, err)
	defer tcp.Close()
	require.NoError(t, tcp.SetDeadline(time.Now().Add(20*time.Second)))
	c := tls.Client(tcp, cfg)
	if err := c.Handshake(); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "GET /v1/peer/tunnel HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	_, err = bufio.NewReader(c).ReadByte()
	return err
}

// What is no TLS is dropped, and so is who says nothing; neither keeps a replica out, however many they are.
func TestStrangersDoNotKeepReplicasOut(t *testing.T) {
	file := secretFile(t, secret)
	p := startPort(t, peer.Config{SecretFile: file, Replica: "a/1", Name: "a", Admit: nobody})
	b := startPort(t, peer.Config{SecretFile: file, Replica: "b/1", Name: "b", Admit: nobody})
	for i := range 200 { // three times as many as there are places
		c, err := net.Dial("tcp", p.address())
		require.NoError(t, err)
		defer c.Close()
		switch i % 4 {
		case 0:
			_, err = c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		case 1:
			_, err = c.Write(bytes.Repeat([]byte{0xff}, 1000))
		case 2:
			_, err = c.Write([]byte{22, 3, 1, 2, 0, 1}) // the beginning of a ClientHello
		}
		_ = err // it may have been dropped
	}
	_, err := b.Dial(t.Context(), p.address(), "a/1", call(), transfer())
	require.ErrorIs(t, err, errs.TunnelUnknown)
}

// Whoever floods the port from one address is in nobody's way but its own, and gets no more than its part.
func TestAFloodFromOneAddressKeepsNobodyElseOut(t *testing.T) {
	file := secretFile(t, secret)
	p := startPort(t, peer.Config{SecretFile: file, Replica: "a/1", Name: "a", Admit: nobody})
	b := startPort(t, peer.Config{SecretFile: file, Replica: "b/1", Name: "b", Admit: nobody})
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var flood sync.WaitGroup
	for range 1500 { // most of a backlog
		c, err := from.Dial("tcp", p.address())
		if err != nil {
			t.Skipf("this machine has no second loopback address: %v", err)
		}
		defer c.Close()
		flood.Go(func() {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, _ = c.Read(make([]byte, 1))
		})
	}
	for range 20 {
		_, err := b.Dial(t.Context(), p.address(), "a/1", call(), transfer())
		require.ErrorIs(t, err, errs.TunnelUnknown)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, p.Shutdown(ctx))
	flood.Wait() // all are dropped, those that had no place yet too
}

// Who is in the midst of a handshake at the end is not waited for.
func TestShutdownDropsStrangersAndIdleReplicas(t *testing.T) {
	p := startPort(t, peer.Config{SecretFile: secretFile(t, secret), Replica: "a/1", Name: "a", Admit: nobody})
	c, err := net.Dial("tcp", p.address())
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte{22, 3, 1, 2, 0, 1})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, p.Shutdown(ctx))
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	_, err = p.Dial(t.Context(), p.address(), "", call(), transfer())
	require.ErrorIs(t, err, errs.OwnerUnreachable)
}

// What is refused before Serve has begun, or never will.
func TestShutdownWithoutServe(t *testing.T) {
	p, err := peer.New(peer.Config{Listen: "127.0.0.1:0", SecretFile: secretFile(t, secret), Logger: slog.New(slog.NewTextHandler(&testbed.LogBuffer{}, nil)), Metrics: metrics.NewSet()})
	require.NoError(t, err)
	require.NoError(t, p.Shutdown(t.Context()))
	require.NoError(t, p.Serve())
}
