package backend

import (
	"errors"
	"os"

	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

// signer reads the backend's key, and certificate when there is one. The error is errs.KeyUnreadable and names the file,
// never its content.
func (b *Backend) signer() (ssh.Signer, error) {
	pem, err := os.ReadFile(b.KeyFile)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the key_file of backend %q cannot be read", b.Name)
	}
	signer, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, errs.New(errs.KeyUnreadable, "the key_file %s of backend %q has a passphrase: the gateway needs one without", b.KeyFile, b.Name)
	}
	if err != nil {
		return nil, errs.New(errs.KeyUnreadable, "the key_file %s of backend %q holds no private key that can be used", b.KeyFile, b.Name)
	}
	if signer, err = modernSigner(signer); err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the key_file %s of backend %q cannot be used", b.KeyFile, b.Name)
	}
	if b.CertificateFile == "" {
		return signer, nil
	}
	return b.certify(signer)
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
