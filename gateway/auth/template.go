package auth

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxClaimBytes   = 253 // of a claim in a template: the longest name that Kubernetes has
	maxSubjectBytes = 512
	maxTokenIDBytes = 253
)

// template builds a name from claims: literal[0] claim[0] literal[1] claim[1] … literal[n].
//
// Different claims never give the same name: a template that is more than one single claim refuses values that hold a
// "/" or, where the text between two claims has no "/", any character of that text.
type template struct {
	literals []string // one more than claims
	claims   []string
	refused  string // characters that no value may hold
}

// claimError says which claim cannot be used and why; it never holds the claim's value.
type claimError struct {
	claim   string
	problem string
	missing bool
}

func (e *claimError) Error() string { return fmt.Sprintf("claim %q %s", e.claim, e.problem) }

func parseTemplate(source string) (*template, error) {
	t := &template{}
	rest := source
	for {
		open := strings.IndexAny(rest, "{}")
		if open < 0 {
			t.literals = append(t.literals, rest)
			break
		}
		if rest[open] == '}' {
			return nil, errors.New("holds a } without its {")
		}
		literal, after := rest[:open], rest[open+1:]
		end := strings.IndexAny(after, "{}")
		if end < 0 || after[end] == '{' {
			return nil, errors.New("holds a { without its }")
		}
		if end == 0 {
			return nil, errors.New("holds {} without a claim's name")
		}
		t.literals, t.claims = append(t.literals, literal), append(t.claims, after[:end])
		rest = after[end+1:]
	}
	return t, t.check()
}

func (t *template) check() error {
	for _, literal := range t.literals {
		if !printable(literal) {
			return errors.New("holds characters that cannot be printed")
		}
	}
	if len(t.claims) == 0 {
		if t.literals[0] == "" {
			return errors.New("is empty")
		}
		return nil
	}
	if t.single() {
		return nil
	}
	refused := "/"
	for _, between := range t.literals[1:len(t.claims)] {
		if between == "" {
			return errors.New("has two claims without text between them, so that different claims could give the same name")
		}
		if !strings.Contains(between, "/") {
			refused += between
		}
	}
	t.refused = refused
	return nil
}

// single reports whether the template is one claim and nothing else.
func (t *template) single() bool {
	return len(t.claims) == 1 && t.literals[0] == "" && t.literals[1] == ""
}

// apply builds the name; a failure is a *claimError.
func (t *template) apply(claims map[string]any) (string, error) {
	var b strings.Builder
	for i, name := range t.claims {
		value, err := textClaim(claims, name, maxClaimBytes)
		if err != nil {
			return "", err
		}
		if at := strings.IndexAny(value, t.refused); at >= 0 {
			return "", &claimError{claim: name, problem: "holds a character that the template uses to join claims"}
		}
		b.WriteString(t.literals[i])
		b.WriteString(value)
	}
	b.WriteString(t.literals[len(t.claims)])
	return b.String(), nil
}

// textClaim returns the claim's value when it is text that is fit to be a name.
func textClaim(claims map[string]any, name string, maxBytes int) (string, error) {
	raw, ways := lookup(claims, name)
	value, ok := raw.(string)
	switch {
	case ways == 0:
		return "", &claimError{claim: name, problem: "is missing", missing: true}
	case ways > 1:
		return "", &claimError{claim: name, problem: "is there more than once"}
	case !ok:
		return "", &claimError{claim: name, problem: "is not a string"}
	case value == "":
		return "", &claimError{claim: name, problem: "is empty"}
	case len(value) > maxBytes:
		return "", &claimError{claim: name, problem: fmt.Sprintf("is longer than %d bytes", maxBytes)}
	case !printable(value):
		return "", &claimError{claim: name, problem: "holds characters that cannot be printed"}
	}
	return value, nil
}

// lookup finds a claim by its dotted path. Keys may hold dots themselves ("kubernetes.io"), so a path can be cut in several
// ways. It returns in how many of them there is a value: with more than one, whoever may choose the name of some claim
// could put their value in place of another.
func lookup(claims map[string]any, path string) (value any, ways int) {
	if direct, ok := claims[path]; ok {
		value, ways = direct, 1
	}
	for cut := strings.LastIndexByte(path, '.'); cut > 0; cut = strings.LastIndexByte(path[:cut], '.') {
		inner, ok := claims[path[:cut]].(map[string]any)
		if !ok {
			continue
		}
		if deeper, more := lookup(inner, path[cut+1:]); more > 0 {
			value, ways = deeper, ways+more
		}
	}
	return value, ways
}

// printable refuses control and invisible characters, and the replacement character: the JSON decoder puts it for every
// kind of broken text, so that two different values would look the same.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}
