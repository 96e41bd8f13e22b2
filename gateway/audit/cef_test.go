package audit

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func lineOf(t *testing.T, e Event) *Line {
	t.Helper()
	b := appendLine(nil, time.Date(2026, 11, 23, 22, 0, 0, 123e6, time.UTC), "gw|0=a", 7, appendEvent(nil, &e), hash{})
	l, err := parseLine(b)
	require.NoError(t, err)
	return l
}

func TestCEFGolden(t *testing.T) {
	const zero = "0000000000000000000000000000000000000000000000000000000000000000"
	for name, c := range map[string]struct {
		event Event
		want  string
	}{
		"open refused": {
			Event{Action: Open, Result: Refused, Actor: "ann=x|y", Tenant: `pay\api`, Pod: "api-1", Client: "10.1.2.3:40112", Route: "git", Backend: "b",
				Code: errs.RouteForbidden, Detail: "first\nsecond=\\|\r", Stream: "1", Trace: "t"},
			`CEF:0|fairlead|gateway|1.2\|3\\4|open|open refused|6|rt=1795471200123 externalId=7 dvchost=gw|0\=a act=open outcome=refused suser=ann\=x|y ` +
				`src=10.1.2.3 spt=40112 reason=FL-A204 msg=first\nsecond\=\\|\r cs1Label=tenant cs1=pay\\api cs2Label=route cs2=git cs3Label=backend cs3=b ` +
				`cs5Label=pod cs5=api-1 flexString1Label=stream flexString1=1 flexString2Label=trace flexString2=t fairleadPrev=` + zero,
		},
		"disconnect": {
			Event{Action: Disconnect, Result: Allowed, Actor: "ann", Client: "[2001:db8::1]:5", Sent: 3, Received: 4, Duration: 1500 * time.Microsecond, Tunnel: "3b7e"},
			`CEF:0|fairlead|gateway|1.2\|3\\4|disconnect|disconnect allowed|2|rt=1795471200123 externalId=7 dvchost=gw|0\=a act=disconnect outcome=allowed suser=ann ` +
				`c6a2Label=Source IPv6 Address c6a2=2001:db8::1 spt=5 in=4 out=3 cs6Label=tunnel cs6=3b7e cfp1Label=duration_ms cfp1=1.5 fairleadPrev=` + zero,
		},
		"loss": {
			Event{Action: "audit|failure\n", Result: Failed, Issuer: "https://i?a=b", TokenID: "id", Target: "/api/x", Client: "somewhere"},
			`CEF:0|fairlead|gateway|1.2\|3\\4|audit\|failure |audit\|failure  failed|5|rt=1795471200123 externalId=7 dvchost=gw|0\=a act=audit|failure\n outcome=failed ` +
				`shost=somewhere cs4Label=target cs4=/api/x fairleadIssuer=https://i?a\=b fairleadTokenId=id fairleadPrev=` + zero,
		},
	} {
		assert.Equal(t, c.want, string(AppendCEF(nil, lineOf(t, c.event), `1.2|3\4`)), name)
	}
}

func TestSeveritiesRise(t *testing.T) {
	last := 0
	for _, e := range []Event{{Action: Open, Result: Allowed}, {Action: Administer, Result: Allowed}, {Action: Revoke, Result: Allowed},
		{Action: Open, Result: Refused}, {Action: HostKey, Result: Refused}, {Action: Losses, Result: Failed}} {
		s := severity(lineOf(t, e))
		assert.Greater(t, s, last, "%v", e)
		assert.LessOrEqual(t, s, 10)
		last = s
	}
}

func TestExportsAreVerifiedOnTheWay(t *testing.T) {
	whole := makeLog(t, false, 14)
	export := func(m made, format string, adjust ...func(*Exporter)) (string, error) {
		var b bytes.Buffer
		e, err := NewExporter(&b, format)
		require.NoError(t, err)
		for _, f := range adjust {
			f(e)
		}
		_, err = m.verify(VerifyConfig{Visit: e.Visit})
		require.NoError(t, e.Close())
		return b.String(), err
	}
	out, err := export(whole, FormatJSON)
	require.NoError(t, err)
	var array []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &array))
	assert.Len(t, array, whole.total()-1, "all but the torn line")
	assert.EqualValues(t, len(array), array[len(array)-1]["seq"])

	out, err = export(whole, FormatJSONL)
	require.NoError(t, err)
	assert.Equal(t, string(whole.at(0))+"\n", out[:len(whole.at(0))+1], "byte for byte")
	out, err = export(whole, FormatCEF)
	require.NoError(t, err)
	assert.Equal(t, whole.total()-1, bytes.Count([]byte(out), []byte("\nCEF:0|"))+1)

	out, err = export(whole, FormatJSON, func(e *Exporter) { e.Since = time.Now().Add(time.Hour) })
	require.NoError(t, err)
	assert.Equal(t, "[]\n", out)
	out, err = export(whole, FormatJSON, func(e *Exporter) { e.Until = time.Now().Add(-time.Hour) })
	require.NoError(t, err)
	assert.Equal(t, "[]\n", out)

	broken := whole.copy()
	broken.set(10, bytes.Replace(whole.at(10), []byte("payments"), []byte("innocent"), 1))
	out, err = export(broken, FormatJSONL)
	require.ErrorIs(t, err, errs.AuditBroken)
	assert.Equal(t, 10, bytes.Count([]byte(out), []byte("\n")), "the edited line is not among them")
	assert.NotContains(t, out, "innocent")

	var b bytes.Buffer
	e, err := NewExporter(&b, FormatJSONL)
	require.NoError(t, err)
	skipped, err := Read(broken.sources(), e.Visit)
	require.NoError(t, err)
	require.NoError(t, e.Close())
	assert.Equal(t, 1, skipped, "the torn one")
	assert.Contains(t, b.String(), "innocent")

	_, err = NewExporter(&b, "xml")
	require.ErrorIs(t, err, errs.ConfigInvalid)
}

func TestHeadsAreParsed(t *testing.T) {
	h, err := ParseHead("17:" + hexOf(sumRaw([]byte("x"))))
	require.NoError(t, err)
	assert.Equal(t, Head{Sequence: 17, Hash: hexOf(sumRaw([]byte("x")))}, h)
	for _, s := range []string{"", "17", "17:", "x:" + h.Hash, "0:" + h.Hash, "17:" + h.Hash + "0", "17:" + h.Hash[:63] + "x"} {
		_, err := ParseHead(s)
		require.ErrorIs(t, err, errs.ConfigInvalid, s)
	}
}
