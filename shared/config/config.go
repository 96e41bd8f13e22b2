// Package config reads a program's configuration into a struct, strictly and from four layers, each overriding the one
// before: defaults, a YAML file, the environment, and flags.
//
// The struct's tags are the schema. Each field has the tags
//
//	koanf:"name"     the key; ",squash" for an embedded struct whose keys belong to the outer one
//	doc:"…"          meaning, and what the zero means; for the reference
//	example:"…"      an example as it would stand in an environment variable
//	enum:"a|b"       the allowed values of a string or of each string in a list
//	min:"1" max:"9"  limits of a number, duration or size; the minimum is 0 without the tag
//	allowed:"…"      what else Validate demands, for the reference
//	secret:"true"    the value is masked wherever it is shown; secret:"url" masks the password of a URL
//
// and one of the types string, logging.Secret, bool, int, time.Duration, Bytes, []string, a struct, a list of structs, or
// a map from names to structs. Elements of lists and maps may have a method SetDefaults on their pointer.
//
// Nothing is guessed: an unknown key, a number without its unit, or a value of another type is refused, in every layer, and
// all problems are reported at once. Keys are written as "listeners[0].route" and "backends.git.address".
package config

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// EnvPrefix begins the name of every environment variable that is read.
const EnvPrefix = "FAIRLEAD_"

// EnvFile names the configuration file when no flag does.
const EnvFile = EnvPrefix + "CONFIG"

// SourceDefault is the source of a value that no layer has set.
const SourceDefault = "default"

// NameRule is what names of routes, backends, tiers, listeners and the like look like.
const NameRule = "[a-z0-9][a-z0-9._-]{0,62}"

var namePattern = regexp.MustCompile("^" + NameRule + "$")

// ValidName reports whether s follows NameRule.
func ValidName(s string) bool { return namePattern.MatchString(s) }

// Validator is a configuration struct that checks what tags cannot say. Validate returns all problems it finds, without
// their sources: the loader knows them.
type Validator interface{ Validate() []Problem }

// Bytes is a size in bytes. In configuration it is a string with its unit: 512B, 64KiB, 1MiB, 2GiB.
type Bytes int64

// Sizes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// String is the size in the largest unit that divides it.
func (b Bytes) String() string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// MarshalText is the size as String gives it.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

var sizePattern = regexp.MustCompile(`^([0-9]{1,18})(B|KiB|MiB|GiB)$`)

// parseBytes reads a size with its unit; false if it is none, or beyond 2⁶³-1 bytes.
func parseBytes(s string) (Bytes, bool) {
	m := sizePattern.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // cannot fail: at most 18 digits
	unit := map[string]int64{"B": 1, "KiB": int64(KiB), "MiB": int64(MiB), "GiB": int64(GiB)}[m[2]]
	if n*unit/unit != n {
		return 0, false
	}
	return Bytes(n * unit), true
}

// FormatDuration is d as configuration would have it: 5m rather than 5m0s.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
