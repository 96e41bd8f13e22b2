// Package browser drives a headless Chromium, so that tests see a page as a person's browser shows it: with its content
// security policy, its layout and its clicks. The browser reaches this machine only, keeps nothing, and what a page said on
// its console or asked for is there to be asserted upon.
//
// It is apart from package testbed because its library is large, and few tests want it.
package browser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/chromedp/chromedp"
)

const (
	startTimeout = 60 * time.Second // for the browser to answer, on a machine that is busy with other tests
	stepTimeout  = 60 * time.Second // for one step of a tab
)

// TB is what of testing.TB New needs.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	TempDir() string
	Failed() bool
}

// Browser is a running Chromium.
type Browser struct {
	ctx    context.Context
	cancel func()
}

// Path returns where the machine has Chromium.
func Path() (string, bool) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "headless-shell"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, true
		}
	}
	return "", false
}

// Start starts Chromium with its profile and everything else that it writes in dir, which must exist.
func Start(dir string) (*Browser, error) {
	path, ok := Path()
	if !ok {
		return nil, errors.New("this machine has no chromium: install it")
	}
	profile := filepath.Join(dir, "profile")
	if err := os.MkdirAll(profile, 0o700); err != nil {
		return nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(profile), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Env("HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir, "TZ=Europe/Berlin"), // away from UTC, so that one is told from the other
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-domain-reliability", true),
		chromedp.Flag("no-pings", true), chromedp.Flag("no-proxy-server", false),
		// Whatever is not on this machine goes to a proxy that is not there, and names are not even looked up.
		chromedp.Flag("proxy-server", "http://127.0.0.1:1"), chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost"))
	allocator, free := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	b := &Browser{ctx: ctx, cancel: func() { cancel(); free() }}
	// The context of the first step is the browser's for as long as it runs, so it must not have a deadline itself.
	late := time.AfterFunc(startTimeout, cancel)
	err := chromedp.Do(ctx)
	if err == nil {
		_, err = chromedp.Run(ctx, chromedp.Evaluate[int]("1"))
	}
	if !late.Stop() || err != nil {
		b.cancel()
		return nil, fmt.Errorf("start %s: %w", path, errors.Join(err, ctx.Err()))
	}
	return b, nil
}

// New starts Chromium until the test ends.
func New(tb TB) *Browser {
	tb.Helper()
	b, err := Start(tb.TempDir())
	if err != nil {
		tb.Fatalf("browser: %v", err)
	}
	tb.Cleanup(b.Stop)
	return b
}

// Stop ends the browser and waits for it.
func (b *Browser) Stop() {
	ctx, cancel := context.WithTimeout(b.ctx, stepTimeout)
	defer cancel()
	_ = chromedp.Cancel(ctx) // closes in order; what follows ends what did not
	b.cancel()
}
