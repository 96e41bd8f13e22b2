package admin

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"time"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/shared/telemetry"
)

// call is one request that is being answered.
type call struct {
	w      *recorder
	r      *http.Request
	route  *route
	id     string
	addr   netip.Addr
	caller caller
	start  time.Time
	status int  // to refuse with, instead of that of the error's code; 0: that
	acted  bool // a change was recorded as allowed
	err    error
}

// target is what the request is about, bounded.
func (c *call) target() string {
	return adminapi.Clip(c.r.Method) + " " + adminapi.Clip(c.r.URL.Path)
}

// serve answers one request: who it is, whether they may, then answer; and tells of it afterwards.
func (a *api) serve(w http.ResponseWriter, r *http.Request, to *route, answer func(*call) error) {
	var raw [8]byte
	rand.Read(raw[:]) // never fails
	c := &call{w: &recorder{ResponseWriter: w}, r: r, route: to, id: hex.EncodeToString(raw[:]), addr: clientAddr(r), start: time.Now()}
	adminapi.Guarded(w.Header())
	w.Header().Set("X-Request-Id", c.id)
	defer a.finish(c)
	if c.err = a.admit(c); c.err == nil {
		c.err = answer(c)
	}
	if c.err != nil {
		adminapi.RefuseAs(c.w, c.status, c.err)
	}
}

// admit finds out who asks and whether they may.
func (a *api) admit(c *call) (err error) {
	if c.route.role == Anyone {
		return nil
	}
	if err = a.limits.come(c.addr); err != nil {
		return err
	}
	if c.caller, err = a.authenticate(c.r, c.addr); err != nil {
		c.caller = caller{}
		return err
	}
	standing, err := a.limits.call(c.caller.name)
	if err != nil {
		return err
	}
	for _, h := range standing.Headers() {
		c.w.Header().Set(h[0], h[1])
	}
	if !c.caller.role.may(c.route.role) {
		return errs.New(errs.RoleForbidden, "%s is %s; %s is for the role %s", c.caller.name, c.caller.role, c.target(), c.route.role)
	}
	return nil
}

// finish tells of a request, in the log, in the audit log and in metrics. A panic costs the request, not the process.
func (a *api) finish(c *call) {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			panic(p)
		}
		a.cfg.Logger.Error("panic in an admin request", logging.FieldCode, errs.Panicked.String(), "panic", fmt.Sprint(p), logging.FieldStack, string(debug.Stack()))
		c.err = errs.New(errs.Internal, "internal error")
		if c.w.status == 0 {
			adminapi.Refuse(c.w, c.err)
		}
	}
	a.count(c)
	attrs := []any{"request", c.id, "actor", c.caller.name, "role", string(c.caller.role), "method", adminapi.Clip(c.r.Method), "path", adminapi.Clip(c.r.URL.Path),
		"status", c.w.code(), "duration_ms", float64(time.Since(c.start).Microseconds()) / 1000, logging.FieldPeer, c.addr.String()}
	level := slog.LevelDebug // pages ask all the time
	if c.route.changes {
		level = slog.LevelInfo
	}
	if c.err == nil {
		a.cfg.Logger.Log(c.r.Context(), level, "admin request", attrs...)
		return
	}
	attrs = append(attrs, logging.Error(c.err)...)
	if !refusal(c) {
		a.cfg.Logger.Log(c.r.Context(), level, "admin request failed", attrs...)
		return
	}
	yes, muted := a.limits.tell(c.addr)
	if yes || c.acted {
		a.cfg.Logger.Warn("admin request refused", append(attrs, "unrecorded_before", muted)...)
		a.recordRefusal(c, muted)
	}
}

// refusal says whether a request was not permitted, or would have changed something and did not.
func refusal(c *call) bool {
	switch errs.CodeOf(c.err) {
	case errs.AdminDenied, errs.RoleForbidden, errs.RequestLimit, errs.KeyUnreadable:
		return true
	}
	return c.route.changes
}

func (a *api) count(c *call) {
	if a.cfg.Registry == nil {
		return
	}
	role := c.caller.role
	if role == "" {
		role = Anyone
	}
	a.cfg.Registry.GetOrCreateCounter(telemetry.Name("fairlead_gateway_admin_requests_total", "role", string(role), "status", strconv.Itoa(c.w.code()))).Inc()
}

// recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets an http.ResponseController through: profiles set deadlines.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}
