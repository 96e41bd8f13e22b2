package backend

import (
	"errors"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// credentials reads what a login will prove who it is with, and returns what makes the signers of the login: certificates
// are issued when the host is known to be the right one, and not before. Errors are errs.KeyUnreadable.
func (s *Set) credentials(b *remote, e errand) (func() ([]ssh.Signer, error), error) {
	if b.Identity == nil {
		signers, err := b.signers()
		s.files.inspect(b.Name, b.keyFiles()...)
		return func() ([]ssh.Signer, error) { return signers, nil }, err
	}
	authority, err := b.authority()
	s.files.inspect(b.Name, b.Identity.CAKeyFile)
	if err != nil {
		return nil, err
	}
	return func() ([]ssh.Signer, error) {
		signer, err := s.certified(b, e, authority)
		if err != nil {
			return nil, err
		}
		return []ssh.Signer{signer}, nil
	}, nil
}

func (b *Backend) keyFiles() []string { return append([]string{b.KeyFile}, b.MoreKeyFiles...) }

// signers reads the backend's keys, the first with its certificate when there is one.
func (b *Backend) signers() ([]ssh.Signer, error) {
	var signers []ssh.Signer
	for i, file := range b.keyFiles() {
		signer, err := readKey(file, "key_file", b.Name)
		if err != nil {
			return nil, err
		}
		if i == 0 && b.CertificateFile != "" {
			if signer, err = b.certify(signer); err != nil {
				return nil, err
			}
		}
		signers = append(signers, signer)
	}
	return signers, nil
}

// authority reads the key that signs the backend's certificates.
func (b *Backend) authority() (ssh.Signer, error) {
	return readKey(b.Identity.CAKeyFile, "identity.ca_key_file", b.Name)
}

// readKey reads a private key. The error is errs.KeyUnreadable and names the file, never its content.
func readKey(file, what, backend string) (ssh.Signer, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the %s of backend %q cannot be read", what, backend)
	}
	signer, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, errs.New(errs.KeyUnreadable, "the %s %s of backend %q has a passphrase: the gateway needs one without (ssh-keygen -p -N '' -f on a copy removes it)", what, file, backend)
	}
	if err != nil {
		return nil, errs.New(errs.KeyUnreadable, "the %s %s of backend %q holds no private key that can be used", what, file, backend)
	}
	if signer, err = modernSigner(signer); err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the %s %s of backend %q cannot be used", what, file, backend)
	}
	return signer, nil
}

// modernSigner keeps RSA keys from signing with SHA-1.
func modernSigner(signer ssh.Signer) (ssh.Signer, error) {
	if signer.PublicKey().Type() == keyAlgoDSA {
		return nil, errors.New("DSA keys are not supported")
	}
	if signer.PublicKey().Type() != ssh.KeyAlgoRSA {
		return signer, nil
	}
	rsa, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return nil, errors.New("the RSA key cannot sign with SHA-2")
	}
	return ssh.NewSignerWithAlgorithms(rsa, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256})
}

func (b *Backend) certify(signer ssh.Signer) (ssh.Signer, error) {
	line, err := os.ReadFile(b.CertificateFile)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the certificate_file of backend %q cannot be read", b.Name)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the certificate_file %s of backend %q cannot be used", b.CertificateFile, b.Name)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, errs.New(errs.KeyUnreadable, "the certificate_file %s of backend %q holds a plain key", b.CertificateFile, b.Name)
	}
	certified, err := ssh.NewCertSigner(cert, signer)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the certificate_file %s of backend %q does not fit its key", b.CertificateFile, b.Name)
	}
	return certified, nil
}

// keyFiles warns about private keys that others can read or replace, once for each file.
type keyFiles struct {
	log *slog.Logger

	mu     sync.Mutex
	warned map[string]bool
}

// tooOpen are the permissions that a private key should not have. The group may read: that is how Kubernetes gives a
// secret to a process that is not root.
const tooOpen = 0o027

func (f *keyFiles) inspect(backend string, files ...string) {
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm()&tooOpen == 0 {
			continue // reading it tells the error
		}
		f.mu.Lock()
		known := f.warned[file]
		f.warned[file] = true
		f.mu.Unlock()
		if !known {
			f.log.Warn("a private key is open to other users of the machine", logging.FieldComponent, "backend", logging.FieldBackend, backend,
				"file", file, "mode", info.Mode().Perm().String(), logging.FieldAdvice, "take the permissions of others away (chmod 600 or 440)")
		}
	}
}
