package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/audit"
	"fairlead/shared/errs"
)

// auditLog writes a signed log of 20 records, and returns its file and that of the public key.
func auditLog(t *testing.T) (file, public string) {
	t.Helper()
	dir := t.TempDir()
	private := filepath.Join(dir, "audit.key")
	file, public = filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "audit.pub")
	for _, args := range [][]string{{"genpkey", "-algorithm", "ed25519", "-out", private}, {"pkey", "-in", private, "-pubout", "-out", public}} {
		out, err := exec.Command("openssl", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	l, err := audit.New(audit.Config{File: file, Instance: "gw-0", SignKeyFile: private, SignRecords: 8})
	require.NoError(t, err)
	for i := range 20 {
		require.NoError(t, l.Record(audit.Event{Action: audit.Open, Result: audit.Allowed, Actor: "ann", Tenant: "payments/api", Route: "git", Stream: fmt.Sprint(i)}))
	}
	require.NoError(t, l.Close(context.Background()))
	return file, public
}

func runAudit(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := auditCommand()
	var out, complaints bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&complaints)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.Execute()
	return out.String(), complaints.String(), err
}

// Verifies: R4.9
func TestAuditVerify(t *testing.T) {
	file, public := auditLog(t)
	out, _, err := runAudit(t, "", "verify", "--public-key", public, file)
	require.NoError(t, err)
	assert.Contains(t, out, file+": ok\n")
	assert.Contains(t, out, "  lines     24, 1 to 24\n")
	assert.Contains(t, out, "  heads     3 verified\n")
	assert.Contains(t, out, "  end       closed\n")

	out, _, err = runAudit(t, "", "verify", filepath.Dir(file))
	require.NoError(t, err)
	assert.Contains(t, out, "  heads     3 signed, none verified: no --public-key\n")
	head := strings.TrimSpace(strings.SplitN(out[strings.Index(out, "  head ")+6:], "\n", 2)[0])

	data, err := os.ReadFile(file)
	require.NoError(t, err)
	out, _, err = runAudit(t, string(data), "verify", "--head", head, "-")
	require.NoError(t, err)
	assert.Contains(t, out, "stdin: ok\n")

	lines := bytes.SplitAfter(data, []byte("\n"))
	require.NoError(t, os.WriteFile(file, bytes.Join(lines[:20], nil), 0o600))
	out, _, err = runAudit(t, "", "verify", "--public-key", public, file)
	require.NoError(t, err)
	assert.Contains(t, out, "  end       open: a gateway is writing it, was killed, or lines were cut off\n")
	assert.Contains(t, out, "  unsigned  2 lines at the end\n")
	out, _, err = runAudit(t, "", "verify", "--head", head, file)
	require.ErrorIs(t, err, errs.AuditBroken)
	assert.Contains(t, out, "truncated: it does not contain line 24")

	lines[4] = bytes.Replace(lines[4], []byte("payments"), []byte("innocent"), 1)
	require.NoError(t, os.WriteFile(file, bytes.Join(lines, nil), 0o600))
	out, _, err = runAudit(t, "", "verify", file)
	require.ErrorIs(t, err, errs.AuditBroken)
	assert.Equal(t, errs.ExitFailed, errs.ExitCode(err))
	assert.Contains(t, out, file+": BROKEN\n")
	assert.Contains(t, out, file+" line 5 (seq 5): edited: ")
}

func TestAuditExport(t *testing.T) {
	file, public := auditLog(t)
	out, complaints, err := runAudit(t, "", "export", "--format", "json", "--public-key", public, file)
	require.NoError(t, err)
	var lines []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &lines))
	assert.Len(t, lines, 24)
	assert.Equal(t, file+": verified, 24 lines, 3 verified\n", complaints)

	out, _, err = runAudit(t, "", "export", "--format", "cef", "--since", "1h", file)
	require.NoError(t, err)
	assert.Equal(t, 24, strings.Count(out, "CEF:0|fairlead|gateway|"+version+"|"))
	out, _, err = runAudit(t, "", "export", "--format", "jsonl", "--until", "2020-01-01", file)
	require.NoError(t, err)
	assert.Empty(t, out)

	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, bytes.Replace(data, []byte("payments"), []byte("innocent"), 1), 0o600))
	_, complaints, err = runAudit(t, "", "export", file)
	require.ErrorIs(t, err, errs.AuditBroken)
	assert.Contains(t, complaints, "BROKEN, the export ends before the damage")
	out, complaints, err = runAudit(t, "", "export", "--format", "jsonl", "--unverified", file)
	require.NoError(t, err)
	assert.Contains(t, complaints, "NOT VERIFIED, 0 lines that are none were left out")
	assert.Contains(t, out, "innocent")
}

func TestAuditCommandsSayWhatIsWrong(t *testing.T) {
	file, public := auditLog(t)
	for _, args := range [][]string{
		{"verify"}, {"verify", file + ".none"}, {"verify", t.TempDir()}, {"verify", "--head", "x", file}, {"verify", "--max-unsigned", "3", file},
		{"export", "--format", "xml", file}, {"export", "--since", "soon", file}, {"export"},
	} {
		_, _, err := runAudit(t, "", args...)
		require.ErrorIs(t, err, errs.ConfigInvalid, "%q", args)
	}
	_, _, err := runAudit(t, "", "verify", "--public-key", file, file)
	require.ErrorIs(t, err, errs.KeyUnreadable)
	_, _, err = runAudit(t, "", "verify", "--max-unsigned", "3", "--public-key", public, file)
	require.NoError(t, err)
}
