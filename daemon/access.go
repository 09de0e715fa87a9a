package daemon

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Access is what a server's configuration says of who may do what. Users and
// groups are those of the server's host, by name or number; they are for who
// comes over a Unix socket without a token.
type Access struct {
	Users  map[string]wire.UserRole
	Groups map[string]wire.UserRole

	RunnerTokens wire.UserRole // the least role that may make tokens for runners; admin
	TokenLife    time.Duration // the longest life of a user's token; ten years
}

func (a *Access) withDefaults() error {
	for key, roles := range map[string]map[string]wire.UserRole{"access.users": a.Users, "access.groups": a.Groups} {
		for name, r := range roles {
			if err := wire.CheckUserRole(r); err != nil {
				return wire.Errorf(wire.BadUsage, "%s: %s: %v", key, name, err).WithHint("a role is viewer, operator or admin")
			}
		}
	}
	if a.RunnerTokens == "" {
		a.RunnerTokens = wire.Admin
	}
	if a.RunnerTokens != wire.Admin && a.RunnerTokens != wire.Operator {
		return wire.Errorf(wire.BadUsage, "access.runner_tokens: %q is neither admin nor operator", a.RunnerTokens)
	}
	if a.TokenLife == 0 {
		a.TokenLife = wire.MaxTokenLife
	}
	if a.TokenLife < wire.MinTokenLife || a.TokenLife > wire.MaxTokenLife {
		return wire.Errorf(wire.BadUsage, "access.token_life must be between %s and %s (ten years), not %s", wire.MinTokenLife, wire.MaxTokenLife, a.TokenLife)
	}
	return nil
}

// hostRoles are Access's users and groups by number, looked up once for each
// configuration, so that no call waits for a directory service.
type hostRoles struct {
	users, groups map[int]wire.UserRole
	names         map[int]string // of groups
	others        sync.Map       // of groups that are not in it, as they are asked for
}

// newHostRoles looks the names up. One that is not known is passed over, and
// told to unknown: who may not come in is better than who may.
func newHostRoles(a Access, unknown func(what, name string)) *hostRoles {
	h := &hostRoles{users: map[int]wire.UserRole{}, groups: map[int]wire.UserRole{}, names: map[int]string{}}
	for name, r := range a.Users {
		if id, ok := number(name, func() (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		}); ok {
			h.users[id] = higher(h.users[id], r)
		} else {
			unknown("user", name)
		}
	}
	for name, r := range a.Groups {
		if id, ok := number(name, func() (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		}); ok {
			h.groups[id], h.names[id] = higher(h.groups[id], r), name
		} else {
			unknown("group", name)
		}
	}
	return h
}

func number(name string, look func() (string, error)) (int, bool) {
	if found, err := look(); err == nil {
		name = found
	}
	id, err := strconv.Atoi(name)
	return id, err == nil && id >= 0
}

func higher(a, b wire.UserRole) wire.UserRole {
	if a.AtLeast(b) {
		return a
	}
	return b
}

// role is what a peer that the kernel vouches for may do, and by what; "" is
// nothing. operators is the group of the socket that it has come by, 0 for none.
func (h *hostRoles) role(p *mux.Peer, operators int) (r wire.UserRole, by string) {
	switch {
	case p.UID == 0 || p.UID == os.Geteuid():
		return wire.Admin, fmt.Sprintf("uid %d", p.UID)
	case p.UID < 0:
		return "", ""
	}
	if r = h.users[p.UID]; r != "" {
		by = fmt.Sprintf("uid %d", p.UID)
	}
	groups := append([]int{p.GID}, p.Groups...)
	for _, gid := range groups {
		if g := h.groups[gid]; g != "" && !r.AtLeast(g) {
			r, by = g, "group "+h.names[gid]
		}
	}
	if operators > 0 && slices.Contains(groups, operators) && !r.AtLeast(wire.Operator) {
		r, by = wire.Operator, "group "+h.groupName(operators)
	}
	return r, by
}

func (h *hostRoles) groupName(gid int) string {
	name, ok := h.others.Load(gid)
	if !ok {
		name, _ = h.others.LoadOrStore(gid, groupName(gid))
	}
	return name.(string)
}

func groupName(gid int) string {
	id := strconv.Itoa(gid)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// errNoRole refuses a user of the host who has no role, and says how he gets one.
func errNoRole(name string, operators int) error {
	if operators > 0 {
		group := groupName(operators)
		return wire.Errorf(wire.Denied, "%s is not in the group %s, whose members operate this server", name, group).
			WithHint("usermod -aG %s %s, then log in to the host anew; or log in with a token: waypoint login", group, name)
	}
	return wire.Errorf(wire.Denied, "%s has no role at this server", name).
		WithHint("an admin gives one: [access] in the server's configuration, or a token (waypoint user invite) to log in with")
}

// caller is who makes a call, with the rights as they are at that moment.
type caller struct {
	name   string        // the user's, or the runner's id
	who    string        // for logs: "user ada by token 17…", "uid 0", "runner r1"
	by     string        // how the server knows: "token 17…", "group waypoint"
	role   wire.UserRole // "" for runners and for who shows an invite
	limits wire.Limits
	login  *login // nil for remote runners
}

// call is a call of the API on its way.
type call struct {
	method string
	object string // what it is about: an id or a name, several with spaces between; "" where that cannot be said
	by     caller
	peer   *mux.Peer

	audited bool              // it is recorded, however it comes out
	verb    string            // of the audit, where that is not the method
	detail  map[string]string // for the audit: see note
	kept    bool              // what it has done is in the store, with its entry
	lost    bool              // it is done, and the store had no room for its entry
}

type callKey struct{}

// callOf is the call that a handler answers.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{} // of who may nothing
}

// about says, for concluded, what a call has been about.
func about(ctx context.Context, object string) { callOf(ctx).object = object }

// guard is the one way to a method: it finds out who calls and what of, lets
// nobody through who may not, and is told how it has come out.
func (s *Server) guard(m method) mux.Handler {
	return func(ctx context.Context, st *mux.Stream) error {
		c := &call{method: m.name, peer: st.Peer(), audited: m.audit}
		err := s.permit(ctx, m, c, st)
		if err != nil && c.object == "" {
			c.object = named(st)
		}
		if err == nil {
			err = m.call(context.WithValue(ctx, callKey{}, c), st)
		} else {
			pace(ctx, c, st, err)
		}
		if wire.KindOf(err) == wire.Internal && !s.store.Trusted() {
			err = s.unanswered(ctx, err) // who asks the next process is not told that this one is broken
		}
		s.concluded(c, err)
		return err
	}
}

// pace has a call that is refused to who may nothing of its kind wait for its turn:
// he is told so a few times a second. It holds little memory meanwhile.
func pace(ctx context.Context, c *call, st *mux.Stream, err error) {
	var turns *rate.Limiter
	switch d := c.peer.Data.(type) {
	case *visitor:
		turns = d.calls
	case *login: // an invite has no role
		if kind := wire.KindOf(err); c.by.role != "" && kind != wire.Unauthenticated && kind != wire.Expired {
			return
		}
		turns = d.calls
	default:
		return
	}
	st.Forget()
	if turns.Wait(ctx) != nil {
		<-ctx.Done() // it ends before its turn comes, and is answered no sooner for that
	}
}

// named is what a request names, where that is one thing.
func named(st *mux.Stream) string {
	var of struct {
		ID   string `json:"id"`
		User string `json:"user"`
	}
	if st.Body(&of) != nil {
		return ""
	}
	return of.ID + of.User
}

// permit fills in who calls, and lets through who may.
func (s *Server) permit(ctx context.Context, m method, c *call, st *mux.Stream) error {
	switch d := c.peer.Data.(type) {
	case *visitor:
		c.by = caller{name: d.id, who: "runner " + d.id, by: "runner key"}
		if m.who&runners == 0 {
			return wire.Errorf(wire.Denied, "%s is not for runners", m.name)
		}
		if d.login == nil {
			return nil
		}
		// What its login was good for, it may bring to an end.
		by, err := s.caller(ctx, d.login, s.now())
		if err != nil && !(wire.KindOf(err) == wire.Expired && s.fleet.mayReport(d.id)) {
			return s.noted(d.login, err)
		}
		if err := ownRunner.allows(by, s.cfg().Access); err != nil && !s.fleet.mayReport(d.id) {
			return err
		}
		c.by.limits, c.by.login = by.limits, d.login
		return nil
	case *login:
		if d.forRunners() {
			c.by.who = d.String()
			return errRunnerToken
		}
		by, err := s.caller(ctx, d, s.now())
		c.by = by
		if err != nil {
			return s.noted(d, err)
		}
		if err := m.allows(by, s.cfg().Access); err != nil {
			return err
		}
	default:
		return wire.Errorf(wire.Internal, "call %s: nobody knows whose it is", m.name)
	}
	return s.permitObject(ctx, m, c, st)
}

// permitObject finds out what a call is about, and hides jobs from those who
// have nothing to do with them.
func (s *Server) permitObject(ctx context.Context, m method, c *call, st *mux.Stream) error {
	if m.limits != byJob && m.limits != nowhere && m.limits != unlimited {
		return nil
	}
	var named struct {
		ID string `json:"id"`
	}
	if err := st.Body(&named); err != nil && m.limits == byJob {
		return err
	}
	if c.object = named.ID; m.limits != byJob || c.by.limits.None() {
		return nil
	}
	job, err := s.store.Job(ctx, named.ID)
	if err == nil && !c.by.limits.Allow(job.Project, job.Workspace) {
		err = wire.Errorf(wire.NotFound, "job %q not found", named.ID)
	}
	return err
}

// ownRunner stands for all that a command line's own runner asks for.
var ownRunner = method{name: "a runner of one's own", who: operators}

// noted has the session of a login that is over end soon.
func (s *Server) noted(l *login, err error) error {
	switch wire.KindOf(err) {
	case wire.Expired:
		if s.fleet.working(l) == nil {
			l.stale()
		}
	case wire.Unauthenticated:
		l.stale()
	}
	return err
}

// allows reports whether a person may call a method.
func (m method) allows(by caller, cfg Access) error {
	if by.login.claims.Kind == wire.InviteToken {
		if m.who&invited == 0 {
			return wire.Errorf(wire.Denied, "an invite is good for one thing: to log in with it").WithHint("waypoint login ADDR --token-file FILE")
		}
		return nil
	}
	least := m.least()
	if m.name == wire.MethodRunnerToken {
		least = cfg.RunnerTokens
	}
	if least == "" {
		return wire.Errorf(wire.Denied, "%s is not for people", m.name)
	}
	if !by.role.AtLeast(least) {
		e := wire.Errorf(wire.Denied, "%s is for the role %s, and %s is %s (by %s)", m.name, least, by.name, article(by.role), by.by)
		if by.login.shown() {
			return e.WithHint("an admin can change that: waypoint user set %s --role %s", by.name, least)
		}
		return e.WithHint("an admin can change that: [access] in the server's configuration; or log in with a token of an account that may")
	}
	if m.limits == unlimited && !by.limits.None() {
		return wire.Errorf(wire.Denied, "%s is for users without limits, and %s is limited to %s", m.name, by.name, by.limits).
			WithHint("ask one of them, or an admin to end the limits: waypoint user set %s --unlimited", by.name)
	}
	return nil
}

// article is a role as a noun.
func article(r wire.UserRole) string {
	if r == wire.Viewer {
		return "a viewer"
	}
	return "an " + string(r)
}

// least is the least role of people who may call a method, "" where none may.
func (m method) least() wire.UserRole {
	switch {
	case m.who&viewers != 0:
		return wire.Viewer
	case m.who&operators != 0:
		return wire.Operator
	case m.who&admins != 0:
		return wire.Admin
	}
	return ""
}

// mayQueueAll refuses jobs that are not for a caller to ask for. unfed are errors
// that hold, by the jobs' numbers, unless the job is queued already: see mayFeed. It
// is so of a dependency, too, that there is not.
func (s *Server) mayQueueAll(ctx context.Context, c *call, specs []wire.JobSpec) (unfed map[int]error, err error) {
	unfed = map[int]error{}
	for i := range specs {
		spec := &specs[i]
		if err := c.mayQueue(spec); err != nil {
			return nil, err
		}
		if err := s.mayTarget(ctx, c, spec.Target); err != nil {
			return nil, err
		}
		if c.by.limits.None() {
			continue
		}
		for _, id := range spec.DependsOn {
			if strings.HasPrefix(id, "#") {
				continue
			}
			// The same is said, and after the same, of one that does not exist.
			switch dep, err := s.store.Job(ctx, id); {
			case wire.KindOf(err) == wire.NotFound, err == nil && !c.by.limits.Allow(dep.Project, dep.Workspace):
				unfed[i] = cmp.Or(unfed[i], error(wire.Errorf(wire.NotFound, "there is no job %q to depend on", id)))
			case err != nil:
				return nil, err
			}
		}
		if err := s.mayFeed(ctx, c, spec); err != nil {
			unfed[i] = cmp.Or(unfed[i], err)
		}
	}
	return unfed, nil
}

// mayQueue refuses a job that is outside of a caller's limits.
func (c *call) mayQueue(spec *wire.JobSpec) error {
	l := c.by.limits
	workspace := spec.Workspace
	if workspace == "" {
		workspace = "default"
	}
	if l.Allow(spec.Project, workspace) {
		return nil
	}
	e := wire.Errorf(wire.Denied, "a job of project %q in workspace %q is not for %s, who is limited to %s", spec.Project, workspace, c.by.name, l)
	if spec.Project == "" {
		e = wire.Errorf(wire.Denied, "a job without a project is not for %s, who is limited to %s", c.by.name, l)
	}
	return e.WithHint("name one that is within the limits with --project and --workspace")
}

// mayTarget refuses a job for the runner of somebody else's command line: it runs
// as that user, wherever his command was started. One that is not here is waited
// for: it may be on its way.
func (s *Server) mayTarget(ctx context.Context, c *call, t wire.Target) error {
	if !strings.HasPrefix(t.ID, localPrefix) {
		return nil
	}
	deadline := time.NewTimer(beginWithin)
	defer deadline.Stop()
	elsewhere := time.NewTicker(beginWithin / 20) // of what another server has written
	defer elsewhere.Stop()
	for {
		owner, changed, err := s.ownerOf(ctx, t.ID)
		if err != nil {
			return err
		}
		if owner != "" {
			if c.by.login != nil && c.by.login.owner() == owner {
				return nil
			}
			return wire.Errorf(wire.Denied, "runner %q is of the command line of %s, and takes jobs from nobody else", t.ID, owner)
		}
		select {
		case <-changed:
		case <-elsewhere.C:
		case <-deadline.C:
			return wire.Errorf(wire.Unavailable, "runner %q, which is of a command line, is not connected", t.ID).
				WithHint("run the command again")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// maySupersede refuses a singleton that is in use where a caller has nothing to
// do with: his job would take the place of the one there.
func (c *call) maySupersede(tx *store.Tx, specs []wire.JobSpec) error {
	if c.by.limits.None() {
		return nil
	}
	for i := range specs {
		if specs[i].Singleton == "" {
			continue
		}
		within, err := tx.SingletonWithin(specs[i].Singleton, c.by.limits)
		if err != nil {
			return err
		}
		if !within {
			return wire.Errorf(wire.Denied, "singleton %q is in use by a job that is not for %s, who is limited to %s", specs[i].Singleton, c.by.name, c.by.limits).
				WithHint("choose another name for it")
		}
	}
	return nil
}

// maySee refuses an answer with jobs that are outside of a caller's limits: an
// idempotency key is known there.
func (c *call) maySee(jobs []wire.Job) error {
	for i := range jobs {
		if !c.by.limits.Allow(jobs[i].Project, jobs[i].Workspace) {
			return wire.Errorf(wire.Denied, "the idempotency key is in use by a job that is not for %s, who is limited to %s", c.by.name, c.by.limits).
				WithHint("choose another key")
		}
	}
	return nil
}

// outsideJob is what a job is called that is outside of a caller's limits.
const outsideJob = "a job outside of your limits"

// asSeen are jobs as the caller sees them, who may see them: what is outside of
// his limits is not named by them, neither as what one depends on nor as what
// has ended it. Those that are given stay as they are.
func (s *Server) asSeen(ctx context.Context, jobs ...wire.Job) ([]wire.Job, error) {
	l := callOf(ctx).by.limits
	if l.None() {
		return jobs, nil
	}
	var named []string
	for i := range jobs {
		named = append(named, jobs[i].DependsOn...)
		if id := queue.Blamed(&jobs[i]); id != "" {
			named = append(named, id)
		}
	}
	slices.Sort(named)
	outside, err := s.store.Outside(ctx, slices.Compact(named), l)
	if err != nil || len(outside) == 0 {
		return jobs, err
	}
	seen := slices.Clone(jobs)
	for i := range seen {
		j := &seen[i]
		if outside[queue.Blamed(j)] {
			j.Error = queue.Unnamed(j, outsideJob)
		}
		j.DependsOn = slices.DeleteFunc(slices.Clone(j.DependsOn), func(id string) bool { return outside[id] })
	}
	return seen, nil
}

// asSeenOne is asSeen of one job, behind the error of who has read it.
func (s *Server) asSeenOne(ctx context.Context, job wire.Job, err error) (wire.Job, error) {
	if err != nil {
		return job, err
	}
	seen, err := s.asSeen(ctx, job)
	if err != nil {
		return wire.Job{}, err
	}
	return seen[0], nil
}
