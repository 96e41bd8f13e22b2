package audit

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const childEnv = "FAIRLEAD_AUDIT_CHILD"

// child is what the test's binary does as another process: it records without end, and tells on stdout what is recorded.
func child() {
	l, err := New(Config{File: os.Getenv(childEnv), Instance: "child", Sync: SyncNone, MaxSize: minMaxSize, SignKeyFile: os.Getenv(childEnv) + ".key", SignRecords: 20})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				e := sample()
				e.Stream = fmt.Sprintf("%d/%d/%d", os.Getpid(), g, i)
				if err := l.Record(e); err != nil {
					e.Stream = err.Error()
				}
				mu.Lock()
				_, _ = io.WriteString(os.Stdout, e.Stream+"\n")
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// Verifies: R4.9
func TestKilledWhileWriting(t *testing.T) {
	file := logFile(t)
	run(t, "openssl", "genpkey", "-algorithm", "ed25519", "-out", file+".key")
	run(t, "openssl", "pkey", "-in", file+".key", "-pubout", "-out", file+".pub")
	recorded := map[string]bool{}
	const kills = 12
	for k := range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+file)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			recorded[lines.Text()] = true
			if n == 50+k*37 {
				require.NoError(t, cmd.Process.Kill())
			}
		}
		require.Error(t, cmd.Wait())
	}
	shut(t, open(t, file, func(c *Config) { c.SignKeyFile = file + ".key"; c.SignRecords = 20 }))
	key, err := LoadPublicKey(file + ".pub")
	require.NoError(t, err)
	logs, err := Find([]string{filepath.Dir(file)}, nil)
	require.NoError(t, err)
	require.Len(t, logs, 1)
	defer logs[0].Close()
	times := map[string]int{}
	r, err := Verify(VerifyConfig{Keys: keysOf(key), Visit: func(l *Line, _ []byte) error { times[l.Stream]++; return nil }}, logs[0].Sources)
	require.NoError(t, err)
	assert.Len(t, r.Unclean, kills)
	for s := range recorded {
		require.Equal(t, 1, times[s], "%q was recorded", s)
	}
	assert.Greater(t, len(recorded), kills*50)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}
