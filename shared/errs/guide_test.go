package errs_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// Verifies: R2.10, R12.3
func TestTheTroubleshootingGuideKnowsEveryCode(t *testing.T) {
	raw, err := os.ReadFile("../../docs/troubleshooting.md")
	require.NoError(t, err)
	sections := map[string]string{}
	headings := regexp.MustCompile(`(?m)^## (FL-[A-Z]\d{3}) (.+)$`)
	at := headings.FindAllSubmatchIndex(raw, -1)
	for i, m := range at {
		end := len(raw)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		code, title, text := string(raw[m[2]:m[3]]), string(raw[m[4]:m[5]]), string(raw[m[1]:end])
		assert.NotContains(t, sections, code, "one section each")
		sections[code] = text
		c, known := errs.ParseCode(code)
		assert.True(t, known && contains(errs.Codes(), c), "%s is no code", code)
		assert.Equal(t, c.Info().Title, title, "%s: the heading is the title", code)
		for _, part := range []string{"**What happened.**", "**Likely causes.**", "**What to do.**"} {
			assert.Contains(t, text, part, code)
		}
	}
	for _, c := range errs.Codes() {
		assert.Contains(t, sections, c.String(), "%v has no section", c)
	}
	for _, mention := range regexp.MustCompile(`FL-[A-Z]\d{3}`).FindAllString(string(raw), -1) {
		assert.Contains(t, sections, mention, "the guide mentions a code that does not exist")
	}
	assert.Contains(t, strings.SplitN(string(raw), "\n## FL-", 2)[0], "| symptom |", "symptoms come before codes")
}

func contains(codes []errs.Code, c errs.Code) bool {
	for _, known := range codes {
		if known == c {
			return true
		}
	}
	return false
}
