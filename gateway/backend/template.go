package backend

import (
	"errors"
	"fmt"
	"strings"
)

// Caller is who a stream is opened for, as its verified token says. Only Tenant keeps connections apart; the rest matters
// to backends with an Identity. All but Tenant may be empty.
type Caller struct {
	Tenant  string // parts of its tuple are separated by slashes
	Subject string
	Issuer  string
	Pod     string
}

// Bounds of what certificates say. OpenSSH accepts 256 principals and logs key ids whole.
const (
	maxPrincipals = 16
	maxPrincipal  = 128 // bytes
	maxKeyID      = 256 // bytes
)

// nothing stands for an empty value in a key id.
const nothing = "-"

// template is text with placeholders, such as "{tenant.0}:{pod}".
type template struct {
	source string
	parts  []part
}

// part is a literal, or a placeholder for a value.
type part struct {
	literal string
	field   string // empty: a literal
	index   int    // of the tenant's tuple, for the field tenantPart
}

// Names of placeholders.
const (
	fieldTenant  = "tenant"
	fieldSubject = "subject"
	fieldIssuer  = "issuer"
	fieldPod     = "pod"
	fieldGateway = "gateway"
	fieldBackend = "backend"
	tenantPart   = "tenant." // with a digit
)

// parseTemplate reads a template. Two placeholders need a literal between them: without one nobody could tell where the
// first value ends.
func parseTemplate(source string) (*template, error) {
	t := &template{source: source}
	for rest := source; rest != ""; {
		literal, after, found := strings.Cut(rest, "{")
		if i := strings.IndexFunc(literal, func(r rune) bool { return r > 0x7f || !plain(byte(r)) }); i >= 0 {
			return nil, fmt.Errorf("it holds %q: letters, digits and %s are allowed", literal[i:], plainMarks)
		}
		if literal != "" {
			t.parts = append(t.parts, part{literal: literal})
		}
		if !found {
			break
		}
		name, after, closed := strings.Cut(after, "}")
		if !closed {
			return nil, errors.New("a { is not closed")
		}
		field, err := parseField(name)
		if err != nil {
			return nil, err
		}
		if n := len(t.parts); n > 0 && t.parts[n-1].field != "" {
			return nil, fmt.Errorf("nothing separates {%s} from the placeholder before it", name)
		}
		t.parts = append(t.parts, field)
		rest = after
	}
	if len(t.parts) == 0 {
		return nil, errors.New("it is empty")
	}
	return t, nil
}

func parseField(name string) (part, error) {
	switch name {
	case fieldTenant, fieldSubject, fieldIssuer, fieldPod, fieldGateway, fieldBackend:
		return part{field: name}, nil
	}
	if digit, ok := strings.CutPrefix(name, tenantPart); ok && len(digit) == 1 && digit[0] >= '0' && digit[0] <= '9' {
		return part{field: tenantPart, index: int(digit[0] - '0')}, nil
	}
	return part{}, fmt.Errorf("there is no placeholder {%s}: it can be {tenant}, {tenant.0} to {tenant.9}, {subject}, {issuer}, {pod}, {gateway} or {backend}", name)
}

// plainMarks are the characters besides ASCII letters and digits that a certificate's texts may hold: none that ends or
// splits an entry of sshd's principals files and lists, or that a shell would take apart.
const plainMarks = `-._:/@+=|`

func plain(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte(plainMarks, b) >= 0
}

// values are what placeholders stand for.
type values struct {
	Caller
	gateway string
	backend string
}

func (v *values) of(p part) string {
	switch p.field {
	case fieldTenant:
		return v.Tenant
	case fieldSubject:
		return v.Subject
	case fieldIssuer:
		return v.Issuer
	case fieldPod:
		return v.Pod
	case fieldGateway:
		return v.gateway
	case fieldBackend:
		return v.backend
	}
	if parts := strings.Split(v.Tenant, "/"); p.index < len(parts) {
		return parts[p.index]
	}
	return ""
}

// render puts the values in. Different values never lead to the same text: a value that holds what separates it from the
// next is refused, as is one with characters that are not plain. An empty value is refused, or with blank becomes "-".
func (t *template) render(v *values, limit int, blank bool) (string, error) {
	var out strings.Builder
	for i, p := range t.parts {
		if p.field == "" {
			out.WriteString(p.literal)
			continue
		}
		value, err := checkedValue(p, v, blank)
		if err != nil {
			return "", err
		}
		if i+1 < len(t.parts) {
			if next := t.parts[i+1].literal; strings.Index(value+next, next) != len(value) {
				return "", fmt.Errorf("{%s} holds %q, which separates it from what follows in %q", p.name(), next, t.source)
			}
		}
		out.WriteString(value)
		if out.Len() > limit {
			break
		}
	}
	if out.Len() > limit {
		return "", fmt.Errorf("%q becomes longer than %d bytes", t.source, limit)
	}
	text := out.String()
	if text[0] == '-' {
		return "", fmt.Errorf("%q begins with a hyphen then, which programs take for an option", t.source)
	}
	return text, nil
}

func (p part) name() string {
	if p.field == tenantPart {
		return fmt.Sprintf("%s%d", tenantPart, p.index)
	}
	return p.field
}

func checkedValue(p part, v *values, blank bool) (string, error) {
	value := v.of(p)
	switch {
	case value == "" && blank:
		return nothing, nil
	case value == "":
		return "", fmt.Errorf("{%s} is empty", p.name())
	case value == nothing:
		return "", fmt.Errorf("{%s} is a hyphen, which stands for nothing", p.name())
	}
	for i := range len(value) {
		if !plain(value[i]) {
			return "", fmt.Errorf("{%s} is %.64q: letters, digits and %s are allowed", p.name(), value, plainMarks)
		}
	}
	return value, nil
}
