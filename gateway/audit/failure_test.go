package audit

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// fast lets the writer look every 10 ms whether writing works again.
func fast(c *Config) { c.SignInterval = 20 * time.Millisecond }

// disk is a place that can be made full and free again.
type disk struct {
	folder     string
	first      int // records of 1000 bytes that should be in the log before
	fill, free func(t *testing.T, file string)
}

// small is a file system of its own. It needs root.
func small(t *testing.T) disk {
	folder := t.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("a file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(folder, unix.MNT_DETACH)) })
	ballast := filepath.Join(folder, "ballast")
	return disk{folder, 0,
		func(t *testing.T, _ string) {
			require.ErrorIs(t, os.WriteFile(ballast, make([]byte, 1<<20), 0o600), unix.ENOSPC)
		},
		func(t *testing.T, _ string) { require.NoError(t, os.Remove(ballast)) }}
}

// limited is a limit on the size of files, which anybody may set. It also makes writes that write a part. It holds for the
// whole process: the log must be larger than what the test's own machinery writes.
func limited(t *testing.T) disk {
	signal.Ignore(unix.SIGXFSZ)
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &before))
	free := func(t *testing.T, _ string) { require.NoError(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &before)) }
	t.Cleanup(func() { free(t, ""); signal.Reset(unix.SIGXFSZ) })
	return disk{t.TempDir(), 700, func(t *testing.T, file string) {
		info, err := os.Stat(file)
		require.NoError(t, err)
		limit := before
		limit.Cur = uint64(info.Size()) + 100
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &limit))
	}, free}
}

// Verifies: R4.9
func TestAFullDiskIsNeverSilent(t *testing.T) {
	for name, make := range map[string]func(*testing.T) disk{"tmpfs": small, "rlimit": limited} {
		for _, choice := range []string{Refuse, Continue} {
			t.Run(name+"/"+choice, func(t *testing.T) { fullDisk(t, make(t), choice) })
		}
	}
}

func fullDisk(t *testing.T, d disk, choice string) {
	file := filepath.Join(d.folder, "audit.jsonl")
	set, log := metrics.NewSet(), new(testbed.LogBuffer)
	l := open(t, file, fast, func(c *Config) {
		c.OnFailure, c.Metrics, c.Logger = choice, set, slog.New(slog.NewTextHandler(log, nil))
	})
	big := sample()
	big.Detail = strings.Repeat("x", 1000)
	for range 1 + d.first {
		require.NoError(t, l.Record(big))
	}
	assert.True(t, l.Status().FailingSince.IsZero())
	d.fill(t, file)
	lost := 0
	for range 60 { // on tmpfs the last page has some room
		err := l.Record(big)
		if choice == Refuse && err != nil {
			require.ErrorIs(t, err, errs.AuditFailed)
			lost++
		}
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.True(t, bytes.HasSuffix(data, []byte("}\n")), "no torn line is left")
	}
	s := l.Status()
	if choice == Continue {
		lost = int(s.Lost)
	}
	require.Greater(t, lost, 50)
	assert.EqualValues(t, lost, s.Lost)
	assert.False(t, s.FailingSince.IsZero())
	assert.Contains(t, s.Error, "cannot be written")
	assert.Contains(t, text(set), "fairlead_gateway_audit_failing 1\n")
	assert.Contains(t, text(set), fmt.Sprintf("fairlead_gateway_audit_lost_total %d\n", lost))
	assert.Equal(t, 1, strings.Count(log.String(), "level=ERROR"), "said once, not for each record: %s", log)
	before := len(readLines(t, file))

	d.free(t, file)
	require.Eventually(t, func() bool { return l.Status().FailingSince.IsZero() }, 20*time.Second, 5*time.Millisecond, "it mends itself, without a record")
	require.NoError(t, l.Record(sample()))
	assert.Contains(t, text(set), "fairlead_gateway_audit_failing 0\n")
	assert.Equal(t, 1, strings.Count(log.String(), "is written again"))
	shut(t, l)
	told, err := parseLine(readLines(t, file)[before])
	require.NoError(t, err)
	assert.Equal(t, string(Losses), told.Action)
	assert.Equal(t, errs.AuditFailed.String(), told.Code)
	assert.EqualValues(t, lost, told.Log.Lost)
	assert.Contains(t, told.Detail, fmt.Sprintf("%d records were lost since 2", lost))
	assert.EqualValues(t, lost, requireOK(t, file).Lost)
}

func text(set *metrics.Set) string {
	var b bytes.Buffer
	set.WritePrometheus(&b)
	return b.String()
}

func TestALogThatCannotBeOpenedBeginsAsFailing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "later", "audit.jsonl")
	_, err := New(Config{File: file})
	require.ErrorIs(t, err, errs.AuditFailed)
	l := open(t, file, fast, func(c *Config) { c.OnFailure = Continue })
	require.NoError(t, l.Record(sample()))
	assert.False(t, l.Status().FailingSince.IsZero())
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o700))
	require.Eventually(t, func() bool { return l.Status().FailingSince.IsZero() }, 20*time.Second, 5*time.Millisecond)
	require.NoError(t, l.Record(sample()))
	shut(t, l)
	assert.EqualValues(t, 1, requireOK(t, file).Lost)
}

func TestARemovedFileIsNoticedAndReplaced(t *testing.T) {
	file := logFile(t)
	l := open(t, file)
	require.NoError(t, l.Record(sample()))
	require.NoError(t, os.Remove(file))
	require.NoError(t, l.Record(sample()), "no record goes into a file that nobody can find")
	shut(t, l)
	lines := readLines(t, file)
	require.Len(t, lines, 4)
	assert.Contains(t, string(lines[0]), `"kind":"continue"`)
	assert.Contains(t, string(lines[1]), "file 1 of the log was removed or moved away, with all lines up to 2")
	_, err := verifyLog(t, file, VerifyConfig{})
	requireDamage(t, err, Removed, file, 1)
}

func TestAFileThatIsMovedAwayStaysPartOfTheChain(t *testing.T) {
	file := logFile(t)
	l := open(t, file, fast)
	require.NoError(t, l.Record(sample()))
	require.NoError(t, os.Rename(file, file+".moved"))
	require.Eventually(t, func() bool { return l.Status().FileNumber == 2 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Record(sample()))
	shut(t, l)
	require.NoError(t, os.Rename(file+".moved", numbered(file, 1)))
	assert.Equal(t, 2, requireOK(t, file).Files)
}

func TestAFolderThatIsRemovedMayComeBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "logs", "audit.jsonl")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o700))
	l := open(t, file, fast)
	require.NoError(t, l.Record(sample()))
	require.NoError(t, os.RemoveAll(filepath.Dir(file)))
	require.ErrorIs(t, l.Record(sample()), errs.AuditFailed)
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o700))
	require.Eventually(t, func() bool { return l.Status().FailingSince.IsZero() }, 20*time.Second, 5*time.Millisecond)
	require.NoError(t, l.Record(sample()))
}

func TestChangesUnderARunningGatewayShow(t *testing.T) {
	for name, c := range map[string]struct {
		change func(data []byte) []byte
		kind   string
		line   int
	}{
		"cut off":        {func(b []byte) []byte { return b[:bytes.IndexByte(b, '\n')+1] }, Removed, 2},
		"cut in a line":  {func(b []byte) []byte { return b[:len(b)-20] }, Edited, 4},
		"something more": {func(b []byte) []byte { return append(b, "hello\n"...) }, Inserted, 5},
		"emptied":        {func([]byte) []byte { return nil }, Removed, 1},
	} {
		t.Run(name, func(t *testing.T) {
			file := logFile(t)
			l := open(t, file)
			for range 3 {
				require.NoError(t, l.Record(sample()))
			}
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			changed := c.change(bytes.Clone(data))
			require.NoError(t, os.Truncate(file, 0))
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.Write(changed)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.NoError(t, l.Record(sample()))
			shut(t, l)
			after, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Contains(t, string(after), fmt.Sprintf("the file was changed by somebody else: it has %d bytes and should have %d", len(changed), len(data)))
			_, err = verifyLog(t, file, VerifyConfig{})
			requireDamage(t, err, c.kind, file, c.line)
		})
	}
}

// A file that may only be appended to (chattr +a) is a good place for a log; what a failed write leaves there cannot be
// taken back.
func TestWhatCannotBeTakenBackIsDeclared(t *testing.T) {
	d := limited(t)
	file := filepath.Join(d.folder, "audit.jsonl")
	l := open(t, file, fast)
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	const appendOnly = 0x20 // FS_APPEND_FL of linux/fs.h
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|appendOnly)
	}
	if err != nil {
		t.Skipf("files cannot be made append-only here: %v", err)
	}
	defer func() { require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)) }()
	big := sample()
	big.Detail = strings.Repeat("x", 1000)
	for range d.first {
		require.NoError(t, l.Record(big))
	}
	d.fill(t, file)
	require.ErrorIs(t, l.Record(sample()), errs.AuditFailed)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.False(t, bytes.HasSuffix(data, []byte("\n")), "a part of the line is there")
	d.free(t, file)
	require.Eventually(t, func() bool { return l.Status().FailingSince.IsZero() }, 20*time.Second, 5*time.Millisecond)
	require.NoError(t, l.Record(sample()))
	shut(t, l)
	r := requireOK(t, file)
	assert.Equal(t, 1, r.Torn)
	assert.EqualValues(t, 1, r.Lost)
}

func TestADiskThatHangsHoldsNobodyForever(t *testing.T) {
	file := logFile(t)
	var blockWriter atomic.Bool
	inside, release := make(chan struct{}), make(chan struct{})
	var calls atomic.Int64
	now := func() time.Time {
		// Record asks first; the second one is the writer, while it has the record in its hands.
		if blockWriter.Load() && calls.Add(1) == 2 {
			close(inside)
			<-release
		}
		return time.Now()
	}
	adjust, key := signed(t, func(c *Config) { c.SignRecords, c.Timeout, c.Now = 1, 50*time.Millisecond, now })
	l := open(t, file, adjust)
	require.NoError(t, l.Record(sample()))
	blockWriter.Store(true)
	require.ErrorIs(t, l.Record(sample()), errs.AuditFailed, "it was in the writer's hands")
	<-inside
	for range 5 {
		require.ErrorIs(t, l.Record(sample()), errs.AuditFailed, "it is known by now that the disk hangs")
	}
	close(release)
	require.Eventually(t, func() bool { return l.Record(sample()) == nil }, 20*time.Second, time.Millisecond)
	shut(t, l)
	r := requireOK(t, file, key)
	assert.EqualValues(t, 1, r.Late, "it was written after all")
	assert.GreaterOrEqual(t, r.Lost, uint64(5))
	assert.EqualValues(t, l.Status().Lost, r.Lost)
}

func TestKeysAreReadInBothForms(t *testing.T) {
	dir := t.TempDir()
	run(t, "openssl", "genpkey", "-algorithm", "ed25519", "-out", dir+"/a.key")
	run(t, "openssl", "pkey", "-in", dir+"/a.key", "-pubout", "-out", dir+"/a.pub")
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", dir+"/b.key")
	require.NoError(t, os.Rename(dir+"/b.key.pub", dir+"/b.pub"))
	for _, name := range []string{"a", "b"} {
		file := filepath.Join(t.TempDir(), "audit.jsonl")
		shut(t, open(t, file, func(c *Config) { c.SignKeyFile = filepath.Join(dir, name+".key") }))
		key, err := LoadPublicKey(filepath.Join(dir, name+".pub"))
		require.NoError(t, err)
		assert.Equal(t, 1, requireOK(t, file, key).Heads)
		if name == "b" {
			assert.Contains(t, run(t, "ssh-keygen", "-l", "-f", dir+"/b.pub"), " "+Fingerprint(key)+" ")
		}
	}
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", dir+"/c.key")
	run(t, "ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", dir+"/d.key")
	run(t, "openssl", "genpkey", "-algorithm", "x25519", "-out", dir+"/e.key")
	require.NoError(t, os.WriteFile(dir+"/f.key", make([]byte, maxKeyFile+1), 0o600))
	for _, name := range []string{"c.key", "d.key", "e.key", "f.key", "a.pub", "b.pub"} {
		_, err := LoadPrivateKey(filepath.Join(dir, name))
		require.ErrorIs(t, err, errs.KeyUnreadable, name)
	}
	for _, name := range []string{"a.key", "b.key", "d.key.pub", "e.key", "f.key"} {
		_, err := LoadPublicKey(filepath.Join(dir, name))
		require.ErrorIs(t, err, errs.KeyUnreadable, name)
	}
}
