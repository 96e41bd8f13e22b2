package browser

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// codeGone is the protocol's answer when the page that was asked is no longer there.
const codeGone = -32000

// View is how a tab looks at a page.
type View struct {
	Width, Height int  // CSS pixels; 0: 1280 by 900
	Dark          bool // prefers a dark colour scheme
	Mobile        bool // a touch screen
}

// Message is something that the browser or a page said on the console.
type Message struct {
	Source string // exception, console, or what Chromium calls it: network, security, …
	Level  string // error, warning, info, …
	Text   string
	URL    string
}

// Tab is a page in a profile of its own: tabs share no storage.
type Tab struct {
	ctx    context.Context
	cancel func()

	mu       sync.Mutex
	messages []Message
	requests []string
}

// NewTab opens an empty tab until the test ends. What its page said is shown when the test fails.
func (b *Browser) NewTab(tb TB, view View) *Tab {
	tb.Helper()
	t, err := b.Open(view)
	if err != nil {
		tb.Fatalf("browser: %v", err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the page said: %+v", t.Messages())
		}
		t.Close()
	})
	return t
}

// Open opens an empty tab.
func (b *Browser) Open(view View) (*Tab, error) {
	t := &Tab{}
	t.ctx, t.cancel = chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext(), chromedp.WithListener(t.hear))
	if _, err := chromedp.Run(t.ctx, chromedp.Evaluate[int]("1")); err != nil { // without a deadline: this context is the tab's
		t.cancel()
		return nil, err
	}
	return t, errors.Join(t.Look(view), t.watchPolicy())
}

// Close closes the tab.
func (t *Tab) Close() { t.cancel() }

// watchPolicy makes each page report what its content security policy forbade. The browser's own log tells most of it,
// but not all.
func (t *Tab) watchPolicy() error {
	const script = `addEventListener('securitypolicyviolation', (e) => console.error('policy violated: ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample))`
	return t.Do(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
		return chromedp.Void{}, err
	})
}

// hear takes the events of the tab. It is called in their order, from one goroutine.
func (t *Tab) hear(event any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if o := e.ExceptionDetails.Exception; o != nil {
			text += " " + o.Description
		}
		t.messages = append(t.messages, Message{Source: "exception", Level: "error", Text: text})
	case *runtime.EventConsoleAPICalled:
		var texts []string
		for _, a := range e.Args {
			texts = append(texts, string(a.Value))
		}
		t.messages = append(t.messages, Message{Source: "console", Level: string(e.Type), Text: strings.Join(texts, " ")})
	case *log.EventEntryAdded:
		t.messages = append(t.messages, Message{Source: string(e.Entry.Source), Level: string(e.Entry.Level), Text: e.Entry.Text, URL: e.Entry.URL})
	case *network.EventRequestWillBeSent:
		t.requests = append(t.requests, e.Request.URL)
	}
}

// Messages is all that was said so far.
func (t *Tab) Messages() []Message {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Message(nil), t.messages...)
}

// Complaints is what was said that should not have been: exceptions, errors, warnings, violated policies. Answers with a
// status above 399, which a test may have wanted, are left out.
func (t *Tab) Complaints() []Message {
	var bad []Message
	for _, m := range t.Messages() {
		if m.Source != "network" && (m.Level == "error" || m.Level == "warning" || m.Level == "assert") {
			bad = append(bad, m)
		}
	}
	return bad
}

// Requests is the addresses of all that was asked for so far, in order.
func (t *Tab) Requests() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.requests...)
}

// Elsewhere is the addresses of all that was asked for at another origin than that of the address given. Data within an
// address is nowhere else.
func (t *Tab) Elsewhere(origin string) []string {
	var other []string
	home, _ := url.Parse(origin)
	for _, r := range t.Requests() {
		if u, err := url.Parse(r); err != nil || u.Scheme != "data" && (u.Scheme != home.Scheme || u.Host != home.Host) {
			other = append(other, r)
		}
	}
	return other
}

// Do runs steps of chromedp, which fail after a minute.
func (t *Tab) Do(steps ...chromedp.Action[chromedp.Void]) error {
	ctx, cancel := context.WithTimeout(t.ctx, stepTimeout)
	defer cancel()
	return chromedp.Do(ctx, steps...)
}

// Look changes how the tab looks at its page.
func (t *Tab) Look(view View) error {
	if view.Width == 0 {
		view.Width, view.Height = 1280, 900
	}
	scheme := "light"
	if view.Dark {
		scheme = "dark"
	}
	size := []chromedp.EmulateViewportOption{}
	if view.Mobile {
		size = append(size, chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulatePortrait)
	}
	return t.Do(chromedp.EmulateViewport(int64(view.Width), int64(view.Height), size...), func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
		return chromedp.Void{}, err
	})
}

// Go opens an address and waits until the page and its scripts are loaded.
func (t *Tab) Go(address string) error { return t.Do(chromedp.Navigate(address)) }

// Wait waits until a JavaScript expression is true, and says what it was in the error if it never is. An expression that
// throws is not true yet, and a page that is just being replaced is waited for.
func (t *Tab) Wait(expression string) error {
	ctx, cancel := context.WithTimeout(t.ctx, stepTimeout)
	defer cancel()
	careful := "(() => { try { return Boolean(" + expression + ") } catch { return false } })()"
	for {
		_, err := chromedp.Run(ctx, chromedp.Poll[chromedp.Void](careful, chromedp.WithPollingTimeout(0)))
		var replaced *cdproto.Error
		if ctx.Err() == nil && errors.As(err, &replaced) && replaced.Code == codeGone {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", expression, err)
		}
		return nil
	}
}

// Eval evaluates a JavaScript expression, which may be a promise.
func Eval[T any](t *Tab, expression string) (T, error) {
	ctx, cancel := context.WithTimeout(t.ctx, stepTimeout)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// Screenshot writes what the tab shows to a PNG file; whole: the page from top to bottom, not only what is in view.
func (t *Tab) Screenshot(file string, whole bool) error {
	ctx, cancel := context.WithTimeout(t.ctx, stepTimeout)
	defer cancel()
	take := chromedp.CaptureScreenshot()
	if whole {
		take = chromedp.FullScreenshot(100)
	}
	png, err := chromedp.Run(ctx, take)
	if err != nil {
		return err
	}
	return os.WriteFile(file, png, 0o600)
}
