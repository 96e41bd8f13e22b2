package e2e

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEchoBothWays(t *testing.T) {
	for name, opts := range map[string][]option{
		"inside this process": nil,
		"as processes":        {withProcesses()},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, append(opts, withTarget("echo", newTarget(t, echoServer)))...)
			c := w.dial("echo")
			_, err := io.WriteString(c, "hello")
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			got, err := io.ReadAll(c)
			require.NoError(t, err)
			require.Equal(t, "hello", string(got))
		})
	}
}
