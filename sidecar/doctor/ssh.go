package doctor

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"fairlead/shared/errs"
)

// SSH says how to try SSH servers behind routes.
type SSH struct {
	User       string // to log in as; empty: no login is tried
	KeyFile    string // private key; empty: those of the agent
	KnownHosts string // file; empty: ~/.ssh/known_hosts, if it exists
	KnownAs    string // name under which that file has the server; empty: the listener's address and the route's name
}

const sshVersion = "SSH-2.0-fairlead_doctor"

// greeted is one handshake with an SSH server.
type greeted struct {
	r      *run
	w      *wire
	res    *Result
	known  *known
	key    ssh.PublicKey // the server's; nil: it did not come so far
	wrong  error         // why the key is refused
	cfg    *ssh.ClientConfig
	login  *Result // nil: it did not come so far
	closed func()  // closes the agent
}

// trySSH looks whether an SSH server speaks on the stream, and then how it does.
func (r *run) trySSH(route string, s stream) {
	g := &greeted{r: r, w: newWire(s), closed: func() {}}
	works := r.probe(HopSSH, route, func(ctx context.Context, res *Result) error {
		stop := context.AfterFunc(ctx, s.abort)
		defer stop()
		g.res = res
		version, err := g.w.banner(ctx)
		switch {
		case errors.Is(err, errNoBanner):
			res.Status = Skipped
			res.say("%s", err)
			return nil
		case err != nil:
			return errs.Wrap(errs.SSHHandshake, err, "the server ended the connection before it said who it is")
		}
		res.Data["banner"] = version
		res.say("%s", version)
		if g.known, err = r.knownHosts(route); err != nil {
			return err
		}
		return g.handshake(route)
	})
	switch {
	case g.key == nil:
	case r.cfg.SSH.User == "":
		r.skipFor(HopSSHLogin, route, "not tried: give --ssh-user, and --ssh-key unless an agent has the key")
	case !works:
		r.skip(HopSSHLogin, route, HopSSH)
	case g.login != nil:
		g.login.Hop, g.login.Target = HopSSHLogin, route
		r.add(*g.login)
	}
}

// handshake exchanges keys, compares the server's, and logs in if that was asked for.
func (g *greeted) handshake(route string) error {
	g.configure()
	conn, channels, requests, err := ssh.NewClientConn(g.w, route, g.cfg)
	defer g.closed()
	if err == nil {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for c := range channels {
				_ = c.Reject(ssh.Prohibited, "the doctor takes no channels") // fails only when the connection is gone
			}
		}()
		conn.Close()
		ssh.DiscardRequests(requests)
		<-ended
	}
	g.describe()
	switch {
	case g.wrong != nil && !errors.Is(g.wrong, errEnough):
		return g.wrong
	case g.key == nil:
		return g.failure(err)
	case g.r.cfg.SSH.User == "" || errors.Is(err, errEnough):
		return nil
	}
	g.loggedIn(err)
	return nil
}

func (g *greeted) configure() {
	g.cfg = &ssh.ClientConfig{
		User:          g.r.cfg.SSH.User,
		ClientVersion: sshVersion,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			g.key = key
			if g.wrong = g.known.judge(key, g.res); g.wrong == nil && g.cfg.User == "" {
				g.wrong = errEnough // to stop here spares the server a login that fails
			}
			return g.wrong
		},
		HostKeyAlgorithms: hostKeyAlgorithms(g.known),
	}
	g.cfg.KeyExchanges, g.cfg.Ciphers, g.cfg.MACs = keyExchanges(), ciphers(), macs()
	if g.cfg.User != "" {
		g.cfg.Auth = []ssh.AuthMethod{ssh.PublicKeysCallback(g.signers)}
	}
}

// describe says what the server offers, and what of it a handshake uses.
func (g *greeted) describe() {
	o, ok := parseOffer(g.w.greeting())
	if !ok {
		return
	}
	kex, cipher := chosen(g.cfg.KeyExchanges, o.KeyExchange), chosen(g.cfg.Ciphers, o.Cipher)
	g.res.Data["key_exchange"], g.res.Data["cipher"] = kex, cipher
	g.res.Data["offered"] = map[string]any{"key_exchange": o.KeyExchange, "host_key": o.HostKey, "cipher": o.Cipher, "mac": o.MAC}
	if g.key != nil && g.res.Detail != "" && kex != "" && cipher != "" {
		g.res.say("%s, %s", kex, cipher)
	}
}

// failure is a handshake that did not come as far as the host key.
func (g *greeted) failure(err error) error {
	var none *ssh.AlgorithmNegotiationError
	if errors.As(err, &none) {
		g.res.Advice = "Allow a newer algorithm at the server."
		return errs.New(errs.SSHHandshake, "no secure algorithm in common for %s: the server offers %s", none.What, clip(strings.Join(none.RequestedAlgorithms, ", "), 200))
	}
	return errs.Wrap(errs.SSHHandshake, err, "the server broke off the handshake")
}

// loggedIn is what came of the login.
func (g *greeted) loggedIn(err error) {
	g.login = &Result{Data: map[string]any{"user": g.cfg.User}}
	if err == nil {
		g.login.say("as %s", g.cfg.User)
		return
	}
	var own *errs.Error
	if errors.As(err, &own) {
		g.login.failed(own)
		return
	}
	g.login.failed(errs.Wrap(errs.BackendAuth, err, "the server does not let %s in", g.cfg.User))
	g.login.Advice = "Check user and key, and the server's authorized_keys and log."
}

// signers are the keys to log in with.
func (g *greeted) signers() ([]ssh.Signer, error) {
	file := g.r.cfg.SSH.KeyFile
	if file == "" {
		return g.agent()
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "--ssh-key")
	}
	signer, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, errs.New(errs.KeyUnreadable, "--ssh-key %s has a passphrase: add it to an agent and leave --ssh-key out", file)
	}
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "--ssh-key %s", file)
	}
	return []ssh.Signer{signer}, nil
}

func (g *greeted) agent() ([]ssh.Signer, error) {
	socket := g.r.cfg.Environ("SSH_AUTH_SOCK")
	if socket == "" {
		return nil, errs.New(errs.KeyUnreadable, "there is neither --ssh-key nor an agent (SSH_AUTH_SOCK)")
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "the agent (SSH_AUTH_SOCK)")
	}
	stop := context.AfterFunc(g.r.ctx, func() { c.Close() })
	g.closed = func() {
		stop()
		c.Close()
	}
	return agent.NewClient(c).Signers()
}

// What is offered is what the gateway offers to backends: nothing with SHA-1, which the library's defaults still hold.

func keyExchanges() []string {
	return []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519, ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384}
}

func ciphers() []string {
	return []string{ssh.CipherAES256GCM, ssh.CipherAES128GCM, ssh.CipherChaCha20Poly1305, ssh.CipherAES256CTR, ssh.CipherAES128CTR}
}

func macs() []string { return []string{ssh.HMACSHA512ETM, ssh.HMACSHA256ETM} }

// hostKeyAlgorithms begins with those of the keys that are listed for the server: another key of it, of a type that is not
// listed, would look like a change.
func hostKeyAlgorithms(k *known) []string {
	all := []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	if k == nil {
		return all
	}
	listed := map[string]bool{}
	for _, key := range k.wanted() {
		listed[key.Type()] = true
	}
	slices.SortStableFunc(all, func(a, b string) int {
		rank := func(algorithm string) int {
			if strings.HasPrefix(algorithm, "rsa-") {
				algorithm = ssh.KeyAlgoRSA
			}
			if listed[algorithm] {
				return 0
			}
			return 1
		}
		return rank(a) - rank(b)
	})
	return all
}
