package backend

import (
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Health says how a backend is looked after: a TCP connection and the server's version line, without a login. What it
// finds is shown and nothing else; it neither opens nor closes a circuit.
type Health struct {
	Interval time.Duration // between checks; 0: none are made
	Timeout  time.Duration // for one check; 0: the smaller of Interval and 5s
}

// HealthStats is what the last check found.
type HealthStats struct {
	Up      bool
	Since   time.Time     // of the first check that found the same
	Checked time.Time     // when the last check ended
	Latency time.Duration // of the last check that went well, until the version line
	Version string        // the server's version line, when it went well
	Err     error         // of the last check; nil: it went well
}

// monitor checks one backend until it is stopped.
type monitor struct {
	cancel context.CancelFunc

	mu    sync.Mutex
	stats HealthStats // zero before the first check has ended
}

// watchLocked starts a monitor when the backend asks for one.
func (s *Set) watchLocked(b *remote) *monitor {
	if b.Health.Interval <= 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(s.base)
	m := &monitor{cancel: cancel}
	if !s.spawnLocked(func() { m.run(ctx, s, b) }) {
		cancel()
	}
	return m
}

// stop returns when no check will write any more what it found.
func (m *monitor) stop() {
	if m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.cancel()
	}
}

// read returns what is known; false: nothing yet.
func (m *monitor) read() (HealthStats, bool) {
	if m == nil {
		return HealthStats{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats, !m.stats.Checked.IsZero()
}

func (m *monitor) run(ctx context.Context, s *Set, b *remote) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		m.check(ctx, s, b)
		tenth := b.Health.Interval / 10 // so that replicas and backends do not fall into step
		timer.Reset(b.Health.Interval - tenth + rand.N(2*tenth+1))
	}
}

func (m *monitor) check(ctx context.Context, s *Set, b *remote) {
	timeout := cmp.Or(b.Health.Timeout, min(b.Health.Interval, 5*time.Second))
	start := time.Now()
	version, took, err := s.probe(ctx, b, timeout)
	now := HealthStats{Up: err == nil, Since: start, Checked: time.Now(), Latency: took, Version: version, Err: err}
	m.mu.Lock()
	if ctx.Err() != nil {
		m.mu.Unlock()
		return
	}
	before := m.stats
	first := before.Checked.IsZero()
	if !first && before.Up == now.Up {
		now.Since = before.Since
	}
	if err != nil {
		now.Latency = before.Latency
	}
	m.stats = now
	b.counts.probed(now.Up, took)
	m.mu.Unlock()
	args := []any{logging.FieldComponent, "backend", logging.FieldBackend, b.Name, logging.FieldPeer, b.Address}
	switch {
	case !now.Up && (first || before.Up):
		s.log.Warn("a backend does not answer its health check", append(args, logging.FieldCode, errs.CodeOf(err).String(), logging.FieldError, err.Error())...)
	case now.Up && !first && !before.Up:
		s.log.Info("a backend answers its health check again", append(args, "down_ms", now.Since.Sub(before.Since).Milliseconds())...)
	}
}

// maxGreeting bounds what a server may send before its version line (RFC 4253 section 4.2 sets no limit), in bytes.
const maxGreeting = 8 << 10

// probe connects, reads the version line and says goodbye, so that the server's log shows an orderly end.
func (s *Set) probe(ctx context.Context, b *remote, timeout time.Duration) (version string, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	raw, err := s.dialRaw(ctx, "tcp", b.Address)
	switch {
	case err != nil && (ctx.Err() != nil || timedOut(err)):
		return "", 0, errs.New(errs.BackendTimeout, "backend %q (%s) did not answer the TCP dial in %s", b.Name, b.Address, timeout)
	case err != nil:
		return "", 0, errs.Wrap(errs.BackendUnreachable, err, "backend %q (%s) cannot be reached (phase: TCP dial)", b.Name, b.Address)
	}
	defer func() { _ = raw.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	w := &wire{Conn: raw}
	buf := make([]byte, 512)
	for read := 0; version == ""; {
		n, err := w.Read(buf)
		read += n
		var first string
		version, first = w.greeting()
		switch {
		case err != nil && ctx.Err() != nil:
			return "", 0, errs.New(errs.BackendTimeout, "backend %q (%s; phase: %s) did not answer in %s", b.Name, b.Address, phaseVersion, timeout)
		case err != nil || read > maxGreeting:
			return "", 0, errs.New(errs.SSHHandshake, "backend %q (%s; phase: %s) does not greet as an SSH 2 server: it says %.80q", b.Name, b.Address, phaseVersion, first)
		}
	}
	took = time.Since(start)
	goodbye(raw)
	return version, took, nil
}

// goodbye sends our version line and SSH_MSG_DISCONNECT in plain text, which is allowed before keys are exchanged, and
// waits for the server to close. None of it matters to the result.
func goodbye(c net.Conn) {
	body := ssh.Marshal(disconnectMsg{Reason: byApplication, Message: "health check"})
	padding := 8 - (5+len(body))%8
	if padding < 4 { // RFC 4253 section 6
		padding += 8
	}
	packet := []byte(clientVersion + "\r\n")
	packet = append(packet, 0, 0, 0, byte(1+len(body)+padding), byte(padding))
	packet = append(append(packet, body...), make([]byte, padding)...)
	if _, err := c.Write(packet); err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(farewell)) // fails only on a connection that is gone
	_, _ = io.CopyN(io.Discard, c, maxGreeting)
}
