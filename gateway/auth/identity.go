package auth

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"fairlead/shared/errs"
)

// Identity is who a verified token speaks for.
type Identity struct {
	Tenant  string    // from the issuer's tenant template; never empty
	Subject string    // the claim sub; may be empty
	Issuer  string    // the claim iss, as configured
	TokenID string    // the claim jti, by which a token can be revoked; may be empty
	Tier    string    // from the issuer's tier template; "default" when the token names none
	Expires time.Time // the claim exp, without leeway

	IssuedAt     time.Time // the claim iat; zero when the token has none
	Pod          string    // "namespace/name" of the pod that a Kubernetes token is for; empty for others
	PodUID       string    // that pod's uid
	Confirmation string    // thumbprint of the client certificate that the token is bound to, see Thumbprint; empty: none

	by *issuer // as it was when the token was verified

	// Credential is set for issuers that review their tokens, so that Verifier.Check can have it reviewed again.
	Credential *Credential
}

// Credential holds a token for as long as somebody lives on its word. It never shows it.
type Credential struct {
	token string
	sum   digest
}

const hidden = "[token]"

// String hides the token.
func (*Credential) String() string { return hidden }

// Format hides the token from every verb.
func (*Credential) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// MarshalText hides the token from encoders, of logs as well.
func (*Credential) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// identity reads a verified token's claims.
func (i *issuer) identity(claims jwt.MapClaims) (Identity, error) {
	id := Identity{Issuer: i.cfg.Issuer, by: i, Tier: defaultTier, Expires: timeOf(claims.GetExpirationTime()), IssuedAt: timeOf(claims.GetIssuedAt())}
	var err error
	if id.Tenant, err = i.tenant.apply(claims); err != nil {
		return Identity{}, i.unusable("tenant", err)
	}
	if i.tier != nil {
		if id.Tier, err = i.tier.apply(claims); isMissing(err) {
			id.Tier = defaultTier
		} else if err != nil {
			return Identity{}, i.unusable("tier", err)
		}
	}
	if id.Subject, err = textClaim(claims, "sub", maxSubjectBytes); err != nil && !isMissing(err) {
		return Identity{}, i.unusable("subject", err)
	}
	if id.TokenID, err = textClaim(claims, "jti", maxTokenIDBytes); err != nil && !isMissing(err) {
		return Identity{}, i.unusable("token id", err)
	}
	if id.Confirmation, err = confirmation(claims); err != nil {
		return Identity{}, i.unusable("certificate to compare with", err)
	}
	if i.cfg.Kubernetes != nil {
		err = i.serviceAccount(claims, &id)
	}
	return id, err
}

// serviceAccount reads what a projected token says besides: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/
func (i *issuer) serviceAccount(claims jwt.MapClaims, id *Identity) error {
	inner, ok := claims["kubernetes.io"].(map[string]any)
	if !ok {
		return i.unusable("service account", &claimError{claim: "kubernetes.io", problem: "is missing"})
	}
	var names [4]string
	for n, path := range []string{"namespace", "serviceaccount.name", "pod.name", "pod.uid"} {
		name, err := textClaim(inner, path, maxClaimBytes)
		if err == nil && strings.ContainsAny(name, "/:") {
			err = &claimError{claim: path, problem: "is no name that Kubernetes gives"}
		}
		if err != nil && (n < 2 || !isMissing(err)) { // a token need not be bound to a pod
			return i.unusable("service account", err)
		}
		names[n] = name
	}
	if id.Subject != serviceAccountUser(names[0], names[1]) {
		return i.unusable("service account", &claimError{claim: "sub", problem: "is of another one than kubernetes.io"})
	}
	if names[2] != "" {
		id.Pod, id.PodUID = names[0]+"/"+names[2], names[3]
	}
	return nil
}

// serviceAccountUser is the name by which the cluster knows a service account.
func serviceAccountUser(namespace, name string) string {
	return "system:serviceaccount:" + namespace + ":" + name
}

func isMissing(err error) bool {
	var e *claimError
	return errors.As(err, &e) && e.missing
}

func (i *issuer) unusable(what string, cause error) error {
	return errs.Wrap(errs.TokenInvalid, cause, "the token of issuer %s gives no %s", quote(i.cfg.Issuer), what)
}
