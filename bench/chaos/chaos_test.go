package chaos

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, Permanent()...) }

// The same code does the 1,000 cuts of `task soak`.
//
// Verifies: N6, R1.7, R10.5, R10.6
func TestNothingIsLostOverCuts(t *testing.T) {
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "chaos.log"))
	require.NoError(t, err)
	defer log.Close()
	r, err := Run(t.Context(), Config{Cuts: 40, Bytes: 64 << 20, Streams: 8, Seed: 1, Heartbeat: 300 * time.Millisecond, Dir: dir, Log: log})
	require.NoError(t, err)
	failed := r.Check()
	var text bytes.Buffer
	require.NoError(t, r.WriteText(&text))
	t.Log("\n" + text.String())
	require.NoError(t, failed)
}

// What the run would say if something had been lost.
func TestLossesShow(t *testing.T) {
	good := func() *connection {
		d := digest{bytes: 3, sum: [32]byte{1}}
		return &connection{id: 7, up: 3, down: 3, app: end{sent: d, received: d}, backend: end{sent: d, received: d}}
	}
	require.NoError(t, good().verify())
	for name, spoil := range map[string]func(*connection){
		"the application's connection was lost": func(c *connection) { c.app.err = os.ErrClosed },
		"the backend's connection was lost":     func(c *connection) { c.backend.err = os.ErrClosed },
		"up, 3 bytes":                           func(c *connection) { c.backend.received.sum[0]++ },
		"2 with":                                func(c *connection) { c.app.received.bytes-- },
		"3 and 3 bytes were sent":               func(c *connection) { c.up++ },
	} {
		c := good()
		spoil(c)
		assert.ErrorContains(t, c.verify(), name)
	}
}

func TestCheck(t *testing.T) {
	whole := func() *Result {
		return &Result{Cuts: 2, Up: 5, Down: 5, Resumes: 3, GatewayResumes: 3, Kinds: map[Kind]int{Stall: 1}, Codes: map[string]int{"FL-N106": 1}, wantCuts: 2, wantBytes: 5}
	}
	require.NoError(t, whole().Check())
	for name, spoil := range map[string]func(*Result){
		"1 cuts":               func(r *Result) { r.Cuts-- },
		"4 bytes up":           func(r *Result) { r.Up-- },
		"4 down":               func(r *Result) { r.Down-- },
		"0 resumes":            func(r *Result) { r.Resumes = 0 },
		"2 at the gateway":     func(r *Result) { r.GatewayResumes-- },
		"noticed 1 times of 2": func(r *Result) { r.Kinds[Blackhole]++ },
		"a hash":               func(r *Result) { r.fail("a hash") },
	} {
		r := whole()
		spoil(r)
		assert.Error(t, r.Check(), name)
		var text, raw bytes.Buffer
		require.NoError(t, r.WriteText(&text))
		require.NoError(t, r.WriteJSON(&raw))
		assert.Contains(t, text.String(), r.Failures[0], name)
		assert.Contains(t, raw.String(), `"failures": [`, name)
	}
}

func TestSizeFlag(t *testing.T) {
	for text, want := range map[string]size{"1GiB": 1 << 30, "64MiB": 64 << 20, "3KiB": 3 << 10, "7B": 7, "1536MiB": 1536 << 20} {
		var s size
		require.NoError(t, s.Set(text))
		assert.Equal(t, want, s)
		assert.Equal(t, text, s.String())
	}
	for _, text := range []string{"", "1", "GiB", "-1B", "0B", "1.5GiB", "9999999999GiB", "1 GiB"} {
		assert.Error(t, new(size).Set(text), text)
	}
}

func TestCommandRefusesNonsense(t *testing.T) {
	cmd := Command()
	cmd.SetArgs([]string{"--cuts", "0", "--out", t.TempDir()})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetErr(new(bytes.Buffer))
	assert.ErrorContains(t, cmd.ExecuteContext(t.Context()), "0 cuts")
}

func TestCommandWritesItsFindings(t *testing.T) {
	out := t.TempDir()
	cmd := Command()
	cmd.SetArgs([]string{"--cuts", "3", "--bytes", "1MiB", "--streams", "2", "--seed", "3", "--heartbeat", "300ms", "--out", out})
	var table, notes bytes.Buffer
	cmd.SetOut(&table)
	cmd.SetErr(&notes)
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	assert.Contains(t, notes.String(), "seed 3")
	assert.Contains(t, table.String(), "failures          0")
	raw, err := os.ReadFile(filepath.Join(out, "chaos.json"))
	require.NoError(t, err)
	assert.Contains(t, string(raw), `"seed": 3`)
	assert.FileExists(t, filepath.Join(out, "chaos.log"))
}

// What `task soak` runs is the whole: 1,000 cuts under 1 GiB each way in 8 streams.
//
// Verifies: N6
func TestTheSoakIsWhole(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "Taskfile.yml"))
	require.NoError(t, err)
	_, line, found := strings.Cut(string(raw), "go run ./bench chaos ")
	require.True(t, found)
	line, _, _ = strings.Cut(line, " {{.CLI_ARGS}}")
	cmd := Command()
	require.NoError(t, cmd.ParseFlags(strings.Fields(line)))
	for flag, want := range map[string]string{"cuts": "1000", "bytes": "1GiB", "streams": "8"} {
		assert.Equal(t, want, cmd.Flags().Lookup(flag).Value.String(), flag)
	}
}
