package testbed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// CA is a certificate authority (ECDSA P-256) that lives for a day.
type CA struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// CertificateConfig says what to certify. The zero value is a valid server certificate of this machine.
type CertificateConfig struct {
	Name      string    // of the files NAME.pem and NAME-key.pem; default "server"
	Hosts     []string  // names and addresses; default localhost, 127.0.0.1 and ::1
	NotBefore time.Time // default an hour ago
	NotAfter  time.Time // default in a day; in the past for an expired one
}

// Certificate is a certificate of a CA, with its files.
type Certificate struct {
	CertFile string // PEM: the certificate, then the CA's
	KeyFile  string // PEM: PKCS #8
	Leaf     *x509.Certificate
}

// NewCA makes a CA and writes its certificate to dir, which must exist.
func NewCA(dir string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "fairlead testbed CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, err
	}
	ca := &CA{dir: dir, key: key, cert: cert}
	return ca, writeAtomic(ca.CertFile(), certPEM(cert))
}

// CertFile is the path of the CA's certificate, PEM.
func (c *CA) CertFile() string { return filepath.Join(c.dir, "ca.pem") }

// Pool holds the CA only.
func (c *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// ClientTLS is a configuration for clients that trust the CA only. The caller owns it.
func (c *CA) ClientTLS() *tls.Config {
	return &tls.Config{RootCAs: c.Pool(), MinVersion: tls.VersionTLS13}
}

// ServerTLS is a configuration for servers that show cert. The caller owns it.
func (c *CA) ServerTLS(cert *Certificate) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}, nil
}

// Issue makes a certificate, for a server as well as for a client, and writes its files. Issued again under the same
// name it replaces each file in one step: first the key, then the certificate.
func (c *CA) Issue(cfg CertificateConfig) (*Certificate, error) {
	cfg = cfg.withDefaults()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cfg.Name},
		NotBefore: cfg.NotBefore, NotAfter: cfg.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range cfg.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", cfg.Name, err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, err
	}
	return c.write(cfg.Name, leaf, key)
}

func (cfg CertificateConfig) withDefaults() CertificateConfig {
	if cfg.Name == "" {
		cfg.Name = "server"
	}
	if cfg.Hosts == nil {
		cfg.Hosts = []string{"localhost", "127.0.0.1", "::1"}
	}
	if cfg.NotBefore.IsZero() {
		cfg.NotBefore = time.Now().Add(-time.Hour)
	}
	if cfg.NotAfter.IsZero() {
		cfg.NotAfter = time.Now().Add(24 * time.Hour)
	}
	return cfg
}

func (c *CA) write(name string, leaf *x509.Certificate, key *ecdsa.PrivateKey) (*Certificate, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	cert := &Certificate{CertFile: filepath.Join(c.dir, name+".pem"), KeyFile: filepath.Join(c.dir, name+"-key.pem"), Leaf: leaf}
	if err := writeAtomic(cert.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, err
	}
	return cert, writeAtomic(cert.CertFile, append(certPEM(leaf), certPEM(c.cert)...))
}

func certPEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// writeAtomic replaces a file in one step, so that a reader sees the old content or the new one and nothing between.
func writeAtomic(path string, content []byte) error {
	next := path + ".next"
	if err := os.WriteFile(next, content, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
