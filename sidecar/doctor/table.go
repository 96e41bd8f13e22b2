package doctor

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Style is how a table is drawn.
type Style struct {
	ASCII  bool // marks for terminals without UTF-8
	Colour bool
}

// Table draws results as they come.
type Table struct {
	w     io.Writer
	style Style
	err   error // of the first write that failed
}

// NewTable draws on w.
func NewTable(w io.Writer, style Style) *Table { return &Table{w: w, style: style} }

// Widths of the columns, in characters. What is longer pushes the rest to the right.
const (
	hopWidth    = 13
	targetWidth = 28
	tookWidth   = 10
)

// Result draws one hop: a line, and one for the advice if there is any.
func (t *Table) Result(r Result) {
	took := ""
	if r.TookMS > 0 {
		took = fmt.Sprintf("%.1f ms", r.TookMS)
	}
	detail := r.Detail
	if r.Code != "" {
		detail = r.Code + " " + detail
	}
	t.line("%s %s %s %*s  %s", t.mark(r.Status), pad(r.Hop, hopWidth), pad(clip(r.Target, 200), targetWidth), tookWidth, took, clip(detail, 2000))
	if r.Advice != "" && (r.Status == Fail || r.Status == Warn) {
		t.line("  %s %s %s", strings.Repeat(" ", hopWidth), t.arrow(), r.Advice)
	}
}

// Conclusion draws the last line, and returns the first error of all the writes.
func (t *Table) Conclusion(r Report) error {
	count := map[Status]int{}
	for _, h := range r.Hops {
		count[h.Status]++
	}
	t.line("")
	t.line("%d ok, %d to look at, %d failed, %d not tried; %.1f s", count[OK], count[Warn], count[Fail], count[Skipped], r.TookMS/1e3)
	t.line("%s", clip(r.Conclusion, 2000))
	return t.err
}

func (t *Table) line(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintln(t.w, strings.TrimRight(fmt.Sprintf(format, args...), " "))
	}
}

func (t *Table) arrow() string {
	if t.style.ASCII {
		return "->"
	}
	return "→"
}

// mark is one character, with its colour.
func (t *Table) mark(s Status) string {
	marks := map[Status][3]string{OK: {"✓", "+", "32"}, Warn: {"!", "!", "33"}, Fail: {"✗", "x", "31"}, Skipped: {"–", "-", "2"}}
	m := marks[s]
	text := m[0]
	if t.style.ASCII {
		text = m[1]
	}
	if t.style.Colour {
		return "\x1b[" + m[2] + "m" + text + "\x1b[0m"
	}
	return text
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

// StyleOf chooses by the environment: colours on a terminal unless NO_COLOR is set, ASCII where the locale says that
// it is not UTF-8. A locale that is not set, as in most containers, says nothing.
func StyleOf(environ func(string) string, terminal bool) Style {
	locale := ""
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale = environ(name); locale != "" {
			break
		}
	}
	upper := strings.ToUpper(locale)
	utf := locale == "" || strings.Contains(upper, "UTF-8") || strings.Contains(upper, "UTF8")
	return Style{ASCII: !utf, Colour: terminal && environ("NO_COLOR") == "" && environ("TERM") != "dumb"}
}
