package proc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseStat(t *testing.T) {
	const tail = " S 7 100 100 0 -1 4194304 10 20 0 0 150 50 25 5 20 0 1 0 80663 3133440 403 18446744073709551615"
	want := Stat{PID: 4909, PPID: 7, CPU: 2 * time.Second, Reaped: 300 * time.Millisecond}
	for name, line := range map[string]string{
		"plain":                      "4909 (cat)" + tail,
		"blanks and parentheses":     "4909 (a b) S 1 (x)" + tail,
		"end of line":                "4909 (cat)" + tail + "\n",
		"command without any letter": "4909 ()" + tail,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseStat([]byte(line))
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
	for name, line := range map[string]string{
		"empty":       "",
		"no command":  "4909 cat S 7",
		"too short":   "4909 (cat) S 7 100 100",
		"bad id":      "x (cat)" + tail,
		"bad parent":  strings.Replace("4909 (cat)"+tail, " S 7 ", " S x ", 1),
		"bad time":    strings.Replace("4909 (cat)"+tail, " 150 ", " x ", 1),
		"wrong order": ")4909(" + tail,
	} {
		t.Run("refused: "+name, func(t *testing.T) {
			_, err := ParseStat([]byte(line))
			require.Error(t, err)
		})
	}
}

func TestParsePSS(t *testing.T) {
	got, err := ParsePSS([]byte("556a-7ffd ---p 00000000 00:00 0 [rollup]\nRss:    1764 kB\nPss:     339 kB\nPss_Dirty: 112 kB\n"))
	require.NoError(t, err)
	require.EqualValues(t, 339<<10, got)
	for _, text := range []string{"", "Rss: 5 kB\n", "Pss: much kB\n"} {
		_, err := ParsePSS([]byte(text))
		require.Error(t, err, text)
	}
}

func TestMeasureSelf(t *testing.T) {
	usage, err := Measure(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, usage.PSS, int64(1<<20))
	_, err = Measure(1 << 30)
	require.ErrorContains(t, err, "has ended")
}

func TestMeasureCountsDescendants(t *testing.T) {
	// The shell's child burns time and is waited for; a second child stays.
	p := start(t, t.Context(), Spec{Path: "/bin/sh", Args: []string{"-c",
		`sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; echo ready; sleep 600 & wait`}, Piped: true})
	line, err := p.Line()
	require.NoError(t, err)
	require.Equal(t, "ready", string(line))
	cpu, err := CPU(p.PID())
	require.NoError(t, err)
	require.Positive(t, cpu)
	require.Eventually(t, func() bool {
		tree, err := descend([]int{p.PID()})
		return err == nil && len(tree) == 2
	}, 10*time.Second, 5*time.Millisecond)
}

func TestStopEndsDescendantsInOtherGroups(t *testing.T) {
	p := start(t, t.Context(), Spec{Path: "/bin/sh", Args: []string{"-c", `setsid sleep 600 & echo $!; wait`}, Piped: true})
	_, err := p.Line()
	require.NoError(t, err)
	var tree []Stat
	require.Eventually(t, func() bool {
		tree = p.tree()
		return len(tree) >= 2
	}, 10*time.Second, 5*time.Millisecond)
	p.Stop()
	for _, s := range tree {
		require.Eventually(t, func() bool { return ended(s.PID) }, 10*time.Second, 5*time.Millisecond)
	}
}

func TestContextEndsTheProcess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := start(t, ctx, Spec{Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; sleep 600"}})
	require.NoError(t, p.Err())
	cancel()
	<-p.Done()
	require.Error(t, p.Err())
	_, err := Start(ctx, Spec{Path: "/bin/true", LogFile: filepath.Join(t.TempDir(), "log")})
	require.ErrorIs(t, err, context.Canceled)
}

func TestErrTellsTheEndOfTheLog(t *testing.T) {
	p := start(t, t.Context(), Spec{Path: "/bin/sh", Args: []string{"-c", "echo no such key >&2; exit 3"}, Piped: true})
	_, err := p.Line()
	require.ErrorContains(t, err, "exit status 3; its log ends with: no such key")
}

func TestInputAndOutput(t *testing.T) {
	p := start(t, t.Context(), Spec{Path: "/bin/cat", Piped: true})
	require.NoError(t, p.Send([]byte("hello\n")))
	line, err := p.Line()
	require.NoError(t, err)
	require.Equal(t, "hello", string(line))
	require.NoError(t, p.CloseInput())
	<-p.Done()
	require.NoError(t, p.Err())
}

func TestRaiseFiles(t *testing.T) {
	got, err := RaiseFiles(64)
	require.NoError(t, err)
	require.GreaterOrEqual(t, got, uint64(64))
}

func start(t *testing.T, ctx context.Context, spec Spec) *Process {
	t.Helper()
	spec.LogFile = filepath.Join(t.TempDir(), "log")
	p, err := Start(ctx, spec)
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	return p
}

// ended says whether a process is gone, or only waits to be reaped by init.
func ended(pid int) bool {
	if syscall.Kill(pid, 0) == syscall.ESRCH {
		return true
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(text), ") Z ")
}
