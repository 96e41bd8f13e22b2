package doctor

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strings"
	"time"
)

// claims are what a token says of itself. Nothing of it is verified.
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Expires   date     `json:"exp"`
	NotBefore date     `json:"nbf"`
	Issued    date     `json:"iat"`
}

// audience is one string or several (RFC 7519 section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	var all []string
	err := json.Unmarshal(b, &all)
	*a = all
	return err
}

// date is a number of seconds since 1970 (RFC 7519 section 2).
type date struct{ time.Time }

// lastDate is the end of the year 9999, in seconds since 1970.
const lastDate = 253402300799

func (d *date) UnmarshalJSON(b []byte) error {
	var seconds float64
	if err := json.Unmarshal(b, &seconds); err != nil {
		return err
	}
	seconds = math.Max(0, math.Min(seconds, lastDate))
	d.Time = time.Unix(int64(seconds), 0)
	return nil
}

// parseClaims looks into a compact JWS; false: it is none.
func parseClaims(token string) (c claims, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(raw, &c) != nil {
		return claims{}, false
	}
	return c, true
}
