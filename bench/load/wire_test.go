package load

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // of a gateway's server: one that keeps the date for the process, and one that sleeps before it ends
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

func TestHeader(t *testing.T) {
	h := header{opProgress, 1 << 60, 42}
	b := h.encode()
	require.Len(t, b, headerSize)
	got, err := parseHeader(b)
	require.NoError(t, err)
	require.Equal(t, h, got)
	_, err = parseHeader([]byte("GET / HTTP/1.1\r\n"))
	require.Error(t, err)
	_, err = parseHeader(make([]byte, headerSize))
	require.Error(t, err)
}

// content is the first n bytes of a connection's content.
func content(seed uint64, n int) []byte {
	var b []byte
	for s := newSource(seed); len(b) < n; {
		b = append(b, s.next()...)
	}
	return b[:n]
}

func TestVerifierTakesContentInAnyPieces(t *testing.T) {
	all := content(7, 3*blockSize+17)
	rapid.Check(t, func(t *rapid.T) {
		v := newVerifier(7)
		for rest := all; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			require.NoError(t, v.check(rest[:n]))
			rest = rest[n:]
		}
		require.EqualValues(t, len(all), v.offset)
	})
}

func TestVerifierSeesEveryChange(t *testing.T) {
	all := content(7, 3*blockSize)
	swapped := bytes.Clone(all)
	copy(swapped, all[blockSize:2*blockSize])
	copy(swapped[blockSize:], all[:blockSize])
	for name, bad := range map[string][]byte{
		"another connection's": content(8, len(all)),
		"a block repeated":     append(bytes.Clone(all[:blockSize]), all...),
		"a block lost":         all[blockSize:],
		"blocks swapped":       swapped,
		"a byte lost":          append(bytes.Clone(all[:99]), all[100:]...),
	} {
		require.ErrorIs(t, newVerifier(7).check(bad), errContent, name)
	}
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(all)
		bad[rapid.IntRange(0, len(bad)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		require.ErrorIs(t, newVerifier(7).check(bad), errContent)
	})
}

func TestQuantiles(t *testing.T) {
	require.Zero(t, quantiles(nil))
	require.Equal(t, Quantiles{5, 5, 5, 5}, quantiles([]time.Duration{5}))
	var samples []time.Duration
	for i := 100; i > 0; i-- {
		samples = append(samples, time.Duration(i))
	}
	require.Equal(t, Quantiles{50, 95, 99, 100}, quantiles(samples))
}

func TestMedian(t *testing.T) {
	require.Zero(t, Median(nil))
	values := []float64{9, 1, 4}
	require.InDelta(t, 4, Median(values), 0)
	require.Equal(t, []float64{9, 1, 4}, values)
	require.InDelta(t, 2.5, Median([]float64{4, 1, 2, 3}), 0)
}

func TestWindow(t *testing.T) {
	w := newWindow(time.Second, time.Second)
	at := func(d time.Duration) time.Time { return w.begin.Add(d) }
	require.NoError(t, w.add(100, at(-time.Millisecond)))
	require.NoError(t, w.add(1000, at(0)))
	_, err := w.outcome()
	require.Error(t, err, "the time is not over")
	require.NoError(t, w.add(2000, at(500*time.Millisecond)))
	require.ErrorIs(t, w.add(5000, at(2*time.Second)), errMeasured)
	out, err := w.outcome()
	require.NoError(t, err)
	require.EqualValues(t, 4000, out.Bytes)
	require.InDelta(t, 2, out.Seconds, 1e-9)
}
