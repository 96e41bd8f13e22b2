package app

import (
	"context"
	"crypto/sha256"
	"maps"
	"os"
	"slices"
	"time"

	"fairlead/gateway/config"
	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// configFile is the name of the configuration file among the watched ones.
const configFile = "the configuration file"

// watched are the files that a configuration names, by key, and what they held when they were last taken. They are looked
// at by content, because a mounted secret is replaced by renaming directories, which watchers lose.
type watched struct {
	file string // the configuration's own; empty: none
	sums map[string][sha256.Size]byte
}

// files are the paths by key.
func (w *watched) files(cfg config.Config) map[string]string {
	files := map[string]string{configFile: w.file, "tls.cert_file": cfg.TLS.CertFile, "tls.key_file": cfg.TLS.KeyFile, "tls.client_ca_file": cfg.TLS.ClientCAFile,
		"peer.secret_file": cfg.Peer.SecretFile}
	for i, issuer := range cfg.Auth.Issuers { // package auth looks at them by itself too; here they are for the report
		key := sharedconfig.At("auth.issuers", i)
		files[key+".jwks_file"], files[key+".hmac_secret_file"] = issuer.JWKSFile, issuer.HMACSecretFile
	}
	for name, b := range cfg.Backends {
		key := "backends." + name
		files[key+".key_file"], files[key+".certificate_file"] = b.KeyFile, b.CertificateFile
		files[key+".identity.ca_key_file"] = b.Identity.CAKeyFile
		files[key+".host_keys.revoked_file"] = b.HostKeys.RevokedFile
		if b.HostKeys.Mode == config.HostKeysStrict { // else the gateway writes to it
			files[key+".host_keys.known_hosts_file"] = b.HostKeys.KnownHostsFile
		}
	}
	maps.DeleteFunc(files, func(_, path string) bool { return path == "" })
	return files
}

// read hashes the files. One that cannot be read has the hash of nothing.
func (w *watched) read(cfg config.Config) map[string][sha256.Size]byte {
	sums := make(map[string][sha256.Size]byte)
	for key, path := range w.files(cfg) {
		if text, err := os.ReadFile(path); err == nil {
			sums[key] = sha256.Sum256(text)
		} else {
			sums[key] = [sha256.Size]byte{}
		}
	}
	return sums
}

// changed lists the keys whose files have other content now than when they were last taken, and takes note.
func (w *watched) changed(cfg config.Config) []string {
	now := w.read(cfg)
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if before, ok := w.sums[key]; ok && before != now[key] {
			keys = append(keys, key)
		}
	}
	w.sums = now
	return keys
}

// watch reloads when a file has changed, until ctx ends. A change that cannot be taken is said once, and tried again with the next.
func (a *App) watch(ctx context.Context) error {
	every := a.config().Reload.Watch
	if every <= 0 {
		return nil
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	a.reloading.Lock()
	tried := a.watched.sums // of when they were taken: what has changed since is a change
	a.reloading.Unlock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := a.watched.read(a.config())
		if maps.Equal(now, tried) {
			continue
		}
		tried = now
		_, _ = a.ReloadFiles("file change") // it has been logged
	}
}

// ReloadFiles loads the configuration from where it came from and takes it; see Reload. Who reads later takes later: what
// is in force at the end is what was read last.
func (a *App) ReloadFiles(by string) (Reloaded, error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	if a.opts.Load == nil {
		return a.reload(a.config(), by)
	}
	loaded, err := a.opts.Load()
	if err != nil {
		a.reloadFailed(err, by)
		return Reloaded{}, err
	}
	r, err := a.reload(loaded.Config, by)
	if err == nil {
		a.effective.Store(loaded)
	}
	return r, err
}

// review looks again at the tokens of what is open, until ctx ends: a revocation may have come by another way, or the
// cluster may not know a token any more.
func (a *App) review(ctx context.Context) error {
	tick := time.NewTicker(a.config().Revocations.Review)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if n := a.enforce(ctx); n > 0 {
			a.log.Warn("ended what is not allowed any more", "tunnels_and_streams", n, logging.FieldCode, errs.TokenRevoked.String())
		}
	}
}
