package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

func stream(data []byte) []Source {
	return []Source{{Name: "stdin", Stream: true, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}}
}

// FuzzVerify: whatever the bytes are, Verify comes to an end with a verdict; what verifies can be continued, and then
// verifies still.
func FuzzVerify(f *testing.F) {
	file := logFile(f)
	adjust, key := signed(f, func(c *Config) { c.Instance = "" })
	shut(f, open(f, file, adjust))
	data, err := os.ReadFile(file)
	require.NoError(f, err)
	f.Add(data)
	f.Add(data[:len(data)-5])
	f.Add([]byte("\n\n"))
	f.Add([]byte(`{"time":"2026-11-23T22:00:00Z","seq":1,"action":"x","log":{"kind":"begin"},"prev":"` + hexOf(hash{}) + `"}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := Verify(VerifyConfig{Keys: keysOf(key)}, stream(data)); err != nil {
			require.ErrorIs(t, err, errs.AuditBroken)
		}
		file := logFile(t)
		require.NoError(t, os.WriteFile(file, data, 0o600))
		one := []Source{{Name: file, Open: func() (io.ReadCloser, error) { return os.Open(file) }}}
		report, verdict := Verify(VerifyConfig{}, one)
		l, err := New(Config{File: file, Sync: SyncNone})
		if err != nil {
			require.True(t, errors.Is(err, errs.AuditBroken) || errors.Is(err, errs.AuditFailed), "%v", err)
			require.Error(t, verdict, "what verifies can be continued")
			return
		}
		require.NoError(t, l.Record(sample()))
		require.NoError(t, l.Close(context.Background()))
		after, err := Verify(VerifyConfig{}, one)
		if verdict == nil {
			require.NoError(t, err)
			require.Equal(t, report.LastSeq+3, after.LastSeq)
		}
	})
}

// FuzzKeys: no bytes make the parsers of keys fail otherwise than with an error, and what they accept is a pair.
func FuzzKeys(f *testing.F) {
	_, private, err := ed25519.GenerateKey(nil)
	require.NoError(f, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	require.NoError(f, err)
	f.Add(pem.EncodeToMemory(block))
	f.Add([]byte("ssh-ed25519 AAAA"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, err := parsePrivateKey(data); err == nil {
			require.True(t, ed25519.Verify(key.Public().(ed25519.PublicKey), []byte("x"), ed25519.Sign(key, []byte("x"))))
		}
		if key, err := parsePublicKey(data); err == nil {
			require.Len(t, key, ed25519.PublicKeySize)
		}
		_, _ = parseOpenSSH(data)
	})
}

func TestReadsLongGarbageInConstantMemory(t *testing.T) {
	garbage := io.LimitReader(zeros{}, 64<<20)
	r := newReader([]Source{{Name: "x", Open: func() (io.ReadCloser, error) { return io.NopCloser(garbage), nil }}})
	line, err := r.next()
	require.NoError(t, err)
	require.EqualValues(t, 64<<20, line.length)
	require.LessOrEqual(t, cap(line.bytes), 4*maxLine)
	require.Nil(t, line.line)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestVerifiesWhileAGatewayWrites(t *testing.T) {
	file := logFile(t)
	l := open(t, file, func(c *Config) { c.MaxSize = minMaxSize })
	require.NoError(t, l.Record(sample()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3000 {
			_ = l.Record(sample())
		}
	}()
	for writing := true; writing; {
		requireOK(t, file)
		select {
		case <-done:
			writing = false
		default:
		}
	}
}

func TestHalfALineAtTheEndIsWaitedFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	require.NoError(t, os.WriteFile(file, []byte("a\nb"), 0o600))
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	r, err := newSettled(f, true)
	require.NoError(t, err)
	three := make([]byte, 3)
	_, err = io.ReadFull(r, three)
	require.NoError(t, err)
	rest := make(chan string)
	go func() { b, _ := io.ReadAll(r); rest <- string(b) }()
	w, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = w.WriteString("c\nd")
	require.NoError(t, err)
	require.NoError(t, w.Close())
	select {
	case s := <-rest:
		require.Equal(t, "c\n", s, "to the end of the line and no further")
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}
