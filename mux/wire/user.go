package wire

import (
	"slices"
	"strings"
	"time"
)

// UserRole is what a person may do. Each of them may do what those before it may.
type UserRole string

// The roles of people.
const (
	Viewer   UserRole = "viewer"   // sees jobs, their output, and runners
	Operator UserRole = "operator" // queues and ends jobs, and decides about runners
	Admin    UserRole = "admin"    // has people in, and whatever gives away the server itself
)

var userRoles = []UserRole{Viewer, Operator, Admin} // upwards

// AtLeast reports whether r may do what least may; nobody's role is "".
func (r UserRole) AtLeast(least UserRole) bool {
	return r != "" && slices.Index(userRoles, r) >= slices.Index(userRoles, least)
}

// CheckUserRole reports what is no role.
func CheckUserRole(r UserRole) error {
	if slices.Contains(userRoles, r) {
		return nil
	}
	return Errorf(BadUsage, "%q is no role", r).WithHint("a role is viewer, operator or admin")
}

// Limits are the projects and workspaces that somebody may have to do with;
// none named are all. A job without a project is in none.
type Limits struct {
	Projects   []string `json:"projects,omitempty"`
	Workspaces []string `json:"workspaces,omitempty"`
}

// None reports that there are no limits.
func (l Limits) None() bool { return len(l.Projects) == 0 && len(l.Workspaces) == 0 }

// Allow reports whether what is in a project and workspace is within the limits.
func (l Limits) Allow(project, workspace string) bool {
	return (len(l.Projects) == 0 || slices.Contains(l.Projects, project)) &&
		(len(l.Workspaces) == 0 || slices.Contains(l.Workspaces, workspace))
}

// String names them for people, "" where there are none.
func (l Limits) String() string {
	var parts []string
	for _, part := range []struct {
		what  string
		names []string
	}{{"project", l.Projects}, {"workspace", l.Workspaces}} {
		switch len(part.names) {
		case 0:
		case 1:
			parts = append(parts, part.what+" "+part.names[0])
		default:
			parts = append(parts, part.what+"s "+strings.Join(part.names, ", "))
		}
	}
	return strings.Join(parts, " and ")
}

// maxLimits bounds the projects, and the workspaces, that somebody is limited to.
const maxLimits = 100

// CheckLimits reports what cannot be limits.
func CheckLimits(l Limits) error {
	for what, names := range map[string][]string{"project": l.Projects, "workspace": l.Workspaces} {
		if len(names) > maxLimits {
			return Errorf(BadUsage, "%d %ss are more than the %d that somebody can be limited to", len(names), what, maxLimits)
		}
		for _, name := range names {
			if err := CheckID(name); err != nil {
				return Errorf(BadUsage, "%q is not the name of a %s", name, what)
			}
		}
	}
	return nil
}

// maxUserName is the length of the longest name of a user.
const maxUserName = 64

// CheckUserName reports what cannot be a user's name: it is shown in lines and
// typed in commands.
func CheckUserName(name string) error {
	bad := strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._@+-", r))
	})
	if name == "" || len(name) > maxUserName || bad || strings.ContainsRune(".@+-", rune(name[0])) {
		return Errorf(BadUsage, "%q is no name of a user", name).
			WithHint("use letters, digits, '.', '_', '@', '+' and '-', at most %d, and begin with a letter or digit", maxUserName)
	}
	return nil
}

// UserKey is what two users may not have the same of: their name, ignoring case.
func UserKey(name string) string { return strings.ToLower(name) }

// User is an account.
type User struct {
	Name string   `json:"name"` // unique, ignoring case
	Role UserRole `json:"role"`
	Limits
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
	LastUsed  time.Time `json:"last_used_at,omitzero"` // of its tokens, within a minute or so
	Tokens    int       `json:"tokens"`                // usable ones, invites too
}

// UserTokenInfo is a token of a user, or an invite; its text is known to its
// bearer alone.
type UserTokenInfo struct {
	ID        string    `json:"id"` // its serial
	Kind      TokenKind `json:"kind"`
	User      string    `json:"user"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by,omitempty"`
	Expiry    time.Time `json:"expires_at"`
	LastUsed  time.Time `json:"last_used_at,omitzero"` // within a minute or so; of an invite when it was exchanged
	Revoked   time.Time `json:"revoked_at,omitzero"`
	RevokedBy string    `json:"revoked_by,omitempty"`
}

// Usable reports whether a token is good for anything at a time.
func (t UserTokenInfo) Usable(now time.Time) bool {
	return t.Revoked.IsZero() && now.Before(t.Expiry) && (t.Kind != InviteToken || t.LastUsed.IsZero())
}

// SelfRequest has no fields.
type SelfRequest struct{}

// Self is who a caller is to the server, at this moment.
type Self struct {
	User string   `json:"user"`
	Role UserRole `json:"role"`
	Limits
	By      string    `json:"by"`                        // how the server knows: "token 17…", "uid 1000", "group waypoint"
	TokenID string    `json:"token_id,omitempty"`        // where a token was shown
	Expiry  time.Time `json:"token_expires_at,omitzero"` //
}

// UserTokenRequest asks for a token: one of the caller's own, or where User is
// set, of that user, which only admins may. With Role an admin makes the user
// if there is none of that name. ExpiresIn 0 is DefaultTokenLife, or the longest
// that the server allows.
type UserTokenRequest struct {
	ExpiresIn Duration `json:"expires_in,omitempty"`
	User      string   `json:"user,omitempty"`
	Role      UserRole `json:"role,omitempty"`
	Limits
}

// InviteRequest asks for an invite, which is exchanged for a token by user.accept,
// once. A user that does not exist is made, with Role, else as a viewer.
type InviteRequest struct {
	User      string   `json:"user"`
	Role      UserRole `json:"role,omitempty"`
	ExpiresIn Duration `json:"expires_in,omitempty"` // of the invite; 0 is DefaultInviteLife
	Limits
}

// DefaultInviteLife is how long an invite waits to be used.
const DefaultInviteLife = 72 * time.Hour

// AcceptRequest has no fields: the login shows the invite.
type AcceptRequest struct{}

// UserFilter selects one user, or all that the caller may see.
type UserFilter struct {
	User string `json:"user,omitempty"`
}

// UserPage is users, in the order of their names.
type UserPage struct {
	Users []User `json:"users"`
}

// UserTokenPage is tokens, the oldest first.
type UserTokenPage struct {
	Tokens []UserTokenInfo `json:"tokens"`
	More   bool            `json:"more,omitempty"` // cut short, as it would be too long for a message
}

// UserSetRequest changes what a user may do, from the next call on. A Role of ""
// and Limits of nil stay as they are.
type UserSetRequest struct {
	User   string   `json:"user"`
	Role   UserRole `json:"role,omitempty"`
	Limits *Limits  `json:"limits,omitempty"`
}

// UserRequest names a user.
type UserRequest struct {
	User string `json:"user"`
}

// RevokeRequest ends a token by its id, or all of a user.
type RevokeRequest struct {
	ID   string `json:"id,omitempty"`
	User string `json:"user,omitempty"`
}
