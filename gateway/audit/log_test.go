package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

// signed configures a new signing key, and returns the public one.
func signed(t testing.TB, adjust ...func(*Config)) (func(*Config), ed25519.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "audit.key")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	return func(c *Config) {
		c.SignKeyFile = file
		for _, f := range adjust {
			f(c)
		}
	}, public
}

// verifyLog verifies a log by its name.
func verifyLog(t testing.TB, file string, cfg VerifyConfig) (*Report, error) {
	t.Helper()
	logs, err := Find([]string{file}, nil)
	require.NoError(t, err)
	require.Len(t, logs, 1)
	defer logs[0].Close()
	cfg.Partial = cfg.Partial || logs[0].Partial
	return Verify(cfg, logs[0].Sources)
}

func requireOK(t testing.TB, file string, keys ...ed25519.PublicKey) *Report {
	t.Helper()
	r, err := verifyLog(t, file, VerifyConfig{Keys: keys})
	require.NoError(t, err)
	return r
}

func logFile(t testing.TB) string { return filepath.Join(t.TempDir(), "audit.jsonl") }

// Verifies: R4.9
func TestEveryKindOfActIsALineOfTheChain(t *testing.T) {
	file := logFile(t)
	at := time.Date(2026, 11, 23, 22, 0, 0, 123000000, time.FixedZone("", 3600))
	l := open(t, file, func(c *Config) { c.Now = func() time.Time { return at } })
	acts := []Event{
		{Action: Connect, Result: Allowed, Actor: "ann", Tenant: "payments/api", Client: "10.1.2.3:40112", Tunnel: "3b7e"},
		{Action: Disconnect, Result: Allowed, Actor: "ann", Tenant: "payments/api", Tunnel: "3b7e", Duration: 1500 * time.Millisecond},
		{Action: Open, Result: Allowed, Actor: "ann", Route: "git", Backend: "git", Stream: "1", Trace: "4bf9"},
		{Action: Open, Result: Refused, Actor: "ann", Route: "other", Code: errs.RouteForbidden, Detail: "no rule"},
		{Action: Administer, Result: Allowed, Actor: "olga", Target: "/api/drain"},
	}
	for i, e := range acts {
		require.NoError(t, l.Record(e))
		require.Len(t, readLines(t, file), i+2, "the line is in the file when Record returns")
	}
	shut(t, l)
	lines := readLines(t, file)
	require.Len(t, lines, len(acts)+2)
	prev := strings.Repeat("0", 64)
	for i, line := range lines {
		var fields map[string]any
		require.NoError(t, json.Unmarshal(line, &fields))
		assert.Equal(t, "2026-11-23T21:00:00.123Z", fields["time"])
		assert.Equal(t, "gw-0", fields["instance"])
		assert.EqualValues(t, i+1, fields["seq"])
		assert.Equal(t, prev, fields["prev"])
		prev = sumOf(line)
	}
	assert.Equal(t, `{"time":"2026-11-23T21:00:00.123Z","instance":"gw-0","seq":5,"action":"open","result":"refused","actor":"ann","route":"other",`+
		`"code":"FL-A204","detail":"no rule","prev":"`+sumOf(lines[3])+`"}`, string(lines[4]))
	assert.Contains(t, string(lines[2]), `"duration_ms":1500,`)
	r := requireOK(t, file)
	assert.EqualValues(t, 7, r.Records)
	assert.True(t, r.Closed)
}

func sumOf(b []byte) string { return hexOf(sumRaw(b)) }

func TestEveryFieldIsBoundedAndValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := func(name string) string {
			s := rapid.OneOf(rapid.String(), rapid.Just(strings.Repeat("\x00", 5000)), rapid.Just(strings.Repeat("ä", 3000)), rapid.Just("\xff\xfe\u2028\u202e\"\\\x1b[31m")).Draw(t, name)
			return s
		}
		e := Event{Action: Action(text("action")), Result: Result(text("result")), Actor: text("actor"), Issuer: text("issuer"), TokenID: text("token"),
			Tenant: text("tenant"), Pod: text("pod"), Client: text("client"), Route: text("route"), Backend: text("backend"), Target: text("target"),
			Code: errs.Code(rapid.Uint16().Draw(t, "code")), Detail: text("detail"), Sent: rapid.Uint64().Draw(t, "sent"), Received: rapid.Uint64().Draw(t, "received"),
			Duration: time.Duration(rapid.Int64().Draw(t, "duration")), Tunnel: text("tunnel"), Stream: text("stream"), Trace: text("trace")}
		line := appendLine(nil, time.Now(), text("instance"), rapid.Uint64Min(1).Draw(t, "seq"), appendEvent(nil, &e), hash{})
		require.LessOrEqual(t, len(line), maxLine)
		require.True(t, utf8.Valid(line))
		require.False(t, bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u202e' }), "%q", line)
		var l Line
		require.NoError(t, json.Unmarshal(line, &l))
		require.Equal(t, e.Sent, l.Sent)
		require.Equal(t, asRead(e.Tenant, maxText), l.Tenant)
		if utf8.ValidString(e.Tenant) && len(e.Tenant) < maxText/6 {
			require.Equal(t, e.Tenant, l.Tenant)
		}
	})
}

func TestLongTextIsCutWithAMark(t *testing.T) {
	assert.Equal(t, `"abcde"`, string(appendText(nil, "", "abcde", 5)))
	assert.Equal(t, `"ab…"`, string(appendText(nil, "", "abcdef", 5)))
	assert.Equal(t, `"a…"`, string(appendText(nil, "", "aä€def", 5)))
	assert.Equal(t, `"…"`, string(appendText(nil, "", "\x00abcdef", 5)))
	assert.Equal(t, "\"a\\u0000\uFFFD\\\"\\\\\"", string(appendText(nil, "", "a\x00\xff\"\\", 50)))
}

func TestEventsCannotSpeakForTheLog(t *testing.T) {
	file := logFile(t)
	l := open(t, file)
	require.NoError(t, l.Record(Event{Action: Lifecycle, Detail: `x","log":{"kind":"recover"},"y":"`}))
	shut(t, l)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(readLines(t, file)[1], &fields))
	assert.NotContains(t, fields, "log")
	requireOK(t, file)
}

func TestRestartContinuesTheChain(t *testing.T) {
	file := logFile(t)
	var id string
	for run := range 3 {
		l := open(t, file)
		require.NoError(t, l.Record(sample()))
		s := l.Status()
		if id == "" {
			id = s.LogID
		}
		assert.Equal(t, id, s.LogID)
		assert.EqualValues(t, 2+run*3, s.Sequence)
		shut(t, l)
	}
	r := requireOK(t, file)
	assert.EqualValues(t, 9, r.LastSeq)
	assert.Empty(t, r.Unclean)
	assert.Equal(t, id, r.LogID)
}

func TestTwoGatewaysCannotWriteOneLog(t *testing.T) {
	file := logFile(t)
	l := open(t, file)
	_, err := New(Config{File: file, Instance: "gw-1", OnFailure: Continue})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	assert.Contains(t, err.Error(), "instance gw-0")
	assert.Contains(t, err.Error(), fmt.Sprintf("process %d", os.Getpid()))
	shut(t, l)
	open(t, file)
}

func TestConcurrentRecordsAreAllThere(t *testing.T) {
	for _, sync := range []string{SyncNone, SyncInterval, SyncAlways} {
		t.Run(sync, func(t *testing.T) {
			file := logFile(t)
			set := metrics.NewSet()
			adjust, key := signed(t, func(c *Config) {
				c.Sync, c.SyncInterval, c.SignRecords, c.MaxSize, c.Metrics = sync, 5*time.Millisecond, 100, minMaxSize, set
			})
			l := open(t, file, adjust)
			recordFrom(t, l, 64, 20)
			shut(t, l)
			seen := map[string]int{}
			r, err := verifyLog(t, file, VerifyConfig{Keys: []ed25519.PublicKey{key}, Visit: func(l *Line, _ []byte) error { seen[l.Stream]++; return nil }})
			require.NoError(t, err)
			delete(seen, "")
			assert.Len(t, seen, 64*20)
			assert.GreaterOrEqual(t, r.Files, 5)
			assert.GreaterOrEqual(t, r.Heads, 64*20/100)
			assert.Zero(t, r.Lost)
			var b bytes.Buffer
			set.WritePrometheus(&b)
			assert.Contains(t, b.String(), "fairlead_gateway_audit_records_total 1280\n")
			assert.Contains(t, b.String(), fmt.Sprintf("fairlead_gateway_audit_rotations_total %d\n", r.Files-1))
			assert.Contains(t, b.String(), "fairlead_gateway_audit_failing 0\n")
			assert.Contains(t, b.String(), fmt.Sprintf("fairlead_gateway_audit_sequence %d\n", r.LastSeq))
		})
	}
}

func recordFrom(t *testing.T, l *Log, goroutines, each int) {
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				e := sample()
				e.Stream = fmt.Sprintf("%d/%d", g, i)
				assert.NoError(t, l.Record(e))
			}
		})
	}
	wg.Wait()
}

func TestRotationKeepsTheChainAndRecordsWhatItRemoves(t *testing.T) {
	file := logFile(t)
	adjust, key := signed(t, func(c *Config) { c.MaxSize, c.MaxFiles = minMaxSize, 2 })
	l := open(t, file, adjust)
	for range 1000 {
		require.NoError(t, l.Record(sample()))
	}
	shut(t, l)
	older, err := olderFiles(file)
	require.NoError(t, err)
	require.Len(t, older, 2)
	assert.Greater(t, older[0], uint64(3))
	for _, n := range older {
		info, err := os.Stat(numbered(file, n))
		require.NoError(t, err)
		assert.LessOrEqual(t, info.Size(), int64(minMaxSize+1024), "a head may come on top")
	}
	r := requireOK(t, file, key)
	assert.Equal(t, 3, r.Files)
	assert.Equal(t, r.FirstSeq-1, r.Dropped)

	// A file more, removed by hand, is not covered by any record.
	require.NoError(t, os.Remove(numbered(file, older[0])))
	_, err = verifyLog(t, file, VerifyConfig{})
	requireDamage(t, err, Removed, numbered(file, older[1]), 1)
	// On its own, an older file can be looked at.
	r, err = verifyLog(t, numbered(file, older[1]), VerifyConfig{})
	require.NoError(t, err)
	assert.True(t, r.Partial)
}

func requireDamage(t testing.TB, err error, kind, file string, line int) {
	t.Helper()
	require.ErrorIs(t, err, errs.AuditBroken)
	var d *Damage
	require.True(t, errors.As(err, &d))
	require.Equal(t, kind, d.Kind, "%v", err)
	require.Equal(t, file, d.File, "%v", err)
	require.Equal(t, line, d.Line, "%v", err)
}

func TestInterruptedRotationGoesOn(t *testing.T) {
	file := logFile(t)
	l := open(t, file)
	require.NoError(t, l.Record(sample()))
	shut(t, l)
	// As after the first of the two renames.
	require.NoError(t, os.Rename(file, numbered(file, 1)))
	require.NoError(t, os.WriteFile(file+nextSuffix, []byte("{"), 0o600))
	l = open(t, file)
	assert.EqualValues(t, 2, l.Status().FileNumber)
	require.NoError(t, l.Record(sample()))
	shut(t, l)
	require.NoFileExists(t, file+nextSuffix)
	assert.Equal(t, 2, requireOK(t, file).Files)
}

func TestSettingsAreChecked(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no file": {}, "small": {File: "x", MaxSize: 1}, "sync": {File: "x", Sync: "maybe"}, "failure": {File: "x", OnFailure: "shrug"},
		"negative": {File: "x", MaxFiles: -1}, "duration": {File: "x", Timeout: -1},
	} {
		_, err := New(cfg)
		require.ErrorIs(t, err, errs.ConfigInvalid, name)
	}
	_, err := New(Config{File: logFile(t), SignKeyFile: "/nonexistent"})
	require.ErrorIs(t, err, errs.KeyUnreadable)
	_, err = New(Config{File: t.TempDir(), OnFailure: Continue})
	require.ErrorIs(t, err, errs.ConfigInvalid, "a folder")
	_, err = New(Config{File: "/nonexistent/audit.jsonl"})
	require.ErrorIs(t, err, errs.AuditFailed)
	foreign := logFile(t)
	require.NoError(t, os.WriteFile(foreign, []byte("{\"a\":1}\n"), 0o600))
	_, err = New(Config{File: foreign, OnFailure: Continue})
	require.ErrorIs(t, err, errs.AuditBroken)
	assert.Equal(t, [][]byte{[]byte(`{"a":1}`)}, readLines(t, foreign), "it was left alone")
}

func TestRecordAfterCloseIsRefused(t *testing.T) {
	l := open(t, logFile(t))
	shut(t, l)
	for range 100 {
		require.ErrorIs(t, l.Record(sample()), errs.AuditFailed)
	}
	require.NoError(t, l.Close(context.Background()))
	l = open(t, logFile(t), func(c *Config) { c.OnFailure = Continue })
	shut(t, l)
	require.NoError(t, l.Record(sample()))
	assert.EqualValues(t, 1, l.Status().Lost)
}

func TestHeadsComeByCountAndByTime(t *testing.T) {
	file := logFile(t)
	adjust, key := signed(t, func(c *Config) { c.SignRecords, c.SignInterval = 10, 10*time.Millisecond })
	l := open(t, file, adjust)
	require.NoError(t, l.Record(sample()))
	require.Eventually(t, func() bool { s := l.Status(); return s.SignedHead.Sequence > 1 && s.Unsigned == 0 }, 10*time.Second, time.Millisecond)
	assert.Equal(t, Fingerprint(key), l.Status().Key)
	head := l.Status().SignedHead
	for range 100 {
		require.NoError(t, l.Record(sample()))
		require.LessOrEqual(t, l.Status().Unsigned, 10)
	}
	shut(t, l)
	r, err := verifyLog(t, file, VerifyConfig{Keys: []ed25519.PublicKey{key}, Heads: []Head{head}, MaxUnsigned: 1})
	require.NoError(t, err)
	assert.GreaterOrEqual(t, r.Heads, 10)
	assert.Zero(t, r.Tail)
}
