package auth

import (
	"maps"
	"slices"
	"strings"
	"time"

	"fairlead/shared/errs"
)

// IssuerStatus says how an issuer is, for diagnostics. It holds no secrets.
type IssuerStatus struct {
	Issuer  string        `json:"issuer"`
	Source  string        `json:"source"`            // of its keys: url, file, inline, secret or kubernetes
	Keys    int           `json:"keys"`              // in use; 0: its tokens are refused
	Fetched time.Time     `json:"fetched,omitzero"`  // when the keys were last read and found good; zero for inline keys
	Error   string        `json:"error,omitempty"`   // why the last look for keys failed; empty when it did not
	ErrorAt time.Time     `json:"error_at,omitzero"` // when that was
	Review  *ReviewStatus `json:"review,omitempty"`  // nil: its tokens are not reviewed
}

// ReviewStatus says how the review of an issuer's tokens goes.
type ReviewStatus struct {
	Asked      time.Time `json:"asked,omitzero"`    // when the cluster last answered
	Error      string    `json:"error,omitempty"`   // why it last did not; empty when it has answered since
	ErrorAt    time.Time `json:"error_at,omitzero"` // when that was
	UnderWay   int       `json:"under_way"`         // reviews that wait for an answer
	Remembered int       `json:"remembered"`        // tokens whose last answer is remembered
}

// Status lists the issuers by name.
func (v *Verifier) Status() []IssuerStatus {
	all := *v.issuers.Load()
	list := make([]IssuerStatus, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		iss := all[name]
		s := iss.source.status()
		s.Issuer = name
		if iss.review != nil {
			s.Review = iss.review.status()
		}
		list = append(list, s)
	}
	return list
}

// Ready is nil when any issuer has keys, else errs.KeysUnavailable: then no token could be accepted.
func (v *Verifier) Ready() error {
	var without []string
	for _, s := range v.Status() {
		if s.Keys > 0 {
			return nil
		}
		without = append(without, quote(s.Issuer))
	}
	return errs.New(errs.KeysUnavailable, "no issuer has keys: %s", strings.Join(without, ", ")).After(keysRetryAfter)
}
