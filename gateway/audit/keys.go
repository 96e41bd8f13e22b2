package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"fairlead/shared/errs"
)

const (
	maxKeyFile = 64 << 10 // bytes
	sshEd25519 = "ssh-ed25519"
)

// LoadPrivateKey reads an Ed25519 private key as `openssl genpkey -algorithm ed25519` (PEM, PKCS #8) or
// `ssh-keygen -t ed25519 -N ""` (OpenSSH) writes it. The error is errs.KeyUnreadable and never holds any of the key.
func LoadPrivateKey(file string) (ed25519.PrivateKey, error) {
	data, err := readKeyFile(file)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the audit log's signing key")
	}
	key, err := parsePrivateKey(data)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the audit log's signing key %s", file)
	}
	return key, nil
}

// LoadPublicKey reads the public half: PEM (`openssl pkey -pubout`) or a line of OpenSSH (`id_ed25519.pub`).
func LoadPublicKey(file string) (ed25519.PublicKey, error) {
	data, err := readKeyFile(file)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the public key of audit logs")
	}
	key, err := parsePublicKey(data)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the public key %s", file)
	}
	return key, nil
}

// Fingerprint names a public key as `ssh-keygen -l` does: SHA256 and the base64 of the hash over its SSH form.
func Fingerprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256(sshString(sshString(nil, []byte(sshEd25519)), key))
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

func readKeyFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(data) > maxKeyFile {
		err = fmt.Errorf("%s is larger than %d bytes", file, maxKeyFile)
	}
	return data, err
}

func parsePrivateKey(data []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(data)
	switch {
	case block == nil:
		return nil, errors.New("holds no PEM block")
	case block.Type == "OPENSSH PRIVATE KEY":
		return parseOpenSSH(block.Bytes)
	case block.Type != "PRIVATE KEY":
		return nil, fmt.Errorf("holds a PEM block of type %q: allowed are PRIVATE KEY (PKCS #8, not encrypted) and OPENSSH PRIVATE KEY", block.Type)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("holds no PKCS #8 key that can be read")
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("is not an Ed25519 key")
	}
	return key, nil
}

func parsePublicKey(data []byte) (ed25519.PublicKey, error) {
	if block, _ := pem.Decode(data); block != nil {
		any, err := x509.ParsePKIXPublicKey(block.Bytes)
		key, ok := any.(ed25519.PublicKey)
		if err != nil || !ok {
			return nil, errors.New("is not an Ed25519 public key in PEM (a private key has no business here)")
		}
		return key, nil
	}
	words := strings.Fields(string(data))
	if len(words) < 2 || words[0] != sshEd25519 {
		return nil, errors.New("is neither PEM nor a line that begins with " + sshEd25519)
	}
	blob, err := base64.StdEncoding.DecodeString(words[1])
	if err != nil {
		return nil, errors.New("is not base64 after " + sshEd25519)
	}
	return sshPublicKey(blob)
}

func sshPublicKey(blob []byte) (ed25519.PublicKey, error) {
	kind, rest, ok := cutSSHString(blob)
	key, rest, ok2 := cutSSHString(rest)
	if !ok || !ok2 || string(kind) != sshEd25519 || len(key) != ed25519.PublicKeySize || len(rest) != 0 {
		return nil, errors.New("is not an Ed25519 public key in OpenSSH's form")
	}
	return ed25519.PublicKey(bytes.Clone(key)), nil
}

// parseOpenSSH reads the one form that is allowed here of OpenSSH's private keys (its PROTOCOL.key): one Ed25519 key, not
// encrypted. It is here because golang.org/x/crypto/ssh has its one place elsewhere.
func parseOpenSSH(data []byte) (ed25519.PrivateKey, error) {
	bad := errors.New("is not an Ed25519 key in OpenSSH's form")
	rest, ok := bytes.CutPrefix(data, []byte("openssh-key-v1\x00"))
	if !ok {
		return nil, bad
	}
	cipher, rest, ok := cutSSHString(rest)
	if ok && string(cipher) != "none" {
		return nil, errors.New("is protected by a passphrase, which nobody could enter")
	}
	_, rest, ok1 := cutSSHString(rest) // name of the key derivation
	_, rest, ok2 := cutSSHString(rest) // its options
	if !ok || !ok1 || !ok2 || len(rest) < 4 || binary.BigEndian.Uint32(rest) != 1 {
		return nil, bad
	}
	blob, rest, ok1 := cutSSHString(rest[4:])
	private, _, ok2 := cutSSHString(rest)
	public, err := sshPublicKey(blob)
	if !ok1 || !ok2 || err != nil || len(private) < 8 || !bytes.Equal(private[:4], private[4:8]) {
		return nil, bad
	}
	kind, rest, ok1 := cutSSHString(private[8:])
	_, rest, ok2 = cutSSHString(rest) // the public key again
	pair, _, ok3 := cutSSHString(rest)
	if !ok1 || !ok2 || !ok3 || string(kind) != sshEd25519 || len(pair) != ed25519.PrivateKeySize {
		return nil, bad
	}
	key := ed25519.NewKeyFromSeed(pair[:ed25519.SeedSize])
	if !public.Equal(key.Public()) {
		return nil, bad
	}
	return key, nil
}

func sshString(b, s []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

func cutSSHString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}

// signedText is what a head signs. With the hash of the line before, it covers every line up to there; with time and
// instance, and because a verifier rebuilds the line from these parts, the head's own line too.
func signedText(kind, id string, seq uint64, prev, at, instance string) []byte {
	return fmt.Appendf(nil, "fairlead audit %s 1\n%s\n%d\n%s\n%s\n%s\n", kind, id, seq, prev, at, instance)
}
