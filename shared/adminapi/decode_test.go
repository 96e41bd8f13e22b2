package adminapi_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
)

// everything has a field of each kind.
type everything struct {
	Mode  string    `json:"mode" required:"true" enum:"open,closed"`
	Name  string    `json:"name,omitempty" min:"2" max:"4"`
	Limit int       `json:"limit,omitempty" min:"1" max:"10"`
	After uint64    `json:"after,omitempty"`
	Force bool      `json:"force,omitempty"`
	Until time.Time `json:"until,omitzero"`
}

func readBody(body, word string) (v everything, err error) {
	err = adminapi.Body(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)), &v, word)
	return v, err
}

func readQuery(query string) (v everything, err error) {
	err = adminapi.Query(&http.Request{URL: &url.URL{RawQuery: query}}, &v)
	return v, err
}

func TestBodiesAndQueriesAreReadAlike(t *testing.T) {
	want := everything{"open", "ab", 3, 18446744073709551615, true, time.Date(2026, 11, 24, 6, 0, 0, 5e8, time.UTC)}
	got, err := readBody(` {"mode":"open","name":"ab","limit":3,"after":18446744073709551615,"force":true,"until":"2026-11-24T06:00:00.5Z"}`+"\n", "")
	require.NoError(t, err)
	assert.Equal(t, want, got)
	got, err = readQuery("mode=open&name=ab&limit=3&after=18446744073709551615&force=true&until=2026-11-24T06:00:00.5Z")
	require.NoError(t, err)
	assert.Equal(t, want, got)
	got, err = readBody("closed", "mode")
	require.NoError(t, err)
	assert.Equal(t, everything{Mode: "closed"}, got)
	got, err = readBody(`{"mode":"closed"}`, "mode")
	require.NoError(t, err)
	assert.Equal(t, everything{Mode: "closed"}, got)
	require.NoError(t, adminapi.Body(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil), &struct{}{}, ""))
}

func TestRefusalsNameTheField(t *testing.T) {
	for _, c := range [][3]string{ // body, query, message
		{`{}`, ``, `"mode" is missing; it takes one of open, closed`},
		{`{"mode":"ajar"}`, `mode=ajar`, `"mode" takes one of open, closed`},
		{`{"mode":"open","name":"a"}`, `mode=open&name=a`, `"name" takes a text of at least 2 bytes and at most 4 bytes`},
		{`{"mode":"open","name":"ééé"}`, `mode=open&name=ééé`, `"name" takes a text`},
		{`{"mode":"open","limit":0}`, `mode=open&limit=0`, `"limit" takes a whole number of at least 1 and at most 10`},
		{`{"mode":"open","limit":1.5}`, `mode=open&limit=1.5`, `"limit" takes a whole number`},
		{`{"mode":"open","limit":1e99}`, `mode=open&limit=99999999999999999999`, `"limit" takes a whole number`},
		{`{"mode":"open","after":-1}`, `mode=open&after=-1`, `"after" takes a whole number`},
		{`{"mode":"open","force":"yes"}`, `mode=open&force=yes`, `"force" takes true or false`},
		{`{"mode":"open","until":"now"}`, `mode=open&until=now`, `"until" takes a time such as 2026-11-24T06:00:00Z`},
		{`{"mode":"open","what":1}`, `mode=open&what=1`, `there is no "what" here; allowed are mode, name, limit, after, force, until`},
		{`{"MODE":"open"}`, `MODE=open`, `there is no "MODE" here`},
	} {
		_, err := readBody(c[0], "")
		require.ErrorIs(t, err, errs.BadRequest, c[0])
		assert.ErrorContains(t, err, c[2])
		_, err = readQuery(c[1])
		require.ErrorIs(t, err, errs.BadRequest, c[1])
		assert.ErrorContains(t, err, c[2])
	}
	for body, want := range map[string]string{`{"mode":["open"]}`: `"mode" takes`, `{"mode":{}}`: `"mode" takes`, `{"mode":null}`: `"mode" takes`, `[`: "not a JSON object", `"open"`: "not a JSON object",
		`{"mode":"open"}x`: "something follows", `{"mode":"open",}`: "not valid JSON", `{"mode":"open"`: "not valid JSON", `{mode:"open"}`: "not valid JSON", `{"mode":}`: `"mode" is not valid JSON`,
		"{\"mode\":\"\xff\"}": "not UTF-8", strings.Repeat("[", 5000): "over 4096 bytes", strings.Repeat("[", 4000): "not a JSON object", `{"a":` + strings.Repeat("[", 4000): `there is no "a"`} {
		_, err := readBody(body, "")
		require.ErrorIs(t, err, errs.BadRequest, body)
		assert.ErrorContains(t, err, want, body)
	}
}

// What is accepted is allowed, and means the same when it is written again.
func FuzzBody(f *testing.F) {
	for _, s := range []string{`{"mode":"open"}`, "open", `{"mode":"open","limit":10,"until":"2026-11-24T06:00:00Z"}`, `{"mode":"open","mode":"open"}`, `{"mode":"\u006fpen"}`, "{", "", "\xff", `{"mode":"open","after":1e3}`} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, body string, plain bool) {
		word := ""
		if plain {
			word = "mode"
		}
		v, err := readBody(body, word)
		if err != nil {
			assert.ErrorIs(t, err, errs.BadRequest)
			assert.Less(t, len(err.Error()), 500)
			return
		}
		allowed(t, v)
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		again, err := readBody(string(raw), word)
		require.NoError(t, err, "%s", raw)
		assert.True(t, v.Until.Equal(again.Until))
		again.Until = v.Until
		assert.Equal(t, v, again)
	})
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{"mode=open", "mode=open&limit=1", "mode=open&mode=closed", "mode=%6fpen", "a=%zz", "mode=open;x", "mode=open&until=2026-11-24T06:00:00%2b01:00", "&&"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		v, err := readQuery(query)
		if err != nil {
			assert.ErrorIs(t, err, errs.BadRequest)
			assert.Less(t, len(err.Error()), 500)
			return
		}
		allowed(t, v)
	})
}

func allowed(t *testing.T, v everything) {
	t.Helper()
	assert.Contains(t, []string{"open", "closed"}, v.Mode)
	assert.True(t, v.Name == "" || len(v.Name) >= 2 && len(v.Name) <= 4)
	assert.True(t, v.Limit == 0 || v.Limit >= 1 && v.Limit <= 10)
}
