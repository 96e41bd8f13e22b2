package status

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes text from elsewhere fit for a terminal: each rune that does not print as itself on its own (control
// characters, line ends, marks, directions, bytes that are no UTF-8) becomes "·".
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) || unicode.IsMark(r) {
			return '·'
		}
		return r
	}, s)
}

// CleanJSON makes JSON fit for a terminal without changing what it says: the control characters that JSON permits in a
// string (DEL and C1) are escaped.
func CleanJSON(body []byte) []byte {
	var out []byte
	for _, r := range string(body) {
		if r >= 0x7f && r <= 0x9f {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

// clip cuts s after at most n bytes, between runes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
