// Package glob matches names that have parts, such as the tenant payments/orders, by patterns of as many parts. Policy,
// exemptions and whatever else names tenants in a configuration mean the same by a pattern, because they ask here.
package glob

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// All is the pattern that matches every name, of however many parts.
const All = "*"

const maxQuoted = 128 // bytes of a pattern in a message

var errEmptyPart = errors.New("it has an empty part, which no name is meant by")

// Pattern is a compiled pattern. Name and pattern are compared part by part between the slashes, each part by path.Match
// (*, ?, [a-z]); both must have the same number of parts, none of them empty. The zero Pattern matches nothing.
type Pattern struct {
	text  string
	parts []string // empty: every name, if text is All
}

// Compile checks and compiles a pattern. The error says what is wrong with it, without a code: that is for whoever knows
// where the pattern is written.
func Compile(text string) (Pattern, error) {
	if text == All {
		return Pattern{text: text}, nil
	}
	parts := strings.Split(text, "/")
	for _, part := range parts {
		if part == "" {
			return Pattern{}, fmt.Errorf("%s: %w", quote(text), errEmptyPart)
		}
		if _, err := path.Match(part, ""); err != nil {
			return Pattern{}, fmt.Errorf("%s is not a pattern: %w", quote(text), err)
		}
	}
	return Pattern{text: text, parts: parts}, nil
}

// String is the pattern as it was written.
func (p Pattern) String() string { return p.text }

// Match reports whether the name matches. The empty name, which is nobody's, matches nothing.
func (p Pattern) Match(name string) bool {
	if len(p.parts) == 0 {
		return p.text == All && name != ""
	}
	rest, more := name, true
	for _, pattern := range p.parts {
		if !more {
			return false // the name has fewer parts
		}
		var part string
		part, rest, more = strings.Cut(rest, "/")
		if part == "" {
			return false // "a/" and "a//b" are no names of "a/*"
		}
		if ok, err := path.Match(pattern, part); err != nil || !ok {
			return false
		}
	}
	return !more
}

func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}
