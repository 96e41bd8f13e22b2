package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

func sumRaw(b []byte) hash { return sha256.Sum256(b) }

// made is a log with everything in it: several files, runs, heads, a torn line.
type made struct {
	names []string // base names in order
	files [][][]byte
	key   ed25519.PublicKey
}

// makeLog writes a log with two runs of n records, the first of which ended by a crash in the middle of a line.
func makeLog(t testing.TB, sign bool, n int) made {
	t.Helper()
	file := logFile(t)
	var m made
	adjust := func(*Config) {}
	if sign {
		adjust, m.key = signed(t, func(c *Config) { c.SignRecords = 7 })
	}
	small := func(c *Config) { c.MaxSize = minMaxSize }
	l := open(t, file, adjust, small)
	bulk := sample()
	bulk.Detail = strings.Repeat("detail ", 100)
	for range n {
		require.NoError(t, l.Record(bulk))
	}
	crash(t, l, file, []byte(`{"time":"2026-11-23T22:`))
	l = open(t, file, adjust, small)
	for range n {
		require.NoError(t, l.Record(bulk))
	}
	shut(t, l)
	older, err := olderFiles(file)
	require.NoError(t, err)
	for _, number := range older {
		m.names = append(m.names, filepath.Base(numbered(file, number)))
		m.files = append(m.files, readLines(t, numbered(file, number)))
	}
	m.names = append(m.names, filepath.Base(file))
	m.files = append(m.files, readLines(t, file))
	return m
}

// crash ends a log as a crash in the middle of a line would: without its last line, and with a part of another one.
func crash(t testing.TB, l *Log, file string, rest []byte) {
	t.Helper()
	shut(t, l)
	lines := readLines(t, file)
	lines = lines[:len(lines)-1]
	require.NoError(t, os.WriteFile(file, append(bytes.Join(append(lines, nil), []byte("\n")), rest...), 0o600))
}

func (m made) copy() made {
	c := m
	c.files = make([][][]byte, len(m.files))
	for i, f := range m.files {
		c.files[i] = slices.Clone(f)
	}
	return c
}

func (m made) keys() []ed25519.PublicKey {
	if m.key == nil {
		return nil
	}
	return []ed25519.PublicKey{m.key}
}

// verify verifies the log as it is in memory.
func (m made) verify(cfg VerifyConfig) (*Report, error) {
	cfg.Keys = m.keys()
	return Verify(cfg, m.sources())
}

func (m made) sources() (sources []Source) {
	for i, lines := range m.files {
		data := append(bytes.Join(lines, []byte("\n")), '\n')
		if len(lines) == 0 {
			data = nil
		}
		number, _ := numberOf("audit.jsonl", m.names[i])
		sources = append(sources, Source{Name: m.names[i], Number: number, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }})
	}
	return sources
}

// place is where line i of the whole log is.
func (m made) place(i int) (file, line int) {
	for f, lines := range m.files {
		if i < len(lines) {
			return f, i
		}
		i -= len(lines)
	}
	return len(m.files) - 1, len(m.files[len(m.files)-1]) + i
}

func (m made) total() (n int) {
	for _, f := range m.files {
		n += len(f)
	}
	return n
}

func (m made) at(i int) []byte { f, l := m.place(i); return m.files[f][l] }

func (m made) set(i int, b []byte) { f, l := m.place(i); m.files[f][l] = b }

func (m made) remove(i int) {
	f, l := m.place(i)
	m.files[f] = slices.Delete(m.files[f], l, l+1)
}

func (m made) insert(i int, b []byte) {
	f, l := m.place(i)
	m.files[f] = slices.Insert(m.files[f], l, b)
}

// named is the line that the damage names, counted over the whole log.
func (m made) named(t testing.TB, err error) (int, *Damage) {
	t.Helper()
	require.ErrorIs(t, err, errs.AuditBroken)
	var d *Damage
	require.True(t, errors.As(err, &d))
	i := slices.Index(m.names, filepath.Base(d.File))
	require.GreaterOrEqual(t, i, 0, "%v", d)
	n := d.Line - 1
	for _, f := range m.files[:i] {
		n += len(f)
	}
	return n, d
}

// Verifies: R4.9
func TestEveryTamperingIsFoundAndNamed(t *testing.T) {
	for _, sign := range []bool{false, true} {
		t.Run(fmt.Sprintf("signed=%v", sign), func(t *testing.T) {
			whole := makeLog(t, sign, 14)
			require.GreaterOrEqual(t, len(whole.files), 3)
			r, err := whole.verify(VerifyConfig{})
			require.NoError(t, err)
			require.Equal(t, 1, r.Torn)
			require.Len(t, r.Unclean, 1)
			last := whole.total() - 1
			if sign {
				last++ // the last line is signed, so that an edit of it shows
			}
			for i := range last {
				edits(t, whole, i)
				if i < whole.total()-1 {
					removals(t, whole, i)
				}
			}
		})
	}
}

// edits changes line i in some ways.
func edits(t *testing.T, whole made, i int) {
	for name, edit := range map[string]func([]byte) []byte{
		"a byte":    func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"the time":  func(b []byte) []byte { return bytes.Replace(b, []byte(`{"time":"2`), []byte(`{"time":"1`), 1) },
		"the seq":   func(b []byte) []byte { return bytes.Replace(b, []byte(`"seq":`), []byte(`"seq":1`), 1) },
		"the prev":  func(b []byte) []byte { b[len(b)-5] ^= 1; return b },
		"all of it": func([]byte) []byte { return []byte("x") },
		"a space":   func(b []byte) []byte { return append(b, ' ') },
		"emptied":   func([]byte) []byte { return nil },
		"zeros":     func(b []byte) []byte { return make([]byte, len(b)) },
	} {
		m := whole.copy()
		b := edit(bytes.Clone(whole.at(i)))
		if bytes.Equal(b, whole.at(i)) {
			continue // a torn line has no such field
		}
		m.set(i, b)
		_, err := m.verify(VerifyConfig{})
		require.Error(t, err, "%s of line %d", name, i)
		n, d := m.named(t, err)
		require.Equal(t, i, n, "%s of line %d: %v", name, i, d)
	}
}

// removals removes, repeats and moves line i.
func removals(t *testing.T, whole made, i int) {
	m := whole.copy()
	m.remove(i)
	_, err := m.verify(VerifyConfig{})
	require.Error(t, err, "removed line %d", i)
	n, d := m.named(t, err)
	if bytes.Contains(whole.at(i), []byte(`"kind":"recover"`)) {
		require.Equal(t, i-1, n, "without its declaration, the torn line is one that was edited: %v", d)
	} else {
		require.Equal(t, i, n, "removed line %d: %v", i, d)
		require.Equal(t, Removed, d.Kind, "line %d: %v", i, d)
	}

	m = whole.copy()
	m.insert(i, whole.at(i))
	_, err = m.verify(VerifyConfig{})
	require.Error(t, err, "repeated line %d", i)
	n, d = m.named(t, err)
	require.True(t, n == i || n == i+1, "repeated line %d: named %d: %v", i, n, d)

	m = whole.copy()
	m.set(i, whole.at(i+1))
	m.set(i+1, whole.at(i))
	_, err = m.verify(VerifyConfig{})
	require.Error(t, err, "swapped line %d", i)
	n, d = m.named(t, err)
	require.True(t, n == i || n == i+1, "swapped line %d: named %d: %v", i, n, d)
}

func TestAnySingleChangeIsFound(t *testing.T) {
	whole := makeLog(t, true, 20)
	rapid.Check(t, func(rt *rapid.T) {
		m := whole.copy()
		i := rapid.IntRange(0, whole.total()-2).Draw(rt, "line")
		what := rapid.SampledFrom([]string{"byte", "cut", "insert forged", "move", "far swap", "split", "join"}).Draw(rt, "what")
		switch what {
		case "byte":
			b := bytes.Clone(whole.at(i))
			b[rapid.IntRange(0, len(b)-1).Draw(rt, "at")] ^= byte(rapid.SampledFrom([]int{1, 2, 4, 8, 16, 32, 64, 128}).Draw(rt, "bit"))
			if bytes.ContainsRune(b, '\n') {
				return // a split, see there
			}
			m.set(i, b)
		case "cut":
			b := whole.at(i)
			m.set(i, b[:rapid.IntRange(0, len(b)-1).Draw(rt, "to")])
		case "insert forged":
			if i == 0 {
				return
			}
			f, l := whole.place(i)
			if l == 0 || whole.at(i - 1)[len(whole.at(i-1))-1] != '}' {
				return
			}
			p, err := parseLine(whole.at(i - 1))
			require.NoError(rt, err)
			forged := appendLine(nil, p.at, "gw-0", p.Seq+1, appendEvent(nil, &Event{Action: Open, Actor: "mallory"}), sumRaw(whole.at(i-1)))
			m.files[f] = slices.Insert(m.files[f], l, forged)
		case "move":
			to := rapid.IntRange(0, whole.total()-2).Draw(rt, "to")
			if to == i {
				return
			}
			m.remove(i)
			m.insert(to, whole.at(i))
		case "far swap":
			j := rapid.IntRange(0, whole.total()-1).Draw(rt, "with")
			if i == j {
				return
			}
			m.set(i, whole.at(j))
			m.set(j, whole.at(i))
			i = min(i, j)
		case "split":
			b := whole.at(i)
			at := rapid.IntRange(0, len(b)).Draw(rt, "at")
			m.set(i, b[:at])
			m.insert(i+1, b[at:])
			if f1, _ := whole.place(i); len(m.files[f1]) == len(whole.files[f1]) {
				return // it went into the next file
			}
		case "join":
			if f1, _ := whole.place(i); f1 != first(whole.place(i+1)) {
				return
			}
			m.set(i, append(bytes.Clone(whole.at(i)), whole.at(i+1)...))
			m.remove(i + 1)
		}
		_, err := m.verify(VerifyConfig{})
		require.ErrorIs(rt, err, errs.AuditBroken, "%s at line %d", what, i)
		if n, d := m.named(t, err); what != "move" {
			require.True(rt, n == i || (what == "split" || what == "far swap") && n == i+1 ||
				n == i-1 && bytes.Contains(whole.at(i), []byte(`"kind":"recover"`)), "%s at line %d: named %d: %v", what, i, n, d)
		}
	})
}

func first(f, _ int) int { return f }

func TestACutEndShowsByHeads(t *testing.T) {
	whole := makeLog(t, true, 20)
	r, err := whole.verify(VerifyConfig{})
	require.NoError(t, err)
	require.True(t, r.Closed)
	head := Head{Sequence: r.LastSeq, Hash: r.LastHash}
	for cut := 1; cut <= 20; cut++ {
		m := whole.copy()
		for range cut {
			m.remove(m.total() - 1)
		}
		r, err := m.verify(VerifyConfig{})
		require.NoError(t, err, "the log alone cannot tell")
		assert.False(t, r.Closed, "but it does not say that it was closed")
		assert.LessOrEqual(t, r.Tail, uint64(7), "and no more can be unsigned than heads allow")
		_, err = m.verify(VerifyConfig{Heads: []Head{head}})
		var d *Damage
		require.True(t, errors.As(err, &d), "a head kept elsewhere tells")
		assert.Equal(t, Truncated, d.Kind)
	}
}

func TestATornEndIsNoCrashUntilAGatewaySaysSo(t *testing.T) {
	file := logFile(t)
	l := open(t, file)
	require.NoError(t, l.Record(sample()))
	shut(t, l)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, data[:len(data)-3], 0o600))
	_, err = verifyLog(t, file, VerifyConfig{})
	requireDamage(t, err, Torn, file, 3)
	shut(t, open(t, file))
	r := requireOK(t, file)
	assert.Equal(t, 1, r.Torn)
	assert.Equal(t, []uint64{4}, r.Unclean)
	lines := readLines(t, file)
	assert.Contains(t, string(lines[3]), `"seq":3,"action":"lifecycle","result":"allowed","actor":"gateway","detail":"the line before was torn: `)
	assert.Contains(t, string(lines[3]), fmt.Sprintf(`"log":{"kind":"recover","torn":%d,"after":"%s"},"prev":"%s"}`, len(lines[2]), sumOf(lines[1]), sumOf(lines[2])))
}

// rechain makes the chain of a log right again from line i on, as somebody without the key can, and drops the heads there.
func (m made) rechain(t testing.TB, from int) made {
	c := made{names: m.names, key: m.key, files: make([][][]byte, len(m.files))}
	var prev hash
	seq := uint64(0)
	for i := range m.total() {
		b := m.at(i)
		p, err := parseLine(b)
		f, _ := m.place(i)
		if err != nil || i >= from && (p.kind() == kindHead || p.kind() == kindClose) {
			continue
		}
		if i >= from {
			start, end := bytes.Index(b, []byte(`"seq":`)), bytes.Index(b, []byte(`,"action"`))
			rest := bytes.Clone(b[end : len(b)-66])
			b = append(fmt.Appendf(bytes.Clone(b[:start]), `"seq":%d`, seq+1), rest...)
			b = fmt.Appendf(b, `%x"}`, prev)
		}
		seq++
		prev = sumRaw(b)
		c.files[f] = append(c.files[f], b)
	}
	return c
}

func TestWithoutTheKeyHistoryCannotBeWrittenAnew(t *testing.T) {
	file := logFile(t)
	adjust, key := signed(t, func(c *Config) { c.SignRecords = 7 })
	l := open(t, file, adjust)
	for range 40 {
		require.NoError(t, l.Record(sample()))
	}
	shut(t, l)
	whole := made{names: []string{"audit.jsonl"}, files: [][][]byte{readLines(t, file)}, key: key}
	forged := whole.copy()
	forged.set(20, bytes.Replace(whole.at(20), []byte("payments/api"), []byte("innocent/api"), 1))
	forged = forged.rechain(t, 20)

	unsigned := forged
	unsigned.key = nil
	_, err := unsigned.verify(VerifyConfig{})
	require.NoError(t, err, "a chain alone proves nothing against whoever can write the file")
	_, err = forged.verify(VerifyConfig{})
	n, d := forged.named(t, err)
	assert.Equal(t, Unsigned, d.Kind)
	assert.Equal(t, 16+7+unsignedSlack, n, "the last head that is left is line 16, the next one was due 7 lines later")

	all := whole.rechain(t, 0)
	_, err = all.verify(VerifyConfig{})
	require.ErrorIs(t, err, errs.AuditBroken)

	_, other := signed(t)
	whole.key = other
	_, err = whole.verify(VerifyConfig{})
	_, d = whole.named(t, err)
	assert.Equal(t, BadSignature, d.Kind)
}

func keysOf(keys ...ed25519.PublicKey) []ed25519.PublicKey { return keys }
