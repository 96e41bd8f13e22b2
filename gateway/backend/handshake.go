package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

// Phases of an SSH handshake, as errors name them.
const (
	phaseKeys    = "keys" // reading our own files
	phaseDial    = "TCP dial"
	phaseVersion = "version exchange"
	phaseKex     = "key exchange"
	phaseHostKey = "host key"
	phaseLogin   = "login"
)

const clientVersion = "SSH-2.0-fairlead"

// session is an SSH connection that has just been made.
type session struct {
	wire     *wire
	conn     ssh.Conn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
	peer     Peer
	waits    *Waits // where the time of making it went
}

// handshake is one attempt. Its callbacks run on goroutines of the SSH library, in sequence, and before the error that
// they lead to is returned.
type handshake struct {
	b       *remote
	errand  errand
	wire    *wire
	refused error // of the host key
	denied  error // why there is nothing to log in with
	trusted bool  // the host key was accepted
	chosen  ssh.NegotiatedAlgorithms
}

// dialSSH connects and logs in, within the backend's DialTimeout. ctx ends early only when the Set is closed.
func (s *Set) dialSSH(ctx context.Context, b *remote, e errand) (*session, error) {
	dial, cancel := context.WithTimeout(ctx, b.DialTimeout)
	defer cancel()
	signers, err := s.credentials(b, e)
	if err != nil {
		return nil, b.counts.loginFailed(phaseKeys, err)
	}
	files, err := b.hostFiles()
	if err != nil {
		return nil, b.counts.loginFailed(phaseKeys, err)
	}
	raw, err := s.connect(dial, ctx, b)
	if err != nil {
		return nil, b.counts.loginFailed(phaseDial, err)
	}
	h := &handshake{b: b, errand: e, wire: &wire{Conn: raw}}
	cfg := h.config(signers, s.keys.algorithms(&b.Backend, files))
	cfg.HostKeyCallback = func(_ string, remote net.Addr, key ssh.PublicKey) error {
		if err := s.keys.check(dial, presented{&b.Backend, e.who.Tenant, remote, key}, files); err != nil {
			h.refused = err
			return err
		}
		h.trusted = true
		return nil
	}
	ses, err := h.run(dial, ctx, s, cfg)
	if err != nil {
		return nil, b.counts.loginFailed(h.phase(), err)
	}
	b.counts.logins.Inc()
	return ses, nil
}

func (h *handshake) config(signers func() ([]ssh.Signer, error), hostKeys []string) *ssh.ClientConfig {
	login := func() ([]ssh.Signer, error) {
		list, err := signers()
		h.denied = err
		return list, err
	}
	cfg := &ssh.ClientConfig{
		User:              h.b.User,
		Auth:              []ssh.AuthMethod{ssh.PublicKeysCallback(login)},
		HostKeyAlgorithms: hostKeys,
		ClientVersion:     clientVersion,
		// Called when keys are exchanged and the login begins: notes the algorithms, leaves the login to Auth.
		AuthCallback: func(ctx *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
			h.chosen = ctx.Algorithms
			return nil, nil
		},
	}
	cfg.KeyExchanges, cfg.Ciphers, cfg.MACs = keyExchanges(), ciphers(), macs()
	return cfg
}

// run does the handshake under a deadline, which it clears again.
func (h *handshake) run(dial, caller context.Context, s *Set, cfg *ssh.ClientConfig) (*session, error) {
	if deadline, ok := dial.Deadline(); ok {
		_ = h.wire.SetDeadline(deadline) // fails only on a connection that is gone; the handshake will tell
	}
	stop := context.AfterFunc(caller, func() { _ = h.wire.Close() })
	conn, channels, requests, err := ssh.NewClientConn(h.wire, h.b.Address, cfg)
	if !stop() {
		if err == nil {
			_ = conn.Close()
			refuseAll(channels, requests) // both end with the connection
		}
		return nil, s.ended(caller, h.b, h.phase())
	}
	if err != nil {
		return nil, h.failure(err)
	}
	_ = h.wire.SetDeadline(time.Time{})
	if meta, ok := conn.(ssh.AlgorithmsConnMetadata); ok {
		h.chosen = meta.Algorithms()
	}
	return &session{wire: h.wire, conn: conn, channels: channels, requests: requests, peer: h.peer()}, nil
}

// refuseAll serves both queues of a connection until it has ended: left alone they would stall it.
func refuseAll(channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { ssh.DiscardRequests(requests) })
	for c := range channels {
		_ = c.Reject(ssh.Prohibited, "the gateway accepts no channels") // fails only when the connection is gone
	}
}

func (h *handshake) peer() Peer {
	version, _ := h.wire.greeting()
	return Peer{Version: version, KeyExchange: h.chosen.KeyExchange, HostKey: h.chosen.HostKey, Cipher: h.chosen.Write.Cipher}
}

func (h *handshake) phase() string {
	version, _ := h.wire.greeting()
	switch {
	case version == "":
		return phaseVersion
	case h.refused != nil:
		return phaseHostKey
	case !h.trusted:
		return phaseKex
	}
	return phaseLogin
}

// describe names the attempt for people: phase, and what is known about the server.
func (h *handshake) describe() string {
	peer := h.peer()
	parts := []string{"phase: " + h.phase()}
	for _, p := range []struct{ name, value string }{
		{"server", peer.Version}, {"key exchange", peer.KeyExchange}, {"host key", peer.HostKey}, {"cipher", peer.Cipher},
	} {
		if p.value != "" {
			parts = append(parts, p.name+": "+p.value)
		}
	}
	return fmt.Sprintf("backend %q (%s; %s)", h.b.Name, h.b.Address, strings.Join(parts, ", "))
}

// failure gives the library's error its code. Where the library has no types for its errors the phase decides, never
// the text.
func (h *handshake) failure(err error) error {
	version, first := h.wire.greeting()
	var none *ssh.AlgorithmNegotiationError
	switch {
	case h.denied != nil:
		return errs.Wrap(errs.CodeOf(h.denied), h.denied, "%s was not logged in to", h.describe())
	case h.refused != nil:
		return errs.Wrap(errs.HostKeyRefused, h.refused, "%s showed a host key that is not accepted", h.describe())
	case h.wire.expired.Load():
		return errs.New(errs.BackendTimeout, "%s did not answer in %s", h.describe(), h.b.DialTimeout)
	case errors.Is(err, errNotSSH2):
		return errs.New(errs.SSHHandshake, "%s speaks an SSH version that is not allowed: SSH 2 is needed", h.describe())
	case version == "" && first != "":
		return errs.New(errs.SSHHandshake, "%s is no SSH server: it says %.80q", h.describe(), first)
	case version == "":
		return errs.Wrap(errs.SSHHandshake, err, "%s closed the connection without a greeting", h.describe())
	case errors.As(err, &none):
		return errs.New(errs.SSHHandshake, "%s has no secure algorithm in common with the gateway for %s: it offers %q, the gateway %q",
			h.describe(), none.What, none.RequestedAlgorithms, none.SupportedAlgorithms)
	case h.trusted && !brokenPipe(err):
		return errs.Wrap(errs.BackendAuth, err, "%s refused the login of user %q%s", h.describe(), h.b.User, h.errand.names.describe())
	}
	return errs.Wrap(errs.SSHHandshake, err, "%s broke off the handshake", h.describe())
}

func brokenPipe(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) || errors.As(err, &op)
}
