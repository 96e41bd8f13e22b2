package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"fairlead/shared/errs"
)

// soon is from when on an expiry is warned of; certificates that live for weeks or hours only have a third of their life.
const soon = 14 * 24 * time.Hour

func expiresSoon(c *x509.Certificate, now time.Time) bool {
	return c.NotAfter.Sub(now) < min(soon, c.NotAfter.Sub(c.NotBefore)/3)
}

// secured adds what the attempt says of TLS, and says whether it came past it.
func (p *path) secured() bool {
	a := &p.attempt
	res := Result{Hop: HopTLS, Target: p.target, Data: map[string]any{}}
	res.took(a.tlsTook)
	switch {
	case p.endpoint.Scheme == "ws":
		res.warn("Use wss:// outside of development: the token and all bytes travel in plain text.", "no TLS, as the endpoint says")
		return p.r.add(res)
	case a.tlsDone && a.tlsErr == nil && (a.err == nil || !alerted(a.err)):
		p.describeTLS(&res, a.tls)
		return p.r.add(res)
	case p.r.over():
		return p.r.interrupted(res)
	}
	err := a.tlsErr
	if err == nil {
		err = a.err
	}
	if res.TookMS == 0 {
		res.took(a.took)
	}
	res.failed(errs.Wrap(errs.TLSFailed, err, "the handshake failed"))
	p.explainTLS(&res, err)
	return p.r.add(res)
}

// describeTLS says what was agreed on, and looks at the certificates' dates.
func (p *path) describeTLS(res *Result, s tls.ConnectionState) {
	version := tls.VersionName(s.Version)
	res.Data["version"], res.Data["cipher"] = version, tls.CipherSuiteName(s.CipherSuite)
	res.say("%s, %s", version, tls.CipherSuiteName(s.CipherSuite))
	p.describeChain(res, s.PeerCertificates)
	p.describeClient(res)
}

// describeChain says whose certificates were shown, and until when they are valid.
func (p *path) describeChain(res *Result, shown []*x509.Certificate) {
	if len(shown) == 0 {
		return
	}
	leaf := shown[0]
	var chain []map[string]any
	first := leaf
	for _, c := range shown {
		chain = append(chain, map[string]any{"subject": nameOf(c), "issuer": clip(c.Issuer.String(), 200), "not_before": c.NotBefore.UTC().Format(time.RFC3339),
			"not_after": c.NotAfter.UTC().Format(time.RFC3339)})
		if c.NotAfter.Before(first.NotAfter) {
			first = c
		}
	}
	res.Data["chain"], res.Data["names"] = chain, namesOf(leaf)
	res.say("certificate for %s by %s", clip(strings.Join(namesOf(leaf), ", "), 200), clip(orNone(leaf.Issuer.CommonName), 80))
	switch left := first.NotAfter.Sub(p.r.cfg.Now()); {
	case left < 0: // the handshake has told, if it matters
	case expiresSoon(first, p.r.cfg.Now()):
		res.warn("Renew the certificate before it expires.", "certificate of %s expires in %s", clip(nameOf(first), 80), rough(left))
	default:
		res.say("expires in %s", rough(left))
	}
}

// describeClient says what came of the client certificate.
func (p *path) describeClient(res *Result) {
	a := &p.attempt
	res.Data["client_certificate_asked"] = a.asked
	if a.shown == nil || len(a.shown.Certificate) == 0 {
		return
	}
	leaf, err := x509.ParseCertificate(a.shown.Certificate[0])
	if err != nil {
		return // the library made it from the file, so it parses
	}
	res.Data["client_certificate"] = map[string]any{"subject": nameOf(leaf), "not_after": leaf.NotAfter.UTC().Format(time.RFC3339)}
	switch left := leaf.NotAfter.Sub(p.r.cfg.Now()); {
	case left < 0:
		res.warn("Renew gateway.client_cert_file.", "the client certificate %s expired %s ago", clip(nameOf(leaf), 80), rough(left))
	case expiresSoon(leaf, p.r.cfg.Now()):
		res.warn("Renew gateway.client_cert_file before it expires.", "the client certificate %s expires in %s", clip(nameOf(leaf), 80), rough(left))
	default:
		res.say("client certificate %s", clip(nameOf(leaf), 80))
	}
}

// nameOf is a certificate's name for people.
func nameOf(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return clip(c.Subject.CommonName, 200)
	}
	return clip(strings.Join(namesOf(c), ", "), 200)
}

// namesOf are the hosts that a certificate is for.
func namesOf(c *x509.Certificate) []string {
	names := append([]string{}, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		names = append(names, "no host")
	}
	return names
}

// explainTLS says in plain words why a handshake failed.
func (p *path) explainTLS(res *Result, err error) {
	var bad *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &bad):
		p.explainCertificate(res, bad)
	case errors.As(err, &plain):
		res.Detail = "what answers does not speak TLS"
		if strings.HasPrefix(string(plain.RecordHeader[:]), "HTTP") {
			res.Detail = "a plain HTTP server answers on this port, without TLS"
		}
		res.Advice = "Check the port of the endpoint: TLS is spoken on another one, or ends before it."
	case timedOut(err):
		res.Detail = "TCP connects, but nothing answers the TLS handshake"
		res.Advice = "See what listens on the address: a firewall that accepts for others, or a server that hangs."
	case alerted(err) && p.attempt.asked:
		p.refusedClient(res, err)
	default:
		p.explainVersion(res)
	}
}

// timedOut says whether err comes from having waited for long enough.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

func (p *path) refusedClient(res *Result, err error) {
	res.code, res.Code = errs.ClientCertRefused, errs.ClientCertRefused.String()
	res.Advice = errs.ClientCertRefused.Info().Advice
	res.Detail = fmt.Sprintf("the gateway asked for a client certificate and did not accept what it got (%v)", err)
	if p.attempt.shown == nil {
		res.Detail = fmt.Sprintf("the gateway asks for a client certificate, and none is configured (%v)", err)
	}
}

// explainCertificate tells the ways apart in which a certificate can be wrong.
func (p *path) explainCertificate(res *Result, bad *tls.CertificateVerificationError) {
	shown := bad.UnverifiedCertificates
	p.describeWrong(res, shown)
	now := p.r.cfg.Now()
	var host x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(bad.Err, &host):
		res.Detail = fmt.Sprintf("the certificate is for %s, not for %s", clip(strings.Join(namesOf(host.Certificate), ", "), 200), p.endpoint.Hostname())
		res.Advice = "Use the name in gateway.endpoints that the certificate has, or have one issued for this name."
	case errors.As(bad.Err, &unknown):
		res.Detail = "the certificate is by an authority that is not trusted here"
		if len(shown) > 0 {
			res.Detail += ": " + clip(shown[len(shown)-1].Issuer.String(), 120)
		}
		res.Advice = "Set gateway.ca_file to the authority of the gateway; if the name above is not the gateway's, something in between opens TLS."
	case errors.As(bad.Err, &invalid) && invalid.Reason == x509.Expired:
		at := invalid.Cert
		if at != nil && now.Before(at.NotBefore) {
			res.Detail = fmt.Sprintf("by this machine's clock the certificate of %s is valid only in %s", nameOf(at), rough(at.NotBefore.Sub(now)))
			res.Advice = "Compare this machine's clock."
			return
		}
		if at != nil {
			res.Detail = fmt.Sprintf("the certificate of %s expired %s ago, by this machine's clock", nameOf(at), rough(now.Sub(at.NotAfter)))
		}
		res.Advice = "Renew the gateway's certificate; if it is newer, compare this machine's clock."
	}
}

// describeWrong keeps what was shown, for the curious.
func (p *path) describeWrong(res *Result, shown []*x509.Certificate) {
	var dry Result
	dry.Data = res.Data
	p.describeChain(&dry, shown)
}

// explainVersion asks again with everything that TLS has ever allowed, to see whether it is the version.
func (p *path) explainVersion(res *Result) {
	ctx, cancel := context.WithTimeout(p.r.ctx, p.r.cfg.Timeout)
	defer cancel()
	a := p.ask(ctx, question{insecure: true, onlyTLS: true})
	if a.tls.Version == 0 {
		return
	}
	version := tls.VersionName(a.tls.Version)
	res.Data["version"] = version
	p.describeWrong(res, a.tls.PeerCertificates)
	if a.tls.Version < tls.VersionTLS13 {
		res.Detail = "the server speaks no newer than " + version + "; tunnels need TLS 1.3"
		res.Advice = "Allow TLS 1.3 where TLS ends: at the gateway, or at the ingress or proxy in front of it."
	}
}
