package audit

import (
	"bufio"
	"io"
	"time"

	"fairlead/shared/errs"
)

// Formats of an export.
const (
	FormatCEF   = "cef"   // one line of ArcSight's Common Event Format each
	FormatJSON  = "json"  // one array of the lines as they are
	FormatJSONL = "jsonl" // the lines as they are
)

// Exporter writes lines in another format. Its Visit fits VerifyConfig.
type Exporter struct {
	Format  string
	Version string    // of the program, for CEF
	Since   time.Time // only lines from then on; zero: from the first
	Until   time.Time // only lines before then; zero: to the last
	Count   int       // lines that were written

	w   *bufio.Writer
	buf []byte
}

// NewExporter begins an export to w. The error is errs.ConfigInvalid, for a format that does not exist.
func NewExporter(w io.Writer, format string) (*Exporter, error) {
	if format != FormatCEF && format != FormatJSON && format != FormatJSONL {
		return nil, errs.New(errs.ConfigInvalid, "--format %q: allowed are cef, json and jsonl", format)
	}
	return &Exporter{Format: format, w: bufio.NewWriterSize(w, 64<<10)}, nil
}

// Visit writes one line, if it is in the time that was asked for.
func (e *Exporter) Visit(l *Line, line []byte) error {
	if !e.Since.IsZero() && l.at.Before(e.Since) || !e.Until.IsZero() && !l.at.Before(e.Until) {
		return nil
	}
	e.buf = e.buf[:0]
	switch {
	case e.Format == FormatCEF:
		e.buf = append(AppendCEF(e.buf, l, e.Version), '\n')
	case e.Format == FormatJSONL:
		e.buf = append(append(e.buf, line...), '\n')
	case e.Count == 0:
		e.buf = append(append(e.buf, "[\n"...), line...)
	default:
		e.buf = append(append(e.buf, ",\n"...), line...)
	}
	e.Count++
	_, err := e.w.Write(e.buf)
	return err
}

// Close ends what was begun and writes what is buffered. It does not close the writer.
func (e *Exporter) Close() error {
	if e.Format == FormatJSON {
		end := "\n]\n"
		if e.Count == 0 {
			end = "[]\n"
		}
		if _, err := e.w.WriteString(end); err != nil {
			return err
		}
	}
	return e.w.Flush()
}

// Read visits the lines of the sources without verifying them. What is no line is skipped and counted.
func Read(sources []Source, visit func(*Line, []byte) error) (skipped int, err error) {
	r := newReader(sources)
	defer r.close()
	for {
		c, err := r.next()
		if err != nil || c == nil {
			return skipped, err
		}
		if c.line == nil {
			skipped++
			continue
		}
		if err := visit(c.line, c.bytes); err != nil {
			return skipped, err
		}
	}
}
