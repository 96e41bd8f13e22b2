package view

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Bytes is n as a person reads it: 999 B, 1.2 MiB.
func Bytes(n float64) string {
	if !(n > 0) || math.IsInf(n, 0) { // also not a number
		return "0 B"
	}
	unit := 0
	for units := len("KMGTPE"); n >= 1023.5 && unit < units; unit++ {
		n /= 1024
	}
	if unit == 0 {
		return fmt.Sprintf("%.0f B", n)
	}
	digits := 0
	if n < 99.95 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %ciB", digits, n, "KMGTPE"[unit-1])
}

// Age is how long ago since was, in its two largest units; "-" when since is unknown.
func Age(since, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return Duration(now.Sub(since))
}

// Duration is d in its two largest units, whole seconds; nothing is less than 0 s.
func Duration(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return two(s/60, "m", s%60, "s")
	case s < 86400:
		return two(s/3600, "h", s%3600/60, "m")
	}
	return two(s/86400, "d", s%86400/3600, "h")
}

func two(a int64, unit string, b int64, small string) string {
	if b == 0 {
		return fmt.Sprintf("%d%s", a, unit)
	}
	return fmt.Sprintf("%d%s %d%s", a, unit, b, small)
}

// millis is a round trip.
func millis(ms float64) string {
	switch {
	case !(ms > 0) || math.IsInf(ms, 0):
		return "-"
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 10_000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.0f s", ms/1000)
}

func percent(share float64) string {
	if !(share > 0) {
		return "0 %"
	}
	return fmt.Sprintf("%.1f %%", min(share, 1)*100)
}

// count is n with its noun: 1 connection, 2 connections.
func count[N int | int64 | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// ratio is part of whole, from 0 to 1 whatever they are.
func ratio(part, whole float64) float64 {
	switch {
	case !(part > 0) || !(whole > 0):
		return 0
	case part >= whole:
		return 1
	}
	return part / whole
}

// sparks are eighths of a column, lowest first.
const sparks = "▁▂▃▄▅▆▇█"

// Sparkline shows the last n values, each in one column, in proportion to peak. Where there are fewer values the left is
// empty.
func Sparkline(values []float64, n int, peak float64) string {
	values = values[max(0, len(values)-n):]
	steps := []rune(sparks)
	var b strings.Builder
	b.WriteString(strings.Repeat(" ", max(0, n-len(values))))
	for _, v := range values {
		i := 0
		if r := ratio(v, peak); r > 0 {
			i = int(math.Ceil(r * float64(len(steps)-1)))
		}
		b.WriteRune(steps[i])
	}
	return b.String()
}

// Bar is a bar of n columns that is filled in proportion. Any value above 0 shows, and only a full one fills it.
func Bar(value, size float64, n int) (filled, empty string) {
	part := 0
	if r := ratio(value, size); r > 0 {
		part = min(n, max(1, int(r*float64(n))))
	}
	return strings.Repeat("█", part), strings.Repeat("░", n-part)
}
