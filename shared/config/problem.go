package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"fairlead/shared/errs"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Source  string // "file:line", the environment variable, the flag, or SourceDefault; the loader fills it in
	Key     string // such as "listeners[0].route"; empty when the file as a whole is meant
	Value   string // the value, masked if it is secret, filled in by the loader; empty when there is none to show
	Allowed string // what is allowed instead, or what is wrong
}

// String is `source: key: value: allowed`, without the parts that are empty.
func (p Problem) String() string {
	parts := make([]string, 0, 4)
	for _, s := range []string{p.Source, p.Key, p.Value, p.Allowed} {
		if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
			s = strconv.Quote(s) // a key may be anything that a file holds
		}
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// Problems is everything that is wrong with a configuration. The error of Load has it in its chain (errors.As).
type Problems []Problem

// Error has each problem on a line of its own.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = "\n  " + p.String()
	}
	return strings.Join(lines, "")
}

// err is the one error that tells of all problems; nil if there are none.
func (ps Problems) err() error {
	switch len(ps) {
	case 0:
		return nil
	case 1:
		return errs.Wrap(errs.ConfigInvalid, ps, "1 problem in the configuration")
	}
	return errs.Wrap(errs.ConfigInvalid, ps, "%d problems in the configuration", len(ps))
}

// touches reports whether a problem is already known about key, something in it, or what it is in.
func (ps Problems) touches(key string) bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return within(p.Key, key) || within(key, p.Key) })
}

// within reports whether key is outer or something in it.
func within(key, outer string) bool {
	rest, ok := strings.CutPrefix(key, outer)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[' || outer == "")
}

// parentKey is the key that contains key; "" for a key of the top level.
func parentKey(key string) string {
	return key[:max(strings.LastIndexAny(key, ".["), 0)]
}

func joinKey(outer, name string) string {
	if outer == "" {
		return name
	}
	return outer + "." + name
}

func indexKey(outer string, i int) string { return outer + "[" + strconv.Itoa(i) + "]" }

// unknownKey names the allowed keys nearest to name, or all when none is near.
func unknownKey(name string, allowed []string) string {
	near := slices.Clone(allowed)
	limit := max(2, len(name)/3)
	near = slices.DeleteFunc(near, func(a string) bool {
		shortened := len(name) >= 3 && strings.HasPrefix(a, name)
		return distance(name, a) > limit && !strings.Contains(name, a) && !shortened
	})
	slices.SortStableFunc(near, func(a, b string) int { return distance(name, a) - distance(name, b) })
	if len(near) == 0 {
		return "unknown key; allowed here: " + orList(allowed)
	}
	return fmt.Sprintf("unknown key; did you mean %s?", orList(near[:min(3, len(near))]))
}

// distance is the Levenshtein distance of a and b in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// orList is "a", "a or b", "a, b or c".
func orList(s []string) string {
	switch len(s) {
	case 0:
		return "none"
	case 1:
		return s[0]
	}
	return strings.Join(s[:len(s)-1], ", ") + " or " + s[len(s)-1]
}

// At is the key of one element of a list, such as "listeners[0]".
func At(list string, i int) string { return indexKey(list, i) }
