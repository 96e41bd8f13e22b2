package report

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Measures of the picture, in pixels.
const (
	columns    = 3
	panelWidth = 400
	gap        = 24
	headHeight = 76
	titleSpace = 48 // above the bars of a panel
	barHeight  = 16
	barStep    = 22
	nameWidth  = 78 // left of the bars
	textWidth  = 98 // right of the longest bar
)

// Colours by role; the bars also carry names, so that nothing depends on colour alone.
const (
	colourProduct   = "#0b6e6e"
	colourReference = "#5b6b8c"
	colourOther     = "#b4bccb"
	colourText      = "#1d2433"
	colourFaint     = "#67718a"
	colourLine      = "#e3e7ee"
)

const svgStyle = `text{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;font-size:11px;fill:` + colourText + `}` +
	`.h{font-size:18px;font-weight:600}.t{font-size:12px;font-weight:600}.s{fill:` + colourFaint + `;font-size:10.5px}` +
	`.n{text-anchor:end}.b{font-weight:600}`

// WriteSVG writes the picture: a panel with a bar for each peer for every metric that is not a detail.
func (r *Report) WriteSVG(w io.Writer) error {
	panels := slices.DeleteFunc(slices.Clone(r.Metrics), func(m Metric) bool { return m.Detail || len(m.Figures) == 0 })
	panelHeight := titleSpace + barStep*len(r.Peers)
	rows := (len(panels) + columns - 1) / columns
	width := columns*panelWidth + (columns+1)*gap
	height := headHeight + rows*(panelHeight+gap) + gap/2

	out := bufio.NewWriter(w)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">`+"\n", width, height, width, height)
	fmt.Fprintf(out, "<title>%s</title>\n<style>%s</style>\n", "fairlead compared with its peers", svgStyle)
	fmt.Fprintf(out, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	r.svgHead(out)
	for i := range panels {
		x := gap + (i%columns)*(panelWidth+gap)
		y := headHeight + (i/columns)*(panelHeight+gap)
		r.svgPanel(out, &panels[i], x, y)
	}
	fmt.Fprintln(out, "</svg>")
	return out.Flush()
}

func (r *Report) svgHead(w io.Writer) {
	about := fmt.Sprintf("%s, %d cores, Linux %s, %s, %s: %s; × is times %s", r.Machine.CPU, r.Machine.Cores,
		r.Machine.Kernel, r.Machine.Go, r.Made.UTC().Format("2006-01-02"), runs(r.Runs), Reference)
	if r.Quick {
		about += "; quick sizes, rough figures"
	}
	svgText(w, gap, 34, "h", "Side by side: sidecar and gateway as two processes on one machine")
	svgText(w, gap, 54, "s", about)
}

func (r *Report) svgPanel(w io.Writer, m *Metric, x, y int) {
	fmt.Fprintf(w, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s"/>`+"\n", x, y, x+panelWidth, y, colourLine)
	svgText(w, x, y+18, "t", m.Title)
	svgText(w, x, y+34, "s", m.Unit+", "+m.better()+" is better")
	longest := 0.0
	for _, f := range m.Figures {
		longest = max(longest, f.Median)
	}
	for i, peer := range r.Peers {
		m.svgBar(w, peer, x, y+titleSpace+i*barStep, longest)
	}
}

func (m *Metric) svgBar(w io.Writer, peer string, x, y int, longest float64) {
	name, left, base := "n", x+nameWidth+8, y+12
	if peer == Product {
		name = "n b"
	}
	svgText(w, x+nameWidth, base, name, peer)
	f, ok := m.Figures[peer]
	if !ok {
		svgText(w, left, base, "s", "not measured")
		return
	}
	length := 1.0 // so that nothing at all still shows where it begins
	if longest > 0 {
		length = max(1, f.Median/longest*float64(panelWidth-nameWidth-8-textWidth))
	}
	fmt.Fprintf(w, `<rect x="%d" y="%d" width="%.1f" height="%d" rx="2" fill="%s"/>`+"\n", left, y, length, barHeight, colour(peer))
	value := format(f.Median)
	if ratio, ok := m.ratio(peer); ok {
		value += "  (" + format(ratio) + "×)"
	}
	class := "v"
	if peer == Product {
		class = "v b"
	}
	svgText(w, left+int(length)+6, base, class, value)
}

func colour(peer string) string {
	switch peer {
	case Product:
		return colourProduct
	case Reference:
		return colourReference
	}
	return colourOther
}

func svgText(w io.Writer, x, y int, class, text string) {
	var escaped strings.Builder
	_ = xml.EscapeText(&escaped, []byte(text)) // a strings.Builder takes every write
	fmt.Fprintf(w, `<text x="%d" y="%d" class="%s">%s</text>`+"\n", x, y, class, escaped.String())
}
