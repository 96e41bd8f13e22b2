package e2e

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
)

const operator = "olga"

// withAudit records to w.dir/audit/audit.jsonl, signed, and gives the admin API an operator and a viewer.
func withAudit(change func(*gatewayconfig.Audit)) option {
	return func(w *world) {
		require.NoError(w.t, os.MkdirAll(filepath.Join(w.dir, "audit"), 0o700))
		public, private, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(w.t, err)
		der, err := x509.MarshalPKCS8PrivateKey(private)
		require.NoError(w.t, err)
		key := w.writeFile("audit.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
		der, err = x509.MarshalPKIXPublicKey(public)
		require.NoError(w.t, err)
		w.writeFile("audit.pub", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
		w.gatewayConfig.Audit.File, w.gatewayConfig.Audit.SignKeyFile = w.auditFile(), key
		if change != nil {
			change(&w.gatewayConfig.Audit)
		}
	}
}

// withCallers gives the admin API an operator and a viewer.
func withCallers() option {
	return func(w *world) {
		for name, role := range map[string]string{operator: gatewayconfig.RoleOperator, "victor": gatewayconfig.RoleViewer} {
			w.gatewayConfig.Admin.Tokens = append(w.gatewayConfig.Admin.Tokens,
				gatewayconfig.AdminToken{Name: name, Role: role, File: w.writeFile(name, adminToken(name))})
		}
	}
}

func adminToken(name string) string { return "admin-token-of-" + name }

func (w *world) auditFile() string { return filepath.Join(w.dir, "audit", "audit.jsonl") }

// audited are the lines of the audit log that have these values, given as name, value, ….
func (w *world) audited(t *testing.T, fields ...string) (found []entry) {
	t.Helper()
	for _, line := range bytes.Split([]byte(readFile(t, w.auditFile())), []byte("\n")) {
		var e entry
		if json.Unmarshal(line, &e) == nil && e.has(fields) {
			found = append(found, e)
		}
	}
	return found
}

// onlyAudited waits for a line of the audit log, of which there must be one.
func (w *world) onlyAudited(t *testing.T, fields ...string) entry {
	t.Helper()
	await(t, fmt.Sprint("audited: ", fields), func() bool { return len(w.audited(t, fields...)) > 0 })
	found := w.audited(t, fields...)
	require.Len(t, found, 1, "%v", fields)
	return found[0]
}

// Every act is in the audit log once, and no line of it can be changed unseen.
//
// Verifies: R4.9
func TestGuardEveryActIsAudited(t *testing.T) {
	t.Parallel()
	exe, _ := binaries(t)
	w := newWorld(t, withProcesses(), withAudit(nil), withCallers(), withTarget("echo", newTarget(t, echoServer)), withTarget("dead", closedAddr(t)),
		withGateway(func(c *gatewayconfig.Config) {
			c.Breaker.Failures, c.Reload.Watch = 1, 0
			c.Policy = []gatewayconfig.Rule{{Tenants: []string{ownTenant}, Routes: []string{"echo", "dead"}}}
		}), withListener("forbidden", "nothing", "normal"))
	one := func(fields ...string) entry { t.Helper(); return w.onlyAudited(t, fields...) }
	asked := func(who, method, path string, body any) int {
		t.Helper()
		return ask(t, method, w.gateway.url(path), adminToken(who), body, nil)
	}

	one("action", "lifecycle", "actor", "gateway", "detail", "started, version "+version)
	id := w.sidecar.tunnelID(t)
	assert.Equal(t, ownTenant, one("action", "connect", "result", "allowed", "tunnel", id).str("tenant"))
	c := w.dial("echo")
	echoes(t, c, "seventeen bytes..")
	opened := one("action", "open", "result", "allowed", "route", "echo", "backend", "echo", "tenant", ownTenant, "tunnel", id)
	require.Equal(t, 1, w.proxy.Cut())
	echoes(t, c, "x")
	one("action", "detach", "result", "failed", "tunnel", id)
	one("action", "resume", "result", "allowed", "tunnel", id)
	w.writeToken(w.token(ownTenant, 2*time.Hour))
	one("action", "renew", "result", "allowed", "tunnel", id, "tenant", ownTenant)
	require.NoError(t, c.CloseWrite())
	over := one("action", "close", "stream", opened.str("stream"), "tunnel", id)
	assert.Equal(t, []string{"18", "18", "echo", "allowed"}, []string{over.str("sent"), over.str("received"), over.str("route"), over.str("result")})

	w.refused("forbidden")
	one("action", "open", "result", "refused", "route", "nothing", "code", errs.RouteForbidden.String(), "tenant", ownTenant)
	w.refused("dead")
	one("action", "open", "result", "failed", "route", "dead", "backend", "dead", "code", errs.BackendUnreachable.String())
	one("action", "breaker", "backend", "dead", "code", errs.BackendUnreachable.String())
	expired, err := w.issuer.Expired(ownTenant)
	require.NoError(t, err)
	w.isRefused(t, expired, errs.TokenExpired)
	assert.Len(t, w.audited(t, "action", "authenticate", "result", "refused", "code", errs.TokenExpired.String()), 2, "a plain stream and a tunnel")

	require.Equal(t, http.StatusOK, asked(operator, http.MethodPut, "/api/log-level", map[string]string{"level": "info"}))
	one("action", "administer", "result", "allowed", "actor", operator, "target", "PUT /api/log-level")
	require.Equal(t, http.StatusForbidden, asked("victor", http.MethodPut, "/api/log-level", map[string]string{"level": "debug"}))
	one("action", "administer", "result", "refused", "actor", "victor", "target", "PUT /api/log-level", "code", errs.RoleForbidden.String())
	require.Equal(t, http.StatusOK, asked(operator, http.MethodPost, "/api/reload", nil))
	one("action", "configuration", "result", "allowed", "actor", operator)
	require.NoError(t, writeAtomic(filepath.Join(w.dir, "gateway.yaml"), []byte("listen: [")))
	w.gateway.proc.signal(t, syscall.SIGHUP)
	one("action", "configuration", "result", "failed", "code", errs.ConfigInvalid.String())
	require.Equal(t, http.StatusCreated, asked(operator, http.MethodPost, "/api/revocations", map[string]string{"tenant": ownTenant, "reason": "a test"}))
	one("action", "revoke", "actor", operator, "tenant", ownTenant, "detail", "a test")
	one("action", "disconnect", "tunnel", id, "code", errs.TokenRevoked.String(), "tenant", ownTenant)
	require.Equal(t, http.StatusAccepted, asked(operator, http.MethodPost, "/api/drain", nil))
	assert.Equal(t, errs.ExitDone, w.gateway.proc.exit(t))
	require.NoError(t, w.sidecar.stop())
	one("action", "lifecycle", "detail", "draining: api, for up to 2s")
	one("action", "lifecycle", "detail", "the log is closed")
	assert.NotContains(t, readFile(t, w.auditFile()), expired)
	assert.NotContains(t, readFile(t, w.auditFile()), adminToken(operator))

	verify := func() (string, int) {
		out, told, code := command(t, nil, exe, "audit", "verify", "--public-key", filepath.Join(w.dir, "audit.pub"), w.auditFile())
		return out + told, code
	}
	said, code := verify()
	assert.Equal(t, errs.ExitDone, code, said)
	assert.Contains(t, said, ": ok")
	lines := strings.Split(readFile(t, w.auditFile()), "\n")
	middle := len(lines) / 2
	lines[middle] = strings.Replace(lines[middle], `"result":"`, `"result":"A`, 1)
	require.NoError(t, writeAtomic(w.auditFile(), []byte(strings.Join(lines, "\n"))))
	said, code = verify()
	assert.NotEqual(t, errs.ExitDone, code)
	assert.Contains(t, said, "BROKEN")
	assert.Contains(t, said, errs.AuditBroken.String())
	assert.Contains(t, said, fmt.Sprintf("audit.jsonl line %d ", middle+1), "the line")
}

// smallDisk mounts a file system of 256 KiB on the folder of the audit log. It returns how it is filled.
func smallDisk(t *testing.T, w *world) (fill, free func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := filepath.Dir(w.auditFile())
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("mounting a small file system: ", err)
	}
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	ballast := filepath.Join(dir, "ballast")
	return func() {
			f, err := os.Create(ballast)
			require.NoError(t, err)
			defer f.Close()
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
			require.ErrorIs(t, err, syscall.ENOSPC)
		}, func() {
			require.NoError(t, os.Remove(ballast))
		}
}

// auditStatus is what the diagnostics say of the audit log.
func (w *world) auditStatus(t *testing.T) (s struct {
	Failing bool
	Lost    uint64
	Error   string
}) {
	t.Helper()
	var d struct{ Audit json.RawMessage }
	require.NoError(t, json.Unmarshal([]byte(get(t, w.gateway.url("/api/tunnel/diagnostics"))), &d))
	require.NoError(t, json.Unmarshal(d.Audit, &s))
	return s
}

// With a full disk new streams are refused, or go on unrecorded, as configured; what is open goes on in any case.
//
// Verifies: R4.9
func TestGuardAFullDiskOfTheAuditLog(t *testing.T) {
	for _, onFailure := range []string{gatewayconfig.AuditRefuse, gatewayconfig.AuditContinue} {
		t.Run(onFailure, func(t *testing.T) {
			t.Parallel()
			exe, _ := binaries(t)
			var fill, free func()
			w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)), withAudit(func(a *gatewayconfig.Audit) { a.OnFailure = onFailure }),
				func(w *world) { w.afterwards = append(w.afterwards, func() { fill, free = smallDisk(t, w) }) })
			g := w.guest(w.token(ownTenant, time.Hour))
			fill()
			open := func() error {
				s, err := openLink(t, g.tunnel, "echo")
				if err == nil {
					s.Reset(nil)
				}
				return err
			}
			if onFailure == gatewayconfig.AuditRefuse { // the last page of the file may have room for some lines
				await(t, "an open is refused", func() bool {
					err := open()
					if err != nil {
						require.ErrorIs(t, err, errs.AuditFailed)
					}
					return err != nil
				})
				require.ErrorIs(t, open(), errs.AuditFailed)
			} else {
				await(t, "records are lost", func() bool {
					require.NoError(t, open())
					return w.auditStatus(t).Lost > 0
				})
			}
			st := w.auditStatus(t)
			assert.True(t, st.Failing)
			assert.NotEmpty(t, st.Error)
			g.works(t)

			free()
			await(t, "records are written again", func() bool { return open() == nil && !w.auditStatus(t).Failing })
			e := w.onlyAudited(t, "action", "audit_failure")
			assert.NotEmpty(t, e.str("detail"))
			g.works(t)
			require.NoError(t, w.gateway.stop())
			out, told, code := command(t, nil, exe, "audit", "verify", "--public-key", filepath.Join(w.dir, "audit.pub"), w.auditFile())
			assert.Equal(t, errs.ExitDone, code, told)
			assert.Contains(t, out, "records were lost")
		})
	}
}
