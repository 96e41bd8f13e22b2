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
	"strings"
	"sync"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// hostKeys decides about the keys that backends present. Files are read anew for each handshake, so that changes count
// at once; handshakes are rare.
type hostKeys struct {
	store HostKeyStore // may be nil
	log   *slog.Logger

	mu    sync.Mutex               // also serializes appending to files
	first map[string]ssh.PublicKey // keys of first use, by the backend's address
}

func newHostKeys(store HostKeyStore, log *slog.Logger) *hostKeys {
	return &hostKeys{store: store, log: log, first: make(map[string]ssh.PublicKey)}
}

// readKnownHosts reads and parses a file.
func readKnownHosts(file string) (*knownhosts.HostKeyDB, error) {
	return knownhosts.NewDB(file)
}

// database reads the backend's file. With FirstUse a missing one is an empty one (nil).
func (b *Backend) database() (*knownhosts.HostKeyDB, error) {
	if b.KnownHostsFile == "" {
		return nil, nil
	}
	db, err := readKnownHosts(b.KnownHostsFile)
	if errors.Is(err, fs.ErrNotExist) && b.HostKeyMode == FirstUse {
		return nil, nil
	}
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the known_hosts_file of backend %q cannot be read", b.Name)
	}
	return db, nil
}

// algorithms lists what to ask the backend for: first the kinds of key that are known, so that a server with several
// keys shows the one we can check, then the others, so that a changed kind is told as a changed key. Certificates are
// asked for only where an authority is known.
func (h *hostKeys) algorithms(b *Backend, db *knownhosts.HostKeyDB) []string {
	var known []string
	authority := false
	if db != nil {
		for _, key := range db.HostKeys(b.Address) {
			if key.Cert {
				authority = true
			} else {
				known = append(known, keyAlgorithms(key)...)
			}
		}
	}
	h.mu.Lock()
	if key := h.first[b.Address]; key != nil {
		known = append(known, keyAlgorithms(key)...)
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

// check accepts or refuses a presented key; refusals are errs.HostKeyRefused.
func (h *hostKeys) check(ctx context.Context, b *Backend, db *knownhosts.HostKeyDB, remote net.Addr, key ssh.PublicKey) error {
	if cert, ok := key.(*ssh.Certificate); ok && insecureSignature(cert.Signature.Format) {
		return errs.New(errs.HostKeyRefused, "the host certificate of backend %q (%s) is signed with %s, which is not secure", b.Name, b.Address, cert.Signature.Format)
	}
	if db != nil {
		err := db.HostKeyCallback()(b.Address, remote, key)
		if err == nil && authorityOnly(b, db, key) {
			err = errors.New("it is known only as an authority for certificates")
		}
		if err == nil {
			return nil
		}
		if knownhosts.IsHostKeyChanged(err) {
			return h.changed(b, key, fmt.Sprintf("those in %s", b.KnownHostsFile))
		}
		if !knownhosts.IsHostUnknown(err) {
			h.log.Error("the host key of a backend was refused", logging.FieldBackend, b.Name, logging.FieldPeer, b.Address,
				"presented", ssh.FingerprintSHA256(key), logging.FieldError, err.Error())
			return errs.Wrap(errs.HostKeyRefused, err, "the %s host key %s of backend %q (%s) was refused", key.Type(), ssh.FingerprintSHA256(key), b.Name, b.Address)
		}
	}
	if b.HostKeyMode == FirstUse {
		return h.firstUse(ctx, b, key)
	}
	return errs.New(errs.HostKeyRefused, "the %s host key %s of backend %q (%s) is not in %s", key.Type(), ssh.FingerprintSHA256(key), b.Name, b.Address, b.KnownHostsFile)
}

// authorityOnly reports a plain key that the file lists only in @cert-authority lines, which the library would accept.
func authorityOnly(b *Backend, db *knownhosts.HostKeyDB, key ssh.PublicKey) bool {
	if _, certified := key.(*ssh.Certificate); certified {
		return false
	}
	return !slices.ContainsFunc(db.HostKeys(b.Address), func(known knownhosts.PublicKey) bool {
		return !known.Cert && bytes.Equal(known.Marshal(), key.Marshal())
	})
}

// changed refuses a key that differs from the known one. Besides being returned it is always logged as an event of its
// own, with both fingerprints: somebody may be in between.
func (h *hostKeys) changed(b *Backend, key ssh.PublicKey, expected string) error {
	h.log.Error("THE HOST KEY OF A BACKEND HAS CHANGED: somebody may be in between, or the server was set up anew",
		logging.FieldComponent, "backend", logging.FieldBackend, b.Name, logging.FieldPeer, b.Address, logging.FieldCode, errs.HostKeyRefused.String(),
		logging.FieldReason, "host_key_changed", "presented", key.Type()+" "+ssh.FingerprintSHA256(key), "expected", expected)
	return errs.New(errs.HostKeyRefused, "the host key of backend %q (%s) has changed: it presented %s %s, which is not %s",
		b.Name, b.Address, key.Type(), ssh.FingerprintSHA256(key), expected)
}

// firstUse trusts the first key that this gateway, or with a store any replica, has seen at the address.
func (h *hostKeys) firstUse(ctx context.Context, b *Backend, key ssh.PublicKey) error {
	h.mu.Lock()
	known := h.first[b.Address]
	h.mu.Unlock()
	if known == nil {
		known = h.pin(ctx, b, key)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if other := h.first[b.Address]; other != nil {
		known = other // another handshake was faster
	}
	if !bytes.Equal(known.Marshal(), key.Marshal()) {
		return h.changed(b, key, "the one of the first use, "+known.Type()+" "+ssh.FingerprintSHA256(known))
	}
	if h.first[b.Address] != nil {
		return nil
	}
	h.first[b.Address] = key
	h.log.Warn("the host key of a backend is trusted on first use", logging.FieldComponent, "backend", logging.FieldBackend, b.Name,
		logging.FieldPeer, b.Address, "presented", key.Type()+" "+ssh.FingerprintSHA256(key))
	if b.KnownHostsFile == "" {
		return nil
	}
	if err := appendKnownHost(b.KnownHostsFile, b.Address, key); err != nil {
		// The key is remembered all the same, until the process ends.
		h.log.Error("the host key could not be written to known_hosts_file", logging.FieldBackend, b.Name, logging.FieldError, err.Error())
	}
	return nil
}

// pin asks the store for the key of the first replica that saw one. Without an answer our own counts: a store that is
// down must not stop the traffic.
func (h *hostKeys) pin(ctx context.Context, b *Backend, key ssh.PublicKey) ssh.PublicKey {
	if h.store == nil {
		return key
	}
	line, err := h.store.PinHostKey(ctx, b.Address, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))))
	if err != nil {
		h.log.Warn("the host key could not be compared with other replicas", logging.FieldBackend, b.Name, logging.FieldError, err.Error())
		return key
	}
	pinned, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		h.log.Error("the shared store holds no host key where one should be", logging.FieldBackend, b.Name, logging.FieldError, err.Error())
		return key
	}
	return pinned
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
