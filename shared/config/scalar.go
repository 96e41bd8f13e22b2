package config

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fairlead/shared/logging"
)

// maxShown bounds how much of a value a problem repeats.
const maxShown = 80

// scalar reads the text of a single value; the string says what is wrong with it.
func (f *field) scalar(text string) (any, string) {
	switch f.kind {
	case kindString:
		return text, ""
	case kindSecret:
		return logging.Secret(text), ""
	case kindBool:
		if text == "true" || text == "false" {
			return text == "true", ""
		}
	case kindInt:
		n, err := strconv.Atoi(text)
		if err == nil && strconv.Itoa(n) == text { // no octal, no sign, no spaces: nothing that reads in two ways
			return n, ""
		}
	case kindDuration:
		d, err := time.ParseDuration(text)
		if err == nil && strings.ContainsAny(text, "hmsµu") { // ParseDuration takes a bare 0
			return d, ""
		}
	case kindBytes:
		if b, ok := parseBytes(text); ok {
			return b, ""
		}
		if text == "0" && f.min == 0 { // nothing is the same in every unit
			return Bytes(0), ""
		}
	}
	return nil, f.expects()
}

// check says what is wrong with a value of the right type that breaks the field's limits.
func (f *field) check(v any) string {
	ok := true
	switch v := v.(type) {
	case string:
		ok = len(f.enum) == 0 || slices.Contains(f.enum, v)
	case []string:
		ok = len(f.enum) == 0 || !slices.ContainsFunc(v, func(s string) bool { return !slices.Contains(f.enum, s) })
	case int:
		ok = f.inLimits(int64(v))
	case time.Duration:
		ok = f.inLimits(int64(v))
	case Bytes:
		ok = f.inLimits(int64(v))
	}
	if ok {
		return ""
	}
	return "allowed: " + f.expects()
}

func (f *field) inLimits(n int64) bool { return n >= f.min && (f.max == nil || n <= *f.max) }

// plain is the value as it would be written in a file or shown in an API: durations and sizes as strings, secrets masked.
func (f *field) plain(v any) any {
	switch v := v.(type) {
	case string:
		return f.mask(v)
	case []string:
		out := make([]string, len(v))
		for i, s := range v {
			out[i] = f.mask(s)
		}
		return out
	case logging.Secret:
		return v.String()
	case time.Duration:
		return FormatDuration(v)
	case Bytes:
		return v.String()
	}
	return v
}

func (f *field) mask(s string) string {
	switch {
	case s == "" || f.secret == "":
		return s
	case f.secret == "url" && !strings.Contains(s, "@"): // no place for a password
		return s
	case f.secret == "url":
		if u, err := url.Parse(s); err == nil && u.User != nil {
			return u.Redacted()
		}
	}
	return logging.Mask
}

// show is a text as problems repeat it: masked, on one line, cut to a length.
func (f *field) show(text string, quote bool) string {
	text = f.mask(text)
	if len(text) > maxShown {
		end := maxShown
		for !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end] + "…"
	}
	if quote || strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}
