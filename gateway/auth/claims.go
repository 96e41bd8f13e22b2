package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"github.com/golang-jwt/jwt/v5"
)

// maxDate is the last second of the year 9999 in seconds since 1970: what RFC 3339 can write, and what converts exactly.
const maxDate = 253_402_300_799

// unusableDate names a claim that should hold a time and holds something else, or a number that is no time; "" when
// there is none. What a float beyond every time becomes as an integer depends on the machine, so it is never converted.
func unusableDate(claims jwt.MapClaims) string {
	for _, name := range []string{"exp", "nbf", "iat"} {
		raw, there := claims[name]
		if n, ok := raw.(float64); there && !(ok && n >= 0 && n <= maxDate) {
			return name
		}
	}
	return ""
}

// saysTwice reports whether an object in the JSON document names a member twice: which of the two counts differs between
// parsers (RFC 7519 section 4), so a token could mean one thing here and another thing elsewhere. A document that cannot
// be read counts too.
func saysTwice(document []byte) bool {
	decoder := json.NewDecoder(bytes.NewReader(document))
	var open []object
	for {
		token, err := decoder.Token()
		if err != nil {
			return !errors.Is(err, io.EOF)
		}
		var top *object
		if len(open) > 0 {
			top = &open[len(open)-1]
		}
		if name, ok := token.(string); ok && top.wantsName() {
			if top.names[name] {
				return true
			}
			top.names[name], top.named = true, true
			continue
		}
		if top != nil {
			top.named = false // a value, or the beginning of one
		}
		switch token {
		case json.Delim('{'):
			open = append(open, object{names: map[string]bool{}})
		case json.Delim('['):
			open = append(open, object{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
	}
}

// object is a JSON object that is being read, or an array, which has no names.
type object struct {
	names map[string]bool
	named bool // the next token is a value
}

func (o *object) wantsName() bool { return o != nil && o.names != nil && !o.named }
