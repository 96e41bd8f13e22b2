package learned

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type section struct {
	Text string `json:"text"`
	N    int    `json:"n"`
}

func openFile(t *testing.T, path string) (*File, *testbed.LogBuffer) {
	t.Helper()
	log := &testbed.LogBuffer{}
	f, err := Open(Config{Path: path, Logger: slog.New(slog.NewTextHandler(log, nil))})
	require.NoError(t, err)
	return f, log
}

// What was saved is there after a restart, and nobody else may read it.
//
// Verifies: R8.7
func TestSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	synctest.Test(t, func(t *testing.T) {
		f, log := openFile(t, path)
		var got section
		assert.False(t, f.Load("tunnels", &got), "nothing is there yet")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		f.Save("tunnels", section{"first", 1})
		f.Save("tunnels", section{"second", 2})
		synctest.Wait()
		assert.NoFileExists(t, path, "changes gather")
		<-time.After(defaultSettle)
		synctest.Wait()
		again, _ := openFile(t, path)
		require.True(t, again.Load("tunnels", &got))
		assert.Equal(t, section{"second", 2}, got)

		f.Save("other", section{"third", 3})
		cancel()
		require.NoError(t, <-done)
		assert.Empty(t, log.String())
	})
	again, log := openFile(t, path)
	var got section
	require.True(t, again.Load("other", &got), "the end writes what is left")
	assert.Equal(t, section{"third", 3}, got)
	require.True(t, again.Load("tunnels", &got))
	assert.Empty(t, log.String())
	st, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	left, err := filepath.Glob(path + ".*")
	require.NoError(t, err)
	assert.Empty(t, left, "no temporary files")
}

func TestWhatDidNotChangeIsNotWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	f, _ := openFile(t, path)
	f.Save("tunnels", section{"x", 1})
	f.Flush()
	require.NoError(t, os.Remove(path))
	f.Save("tunnels", section{"x", 1})
	f.Flush()
	assert.NoFileExists(t, path)
}

// A file that cannot be used is said, kept aside, and replaced.
func TestAFileThatCannotBeUsed(t *testing.T) {
	good, err := json.Marshal(format{Version: Version, Sections: map[string]json.RawMessage{"tunnels": json.RawMessage(`{"n":1}`)}})
	require.NoError(t, err)
	for name, content := range map[string]string{
		"empty": "", "cut": string(good[:len(good)-3]), "garbage": "\x00\x01\x02", "another version": `{"version":2,"sections":{}}`,
		"not an object": "[1,2]", "more than one": string(good) + string(good), "huge": strings.Repeat(" ", maxSize) + string(good),
		"wrong section": `{"version":1,"sections":[]}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.json")
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			f, log := openFile(t, path)
			var got section
			assert.False(t, f.Load("tunnels", &got))
			assert.Equal(t, 1, strings.Count(log.String(), "the state file cannot be used"))
			assert.FileExists(t, path+".bad")
			f.Save("tunnels", section{"anew", 7})
			f.Flush()
			again, log := openFile(t, path)
			require.True(t, again.Load("tunnels", &got))
			assert.Equal(t, 7, got.N)
			assert.Empty(t, log.String())
		})
	}
}

func TestASectionThatDoesNotFit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	require.NoError(t, os.WriteFile(path, []byte(`{"version":1,"sections":{"tunnels":{"n":"seven"}}}`), 0o600))
	f, log := openFile(t, path)
	var got section
	assert.False(t, f.Load("tunnels", &got))
	assert.Contains(t, log.String(), "section=tunnels")
}

// A disk that cannot be written is said once, and again only after it could be.
func TestAFileThatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "state.json")
	f, log := openFile(t, path)
	require.NoError(t, os.Remove(dir))
	for i := range 3 {
		f.Save("tunnels", section{N: i})
		f.Flush()
	}
	assert.Equal(t, 1, strings.Count(log.String(), "cannot be written"))
	require.NoError(t, os.Mkdir(dir, 0o700))
	f.Save("tunnels", section{N: 9})
	f.Flush()
	assert.FileExists(t, path)
}

func TestPathsThatCanNeverBe(t *testing.T) {
	_, err := Open(Config{Path: "/nowhere/at/all/state.json", Logger: slog.New(slog.DiscardHandler)})
	assert.ErrorIs(t, err, errs.ConfigInvalid)
	path := t.TempDir() + "/dir"
	require.NoError(t, os.Mkdir(path, 0o700))
	f, log := openFile(t, path)
	assert.Contains(t, log.String(), "not a regular file")
	assert.NotNil(t, f)
}

// Without a path everything works, and nothing is kept.
func TestWithoutAFile(t *testing.T) {
	f, log := openFile(t, "")
	f.Save("tunnels", section{N: 1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, f.Run(ctx))
	f.Flush()
	assert.Empty(t, log.String())
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":1,"saved":"2026-01-01T00:00:00Z","sections":{"tunnels":{"active":"x"}}}`))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, raw []byte) {
		sections, err := parse(raw)
		if (err == nil) != (sections != nil) {
			t.Fatalf("sections %v, error %v", sections, err)
		}
		for name, s := range sections {
			if !json.Valid(s) {
				t.Fatalf("section %q is not JSON: %q", name, s)
			}
		}
	})
}
