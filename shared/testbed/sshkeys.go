package testbed

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// HostAlias is the name under which a known_hosts file of the test bed also lists the server's keys, so that a client
// which comes through a tunnel, from another address, can name it: ssh -o HostKeyAlias=….
const HostAlias = "fairlead-testbed"

// sshFiles are the keys of one SSH server and of the one user that it lets in.
type sshFiles struct {
	dir      string
	user     string
	hostKeys []ssh.Signer // ed25519, ecdsa
	hostPath []string     // their files, in the same order
	userKey  ssh.Signer
}

// newSSHFiles makes host keys and a user key in dir. Keys that are there from a server before are made anew.
func newSSHFiles(dir string) (*sshFiles, error) {
	who, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("who runs the SSH server: %w", err)
	}
	f := &sshFiles{dir: dir, user: who.Username}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := f.addHostKey("host_ed25519", ed); err != nil {
		return nil, err
	}
	if err := f.addHostKey("host_ecdsa", ec); err != nil {
		return nil, err
	}
	_, mine, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if f.userKey, err = writeSSHKey(f.KeyFile(), mine); err != nil {
		return nil, err
	}
	return f, os.WriteFile(f.authorizedKeysFile(), ssh.MarshalAuthorizedKey(f.userKey.PublicKey()), 0o600)
}

func (f *sshFiles) addHostKey(name string, key crypto.PrivateKey) error {
	path := filepath.Join(f.dir, name)
	signer, err := writeSSHKey(path, key)
	if err != nil {
		return err
	}
	f.hostKeys = append(f.hostKeys, signer)
	f.hostPath = append(f.hostPath, path)
	return nil
}

// writeSSHKey writes an OpenSSH private key file.
func writeSSHKey(path string, key crypto.PrivateKey) (ssh.Signer, error) {
	block, err := ssh.MarshalPrivateKey(key, "fairlead-testbed")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return ssh.NewSignerFromKey(key)
}

// User is the only user that may log in: the one who runs the test.
func (f *sshFiles) User() string { return f.user }

// KeyFile is the path of that user's private key, in OpenSSH's format, without a passphrase.
func (f *sshFiles) KeyFile() string { return filepath.Join(f.dir, "user_ed25519") }

// Signer is that user's private key.
func (f *sshFiles) Signer() ssh.Signer { return f.userKey }

// KnownHostsFile is the path of a known_hosts file that lists the server's keys under its address and HostAlias.
func (f *sshFiles) KnownHostsFile() string { return filepath.Join(f.dir, "known_hosts") }

// HostKeys are the server's public keys.
func (f *sshFiles) HostKeys() []ssh.PublicKey {
	keys := make([]ssh.PublicKey, 0, len(f.hostKeys))
	for _, key := range f.hostKeys {
		keys = append(keys, key.PublicKey())
	}
	return keys
}

// KnownHosts is the content of a known_hosts file that lists the server's keys under each address ("host:port") or name.
func (f *sshFiles) KnownHosts(addrs ...string) string {
	var text bytes.Buffer
	names := make([]string, 0, len(addrs))
	for _, addr := range addrs {
		names = append(names, knownhosts.Normalize(addr))
	}
	for _, key := range f.hostKeys {
		fmt.Fprintln(&text, knownhosts.Line(names, key.PublicKey()))
	}
	return text.String()
}

// SSHArgs are arguments for OpenSSH's clients that make them use this user's key, check the server's host key under
// HostAlias wherever they connect to, ask no question and read no configuration of the machine.
func (f *sshFiles) SSHArgs() []string {
	return []string{
		"-F", "none", "-i", f.KeyFile(),
		"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + f.KnownHostsFile(), "-o", "GlobalKnownHostsFile=none",
		"-o", "HostKeyAlias=" + HostAlias, "-o", "CheckHostIP=no", "-o", "UpdateHostKeys=no",
		"-o", "User=" + f.user,
	}
}

func (f *sshFiles) authorizedKeysFile() string { return filepath.Join(f.dir, "authorized_keys") }

func (f *sshFiles) writeKnownHosts(addr string) error {
	return os.WriteFile(f.KnownHostsFile(), []byte(f.KnownHosts(addr, HostAlias)), 0o600)
}
