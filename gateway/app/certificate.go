package app

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// certificate is the server's certificate, which is read again when its files change. Connections keep what they were
// made with.
type certificate struct {
	certFile, keyFile string
	current           atomic.Pointer[loaded]
	stop              chan struct{}
}

type loaded struct {
	cert tls.Certificate
	hash [sha256.Size]byte // of both files
}

// certPoll is how often the files are looked at. They are polled by content, because a mounted secret is replaced by
// renaming directories, which watchers lose.
const certPoll = 5 * time.Second

func newCertificate(certFile, keyFile string) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, stop: make(chan struct{})}
	return c, c.load()
}

// load reads the files; if they do not fit each other, what was loaded before stays.
func (c *certificate) load() error {
	cert, err := os.ReadFile(c.certFile)
	if err != nil {
		return errs.Wrap(errs.KeyUnreadable, err, "tls.cert_file")
	}
	key, err := os.ReadFile(c.keyFile)
	if err != nil {
		return errs.Wrap(errs.KeyUnreadable, err, "tls.key_file")
	}
	hash := sha256.Sum256(append(append([]byte(nil), cert...), key...))
	if now := c.current.Load(); now != nil && now.hash == hash {
		return nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return errs.Wrap(errs.KeyUnreadable, err, "%s and %s", c.certFile, c.keyFile)
	}
	c.current.Store(&loaded{pair, hash})
	return nil
}

// watch loads the files when they change, until ctx ends or close is called.
func (c *certificate) watch(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(certPoll)
	defer tick.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.stop:
			return nil
		case <-tick.C:
		}
		before := c.current.Load()
		err := c.load()
		switch {
		case err == nil && c.current.Load() != before:
			log.Info("certificate reloaded", "expires", c.current.Load().cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
		case err != nil && err.Error() != failed: // said once, not at every look
			log.Error("the changed certificate cannot be used; the one before stays in use", logging.Error(err)...)
		}
		failed = ""
		if err != nil {
			failed = err.Error()
		}
	}
}

func (c *certificate) close() { close(c.stop) }

// serverConfig is TLS 1.3 with whatever certificate is loaded at the time of a handshake.
func (c *certificate) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{"http/1.1"}, // a WebSocket is upgraded from HTTP/1.1
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &c.current.Load().cert, nil
		},
	}
}
