package logging_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

func newLogger(t *testing.T, level, format string) (*slog.Logger, *logging.Level, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	log, l, err := logging.New(logging.Config{Level: level, Format: format, Writer: &out,
		Instance: "gw-0", Version: "1.2.3", Component: "app"})
	require.NoError(t, err)
	return log, l, &out
}

// decode reads one JSON line and fails on more than one.
func decode(t *testing.T, line []byte) map[string]any {
	t.Helper()
	require.Equal(t, 1, bytes.Count(line, []byte("\n")), "lines in %q", line)
	var m map[string]any
	require.NoError(t, json.Unmarshal(line, &m))
	return m
}

func TestEveryLineCarriesIdentity(t *testing.T) {
	log, _, out := newLogger(t, "", logging.FormatJSON)
	log.Info("ready", logging.FieldTunnel, "t1")
	m := decode(t, out.Bytes())
	assert.Equal(t, "gw-0", m[logging.FieldInstance])
	assert.Equal(t, "1.2.3", m[logging.FieldVersion])
	assert.Equal(t, "app", m[logging.FieldComponent])
	assert.Equal(t, "t1", m[logging.FieldTunnel])
	assert.Equal(t, "INFO", m["level"])
}

// Verifies: R9.8
func TestLevelsChangeAtRunTime(t *testing.T) {
	levels := []string{"error", "warn", "info", "debug", "trace"}
	values := []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelDebug, logging.LevelTrace}
	log, level, out := newLogger(t, "error", logging.FormatJSON)
	for i, name := range levels {
		require.NoError(t, level.Set(name))
		assert.Equal(t, name, level.String())
		assert.Equal(t, values[i], level.Level())
		out.Reset()
		for _, v := range values {
			log.Log(t.Context(), v, "line")
		}
		assert.Equal(t, i+1, strings.Count(out.String(), "\n"), "lines at level %s", name)
	}
	assert.Contains(t, out.String(), `"level":"TRACE"`)

	err := level.Set("loud")
	require.ErrorIs(t, err, errs.ConfigInvalid)
	assert.Contains(t, err.Error(), "error, warn, info, debug and trace")
	assert.Equal(t, "trace", level.String(), "a refused level changes nothing")
}

func TestFormats(t *testing.T) {
	log, _, out := newLogger(t, "info", logging.FormatText)
	log.Info("hello")
	assert.Contains(t, out.String(), "msg=hello")

	log, _, out = newLogger(t, "info", logging.FormatAuto)
	log.Info("hello")
	decode(t, out.Bytes()) // a buffer is no terminal

	file, err := os.CreateTemp(t.TempDir(), "log")
	require.NoError(t, err)
	log, _, err = logging.New(logging.Config{Writer: file})
	require.NoError(t, err)
	log.Info("hello")
	require.NoError(t, file.Close())
	line, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	decode(t, line)

	device, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer device.Close()
	log, _, err = logging.New(logging.Config{Writer: device})
	require.NoError(t, err)
	assert.IsType(t, &slog.TextHandler{}, log.Handler())
}

func TestRefusesUnknownNames(t *testing.T) {
	_, _, err := logging.New(logging.Config{Level: "verbose", Writer: io.Discard})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	_, _, err = logging.New(logging.Config{Format: "xml", Writer: io.Discard})
	require.ErrorIs(t, err, errs.ConfigInvalid)
	assert.Contains(t, err.Error(), "json, text and auto")
}

func TestValuesCannotForgeLines(t *testing.T) {
	forged := "x\n{\"level\":\"ERROR\",\"msg\":\"forged\"}\r\nlevel=ERROR msg=forged"
	for _, format := range []string{logging.FormatJSON, logging.FormatText} {
		log, _, out := newLogger(t, "info", format)
		log.Info(forged, "key", forged, "bad\nkey", 1, slog.Group("g\n", "k", errors.New(forged)))
		assert.Equal(t, 1, strings.Count(out.String(), "\n"), "%s: %q", format, out)
		assert.Zero(t, strings.Count(out.String(), "\r"), format)
	}
}

func TestErrorAttributes(t *testing.T) {
	log, _, out := newLogger(t, "info", logging.FormatJSON)
	err := fmt.Errorf("opening: %w", errs.New(errs.TokenExpired, "token of dev"))
	log.Error("refused", logging.Error(err)...)
	m := decode(t, out.Bytes())
	assert.Equal(t, err.Error(), m[logging.FieldError])
	assert.Equal(t, "FL-A202", m[logging.FieldCode])
	assert.Equal(t, "authentication", m[logging.FieldCategory])
	assert.Equal(t, errs.TokenExpired.Info().Advice, m[logging.FieldAdvice])
	assert.NotContains(t, m, logging.FieldStack)
	assert.Empty(t, logging.Error(nil))
}

type stackError struct{}

func (stackError) Error() string { return "boom" }
func (stackError) Stack() []byte { return []byte("goroutine 1\nmain.go:7") }

func TestErrorAttributesCarryAStack(t *testing.T) {
	log, _, out := newLogger(t, "info", logging.FormatJSON)
	log.Error("fault", logging.Error(fmt.Errorf("run: %w", stackError{}))...)
	m := decode(t, out.Bytes())
	assert.Equal(t, "goroutine 1\nmain.go:7", m[logging.FieldStack])
	assert.Equal(t, errs.Internal.String(), m[logging.FieldCode])
}

func TestSecretIsMaskedEverywhere(t *testing.T) {
	const value = "hunter2"
	s := logging.Secret(value)
	holder := struct{ Token logging.Secret }{s}
	var printed []string
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%X", "%d", "%t", "%10.3s"} {
		printed = append(printed, fmt.Sprintf(verb, s), fmt.Sprintf(verb, &s), fmt.Sprintf(verb, holder), fmt.Sprintf(verb, []logging.Secret{s}))
	}
	j, err := json.Marshal(map[string]any{"a": s, "b": &s, "c": holder})
	require.NoError(t, err)
	y, err := yaml.Marshal(map[string]any{"a": s, "c": holder})
	require.NoError(t, err)
	text, err := s.MarshalText()
	require.NoError(t, err)
	printed = append(printed, string(j), string(y), string(text), s.String(), s.GoString())
	for _, format := range []string{logging.FormatJSON, logging.FormatText} {
		log, _, out := newLogger(t, "info", format)
		log.Info("x", "token", s, "holder", holder)
		assert.Contains(t, out.String(), logging.Mask)
		printed = append(printed, out.String())
	}
	for _, p := range printed {
		assert.NotContains(t, p, value)
		assert.NotContains(t, strings.ToLower(p), fmt.Sprintf("%x", value), "hexadecimal")
	}
	assert.Equal(t, value, s.Reveal())
	assert.Equal(t, `""`, fmt.Sprintf("%#v", logging.Secret("")), "a missing secret shows as missing")
}
