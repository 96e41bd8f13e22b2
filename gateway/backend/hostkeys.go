package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

// hostKeys decides about the keys that backends present. Files are read anew for each handshake, so that changes count
// at once; handshakes are rare.
type hostKeys struct {
	store HostKeyStore       // may be nil
	event func(HostKeyEvent) // may be nil
	log   *slog.Logger

	mu    sync.Mutex          // also serializes appending to files
	first map[string]firstKey // keys of first use, by the backend's address
}

func newHostKeys(cfg *Config) *hostKeys {
	return &hostKeys{store: cfg.HostKeys, event: cfg.OnHostKey, log: cfg.Logger, first: make(map[string]firstKey)}
}

// hostFiles are what a backend's files say about host keys.
type hostFiles struct {
	db      *knownhosts.HostKeyDB // nil: nothing is known
	revoked map[string]struct{}   // marshaled keys
}

// hostFiles reads the backend's files. With FirstUse a missing known_hosts file is an empty one; a missing revoked one
// never is.
func (b *Backend) hostFiles() (files hostFiles, err error) {
	if b.RevokedFile != "" {
		if files.revoked, err = readRevoked(b.RevokedFile); err != nil {
			return files, errs.Wrap(errs.KeyUnreadable, err, "the host_keys.revoked_file of backend %q cannot be used", b.Name)
		}
	}
	if b.KnownHostsFile == "" {
		return files, nil
	}
	files.db, err = knownhosts.NewDB(b.KnownHostsFile)
	if errors.Is(err, fs.ErrNotExist) && b.HostKeyMode == FirstUse {
		return files, nil
	}
	if err != nil {
		return files, errs.Wrap(errs.KeyUnreadable, err, "the host_keys.known_hosts_file of backend %q cannot be read", b.Name)
	}
	return files, nil
}

// known lists the keys and authorities that the file has for the backend.
func (f hostFiles) known(b *Backend) []knownhosts.PublicKey {
	if f.db == nil {
		return nil
	}
	return f.db.HostKeys(b.Address)
}

// algorithms lists what to ask the backend for: first the kinds of key that are known, so that a server with several
// keys shows the one we can check, then the others, so that a changed kind is told as a changed key. Certificates are
// asked for only where an authority is known.
func (h *hostKeys) algorithms(b *Backend, files hostFiles) []string {
	var known []string
	authority := false
	for _, key := range files.known(b) {
		if key.Cert {
			authority = true
		} else {
			known = append(known, keyAlgorithms(key)...)
		}
	}
	h.mu.Lock()
	if first := h.first[b.Address]; first.key != nil {
		known = append(known, keyAlgorithms(first.key)...)
	}
	h.mu.Unlock()
	var list []string
	if authority {
		list = certifiedHostKeys()
	}
	for _, algo := range append(known, plainHostKeys()...) {
		if !slices.Contains(list, algo) && slices.Contains(plainHostKeys(), algo) {
			list = append(list, algo)
		}
	}
	return list
}

func keyAlgorithms(key ssh.PublicKey) []string {
	if key.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{key.Type()}
}

// presented is a key that a backend shows, on behalf of a tenant's stream.
type presented struct {
	b      *Backend
	tenant string
	remote net.Addr
	key    ssh.PublicKey
}

// check accepts or refuses a presented key; refusals are errs.HostKeyRefused. All but acceptance of a known key is
// reported as an event.
func (h *hostKeys) check(ctx context.Context, p presented, files hostFiles) error {
	v := p.judge(files)
	if p.b.HostKeyMode == FirstUse {
		switch v.kind {
		case hostKeyUnknown:
			v = h.firstUse(ctx, p)
		case hostKeyKnown:
			v = h.overruled(ctx, p)
		}
	}
	if v.kind != hostKeyKnown {
		h.report(p, v)
	}
	return v.err
}

// appendKnownHost adds a line in one write, so that replicas that share the file do not mix theirs.
func appendKnownHost(file, address string, key ssh.PublicKey) (err error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	line := knownhosts.Line([]string{address}, key) + "\n"
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			line = "\n" + line
		}
	}
	_, err = f.WriteString(line)
	return err
}

// maxRevoked bounds the file of revoked keys, in bytes.
const maxRevoked = 4 << 20

// readRevoked reads public keys, one a line as in authorized_keys; empty lines and those with # are left out.
func readRevoked(file string) (map[string]struct{}, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRevoked {
		return nil, fmt.Errorf("%s has %d bytes: at most %d are allowed", file, info.Size(), maxRevoked)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(text, []byte("SSHKRL\n\x00")) {
		return nil, fmt.Errorf("%s is a binary revocation list: public keys are needed, one a line", file)
	}
	revoked := make(map[string]struct{})
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		key, _, _, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d is no public key", file, number)
		}
		revoked[string(plainKey(key).Marshal())] = struct{}{}
	}
	return revoked, nil
}

// plainKey is the key itself, without the certificate that it may come with.
func plainKey(key ssh.PublicKey) ssh.PublicKey {
	if cert, ok := key.(*ssh.Certificate); ok {
		return cert.Key
	}
	return key
}
