package telemetry

import (
	"strings"
	"sync"
	"unicode/utf8"

	"fairlead/shared/errs"
)

// OtherTenant is the label of all tenants beyond the limit.
const OtherTenant = "other"

// maxLabelValue bounds the length of a label's value in bytes: longer ones only cost memory in whatever scrapes them.
const maxLabelValue = 128

// ValidLabelValue reports, as an errs.BadRequest error, why s must not be a label's value: a newline makes the metrics
// library panic, a quote or backslash breaks the line it is in, other control characters and invalid UTF-8 break scrapers.
func ValidLabelValue(s string) error {
	switch {
	case len(s) > maxLabelValue:
		return errs.New(errs.BadRequest, "label value of %d bytes: allowed are %d", len(s), maxLabelValue)
	case !utf8.ValidString(s):
		return errs.New(errs.BadRequest, "label value %q is not valid UTF-8", s)
	case strings.ContainsFunc(s, unsafeRune):
		return errs.New(errs.BadRequest, "label value %q: quotes, backslashes and control characters are not allowed", s)
	}
	return nil
}

func unsafeRune(r rune) bool {
	return r == '"' || r == '\\' || r < ' ' || r == 0x7f || r == '\u0085' || r == '\u2028' || r == '\u2029'
}

// LabelValue makes any string a valid label value: each offending character becomes "_", and the end is cut off at 128 bytes.
func LabelValue(s string) string {
	if ValidLabelValue(s) == nil {
		return s
	}
	s = strings.ToValidUTF8(s, "_")
	s = strings.Map(func(r rune) rune {
		if unsafeRune(r) {
			return '_'
		}
		return r
	}, s)
	if len(s) <= maxLabelValue {
		return s
	}
	end := maxLabelValue
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// Name builds `name{key="value",…}` from pairs of keys and values; the values pass through LabelValue. A key without a
// value is a mistake in the program and gets an empty one.
func Name(name string, labels ...string) string {
	if len(labels) == 0 {
		return name
	}
	var b strings.Builder
	b.WriteString(name)
	for i := 0; i < len(labels); i += 2 {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(labels[i])
		b.WriteString(`="`)
		if i+1 < len(labels) {
			b.WriteString(LabelValue(labels[i+1]))
		}
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// Tenants bounds the number of tenants that appear in metrics. The first ones keep their names for good, since a counter
// that moved to another label would look like a reset. Safe for concurrent use.
type Tenants struct {
	max int

	mu    sync.RWMutex
	known map[string]string // guarded by mu; tenant to label
}

// NewTenants makes a bound of max tenants, at least 1.
func NewTenants(max int) (*Tenants, error) {
	if max < 1 {
		return nil, errs.New(errs.Internal, "telemetry: a limit of %d tenants: allowed are 1 and more", max)
	}
	return &Tenants{max: max, known: make(map[string]string)}, nil
}

// Label is the tenant's label value: its name made valid, or OtherTenant when the limit was reached before it was first seen.
func (t *Tenants) Label(tenant string) string {
	t.mu.RLock()
	label, ok := t.known[tenant]
	full := len(t.known) >= t.max
	t.mu.RUnlock()
	switch {
	case ok:
		return label
	case full:
		return OtherTenant
	}
	return t.add(tenant)
}

func (t *Tenants) add(tenant string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if label, ok := t.known[tenant]; ok {
		return label
	}
	if len(t.known) >= t.max {
		return OtherTenant
	}
	tenant = strings.Clone(tenant) // it may be a slice of a request's reused buffer
	label := LabelValue(tenant)
	t.known[tenant] = label
	return label
}
