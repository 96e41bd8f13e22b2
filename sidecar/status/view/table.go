package view

import "slices"

// column is a column of a table.
type column struct {
	title string
	right bool // aligned to the right
	// flexible columns give way down to least when the table is too wide. They keep both ends of their text, or with loose
	// its beginning.
	flexible, loose bool
	least           int
	// optional columns are left out, the highest number first, when that is not enough.
	optional int
}

// table lays rows out under their titles, in at most most columns of the terminal.
func table(columns []column, rows [][]Span, most int) []Line {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = width(c.title)
		for _, row := range rows {
			widths[i] = max(widths[i], width(row[i].Text))
		}
	}
	widths, shown := fit(columns, widths, most)
	head := make([]Span, len(columns))
	for i, c := range columns {
		head[i] = Span{c.title, dim}
	}
	lines := make([]Line, 0, len(rows)+1)
	for _, row := range append([][]Span{head}, rows...) {
		var line Line
		for i, c := range columns {
			if !shown[i] {
				continue
			}
			if len(line) > 0 {
				line = append(line, Span{"  ", plain})
			}
			s := row[i].Text
			switch {
			case c.loose:
				s = cut(s, widths[i])
			case c.flexible:
				s = cutMiddle(s, widths[i])
			}
			line = append(line, Span{pad(s, widths[i], c.right), row[i].Style})
		}
		lines = append(lines, line.within(most))
	}
	return lines
}

// fit says how wide the columns are, and which are shown.
func fit(columns []column, natural []int, most int) (widths []int, shown []bool) {
	shown = make([]bool, len(columns))
	for i := range shown {
		shown[i] = true
	}
	for {
		widths = slices.Clone(natural)
		excess := -2 - most
		for i := range columns {
			if shown[i] {
				excess += widths[i] + 2
			}
		}
		excess = narrow(columns, shown, widths, excess)
		drop := -1
		for i, c := range columns {
			if shown[i] && c.optional > 0 && (drop < 0 || c.optional > columns[drop].optional) {
				drop = i
			}
		}
		if excess <= 0 || drop < 0 {
			return widths, shown
		}
		shown[drop] = false
	}
}

// narrow takes what is too much from the widest flexible columns, and returns what is left of it.
func narrow(columns []column, shown []bool, widths []int, excess int) int {
	for ; excess > 0; excess-- {
		widest := -1
		for i, c := range columns {
			if shown[i] && (c.flexible || c.loose) && widths[i] > max(c.least, width(c.title)) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return excess
}
