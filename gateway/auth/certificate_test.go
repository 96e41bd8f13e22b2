package auth

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestTokensBoundToACertificate(t *testing.T) {
	clock, secret := newClock(), newSecret()
	v := newVerifier(t, clock, secretIssuer(t, secret))
	cert, other := httptest.NewTLSServer(http.NotFoundHandler()), ownCertificate(t)
	defer cert.Close()
	mine := cert.Certificate()
	bound := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "cnf", map[string]any{thumbprintClaim: Thumbprint(mine)}))
	plain := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now()))
	for range 2 { // remembered or not
		id, err := v.VerifyWith(t.Context(), bound, mine)
		require.NoError(t, err)
		require.True(t, id.Bound())
		require.Equal(t, Thumbprint(mine), id.Confirmation)
		require.NoError(t, id.CheckCertificate(mine))
		_, err = v.VerifyWith(t.Context(), bound, other)
		requireRefused(t, err, errs.ClientCertRefused, "another client certificate", bound)
		id, err = v.Verify(t.Context(), bound)
		requireRefused(t, err, errs.ClientCertRefused, "shows none", bound)
		require.Equal(t, Thumbprint(mine), id.Confirmation, "whose it was, for records")
		id, err = v.VerifyWith(t.Context(), plain, mine)
		require.NoError(t, err)
		require.False(t, id.Bound())
	}
	status, _ := errs.HTTP(errs.ClientCertRefused)
	require.Equal(t, 401, status)
	require.EqualValues(t, 4, v.counts.refused[errs.ClientCertRefused].Get())

	thumb := Thumbprint(mine)
	for name, cnf := range map[string]any{
		"null": nil, "text": thumb, "empty": map[string]any{}, "another way": map[string]any{"jkt": thumb}, "two ways": map[string]any{thumbprintClaim: thumb, "jkt": thumb},
		"short": map[string]any{thumbprintClaim: thumb[:42]}, "padded": map[string]any{thumbprintClaim: thumb + "="}, "not text": map[string]any{thumbprintClaim: 1},
		"nothing": map[string]any{thumbprintClaim: ""}, "line break": map[string]any{thumbprintClaim: thumb[:20] + "\n" + thumb[20:]},
	} {
		claims := goodClaims(clock.now())
		claims["cnf"] = cnf
		_, err := v.VerifyWith(t.Context(), sign(t, jwt.SigningMethodHS256, "", secret, claims), mine)
		require.ErrorIs(t, err, errs.TokenInvalid, name)
	}
}

// The example of RFC 8705 section 3.1 cannot be computed from (it gives no certificate), so the thumbprint is compared with
// what openssl says: openssl x509 -outform DER | openssl dgst -sha256 -binary | base64, with the alphabet of URLs.
func TestThumbprint(t *testing.T) {
	cert := ownCertificate(t)
	require.Equal(t, knownThumbprint, Thumbprint(cert))
}

func ownCertificate(t *testing.T) *x509.Certificate {
	block, _ := pem.Decode([]byte(knownCertificate))
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return cert
}

const knownThumbprint = "8V0E3sBHlijUjRfHZ5rlWsXNBWCFW2hjohPAnvkXNoQ"

const knownCertificate = `-----BEGIN CERTIFICATE-----
MIIBfDCCASOgAwIBAgIUJI5LibiTfDKB9ZyP5YrTVWsBR68wCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwId29ya2xvYWQwIBcNMjYxMTI0MDY0MTQ0WhgPMjEyNjEwMzEw
NjQxNDRaMBMxETAPBgNVBAMMCHdvcmtsb2FkMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEfoHPoK7ijWzokCtankprIvf5CRocuDvkGrL8UN6GnRx/j7qGZ/4/wEM6
H9utf1Ry517UEqIoW00o6xpGJU7766NTMFEwHQYDVR0OBBYEFOKCTimYFs/NNTdi
8PdjzExWbAgIMB8GA1UdIwQYMBaAFOKCTimYFs/NNTdi8PdjzExWbAgIMA8GA1Ud
EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIga97+opImqUWaoP6P7HhwawWN
4Jnpsmk9essPqman6DgCIB3U4/TP7VZ0QbRBJr7pTnaeeMc78FNXdUrhYE2vfeSw
-----END CERTIFICATE-----`
