package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"fairlead/shared/errs"
)

// known are the host keys that a file says are right.
type known struct {
	file  string
	given bool     // by flag, not found
	names []string // host:port under which the server may be listed
	check ssh.HostKeyCallback
	lines []knownLine
}

type knownLine struct {
	hosts []string
	key   ssh.PublicKey
}

const maxKnownHosts = 8 << 20 // bytes of a file

// knownHosts reads the file that was given, or the user's own if there is one; nil: there is none.
func (r *run) knownHosts(route string) (*known, error) {
	k := &known{file: r.cfg.SSH.KnownHosts, given: r.cfg.SSH.KnownHosts != "", names: r.namesOf(route)}
	if !k.given {
		home := r.cfg.Environ("HOME")
		if home == "" {
			return nil, nil
		}
		k.file = filepath.Join(home, ".ssh", "known_hosts")
		if _, err := os.Stat(k.file); err != nil {
			return nil, nil
		}
	}
	var err error
	if k.check, err = knownhosts.New(k.file); err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the known hosts cannot be read")
	}
	f, err := os.Open(k.file)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the known hosts cannot be read")
	}
	defer f.Close()
	rest, err := io.ReadAll(io.LimitReader(f, maxKnownHosts))
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the known hosts cannot be read")
	}
	for {
		marker, hosts, key, _, next, err := ssh.ParseKnownHosts(rest)
		if err != nil {
			return k, nil // the end: New has read all of it
		}
		if rest = next; marker == "" {
			k.lines = append(k.lines, knownLine{hosts, key})
		}
	}
}

// namesOf are the names that an application's SSH may know the server of a route by.
func (r *run) namesOf(route string) []string {
	if as := r.cfg.SSH.KnownAs; as != "" {
		if _, _, err := net.SplitHostPort(as); err != nil {
			as = net.JoinHostPort(strings.Trim(as, "[]"), "22")
		}
		return []string{as}
	}
	var all []string
	for _, l := range r.settings.Listeners {
		host, port, err := net.SplitHostPort(l.Listen)
		if err != nil || l.Route != route {
			continue
		}
		all = append(all, l.Listen)
		if ip := net.ParseIP(host); ip == nil || ip.IsLoopback() || ip.IsUnspecified() {
			all = append(all, net.JoinHostPort("localhost", port))
		}
	}
	return append(all, net.JoinHostPort(route, "22"))
}

// wanted are the keys that the file has for the server, if it is listed.
func (k *known) wanted() []ssh.PublicKey {
	var keys []ssh.PublicKey
	for _, name := range k.names {
		var mismatch *knownhosts.KeyError
		if errors.As(k.check(name, &net.TCPAddr{}, noKey{}), &mismatch) {
			for _, w := range mismatch.Want {
				keys = append(keys, w.Key)
			}
		}
	}
	return keys
}

// noKey is nobody's key.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// judge compares the server's key with the file, and says in res what came of it. An error means that the key is wrong.
func (k *known) judge(key ssh.PublicKey, res *Result) error {
	now := ssh.FingerprintSHA256(key)
	res.Data["host_key_type"], res.Data["host_key"] = key.Type(), now
	if k == nil {
		res.Data["known"] = "not compared"
		res.say("host key %s %s, not compared: no known_hosts; give --known-hosts", key.Type(), now)
		return nil
	}
	var changed *knownhosts.KeyError
	for _, name := range k.names {
		err := k.check(name, &net.TCPAddr{}, key)
		var mismatch *knownhosts.KeyError
		var revoked *knownhosts.RevokedError
		switch {
		case err == nil:
			res.Data["known"] = "yes"
			res.say("host key %s %s, as listed for %s", key.Type(), now, knownhosts.Normalize(name))
			return nil
		case errors.As(err, &revoked):
			return errs.New(errs.HostKeyRefused, "the host key %s is marked as revoked in %s", now, k.file)
		case errors.As(err, &mismatch) && len(mismatch.Want) > 0:
			changed = mismatch
		}
	}
	if changed != nil {
		var old []string
		for _, w := range changed.Want {
			old = append(old, ssh.FingerprintSHA256(w.Key))
		}
		return k.changed(old, now, res)
	}
	return k.elsewhere(key, res)
}

func (k *known) changed(old []string, now string, res *Result) error {
	res.Data["known"], res.Data["host_key_listed"] = "changed", old
	res.Advice = fmt.Sprintf("If the server's key was changed on purpose, replace it in %s; if not, somebody may be in between: do not log in.", k.file)
	res.culprit = "The likely culprit is the backend's host key: it was changed, or another server answers."
	return errs.New(errs.HostKeyRefused, "the host key was changed: %s lists %s, the server has %s", k.file, strings.Join(old, ", "), now)
}

// elsewhere looks for the key under names that we cannot guess.
func (k *known) elsewhere(key ssh.PublicKey, res *Result) error {
	now := ssh.FingerprintSHA256(key)
	var same []string // listed keys of this type
	for _, l := range k.lines {
		if bytes.Equal(l.key.Marshal(), key.Marshal()) {
			res.Data["known"] = "under another name"
			res.say("host key %s %s, as listed for %s", key.Type(), now, clip(strings.Join(l.hosts, ","), 120))
			return nil
		}
		if l.key.Type() == key.Type() {
			same = append(same, ssh.FingerprintSHA256(l.key))
		}
	}
	if k.given && len(same) == 1 { // a file for this one server
		return k.changed(same, now, res)
	}
	res.Data["known"] = "no"
	res.warn("Compare the fingerprint with the server's own (ssh-keygen -lf on it); name its entry with --known-as if it has one.",
		"host key %s %s, which %s does not list", key.Type(), now, k.file)
	return nil
}
