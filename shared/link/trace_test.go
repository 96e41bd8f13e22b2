package link

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTraceContext(t *testing.T) {
	trace := NewTrace()
	require.Regexp(t, regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`), trace)
	require.Equal(t, trace[3:35], TraceID(trace))
	require.NotEqual(t, trace, NewTrace())
	for _, bad := range []string{"", "00-", trace[:35], "00-" + "zz" + trace[5:], "\n" + trace} {
		require.Empty(t, TraceID(bad), "%q", bad)
	}
}
