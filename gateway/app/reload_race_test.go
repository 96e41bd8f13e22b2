package app

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/config"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
)

// Who reads an older file must not take it after somebody has taken a newer one: what was taken away would be back.
func TestReloadsReadAndTakeOneAfterAnother(t *testing.T) {
	s := newSite(t)
	var reading, together atomic.Int32
	s.opts.Load = func() (*sharedconfig.Loaded[config.Config], error) {
		if reading.Add(1) > 1 {
			together.Add(1)
		}
		defer reading.Add(-1)
		_, _ = os.ReadFile(s.cfg.TLS.CertFile)
		return &sharedconfig.Loaded[config.Config]{Config: s.cfg}, nil
	}
	a, _ := s.run()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 10 {
				_, err := a.ReloadFiles("test")
				assert.NoError(t, err)
			}
		})
	}
	all.Wait()
	assert.Zero(t, together.Load())
}

// Verifies: R4.9
func TestAConfigurationThatCannotBeReadIsRecorded(t *testing.T) {
	s := newSite(t)
	s.cfg.Audit.File = filepath.Join(t.TempDir(), "audit.jsonl")
	s.opts.Load = func() (*sharedconfig.Loaded[config.Config], error) {
		return nil, errs.New(errs.ConfigUnreadable, "no such file")
	}
	a, stop := s.run()
	_, err := a.ReloadFiles("alice")
	require.ErrorIs(t, err, errs.ConfigUnreadable)
	require.NoError(t, stop(nil))
	assert.Regexp(t, `"actor":"alice"[^\n]*"configuration"[^\n]*FL-C302|"configuration"[^\n]*"alice"[^\n]*FL-C`, string(mustRead(t, s.cfg.Audit.File)))
}

// Verifies: R9.4
func TestAFileThatChangesWhileAGatewayStartsIsTaken(t *testing.T) {
	s := newSite(t)
	s.cfg.Reload.Watch = 10 * time.Millisecond
	a, err := New(s.cfg, s.opts)
	require.NoError(t, err)
	old := a.certs.current.Load()
	require.NoError(t, os.WriteFile(s.cfg.TLS.CertFile, append(mustRead(t, s.cfg.TLS.CertFile), '\n'), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	assert.Eventually(t, func() bool { return a.certs.current.Load() != old }, 20*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}
