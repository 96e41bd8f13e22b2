package auth

import (
	"strings"

	"fairlead/shared/errs"
)

// TokenFromHeader returns the token of an Authorization header's value, "Bearer TOKEN" (RFC 6750 section 2.1); the
// scheme's case does not matter. It is a part of authorization, not a copy. Errors are errs.TokenMissing when there is
// no value or no token, and errs.TokenInvalid for another scheme.
func TokenFromHeader(authorization string) (string, error) {
	authorization = strings.Trim(authorization, " \t")
	scheme, token, _ := strings.Cut(authorization, " ")
	token = strings.TrimLeft(token, " ")
	switch {
	case scheme == "":
		return "", errs.New(errs.TokenMissing, "the request carries no Authorization header")
	case !strings.EqualFold(scheme, "Bearer"):
		// The scheme is not repeated: without a scheme it would be the token itself.
		return "", errs.New(errs.TokenInvalid, "the Authorization header's scheme is not Bearer")
	case token == "":
		return "", errs.New(errs.TokenMissing, "the Authorization header carries no token")
	}
	return token, nil
}
