package auth

import (
	"time"

	"fairlead/shared/errs"
)

const (
	maxTenantBytes = 4096
	maxReasonBytes = 1024
)

// Revocation takes tokens back before they expire: one token, all of a subject, or all of a tenant.
type Revocation struct {
	ID string `json:"id"`

	// Exactly one of the three says whose tokens; Issuer narrows it to those of one issuer.
	TokenID string `json:"token_id,omitempty"` // the claim jti
	Subject string `json:"subject,omitempty"`  // the claim sub
	Tenant  string `json:"tenant,omitempty"`
	Issuer  string `json:"issuer,omitempty"` // the claim iss; empty: of any issuer

	Reason string    `json:"reason,omitempty"` // for people who list revocations; not told to the token's bearer
	By     string    `json:"by,omitempty"`     // who revoked
	At     time.Time `json:"at"`
	Until  time.Time `json:"until"` // when it ends; zero in Add: see RevocationsConfig.Keep

	// IssuedBefore, when set, spares tokens that were issued (iat) at that time or later, so that everybody is logged
	// out and can come back with a new token. Tokens that do not say when they were issued are refused.
	IssuedBefore time.Time `json:"issued_before,omitzero"`
}

// hits reports whether a revocation of id's token, subject or tenant applies to id.
func (n *Revocation) hits(id Identity, now time.Time) bool {
	if n.Issuer != "" && n.Issuer != id.Issuer || !now.Before(n.Until) {
		return false
	}
	return n.IssuedBefore.IsZero() || id.IssuedAt.Before(n.IssuedBefore) // zero, for a token that does not say, is before
}

func (n *Revocation) what() string {
	switch {
	case n.TokenID != "":
		return "this token"
	case n.Subject != "":
		return "its subject"
	}
	return "its tenant"
}

// problem is errs.BadRequest for a revocation that makes no sense.
func (n *Revocation) problem(now time.Time) error {
	whose := 0
	for _, s := range []string{n.TokenID, n.Subject, n.Tenant} {
		if s != "" {
			whose++
		}
	}
	switch {
	case whose != 1:
		return errs.New(errs.BadRequest, "a revocation names exactly one of token_id, subject and tenant, not %d", whose)
	case !n.Until.After(now):
		return errs.New(errs.BadRequest, "until is not in the future")
	case n.IssuedBefore.After(n.Until):
		return errs.New(errs.BadRequest, "issued_before is after until")
	}
	texts := []struct {
		name, text string
		max        int
	}{{"id", n.ID, maxTokenIDBytes}, {"token_id", n.TokenID, maxTokenIDBytes}, {"subject", n.Subject, maxSubjectBytes}, {"tenant", n.Tenant, maxTenantBytes},
		{"issuer", n.Issuer, maxSubjectBytes}, {"reason", n.Reason, maxReasonBytes}, {"by", n.By, maxSubjectBytes}}
	for _, t := range texts {
		if len(t.text) > t.max || !printable(t.text) {
			return errs.New(errs.BadRequest, "%s must be printable and have at most %d bytes", t.name, t.max)
		}
	}
	return nil
}
