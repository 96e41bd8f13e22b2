// Package view shows a sidecar's status to a person at a terminal: once, or live.
package view

import (
	"strings"

	"fairlead/sidecar/status"
)

// Style is how a piece of a line looks where colours are wanted.
type Style string

// Styles are parameters of SGR (ECMA-48 section 8.3.117).
const (
	plain Style = ""
	bold  Style = "1"
	dim   Style = "2"
	good  Style = "32"
	warn  Style = "33"
	bad   Style = "31"
	blue  Style = "36"
)

// Span is a piece of a line in one style. Its text is clean: it has no control characters.
type Span struct {
	Text  string
	Style Style
}

// Line is what one row of a terminal shows.
type Line []Span

// longest is how many bytes of a text are shown at most: whoever answers may send megabytes.
const longest = 1 << 10

// span makes a piece out of text that may come from anywhere.
func span(style Style, text string) Span {
	if len(text) > longest {
		text = text[:longest] + "…"
	}
	return Span{status.Clean(text), style}
}

// text is a plain line.
func text(s string) Line { return Line{span(plain, s)} }

// columns is how many columns of a terminal a rune takes. Marks, which take none, do not pass Clean.
func columns(r rune) int {
	switch {
	case r < 0x1100:
		return 1
	case r <= 0x115f, // Hangul
		r >= 0x2e80 && r <= 0xa4cf,   // CJK
		r >= 0xac00 && r <= 0xd7a3,   // Hangul
		r >= 0xf900 && r <= 0xfaff,   // CJK
		r >= 0xfe30 && r <= 0xfe6f,   // CJK forms
		r >= 0xff00 && r <= 0xff60,   // full width
		r >= 0xffe0 && r <= 0xffe6,   // full width
		r >= 0x1f000 && r <= 0x1faff, // pictures
		r >= 0x20000 && r <= 0x3fffd: // CJK
		return 2
	}
	return 1
}

func width(s string) (n int) {
	for _, r := range s {
		n += columns(r)
	}
	return n
}

// cut shortens s to at most most columns; what is cut off shows as "…".
func cut(s string, most int) string {
	if width(s) <= most {
		return s
	}
	if most < 1 {
		return ""
	}
	n := 0
	for i, r := range s {
		if n += columns(r); n > most-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// cutMiddle is cut, but keeps both ends, because either may tell names apart.
func cutMiddle(s string, most int) string {
	if width(s) <= most || most < 5 {
		return cut(s, most)
	}
	runes := []rune(s)
	tail, n := len(runes), 0
	for tail > 0 && n+columns(runes[tail-1]) <= most/3 {
		tail--
		n += columns(runes[tail])
	}
	return cut(s, most-n) + string(runes[tail:])
}

// pad fills s up to n columns, on the left if right-aligned.
func pad(s string, n int, right bool) string {
	fill := strings.Repeat(" ", max(0, n-width(s)))
	if right {
		return fill + s
	}
	return s + fill
}

// within cuts a line to at most most columns.
func (l Line) within(most int) Line {
	var out Line
	for _, s := range l {
		w := width(s.Text)
		if w > most {
			return append(out, Span{cut(s.Text, most), s.Style})
		}
		out = append(out, s)
		most -= w
	}
	return out
}

// String is the line without styles and without blanks at its end.
func (l Line) String() string {
	var b strings.Builder
	for _, s := range l {
		b.WriteString(s.Text)
	}
	return strings.TrimRight(b.String(), " ")
}

// ANSI is the line with escape sequences for its styles.
func (l Line) ANSI() string {
	var b strings.Builder
	for _, s := range l {
		if s.Style == plain || s.Text == "" {
			b.WriteString(s.Text)
			continue
		}
		b.WriteString("\x1b[" + string(s.Style) + "m" + s.Text + "\x1b[0m")
	}
	return b.String()
}

// join puts pieces after one another with two blanks between them; empty ones are left out.
func join(lines ...Line) Line {
	var out Line
	for _, l := range lines {
		if len(l) == 0 {
			continue
		}
		if len(out) > 0 {
			out = append(out, Span{"  ", plain})
		}
		out = append(out, l...)
	}
	return out
}
