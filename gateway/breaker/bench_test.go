package breaker

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// What every open of a stream pays while nothing is wrong.
func BenchmarkClosed(b *testing.B) {
	br, err := New(Config{})
	require.NoError(b, err)
	fn := func(context.Context) error { return nil }
	b.ReportAllocs()
	for b.Loop() {
		if err := br.Do(b.Context(), "db", fn); err != nil {
			b.Fatal(err)
		}
	}
}
