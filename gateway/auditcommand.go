package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fairlead/gateway/audit"
	"fairlead/shared/errs"
)

// auditCommand looks at audit logs. It needs no configuration, so that it works wherever a copy of a log is.
func auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Verify and export audit logs"}
	cmd.AddCommand(auditVerify(), auditExport())
	return cmd
}

// auditFlags say what a log is held against.
type auditFlags struct {
	keys  []string
	heads []string
}

func (f *auditFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.keys, "public-key", nil, "file of a public key that heads may be signed with, PEM or OpenSSH; may be repeated")
	cmd.Flags().StringArrayVar(&f.heads, "head", nil, "SEQ:HASH of a line that the log must contain, as kept elsewhere; may be repeated")
}

func (f *auditFlags) config() (audit.VerifyConfig, error) {
	var cfg audit.VerifyConfig
	for _, file := range f.keys {
		key, err := audit.LoadPublicKey(file)
		if err != nil {
			return cfg, err
		}
		cfg.Keys = append(cfg.Keys, ed25519.PublicKey(key))
	}
	for _, s := range f.heads {
		h, err := audit.ParseHead(s)
		if err != nil {
			return cfg, err
		}
		cfg.Heads = append(cfg.Heads, h)
	}
	return cfg, nil
}

func auditVerify() *cobra.Command {
	var flags auditFlags
	var maxUnsigned int
	cmd := &cobra.Command{Use: "verify [--public-key FILE] FILE|FOLDER|-…", Short: "Check that audit logs are as they were written", Args: auditPaths,
		Long: "Checks the chain, the numbers, the order of files and, with --public-key, the signatures of audit logs.\n" +
			"A log's file stands for all its files, a folder for the logs in it, - for a log on stdin.\n" +
			"Exit code 0: all verify. Otherwise the line that is wrong is named."}
	flags.register(cmd)
	cmd.Flags().IntVar(&maxUnsigned, "max-unsigned", 0, "refuse a log with more lines than this after its last signed head; 0: as many as the log itself promises")
	cmd.RunE = func(cmd *cobra.Command, paths []string) error {
		cfg, err := flags.config()
		if err != nil {
			return err
		}
		cfg.MaxUnsigned = maxUnsigned
		if maxUnsigned > 0 && len(cfg.Keys) == 0 {
			return errs.New(errs.ConfigInvalid, "--max-unsigned needs --public-key: without it no signature is checked")
		}
		logs, err := audit.Find(paths, cmd.InOrStdin())
		defer closeLogs(logs)
		if err != nil {
			return err
		}
		var failed error
		for _, l := range logs {
			cfg.Partial = l.Partial
			report, err := audit.Verify(cfg, l.Sources)
			describe(cmd.OutOrStdout(), l, report, err)
			failed = errors.Join(failed, err)
		}
		return failed
	}
	return cmd
}

func auditPaths(_ *cobra.Command, paths []string) error {
	if len(paths) == 0 {
		return errs.New(errs.ConfigInvalid, "name the audit log's file, its folder, or - for stdin")
	}
	return nil
}

func closeLogs(logs []*audit.Found) {
	for _, l := range logs {
		l.Close()
	}
}

// describe writes what was seen of a log.
func describe(w io.Writer, l *audit.Found, r *audit.Report, err error) {
	row := func(key, format string, args ...any) {
		fmt.Fprintf(w, "  %-9s %s\n", key, fmt.Sprintf(format, args...))
	}
	if err != nil {
		fmt.Fprintf(w, "%s: BROKEN\n", l.Name)
		var d *audit.Damage
		if errors.As(err, &d) {
			row("damage", "%s", d)
			row("read", "%d lines up to there", r.Records)
		}
		return
	}
	fmt.Fprintf(w, "%s: ok\n", l.Name)
	row("log", "%s", r.LogID)
	row("files", "%d", r.Files)
	row("lines", "%d, %d to %d", r.Records, r.FirstSeq, r.LastSeq)
	row("time", "%s to %s", r.First.Format(time.RFC3339), r.Last.Format(time.RFC3339))
	row("heads", "%s", heads(r))
	row("unsigned", "%d lines at the end", r.Tail)
	row("head", "%d:%s", r.LastSeq, r.LastHash)
	row("end", "%s", map[bool]string{true: "closed", false: "open: a gateway is writing it, was killed, or lines were cut off"}[r.Closed])
	for _, n := range notices(r) {
		row("note", "%s", n)
	}
}

func heads(r *audit.Report) string {
	if r.Unchecked > 0 {
		return fmt.Sprintf("%d signed, none verified: no --public-key", r.Unchecked)
	}
	return fmt.Sprintf("%d verified", r.Heads)
}

// notices is what a person should know of a log that verifies.
func notices(r *audit.Report) []string {
	var n []string
	if r.Partial {
		n = append(n, fmt.Sprintf("what comes before line %d was not looked at", r.FirstSeq))
	}
	if r.Dropped > 0 {
		n = append(n, fmt.Sprintf("lines up to %d were removed by rotation, which is recorded", r.Dropped))
	}
	if len(r.Unclean) > 0 {
		n = append(n, fmt.Sprintf("a gateway found the log not closed, at line %s: it was killed then, or lines before were cut off", join(r.Unclean)))
	}
	if r.Torn > 0 {
		n = append(n, fmt.Sprintf("%d lines were torn by a crash, and declared", r.Torn))
	}
	if r.Lost > 0 || r.Late > 0 {
		n = append(n, fmt.Sprintf("%d records were lost and %d written late, by the log's own account (audit_failure)", r.Lost, r.Late))
	}
	if r.SigningOff > 0 {
		n = append(n, fmt.Sprintf("from line %d on a gateway did not sign, although others had before", r.SigningOff))
	}
	return n
}

func join(seqs []uint64) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(seqs), " ", ", "), "[]")
}

func auditExport() *cobra.Command {
	var flags auditFlags
	var format, since, until string
	var unverified bool
	cmd := &cobra.Command{Use: "export --format cef|json|jsonl FILE|FOLDER|-…", Short: "Write audit logs in another format", Args: auditPaths,
		Long: "Writes the lines of audit logs to stdout, and verifies them on the way: a line is written once the next one\n" +
			"has confirmed it, and a log that is broken ends the export there. With --unverified nothing is checked."}
	flags.register(cmd)
	cmd.Flags().StringVar(&format, "format", audit.FormatJSON, "cef, json (one array) or jsonl (lines)")
	cmd.Flags().StringVar(&since, "since", "", "only lines from then on: RFC 3339, a date, or a duration before now (24h)")
	cmd.Flags().StringVar(&until, "until", "", "only lines before then")
	cmd.Flags().BoolVar(&unverified, "unverified", false, "also what does not verify; says so on stderr")
	cmd.RunE = func(cmd *cobra.Command, paths []string) error {
		cfg, err := flags.config()
		if err != nil {
			return err
		}
		out, err := audit.NewExporter(cmd.OutOrStdout(), format)
		if err != nil {
			return err
		}
		out.Version = version
		out.Since, err = parseTime("--since", since)
		if err == nil {
			out.Until, err = parseTime("--until", until)
		}
		if err != nil {
			return err
		}
		logs, err := audit.Find(paths, cmd.InOrStdin())
		defer closeLogs(logs)
		if err != nil {
			return err
		}
		for _, l := range logs {
			if err := export(cmd.ErrOrStderr(), cfg, out, l, unverified); err != nil {
				return errors.Join(err, out.Close())
			}
		}
		return out.Close()
	}
	return cmd
}

func export(stderr io.Writer, cfg audit.VerifyConfig, out *audit.Exporter, l *audit.Found, unverified bool) error {
	if unverified {
		skipped, err := audit.Read(l.Sources, out.Visit)
		fmt.Fprintf(stderr, "%s: NOT VERIFIED, %d lines that are none were left out\n", l.Name, skipped)
		return err
	}
	cfg.Partial, cfg.Visit = l.Partial, out.Visit
	report, err := audit.Verify(cfg, l.Sources)
	if err != nil {
		fmt.Fprintf(stderr, "%s: BROKEN, the export ends before the damage\n", l.Name)
		return err
	}
	fmt.Fprintf(stderr, "%s: verified, %d lines, %s\n", l.Name, report.Records, heads(report))
	for _, n := range notices(report) {
		fmt.Fprintf(stderr, "%s: %s\n", l.Name, n)
	}
	return nil
}

// parseTime reads a time as people write it; "" is the zero time.
func parseTime(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errs.New(errs.ConfigInvalid, "%s %q: allowed are RFC 3339 (2026-11-23T22:00:00Z), a date (2026-11-23) or a duration before now (24h)", flag, s)
}
