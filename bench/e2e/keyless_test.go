package e2e

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// act is a line of an audit log.
type act struct {
	Seq      uint64 `json:"seq"`
	Action   string `json:"action"`
	Result   string `json:"result"`
	Actor    string `json:"actor"`
	Tenant   string `json:"tenant"`
	Pod      string `json:"pod"`
	Backend  string `json:"backend"`
	Route    string `json:"route"`
	Target   string `json:"target"`
	Code     string `json:"code"`
	Detail   string `json:"detail"`
	Tunnel   string `json:"tunnel"`
	Stream   string `json:"stream"`
	Received uint64 `json:"received"`
}

// recordedActs reads an audit log, and returns the lines of one action.
func recordedActs(t *testing.T, file, action string) (found []act) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var a act
		require.NoError(t, json.Unmarshal(lines.Bytes(), &a), lines.Text())
		if a.Action == action {
			found = append(found, a)
		}
	}
	require.NoError(t, lines.Err())
	return found
}

// login is a login that a sshd's log shows: from which port, and what the certificate said.
type login struct{ port, id, serial string }

var loginLine = regexp.MustCompile(`Accepted publickey for \S+ from 127\.0\.0\.1 port (\d+) ssh2: ED25519-CERT SHA256:\S+ ID (\S+) \(serial (\d+)\) CA ED25519 SHA256:\S+`)

func loginsAt(d *testbed.SSHD) (list []login) {
	for _, found := range loginLine.FindAllStringSubmatch(d.Log(), -1) {
		list = append(list, login{found[1], found[2], found[3]})
	}
	return list
}

// withCertificates adds a sshd that takes certificates of the gateway's authority and no keys, for these principals.
func withCertificates(route, target string, principals ...string) option {
	return func(w *world) {
		dir := w.t.TempDir()
		_, key, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(w.t, err)
		block, err := ssh.MarshalPrivateKey(key, "")
		require.NoError(w.t, err)
		signer, err := ssh.NewSignerFromKey(key)
		require.NoError(w.t, err)
		file := func(name string, content []byte) string {
			path := filepath.Join(dir, name)
			require.NoError(w.t, os.WriteFile(path, content, 0o600))
			return path
		}
		w.ssh = testbed.NewSSHD(w.t, testbed.SSHDConfig{Extra: []string{
			"TrustedUserCAKeys " + file("ca.pub", ssh.MarshalAuthorizedKey(signer.PublicKey())),
			"AuthorizedPrincipalsFile " + file("principals", []byte(strings.Join(principals, "\n")+"\n")),
			"AuthorizedKeysFile none"}})
		b := w.addBackend(sshRoute, w.ssh.Addr())
		b.User, b.HostKeys.KnownHostsFile = w.ssh.User(), w.ssh.KnownHostsFile()
		b.Identity.CAKeyFile = file("ca", pem.EncodeToMemory(block))
		w.gatewayConfig.Backends[sshRoute] = b
		w.addRoute(route, gatewayconfig.Route{Backend: sshRoute, Mode: gatewayconfig.ModeForward, Target: target}, "normal")
	}
}

// withCluster takes tokens of a cluster only, and gives the sidecar that of a pod.
func withCluster(k *kubeAPI, pod podName, tenants ...string) option {
	return func(w *world) {
		w.gatewayConfig.Auth.Issuers = []gatewayconfig.Issuer{k.config()}
		w.gatewayConfig.Policy = []gatewayconfig.Rule{{Tenants: tenants, Routes: []string{"*"}}}
		w.gatewayConfig.Revocations.Review = time.Second
		w.gatewayConfig.Limits.Shedding.Enabled = false // this machine may be busy with other tests
		w.gatewayConfig.Audit.File = filepath.Join(w.dir, "audit.jsonl")
		w.afterwards = append(w.afterwards, func() { w.writeToken(k.start(pod)) })
	}
}

// sidecarOfPod starts a further sidecar, with a token of its own.
func (w *world) sidecarOfPod(k *kubeAPI, pod podName) *sidecarNode {
	w.t.Helper()
	before := w.sidecarConfig
	defer func() { w.sidecarConfig = before }()
	w.sidecarConfig.Gateway.TokenFile = filepath.Join(w.dir, pod.name+".token")
	require.NoError(w.t, testbed.WriteToken(w.sidecarConfig.Gateway.TokenFile, k.start(pod)))
	s := w.sidecarInside(pod.name)
	await(w.t, "the sidecar of "+pod.name+" is ready", func() bool { return statusOf(s.url("/readyz")) == 200 })
	return s
}

// dialAt connects to a listener of a sidecar that is not the world's own.
func (w *world) dialAt(s *sidecarNode, listener string) halfCloser {
	own := w.sidecar
	defer func() { w.sidecar = own }()
	w.sidecar = s
	return w.dial(listener)
}

// podsAtGateway is what GET /api/tunnels tells of tenants and pods.
func podsAtGateway(t *testing.T, g *gatewayNode) map[string]string {
	t.Helper()
	var list []struct{ Tenant, Pod, Issuer string }
	require.NoError(t, json.Unmarshal([]byte(get(t, g.url("/api/tunnels"))), &list))
	pods := map[string]string{}
	for _, one := range list {
		require.Equal(t, clusterIssuer, one.Issuer)
		pods[one.Pod] = one.Tenant
	}
	return pods
}

// From the pod's projected token to the backend's own log, nothing that has to be kept secret was given to anybody but the
// authority's key to the gateway; and what one pod uses, no other does.
//
// Verifies: R4.6, R7.6
func TestFromAPodToTheBackendsLogWithoutASecret(t *testing.T) {
	k := newKubeAPI(t)
	one, two, other := podName{"payments", "api", "api-7c9f-x2"}, podName{"payments", "api", "api-7c9f-b8"}, podName{"payments", "ledger", "ledger-0"}
	w := newWorld(t, withCluster(k, one, one.tenant(), other.tenant()), withCertificates("db", newTarget(t, echoServer), one.tenant(), other.tenant()))
	for _, i := range w.gatewayConfig.Auth.Issuers {
		require.Empty(t, i.HMACSecretFile+i.JWKS+i.JWKSFile+i.JWKSURL)
	}
	require.Empty(t, w.gatewayConfig.Backends[sshRoute].KeyFile)

	open := []halfCloser{w.dial("db"), w.dial("db"), w.dial("db")}
	for _, c := range open {
		echoes(t, c, "of "+one.name)
	}
	id := func(p podName) string { return "fairlead/gateway:tenant=" + p.tenant() + ":pod=" + p.qualified() }
	logins := loginsAt(w.ssh)
	require.Len(t, logins, 1, "three streams over one connection: %s", w.ssh.Log())
	assert.Equal(t, id(one), logins[0].id)

	second, third := w.sidecarOfPod(k, two), w.sidecarOfPod(k, other)
	echoes(t, w.dialAt(second, "db"), "of another pod of the same account")
	echoes(t, w.dialAt(third, "db"), "of another tenant")
	echoes(t, w.dial("db"), "and again of the first")
	logins = loginsAt(w.ssh)
	require.Len(t, logins, 3, "each pod has a connection of its own: %s", w.ssh.Log())
	ids, ports := map[string]bool{}, map[string]bool{}
	for _, l := range logins {
		ids[l.id], ports[l.port] = true, true
	}
	assert.Equal(t, map[string]bool{id(one): true, id(two): true, id(other): true}, ids)
	assert.Len(t, ports, 3)
	assert.Equal(t, map[string]string{one.qualified(): one.tenant(), two.qualified(): two.tenant(), other.qualified(): other.tenant()}, podsAtGateway(t, w.gateway))
	pools := map[string]int{}
	for _, p := range backendsOf(t, w.gateway)[0].Pools {
		pools[p.Tenant] += len(p.Connections)
	}
	assert.Equal(t, map[string]int{one.tenant(): 2, other.tenant(): 1}, pools)

	certificates := recordedActs(t, w.gatewayConfig.Audit.File, "certificate")
	require.Len(t, certificates, 3)
	for n, c := range certificates {
		assert.Equal(t, logins[n].id, c.Target, "what is recorded is what the backend's log says")
		assert.Contains(t, c.Detail, "serial "+logins[n].serial+", ")
		assert.Contains(t, c.Detail, "principals "+c.Tenant+", ")
		assert.Equal(t, "system:serviceaccount:"+strings.ReplaceAll(c.Tenant, "/", ":"), c.Actor)
		for _, o := range recordedActs(t, w.gatewayConfig.Audit.File, "open") {
			if o.Pod == c.Pod {
				assert.Less(t, c.Seq, o.Seq, "the certificate was recorded before anything came of it")
			}
		}
	}
	assert.Len(t, recordedActs(t, w.gatewayConfig.Audit.File, "open"), 6)
	assert.Zero(t, k.refusals(), "the gateway showed its own token, always")
	trail := readFile(t, w.gatewayConfig.Audit.File)
	for _, secret := range append([]string{k.own}, tokensOf(k)...) {
		for _, part := range strings.Split(secret, ".") {
			if strings.Count(part, "") > 60 { // the header is the same for everybody, and no secret
				assert.NotContains(t, trail, part)
				assert.NotContains(t, w.gateway.logs.text(), part)
			}
		}
	}
}

func tokensOf(k *kubeAPI) (list []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for token := range k.pods {
		list = append(list, token)
	}
	return list
}

// A deleted pod's token has not expired and nobody has revoked it: the cluster says that it is over.
func TestADeletedPodLosesWhatItHas(t *testing.T) {
	k := newKubeAPI(t)
	stays, leaves := podName{"payments", "api", "api-stays"}, podName{"payments", "api", "api-leaves"}
	w := newWorld(t, withCluster(k, stays, stays.tenant()), withCertificates("db", newTarget(t, echoServer), stays.tenant()))
	kept := w.dial("db")
	echoes(t, kept, "of the pod that stays")
	gone := w.sidecarOfPod(k, leaves)
	lost := w.dialAt(gone, "db")
	echoes(t, lost, "of the pod that leaves")
	token := k.start(leaves)
	tunnel, lane := w.connectLink(token) // whose close frame can be looked at
	stream, err := openLink(t, tunnel, "db")
	require.NoError(t, err)
	echoes(t, stream, "in time")
	require.True(t, k.reviewed(token))

	k.delete(leaves)
	require.ErrorIs(t, <-lane.ended, errs.TokenRevoked)
	assert.Equal(t, errs.CloseInvalid, lane.closeFrame().Code, lane.closeFrame().Text)
	assert.Contains(t, lane.closeFrame().Text, errs.TokenRevoked.String())
	_, err = stream.Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.TokenRevoked)
	_, err = lost.Read(make([]byte, 1))
	require.Error(t, err)
	await(t, "the pod's sidecar is not ready", func() bool { return statusOf(gone.url("/readyz")) == 503 })
	refused := w.gateway.logs.wait(t, "authentication refused", "code", errs.TokenRevoked.String())
	assert.NotContains(t, refused.str("error"), token)
	await(t, "only the other pod is left", func() bool {
		pods := podsAtGateway(t, w.gateway)
		return len(pods) == 1 && pods[stays.qualified()] == stays.tenant()
	})
	for _, ended := range recordedActs(t, w.gatewayConfig.Audit.File, "disconnect") {
		assert.Equal(t, []string{leaves.qualified(), errs.TokenRevoked.String()}, []string{ended.Pod, ended.Code})
	}
	assert.Len(t, recordedActs(t, w.gatewayConfig.Audit.File, "disconnect"), 2)
	_, err = w.dialLane(token)
	require.Error(t, err, "and it does not come back")

	echoes(t, kept, "as before")
	echoes(t, w.dial("db"), "anew")
}
