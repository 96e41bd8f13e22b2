package backend

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
)

func (k *sharedKeys) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

func (k *sharedKeys) put(address, key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[address] = key
}

func (k *sharedKeys) get(address string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[address]
}

// rekey starts the daemon again at the same address, with another host key.
func (d *daemon) rekey(t *testing.T, key any) {
	t.Helper()
	_, port, err := net.SplitHostPort(d.addr)
	require.NoError(t, err)
	d.stop()
	writeKey(t, filepath.Join(d.dir, "host"), key)
	require.True(t, d.start(t, port, nil), "sshd did not start again: %s", d.log)
}

// Verifies: R7.5
func TestAReplicaRefusesAChangedKeyThatAnotherHasPinned(t *testing.T) {
	d := startSSHD(t)
	b := d.backend(t)
	b.HostKeyMode, b.KnownHostsFile = FirstUse, ""
	store := &sharedKeys{keys: map[string]string{}}
	replica := func() (*Set, *hostEvents) {
		events := new(hostEvents)
		s, _ := newSet(t, b, echo(t), func(c *Config) { c.HostKeys, c.OnHostKey = store, events.record })
		return s, events
	}
	first, events := replica()
	pingPong(t, dial(t, first, "a"))
	require.Equal(t, HostKeyFirstUse, events.only(t).Kind)
	require.Equal(t, authorized(d.hostKey), store.get(d.addr))

	other := newKey(t)
	d.rekey(t, other)
	second, events := replica()
	require.ErrorIs(t, dialError(t, second, "db"), errs.HostKeyRefused)
	e := events.only(t)
	assert.Equal(t, HostKeyChanged, e.Kind)
	assert.Equal(t, "ssh-ed25519 "+ssh.FingerprintSHA256(signerOf(t, other).PublicKey()), e.Presented)
	assert.Equal(t, []string{"ssh-ed25519 " + ssh.FingerprintSHA256(d.hostKey)}, e.Expected)
	require.Empty(t, d.logins(), "nobody logged in at who is not known")
}

// What was trusted while the store was away is compared at the next handshake, and the store's key counts, also against the
// file that this replica has written.
//
// Verifies: R7.5
func TestAKeyThatWasTrustedAloneIsComparedLater(t *testing.T) {
	host, other := signerOf(t, newKey(t)), signerOf(t, newKey(t))
	for name, file := range map[string]string{"in memory": "", "with a file": filepath.Join(t.TempDir(), "known")} {
		t.Run(name, func(t *testing.T) {
			b := fakeBackend(t, fakeServer(t, host, nil, nil), host.PublicKey())
			b.HostKeyMode, b.KnownHostsFile = FirstUse, file
			store := &sharedKeys{keys: map[string]string{}, err: errs.New(errs.StoreUnavailable, "down")}
			events := new(hostEvents)
			s, log := newSet(t, b, "target:1", func(c *Config) { c.HostKeys, c.OnHostKey = store, events.record })
			pingPong(t, dial(t, s, "a"))
			require.Contains(t, log.String(), "could not be compared with other replicas")
			require.Equal(t, HostKeyFirstUse, events.only(t).Kind)

			store.fail(nil)
			pingPong(t, dial(t, s, "b"))
			require.Equal(t, authorized(host.PublicKey()), store.get(b.Address), "pinned as soon as there is a store")

			// The same while another replica has seen another key meanwhile.
			if file != "" {
				require.NoError(t, os.Remove(file))
			}
			store.fail(errs.New(errs.StoreUnavailable, "down"))
			alone, _ := newSet(t, b, "target:1", func(c *Config) { c.HostKeys, c.OnHostKey = store, events.record })
			pingPong(t, dial(t, alone, "a"))
			store.put(b.Address, authorized(other.PublicKey()))
			store.fail(nil)
			events.all = nil
			_, err := as(t, alone, Caller{Tenant: "b"}) // with a connection of its own
			require.ErrorIs(t, err, errs.HostKeyRefused)
			require.Len(t, events.all, 2)
			require.Equal(t, HostKeyConflict, events.all[0].Kind)
			require.Equal(t, HostKeyChanged, events.all[1].Kind)
			require.Equal(t, []string{describeKey(other.PublicKey())}, events.all[1].Expected)
		})
	}
}

// Verifies: R7.5
func TestHostKeysArePinnedAgain(t *testing.T) {
	host, other := signerOf(t, newKey(t)), signerOf(t, newKey(t))
	for name, file := range map[string]string{"in memory": "", "with a file": filepath.Join(t.TempDir(), "known")} {
		t.Run(name, func(t *testing.T) {
			b := fakeBackend(t, fakeServer(t, host, nil, nil), host.PublicKey())
			b.HostKeyMode, b.KnownHostsFile = FirstUse, file
			store := &sharedKeys{keys: map[string]string{}}
			events := new(hostEvents)
			s, log := newSet(t, b, "target:1", func(c *Config) { c.HostKeys, c.OnHostKey = store, events.record })
			pingPong(t, dial(t, s, "a"))
			store.put(b.Address, "") // flushed
			store.fail(errs.New(errs.StoreUnavailable, "down"))
			require.ErrorIs(t, s.RepinHostKeys(t.Context()), errs.StoreUnavailable)
			store.fail(nil)
			require.NoError(t, s.RepinHostKeys(t.Context()))
			require.Equal(t, authorized(host.PublicKey()), store.get(b.Address))
			pingPong(t, dial(t, s, "b"))

			store.put(b.Address, "no key")
			require.ErrorIs(t, s.RepinHostKeys(t.Context()), errs.Internal)
			pingPong(t, dial(t, s, "c"))
			require.Equal(t, HostKeyFirstUse, events.only(t).Kind)

			store.put(b.Address, authorized(other.PublicKey()))
			require.NoError(t, s.RepinHostKeys(t.Context()))
			require.NoError(t, s.RepinHostKeys(t.Context()))
			require.Len(t, events.all, 2, "told once")
			e := events.all[1]
			assert.Equal(t, HostKeyConflict, e.Kind)
			assert.Equal(t, b.Name, e.Backend)
			assert.Equal(t, b.Address, e.Address)
			assert.Equal(t, describeKey(host.PublicKey()), e.Presented)
			assert.Equal(t, []string{describeKey(other.PublicKey())}, e.Expected)
			require.ErrorIs(t, e.Err, errs.HostKeyRefused)
			require.Contains(t, log.String(), "REPLICAS HAVE SEEN DIFFERENT HOST KEYS")
			_, err := as(t, s, Caller{Tenant: "d"})
			require.ErrorIs(t, err, errs.HostKeyRefused)
			require.Equal(t, HostKeyChanged, events.all[2].Kind)
		})
	}
}

// hangingKeys never answer.
type hangingKeys struct{}

func (hangingKeys) PinHostKey(ctx context.Context, _, _ string) (string, error) {
	<-ctx.Done()
	return "", errs.Wrap(errs.StoreUnavailable, ctx.Err(), "no answer")
}

func TestAHandshakeDoesNotWaitLongForTheStore(t *testing.T) {
	key := signerOf(t, newKey(t)).PublicKey()
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{HostKeys: hangingKeys{}}
		cfg.fill()
		h := newHostKeys(&cfg)
		begin := time.Now()
		require.NoError(t, h.check(t.Context(), presented{b: &Backend{Name: "b", Address: "b:22", HostKeyMode: FirstUse}, key: key}, hostFiles{}))
		require.Equal(t, pinWithin, time.Since(begin))
	})
}
