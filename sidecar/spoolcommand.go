package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"fairlead/shared/errs"
	"fairlead/sidecar/spool"
)

// spoolPlace says where a spool is: its directory and keys, and the admin API of the sidecar that may run beside.
type spoolPlace struct {
	Dir         string
	KeyFile     string
	OldKeyFiles []string
	Admin       string // host:port; empty: no API
}

// spoolAPI is what can be asked of a spool, over the admin API of a sidecar that runs, or in the directory of one that does
// not.
type spoolAPI interface {
	List(ctx context.Context) (spool.Listing, error)
	Show(ctx context.Context, id spool.ID) (spool.Item, error)
	Retry(ctx context.Context, id spool.ID) error
	Drop(ctx context.Context, id spool.ID) error
	Close()
}

// spoolCommand makes the command `spool`. place reads the configuration.
func spoolCommand(place func() (spoolPlace, error)) *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{Use: "spool", Short: "Look at the connections that are kept on disk, and manage them", Args: cobra.NoArgs}
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	add := func(use, short string, args cobra.PositionalArgs, run func(ctx context.Context, out io.Writer, api spoolAPI, args []string) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			p, err := place()
			if err != nil {
				return err
			}
			api, err := openSpool(cmd.Context(), p)
			if err != nil {
				return err
			}
			defer api.Close()
			return run(cmd.Context(), cmd.OutOrStdout(), api, args)
		}}
		cmd.AddCommand(c)
		return c
	}
	oneOrAll := func(_ *cobra.Command, args []string) error {
		if all && len(args) == 0 || !all && len(args) == 1 {
			return nil
		}
		return errs.New(errs.ConfigInvalid, "allowed is either one ID or --all")
	}
	add("list", "List the connections, in the order in which they are delivered", cobra.NoArgs, func(ctx context.Context, out io.Writer, api spoolAPI, _ []string) error {
		return listSpool(ctx, out, api, asJSON)
	})
	add("show ID", "Read one connection, and say whether it is whole", oneID, func(ctx context.Context, out io.Writer, api spoolAPI, args []string) error {
		return showSpooled(ctx, out, api, args[0], asJSON)
	})
	retry := add("retry {ID|--all}", "Deliver a connection now; one in quarantine as far as it is valid", oneOrAll, func(ctx context.Context, out io.Writer, api spoolAPI, args []string) error {
		return eachSpooled(ctx, out, api, args, "will be tried", api.Retry)
	})
	drop := add("drop {ID|--all}", "Remove a connection without delivering it", oneOrAll, func(ctx context.Context, out io.Writer, api spoolAPI, args []string) error {
		return eachSpooled(ctx, out, api, args, "dropped", api.Drop)
	})
	for _, c := range []*cobra.Command{retry, drop} {
		c.Flags().BoolVar(&all, "all", false, "every connection, those in quarantine too")
	}
	return cmd
}

func oneID(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errs.New(errs.ConfigInvalid, "%d arguments; allowed is one, the ID of a connection", len(args))
	}
	return nil
}

func listSpool(ctx context.Context, out io.Writer, api spoolAPI, asJSON bool) error {
	l, err := api.List(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, l)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATE\tLISTENER\tROUTE\tPRIORITY\tAGE\tON DISK\tDELIVERED\tERROR")
	for _, it := range l.Connections {
		fmt.Fprintf(w, "%v\t%s\t%s\t%s\t%s\t%v\t%d\t%d\t%s\n", it.ID, it.State, it.Listener, it.Route, it.Priority, time.Since(it.Time).Round(time.Second), it.Bytes, it.Delivered, it.Error)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d connections and %d in quarantine, %d of %d bytes\n", l.Status.Connections, l.Status.Quarantined, l.Status.Bytes, l.Status.Size)
	return err
}

func showSpooled(ctx context.Context, out io.Writer, api spoolAPI, arg string, asJSON bool) error {
	id, err := spool.ParseID(arg)
	if err != nil {
		return err
	}
	it, err := api.Show(ctx, id)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, it)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range [][2]any{{"id", it.ID}, {"state", it.State}, {"listener", it.Listener}, {"route", it.Route}, {"priority", it.Priority}, {"peer", it.Peer},
		{"accepted", it.Time.Format(time.RFC3339)}, {"bytes on disk", it.Bytes}, {"delivered up to", it.Delivered}, {"encrypted", it.Encrypted},
		{"failed attempts", it.Attempts}, {"error", it.Error}} {
		fmt.Fprintf(w, "%v\t%v\n", row[0], row[1])
	}
	if c := it.Content; c != nil {
		fmt.Fprintf(w, "readable\tbytes %d to %d\nend\t%s\n", c.From, c.To, c.End)
		if c.Error != "" {
			fmt.Fprintf(w, "damage\t%s\n", c.Error)
		}
	}
	return w.Flush()
}

// eachSpooled does something with the connection that args name, or with all.
func eachSpooled(ctx context.Context, out io.Writer, api spoolAPI, args []string, done string, do func(context.Context, spool.ID) error) error {
	var ids []spool.ID
	if len(args) == 1 {
		id, err := spool.ParseID(args[0])
		if err != nil {
			return err
		}
		ids = []spool.ID{id}
	} else {
		l, err := api.List(ctx)
		if err != nil {
			return err
		}
		for _, it := range l.Connections {
			ids = append(ids, it.ID)
		}
	}
	var failed []error
	for _, id := range ids {
		err := do(ctx, id)
		if len(args) == 0 && errors.Is(err, errs.NotFound) {
			continue // delivered meanwhile
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintln(out, id, done)
	}
	return errors.Join(failed...)
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// openSpool asks the sidecar that runs; if none does, it opens the directory itself.
func openSpool(ctx context.Context, p spoolPlace) (spoolAPI, error) {
	if p.Dir == "" {
		return nil, errs.New(errs.ConfigInvalid, "spool.dir: not set, so there is no spool")
	}
	var asked error
	if p.Admin != "" {
		live := &liveSpool{base: "http://" + p.Admin + "/api/spool"}
		l, err := live.List(ctx)
		switch {
		case err == nil && sameDir(l.Status.Dir, p.Dir):
			return live, nil
		case err == nil:
			asked = errs.New(errs.BadRequest, "the sidecar at %s has its spool at %s", p.Admin, l.Status.Dir)
		case !errors.Is(err, syscall.ECONNREFUSED):
			asked = err
		}
		live.Close()
	}
	s, err := spool.Offline(p.Dir, p.KeyFile, p.OldKeyFiles)
	if err != nil && asked != nil {
		return nil, errors.Join(err, asked)
	}
	if err != nil {
		return nil, err
	}
	return deadSpool{s}, nil
}

func sameDir(a, b string) bool {
	x, err1 := filepath.Abs(a)
	y, err2 := filepath.Abs(b)
	return err1 == nil && err2 == nil && x == y
}

// deadSpool is the spool of a sidecar that does not run.
type deadSpool struct{ s *spool.Spool }

func (d deadSpool) List(context.Context) (spool.Listing, error) {
	return spool.Listing{Status: d.s.Status(), Connections: d.s.List()}, nil
}
func (d deadSpool) Show(_ context.Context, id spool.ID) (spool.Item, error) { return d.s.Show(id) }
func (d deadSpool) Retry(_ context.Context, id spool.ID) error              { return d.s.Retry(id) }
func (d deadSpool) Drop(_ context.Context, id spool.ID) error               { return d.s.Drop(id) }
func (d deadSpool) Close()                                                  { _ = d.s.Close(context.Background()) }

// liveSpool is the spool of a sidecar that runs, over its admin API.
type liveSpool struct {
	base   string
	client http.Client
}

// askTime bounds a question to the admin API; showing a connection reads all of it.
const askTime = time.Minute

// answerMost bounds what is read of an answer: a listing of ten thousand connections takes a few megabytes.
const answerMost = 64 << 20

func (l *liveSpool) List(ctx context.Context) (all spool.Listing, err error) {
	return all, l.ask(ctx, http.MethodGet, "", &all)
}

func (l *liveSpool) Show(ctx context.Context, id spool.ID) (it spool.Item, err error) {
	return it, l.ask(ctx, http.MethodGet, "/"+id.String(), &it)
}

func (l *liveSpool) Retry(ctx context.Context, id spool.ID) error {
	return l.ask(ctx, http.MethodPost, "/"+id.String()+"/retry", nil)
}

func (l *liveSpool) Drop(ctx context.Context, id spool.ID) error {
	return l.ask(ctx, http.MethodDelete, "/"+id.String(), nil)
}

func (l *liveSpool) Close() { l.client.CloseIdleConnections() }

func (l *liveSpool) ask(ctx context.Context, method, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, l.base+path, nil)
	if err != nil {
		return errs.Wrap(errs.ConfigInvalid, err, "admin.listen")
	}
	if l.client.Transport == nil {
		l.client.Transport = &http.Transport{DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext} // never through a proxy
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return errs.Wrap(errs.NotFound, err, "asking the sidecar")
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerMost))
	if err != nil {
		return errs.Wrap(errs.NotFound, err, "asking the sidecar")
	}
	if resp.StatusCode != http.StatusOK {
		var a errs.Answer
		_ = json.Unmarshal(body, &a) // what is no answer of a sidecar has no code
		if code, ok := errs.ParseCode(a.Code); ok {
			return errs.New(code, "%s", a.Message)
		}
		return errs.New(errs.NotFound, "%s answers with status %d, and is no sidecar with a spool", req.URL.Host, resp.StatusCode)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return errs.Wrap(errs.NotFound, err, "%s is no sidecar with a spool", req.URL.Host)
	}
	return nil
}
