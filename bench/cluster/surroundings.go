package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"fairlead/shared/testbed"
	"fairlead/shared/testbed/fault"
)

// makeKeys makes the certificate, for the balancer's address and each replica's, the issuer of tokens, the sidecars' token and the
// secret of the replicas.
func (s *Site) makeKeys() (err error) {
	if s.ca, err = testbed.NewCA(s.cfg.Dir); err != nil {
		return err
	}
	hosts := []string{"localhost", "127.0.0.1"}
	for n := range s.cfg.Replicas {
		hosts = append(hosts, s.net.replica(n))
	}
	if s.cert, err = s.ca.Issue(testbed.CertificateConfig{Hosts: hosts}); err != nil {
		return err
	}
	if s.issuer, err = testbed.NewIssuer(testbed.IssuerConfig{Algorithm: "HS256", Dir: s.cfg.Dir}); err != nil {
		return err
	}
	token, err := s.Token(Tenant)
	if err != nil {
		return err
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	return errors.Join(testbed.WriteToken(s.file("token"), token), os.WriteFile(s.file("peer-secret"), []byte(hex.EncodeToString(secret)+"\n"), 0o600))
}

// Token makes a token that speaks for a tenant.
func (s *Site) Token(tenant string) (string, error) { return s.issuer.Valid(tenant, tokenLife) }

// startBackends starts what the routes lead to.
func (s *Site) startBackends(ctx context.Context) (err error) {
	if s.Target, err = NewTarget(); err != nil {
		return err
	}
	s.defers(s.Target.Close)
	if s.Backend, err = fault.New(fault.Config{Target: s.Target.Addr()}); err != nil {
		return err
	}
	s.defers(func() error { s.Backend.Close(); return nil })
	if !s.cfg.SSH {
		return nil
	}
	dir := s.file("sshd")
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if s.SSH, err = testbed.StartSSHD(ctx, testbed.SSHDConfig{Dir: dir}); err != nil {
		return fmt.Errorf("start an SSH server: %w", err)
	}
	s.defers(func() error { s.SSH.Stop(); return nil })
	return nil
}
