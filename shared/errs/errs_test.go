package errs_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

// Verifies: R2.3, R6.7
func TestEveryCodeIsComplete(t *testing.T) {
	closes := []int{1000, 1001, 1002, 1008, 1009, 1011, 1012, 1013, 4001, 4003, 4004, 4008, 4029}
	exits := []int{errs.ExitFailed, errs.ExitConfiguration, errs.ExitAuthentication, errs.ExitGaveUp}
	titles := map[string]errs.Code{}
	require.Greater(t, len(errs.Codes()), 50)
	for _, c := range errs.Codes() {
		info := c.Info()
		assert.NotEmpty(t, info.Title, "%v", c)
		assert.False(t, strings.HasSuffix(info.Title, "."), "%v: a title is no sentence", c)
		assert.NotEmpty(t, info.Advice, "%v", c)
		assert.True(t, strings.HasSuffix(info.Advice, "."), "%v: advice is a sentence", c)
		assert.True(t, info.HTTP >= 400 && info.HTTP < 600, "%v: HTTP status %d", c, info.HTTP)
		assert.True(t, http.StatusText(info.HTTP) != "" || info.HTTP == 499, "%v: HTTP status %d", c, info.HTTP)
		assert.Contains(t, closes, info.Close, "%v", c)
		assert.Contains(t, exits, info.Exit, "%v", c)
		assert.NotContains(t, titles, info.Title, "%v", c)
		titles[info.Title] = c
	}
}

// Verifies: R2.1
func TestEveryCodeHasACategory(t *testing.T) {
	letters := map[errs.Category]string{errs.Network: "N", errs.Authentication: "A", errs.Configuration: "C", errs.Server: "S", errs.Protocol: "P", errs.Unknown: "U"}
	seen := map[errs.Category]int{}
	for _, c := range errs.Codes() {
		require.Contains(t, letters, c.Category())
		assert.Equal(t, fmt.Sprintf("FL-%s%03d", letters[c.Category()], c), c.String())
		seen[c.Category()]++
	}
	assert.Len(t, seen, len(letters))
	assert.Equal(t, errs.Unknown, errs.Code(0).Category())
	assert.Equal(t, errs.Unknown, errs.Code(777).Category())
	assert.Equal(t, errs.Unknown, errs.From(io.EOF).Category())
}

// Verifies: R2.10
func TestCodesAreStableText(t *testing.T) {
	for _, c := range errs.Codes() {
		parsed, ok := errs.ParseCode(c.String())
		assert.True(t, ok, "%v", c)
		assert.Equal(t, c, parsed)
	}
	for _, bad := range []string{"", "FL-N10", "FL-N1011", "FL-A101", "FL-n101", "fl-N101", "FL-N-01", "FL-N+01", "XL-N101", "FL-N1o1"} {
		_, ok := errs.ParseCode(bad)
		assert.False(t, ok, bad)
	}
	newer, ok := errs.ParseCode("FL-S499")
	assert.True(t, ok, "the code of a newer peer is kept")
	assert.NotEmpty(t, newer.Info().Title)
	assert.Equal(t, errs.CloseInternal, newer.Info().Close)
}

// Verifies: R2.2
func TestAnErrorReadsAsASentence(t *testing.T) {
	cause := errors.New("connection refused")
	err := fmt.Errorf("starting: %w", errs.Wrap(errs.DialFailed, cause, "cannot connect to %s", "gateway.example:443"))
	assert.EqualError(t, err, "starting: FL-N101: cannot connect to gateway.example:443: connection refused")
	assert.ErrorIs(t, err, errs.DialFailed)
	assert.ErrorIs(t, err, errs.New(errs.DialFailed, "another"))
	assert.ErrorIs(t, err, cause)
	assert.NotErrorIs(t, err, errs.DNSFailed)
	assert.NotErrorIs(t, err, io.EOF)
	e := errs.From(err)
	assert.Equal(t, "cannot connect to gateway.example:443: connection refused", e.Text())
	assert.Equal(t, errs.DialFailed.Info().Advice, e.Advice())
	assert.Equal(t, "gone", errs.New(errs.LaneLost, "gone").Text())
	assert.EqualError(t, errs.LaneDead, "FL-N106: "+errs.LaneDead.Info().Title)
}

func TestFrom(t *testing.T) {
	assert.Nil(t, errs.From(nil))
	assert.Zero(t, errs.CodeOf(nil))
	assert.Equal(t, errs.Internal, errs.CodeOf(io.EOF))
	assert.Equal(t, errs.QueueFull, errs.CodeOf(fmt.Errorf("x: %w", errs.QueueFull)))
	assert.Equal(t, errs.QueueFull.Info().Title, errs.From(errs.QueueFull).Message)
}

func TestHTTP(t *testing.T) {
	status, body := errs.HTTP(errs.Wrap(errs.OpenRate, io.ErrUnexpectedEOF, "tenant %q", "a/b").After(1500 * time.Millisecond))
	assert.Equal(t, 429, status)
	var a errs.Answer
	require.NoError(t, json.Unmarshal(body, &a))
	assert.Equal(t, errs.Answer{Code: "FL-S411", Category: errs.Server, Message: `tenant "a/b": unexpected EOF`, Advice: errs.OpenRate.Info().Advice, RetryAfterMS: 1500}, a)

	status, body = errs.HTTP(errors.New("the password is hunter2"))
	assert.Equal(t, 500, status)
	assert.NotContains(t, string(body), "hunter2", "an error without a code is in the log only")
}

// Verifies: R2.9
func TestFourRefusalsAreFourAnswers(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []errs.Code{errs.TokenMissing, errs.TokenExpired, errs.TokenInvalid, errs.RouteForbidden} {
		info := c.Info()
		seen[c.String()+info.Title] = true
		_, body := errs.HTTP(errs.New(c, "refused"))
		assert.Contains(t, string(body), c.String())
		_, reason := errs.CloseFrame(errs.New(c, "refused"))
		assert.Equal(t, c.String()+" refused", reason)
		assert.Equal(t, errs.ExitAuthentication, errs.ExitCode(errs.New(c, "refused")))
	}
	assert.Len(t, seen, 4)
}

// Verifies: R6.7
func TestCloseFrame(t *testing.T) {
	code, reason := errs.CloseFrame(nil)
	assert.Equal(t, 1000, code)
	assert.Equal(t, "done", reason)
	code, reason = errs.CloseFrame(errs.Wrap(errs.TokenExpired, io.EOF, "it expired"))
	assert.Equal(t, 4001, code)
	assert.Equal(t, "FL-A202 it expired", reason, "a cause may name what the peer has no business to know")
}

func TestCloseFrameFitsAndIsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		message := string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		if rapid.Bool().Draw(t, "runes") {
			message = rapid.StringN(100, 200, -1).Draw(t, "text")
		}
		_, reason := errs.CloseFrame(errs.New(errs.Internal, "%s", message))
		if len(reason) > 123 {
			t.Fatalf("%d bytes", len(reason))
		}
		if !utf8.ValidString(reason) {
			t.Fatalf("not UTF-8: %q", reason)
		}
		if utf8.ValidString(message) && len(message) < 100 && reason != "FL-U900 "+message {
			t.Fatalf("changed: %q", reason)
		}
	})
	_, reason := errs.CloseFrame(errs.New(errs.Internal, "%s", strings.Repeat("ü", 200)))
	assert.True(t, strings.HasSuffix(reason, "ü…"))
}

func TestFromCloseFrame(t *testing.T) {
	for _, c := range errs.Codes() {
		assert.ErrorIs(t, errs.FromCloseFrame(errs.CloseFrame(errs.New(c, "m"))), c)
	}
	for code, want := range map[int]errs.Code{1000: errs.Canceled, 1001: errs.LaneLost, 1002: errs.ProtocolViolation, 1008: errs.RouteForbidden, 1009: errs.MessageTooBig,
		1011: errs.LaneLost, 1012: errs.LaneLost, 4001: errs.TokenExpired, 4003: errs.TokenInvalid, 4004: errs.TunnelUnknown, 4008: errs.Displaced, 4029: errs.StreamLimit} {
		assert.ErrorIs(t, errs.FromCloseFrame(code, ""), want, "%d", code)
		assert.ErrorIs(t, errs.FromCloseFrame(code, "FL-X123 nonsense"), want, "%d", code)
	}
}

func TestExitCodes(t *testing.T) {
	assert.Equal(t, 0, errs.ExitCode(nil))
	assert.Equal(t, 1, errs.ExitCode(io.EOF))
	assert.Equal(t, 2, errs.ExitCode(errs.New(errs.ConfigInvalid, "x")))
	assert.Equal(t, 3, errs.ExitCode(errs.New(errs.TokenExpired, "x")))
	assert.Equal(t, 4, errs.ExitCode(errs.New(errs.GaveUp, "x")))
}

func TestQuotaIsBoundedAndTravelsInAnswers(t *testing.T) {
	err := errs.New(errs.OpenRate, "too fast").After(time.Second).Within(100, -1, time.Minute)
	status, body := errs.HTTP(err)
	assert.Equal(t, 429, status)
	assert.Contains(t, string(body), `"quota":{"limit":100,"remaining":0,"reset_ms":60000}`)
	assert.Equal(t, uint32(math.MaxUint32), errs.New(errs.OpenRate, "x").Within(1, math.MaxInt, 10_000*time.Hour*24).Quota.Remaining)
	_, body = errs.HTTP(errs.New(errs.NotFound, "x"))
	assert.NotContains(t, string(body), "quota")
}

func TestHeaders(t *testing.T) {
	for _, c := range []struct {
		err  error
		want [][2]string
	}{
		{nil, nil},
		{errs.New(errs.NotFound, "x"), nil},
		{errs.New(errs.CircuitOpen, "x").After(1001 * time.Millisecond), [][2]string{{"Retry-After", "2"}}},
		{fmt.Errorf("wrapped: %w", errs.New(errs.OpenRate, "x").Within(100, 3, 59*time.Second+time.Millisecond).After(time.Millisecond)),
			[][2]string{{"Retry-After", "1"}, {"X-RateLimit-Limit", "100"}, {"X-RateLimit-Remaining", "3"}, {"X-RateLimit-Reset", "60"}}},
		{errs.New(errs.StreamLimit, "x").Within(5, 0, 0), [][2]string{{"X-RateLimit-Limit", "5"}, {"X-RateLimit-Remaining", "0"}}},
		{errs.New(errs.AdminDenied, "x"), [][2]string{{"WWW-Authenticate", `Bearer realm="fairlead"`}}},
	} {
		assert.Equal(t, c.want, errs.Headers(c.err), "%v", c.err)
	}
}
