package backend

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Identity makes the gateway an SSH certificate authority for a backend: each login uses a key that exists in memory only
// and a certificate for it that says who comes. The backend's sshd trusts the authority by TrustedUserCAKeys.
//
// Principals and KeyID are templates over {tenant}, {tenant.0} to {tenant.9} (parts of its tuple), {subject}, {issuer},
// {pod}, {gateway} (Config.Instance) and {backend}. Callers for whom they come out differently never share a connection.
type Identity struct {
	CAKeyFile       string        // the authority's private key without passphrase; read again for each login
	TTL             time.Duration // how long a certificate opens a connection; it does not end one. 0: 5m; at most 24h
	Principals      []string      // templates, at most 16; empty values are refused. nil: "{tenant}"
	KeyID           string        // template; empty values become "-". Empty: DefaultKeyID
	ForceCommand    string        // what runs instead of a shell or command that is asked for; empty: /bin/false; "none": nothing is forced
	SourceAddresses []string      // addresses and prefixes from which the backend accepts the certificate; nil: any
	Extensions      []string      // further extensions, name@domain, without values
}

// DefaultKeyID is the template of key ids when none is given. sshd logs key ids.
const DefaultKeyID = "fairlead/{gateway}:tenant={tenant}:pod={pod}"

// DefaultPrincipal is the template of the only principal when none is given.
const DefaultPrincipal = "{tenant}"

const (
	defaultCertificateTTL = 5 * time.Minute
	maxCertificateTTL     = 24 * time.Hour
	defaultForceCommand   = "/bin/false"
	noForceCommand        = "none"
)

// names are what certificates for a caller say. The zero value is that of backends without an Identity.
type names struct {
	keyID      string
	principals []string
}

// key is what connections with the same names have in common: neither part can hold a space or comma.
func (n names) key() string {
	if n.keyID == "" {
		return ""
	}
	return n.keyID + " " + strings.Join(n.principals, ",")
}

// namer renders names.
type namer struct {
	keyID      *template
	principals []*template
	gateway    string
	backend    string
}

func (id *Identity) namer(gateway, backend string) (*namer, error) {
	n := &namer{gateway: gateway, backend: backend}
	var err error
	if n.keyID, err = parseTemplate(cmp.Or(id.KeyID, DefaultKeyID)); err != nil {
		return nil, fmt.Errorf("key_id %q: %w", id.KeyID, err)
	}
	sources := id.Principals
	if len(sources) == 0 {
		sources = []string{DefaultPrincipal}
	}
	if len(sources) > maxPrincipals {
		return nil, fmt.Errorf("principals are %d: at most %d are allowed", len(sources), maxPrincipals)
	}
	for _, source := range sources {
		t, err := parseTemplate(source)
		if err != nil {
			return nil, fmt.Errorf("principal %q: %w", source, err)
		}
		n.principals = append(n.principals, t)
	}
	return n, nil
}

// names renders what a certificate for the caller says; the error tells why none can be made.
func (n *namer) names(who Caller) (names, error) {
	v := &values{Caller: who, gateway: n.gateway, backend: n.backend}
	keyID, err := n.keyID.render(v, maxKeyID, true)
	if err != nil {
		return names{}, fmt.Errorf("key_id: %w", err)
	}
	out := names{keyID: keyID}
	for _, t := range n.principals {
		p, err := t.render(v, maxPrincipal, false)
		if err != nil {
			return names{}, fmt.Errorf("principals: %w", err)
		}
		if !slices.Contains(out.principals, p) {
			out.principals = append(out.principals, p)
		}
	}
	return out, nil
}

// check finds what is wrong with the configuration, but for the key file and the templates.
func (id *Identity) check() error {
	var problems []error
	if id.CAKeyFile == "" {
		problems = append(problems, errors.New("ca_key_file is empty"))
	}
	if id.TTL < 0 || id.TTL > maxCertificateTTL {
		problems = append(problems, fmt.Errorf("ttl is %s: it can be up to %s", id.TTL, maxCertificateTTL))
	}
	if strings.ContainsFunc(id.ForceCommand, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		problems = append(problems, errors.New("force_command holds control characters"))
	}
	for _, a := range id.SourceAddresses {
		_, bad := netip.ParsePrefix(a)
		if _, err := netip.ParseAddr(a); err != nil && bad != nil {
			problems = append(problems, fmt.Errorf("source_addresses holds %q: it must be an address or a prefix", a))
		}
	}
	for _, e := range id.Extensions {
		if !extensionName.MatchString(e) {
			problems = append(problems, fmt.Errorf("extensions holds %q: only names of the form name@domain can be added, permit-port-forwarding is always there", e))
		}
	}
	return errors.Join(problems...)
}

// extensionName keeps the standard extensions out: terminals, agents, X11 and rc files are never permitted.
var extensionName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}@[a-z0-9][a-z0-9.-]{0,63}$`)

// describe names a certificate in errors.
func (n names) describe() string {
	if n.keyID == "" {
		return ""
	}
	return fmt.Sprintf(" with the certificate %q for the principals %q", n.keyID, n.principals)
}
