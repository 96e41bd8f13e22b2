package admin

import (
	"strings"
	"time"

	"fairlead/shared/errs"
)

// Bodies and queries. Their tags are what is checked and what the documentation says.

// BreakerRequest overrules a circuit.
type BreakerRequest struct {
	Mode string `json:"mode" required:"true" enum:"open,closed,auto" doc:"open refuses every call, closed lets every call through, auto leaves it to the circuit"`
}

// RevocationRequest revokes. At least one of token_id, subject and tenant must be given; a token is revoked when all that is
// given fit.
type RevocationRequest struct {
	TokenID string `json:"token_id,omitempty" max:"256" doc:"revoke tokens with this id"`
	Subject string `json:"subject,omitempty" max:"512" doc:"revoke tokens of this subject"`
	Tenant  string `json:"tenant,omitempty" max:"512" doc:"revoke tokens of this tenant"`
	Issuer  string `json:"issuer,omitempty" max:"512" doc:"only those of this issuer"`
	Reason  string `json:"reason,omitempty" max:"512" doc:"for people"`
	// IssuedBefore spares newer tokens: everybody is logged out, and can come back.
	IssuedBefore time.Time `json:"issued_before,omitzero" doc:"revoke only tokens that were issued before; those that do not say when they were are revoked too"`
	Expires      time.Time `json:"expires,omitzero" doc:"when it may be forgotten; not given: in 24 hours, or when the longest token that was accepted ends, if that is later"`
}

// OneOf implements adminapi.OneNeeded.
func (*RevocationRequest) OneOf() []string { return []string{"token_id", "subject", "tenant"} }

func (r *RevocationRequest) valid() error {
	if r.TokenID == "" && r.Subject == "" && r.Tenant == "" {
		return errs.New(errs.BadRequest, "at least one of %s is needed", strings.Join(r.OneOf(), ", "))
	}
	return nil
}

// PolicyQuestion asks what the policy would answer.
type PolicyQuestion struct {
	Tenant string `json:"tenant" required:"true" max:"512" doc:"who asks"`
	Route  string `json:"route" required:"true" max:"255" doc:"for what"`
}

// The bounds of a page of a list.
const (
	defaultPage = 500
	largestPage = 5000
)

// TunnelQuery selects tunnels.
type TunnelQuery struct {
	Tenant string `json:"tenant" max:"512" doc:"only those of this tenant"`
	Route  string `json:"route" max:"255" doc:"only those with a stream to this route"`
	Limit  int    `json:"limit" min:"1" max:"5000" doc:"how many at most; not given: 500"`
	After  string `json:"after" max:"256" doc:"continues a list: from the header Link of the page before"`
}

// StreamQuery selects streams.
type StreamQuery struct {
	Tenant  string `json:"tenant" max:"512" doc:"only those of this tenant"`
	Tunnel  string `json:"tunnel" max:"64" doc:"only those of this tunnel"`
	Route   string `json:"route" max:"255" doc:"only those to this route"`
	Backend string `json:"backend" max:"255" doc:"only those to this backend"`
	Limit   int    `json:"limit" min:"1" max:"5000" doc:"how many at most; not given: 500"`
	After   string `json:"after" max:"256" doc:"continues a list: from the header Link of the page before"`
}

// TenantQuery selects tenants.
type TenantQuery struct {
	Limit int    `json:"limit" min:"1" max:"5000" doc:"how many at most; not given: 500"`
	After string `json:"after" max:"2048" doc:"continues a list: from the header Link of the page before"`
}

// EventQuery selects events.
type EventQuery struct {
	After uint64 `json:"after" doc:"only events with a larger id; not given: all that are remembered"`
}

// LiveQuery selects points.
type LiveQuery struct {
	After time.Time `json:"after" doc:"only points that are newer; not given: all that are remembered"`
}

// ProfileQuery shapes a profile.
type ProfileQuery struct {
	Seconds int `json:"seconds" max:"100" doc:"how long to look; of heap and the like: what came in that time"`
	Debug   int `json:"debug" max:"2" doc:"1 and 2: as text"`
	GC      int `json:"gc" max:"1" doc:"1: collect garbage first"`
}
