package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"

	"fairlead/shared/errs"
)

// thumbprintClaim is the member of cnf that binds a token to a client certificate (RFC 8705 section 3.1).
const thumbprintClaim = "x5t#S256"

// Thumbprint is the SHA-256 of a certificate's DER form in base64url without padding, as tokens name it.
func Thumbprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Bound reports whether the token is good only together with a client certificate.
func (id Identity) Bound() bool { return id.Confirmation != "" }

// CheckCertificate says whether the connection that showed cert (nil: none) may use the token. The handshake must have
// proven that the peer has the certificate's key. The error is errs.ClientCertRefused.
func (id Identity) CheckCertificate(cert *x509.Certificate) error {
	switch {
	case !id.Bound():
		return nil
	case cert == nil:
		return errs.New(errs.ClientCertRefused, "the token is bound to a client certificate, and the connection shows none")
	case subtle.ConstantTimeCompare([]byte(Thumbprint(cert)), []byte(id.Confirmation)) != 1:
		return errs.New(errs.ClientCertRefused, "the token is bound to another client certificate than the connection shows")
	}
	return nil
}

// confirmation reads the claim cnf (RFC 7800 section 3.1). A token that is bound in a way that cannot be checked here is
// refused: taken as a plain one, it would be worth more to a thief than its issuer meant.
func confirmation(claims map[string]any) (string, error) {
	raw, bound := claims["cnf"]
	if !bound {
		return "", nil
	}
	cnf, ok := raw.(map[string]any)
	thumbprint, isText := cnf[thumbprintClaim].(string)
	if !ok || len(cnf) != 1 || !isText {
		return "", &claimError{claim: "cnf", problem: "binds the token by something else than " + thumbprintClaim + " alone"}
	}
	sum, err := base64.RawURLEncoding.Strict().DecodeString(thumbprint)
	if err != nil || len(sum) != sha256.Size || base64.RawURLEncoding.EncodeToString(sum) != thumbprint {
		return "", &claimError{claim: "cnf", problem: "holds no SHA-256 thumbprint"}
	}
	return thumbprint, nil
}
