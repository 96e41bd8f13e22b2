package app

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"sync/atomic"
	"time"

	"fairlead/gateway/config"
	"fairlead/shared/errs"
)

// certificate is the TLS of the public address. What its files hold is replaced as a whole; connections keep what they
// were made with.
type certificate struct{ current atomic.Pointer[tls.Config] }

// prepare reads the files of t. commit puts them in place; without it, what was there before stays.
func (c *certificate) prepare(t config.TLS) (commit func(), err error) {
	cert, err := os.ReadFile(t.CertFile)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "tls.cert_file")
	}
	key, err := os.ReadFile(t.KeyFile)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "tls.key_file")
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "%s and %s", t.CertFile, t.KeyFile)
	}
	cfg := &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{"http/1.1"}, // a WebSocket is upgraded from HTTP/1.1
		DynamicRecordSizingDisabled: true,
		Certificates:                []tls.Certificate{pair},
	}
	if t.ClientCAFile != "" {
		if cfg.ClientCAs, err = authorities(t.ClientCAFile); err != nil {
			return nil, err
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
		if t.ClientCertificates == config.ClientCertificatesOptional {
			cfg.ClientAuth = tls.VerifyClientCertIfGiven
		}
	}
	return func() { c.current.Store(cfg) }, nil
}

func authorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "tls.client_ca_file")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errs.New(errs.KeyUnreadable, "tls.client_ca_file: %s holds no certificate in PEM", file)
	}
	return pool, nil
}

// serverConfig leads to whatever is in place at the time of a handshake. Each generation is a configuration of its own, so
// that a session of an earlier one, made with a certificate that may not count any more, is not resumed.
func (c *certificate) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load(), nil },
		// Never used, but without it the library refuses to serve.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.current.Load().Certificates[0], nil },
	}
}

// expires is when the certificate ends.
func (c *certificate) expires() time.Time { return c.current.Load().Certificates[0].Leaf.NotAfter }
