package app

import (
	"bytes"
	"context"
	"os"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/sidecar/config"
)

// tokenSource reads the token anew each time, and watches its file.
type tokenSource struct {
	mu    sync.Mutex
	fixed logging.Secret
	file  string
}

// tokenPoll is how often the token's file is looked at: projected tokens are renewed minutes before they expire.
const tokenPoll = 5 * time.Second

func newTokenSource(g config.Gateway) (*tokenSource, error) {
	t := &tokenSource{fixed: g.Token, file: g.TokenFile}
	if t.file == "" && t.fixed == "" {
		return nil, errs.New(errs.TokenMissing, "neither gateway.token_file nor gateway.token is set")
	}
	return t, nil
}

// replace takes what another one says.
func (t *tokenSource) replace(by *tokenSource) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fixed, t.file = by.fixed, by.file
}

func (t *tokenSource) get() (string, error) {
	t.mu.Lock()
	fixed, file := t.fixed, t.file
	t.mu.Unlock()
	if file == "" {
		return fixed.Reveal(), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", errs.Wrap(errs.TokenUnreadable, err, "gateway.token_file")
	}
	token := string(bytes.TrimSpace(b))
	if token == "" {
		return "", errs.New(errs.TokenUnreadable, "gateway.token_file: %s is empty", file)
	}
	return token, nil
}

// watch calls renew when the token changes, until ctx ends.
func (t *tokenSource) watch(ctx context.Context, renew func(string)) error {
	tick := time.NewTicker(tokenPoll)
	defer tick.Stop()
	last, _ := t.get() // an attempt tells what is wrong with it
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if token, err := t.get(); err == nil && token != last {
			last = token
			renew(token)
		}
	}
}
