package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// logs captures what a program logs, line by line. It is shown when the test fails.
type logs struct {
	mu    sync.Mutex
	rest  []byte // guarded by mu; of a line that is not complete yet
	lines [][]byte
}

// shownLines is how much of a log a failed test shows.
const shownLines = 200

func newLogs(t *testing.T, name string) *logs {
	l := &logs{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, l.tail())
		}
	})
	return l
}

// Write takes output as it comes.
func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, complete := bytes.Cut(l.rest, []byte("\n"))
		if !complete {
			return len(p), nil
		}
		l.lines = append(l.lines, bytes.Clone(line))
		l.rest = rest
	}
}

// text is everything so far.
func (l *logs) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(bytes.Join(append(l.lines[:len(l.lines):len(l.lines)], l.rest), []byte("\n")))
}

func (l *logs) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	if cut := len(lines) - shownLines; cut > 0 {
		lines = append([][]byte{fmt.Appendf(nil, "… %d lines before", cut)}, lines[cut:]...)
	}
	return string(bytes.Join(append(lines[:len(lines):len(lines)], l.rest), []byte("\n")))
}

// entry is a line of a JSON log.
type entry map[string]any

// str is a field as text; "" when the line has none of that name.
func (e entry) str(field string) string {
	if v, ok := e[field]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// entries are the lines that are JSON objects. Other output, such as a report of the race detector, is in text only.
func (l *logs) entries() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []entry
	for _, line := range l.lines {
		var e entry
		if json.Unmarshal(line, &e) == nil {
			all = append(all, e)
		}
	}
	return all
}

// find returns the lines with this message whose fields have these values, given as name, value, name, value, ….
func (l *logs) find(msg string, fields ...string) []entry {
	var found []entry
	for _, e := range l.entries() {
		if e.str("msg") == msg && e.has(fields) {
			found = append(found, e)
		}
	}
	return found
}

func (e entry) has(fields []string) bool {
	for i := 0; i+1 < len(fields); i += 2 {
		if e.str(fields[i]) != fields[i+1] {
			return false
		}
	}
	return true
}

// wait waits for a line and returns the first one that fits.
func (l *logs) wait(t *testing.T, msg string, fields ...string) entry {
	t.Helper()
	var found []entry
	require.Eventually(t, func() bool {
		found = l.find(msg, fields...)
		return len(found) > 0
	}, patience, glance, "a line %q with %q", msg, fields)
	return found[0]
}
