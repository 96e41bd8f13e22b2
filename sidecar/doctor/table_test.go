package doctor

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	hops := []Result{
		{Hop: HopDNS, Target: "gw.example", Status: OK, TookMS: 1.26, Detail: "192.0.2.1"},
		{Hop: HopTLS, Target: "gw.example:443", Status: Warn, Detail: "expires soon", Advice: "Renew it."},
		{Hop: HopToken, Target: "gw.example:443", Status: Fail, Code: "FL-A202", Detail: "expired\x1b[0m", Advice: "Renew it too."},
		{Hop: HopTunnel, Target: "gw.example:443", Status: Skipped, Detail: "not tried: needs token", Advice: "not shown"},
	}
	draw := func(s Style) string {
		var b strings.Builder
		table := NewTable(&b, s)
		for _, h := range hops {
			table.Result(h)
		}
		require.NoError(t, table.Conclusion(Report{Hops: hops, TookMS: 1500, Conclusion: "It is the token."}))
		return b.String()
	}
	assert.Equal(t, `✓ dns           gw.example                       1.3 ms  192.0.2.1
! tls           gw.example:443                           expires soon
                → Renew it.
✗ token         gw.example:443                           FL-A202 expired [0m
                → Renew it too.
– tunnel        gw.example:443                           not tried: needs token

1 ok, 1 to look at, 1 failed, 1 not tried; 1.5 s
It is the token.
`, draw(Style{}))
	ascii := draw(Style{ASCII: true})
	for _, line := range []string{"+ dns", "! tls", "x token", "- tunnel", "-> Renew"} {
		assert.Contains(t, ascii, line)
	}
	for _, c := range ascii {
		assert.Less(t, c, rune(0x80))
	}
	assert.Contains(t, draw(Style{Colour: true}), "\x1b[31m✗\x1b[0m token")
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestATableThatCannotBeWritten(t *testing.T) {
	table := NewTable(broken{}, Style{})
	table.Result(Result{})
	assert.True(t, errors.Is(table.Conclusion(Report{}), os.ErrClosed))
}

func TestStyleFollowsTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		env      map[string]string
		terminal bool
		want     Style
	}{
		{nil, false, Style{}},
		{nil, true, Style{Colour: true}},
		{map[string]string{"NO_COLOR": "1"}, true, Style{}},
		{map[string]string{"TERM": "dumb"}, true, Style{}},
		{map[string]string{"LANG": "de_DE.utf8"}, true, Style{Colour: true}},
		{map[string]string{"LANG": "C"}, false, Style{ASCII: true}},
		{map[string]string{"LC_ALL": "C", "LANG": "en_US.UTF-8"}, false, Style{ASCII: true}},
		{map[string]string{"LC_CTYPE": "C.UTF-8", "LANG": "C"}, false, Style{}},
	} {
		assert.Equal(t, c.want, StyleOf(func(n string) string { return c.env[n] }, c.terminal), "%v", c)
	}
}

// The JSON has the keys that docs/doctor.md describes, all of them, always.
//
// Verifies: R2.5
func TestJSONHasItsShape(t *testing.T) {
	p := newPatient(t)
	p.at("wss://127.0.0.1:1/")
	raw, err := json.Marshal(p.examine().Report)
	require.NoError(t, err)
	var whole map[string]any
	require.NoError(t, json.Unmarshal(raw, &whole))
	assert.ElementsMatch(t, []string{"version", "started", "took_ms", "ok", "exit", "culprit", "conclusion", "hops"}, keys(whole))
	for _, h := range whole["hops"].([]any) {
		assert.ElementsMatch(t, []string{"hop", "target", "status", "took_ms", "detail", "code", "advice", "data"}, keys(h.(map[string]any)))
		assert.NotNil(t, h.(map[string]any)["data"])
	}
	guide, err := os.ReadFile("../../docs/doctor.md")
	require.NoError(t, err)
	for _, key := range []string{"version", "started", "took_ms", "ok", "exit", "culprit", "conclusion", "hops", "hop", "target", "status", "detail", "code", "advice", "data"} {
		assert.Contains(t, string(guide), "`"+key+"`")
	}
	for _, hop := range []string{HopConfiguration, HopFiles, HopTokenFile, HopDNS, HopTCP, HopProxy, HopTLS, HopClock, HopUpgrade, HopToken, HopTunnel, HopRoundTrip,
		HopTransfer, HopThroughput, HopPolicy, HopBackend, HopSSH, HopSSHLogin} {
		assert.Contains(t, string(guide), "| `"+hop+"` |")
	}
}

func keys(m map[string]any) (all []string) {
	for k := range m {
		all = append(all, k)
	}
	return all
}
