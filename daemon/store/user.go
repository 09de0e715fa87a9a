package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// UserRecord is the row of a user's name, who may have been deleted.
type UserRecord struct {
	Name      string
	Role      wire.UserRole
	Limits    wire.Limits
	UID       int       // of the host's user that made it for himself, else -1
	Since     int64     // tokens with a smaller serial are not this user's
	CreatedAt time.Time //
	CreatedBy string    //
	DeletedAt time.Time // zero: there is such a user
}

// UserTokenRecord is a user token or an invite that has been made.
type UserTokenRecord struct {
	Serial    int64
	Kind      wire.TokenKind
	User      string // as UserKey has it
	CreatedAt time.Time
	CreatedBy string
	Expiry    time.Time
	UsedAt    time.Time // the last time, within a minute or so; of an invite when it was exchanged
	RevokedAt time.Time
	RevokedBy string
}

// Info is the record as people see it.
func (r UserTokenRecord) Info() wire.UserTokenInfo {
	return wire.UserTokenInfo{
		ID: strconv.FormatInt(r.Serial, 10), Kind: r.Kind, User: r.User, CreatedAt: r.CreatedAt, CreatedBy: r.CreatedBy,
		Expiry: r.Expiry, LastUsed: r.UsedAt, Revoked: r.RevokedAt, RevokedBy: r.RevokedBy,
	}
}

const (
	userColumns = `name, role, projects, workspaces, uid, since, created_at, created_by, deleted_at`
	selectUser  = `SELECT ` + userColumns + ` FROM users WHERE name_key = $1`
	selectUsers = `SELECT ` + userColumns + ` FROM users WHERE deleted_at = 0 ORDER BY name_key`
	upsertUser  = `INSERT INTO users (name_key, ` + userColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
	ON CONFLICT (name_key) DO UPDATE SET name = excluded.name, role = excluded.role, projects = excluded.projects,
	workspaces = excluded.workspaces, uid = excluded.uid, since = excluded.since, created_at = excluded.created_at,
	created_by = excluded.created_by, deleted_at = excluded.deleted_at`
	countAdmins = `SELECT COUNT(*) FROM users WHERE role = 'admin' AND deleted_at = 0`

	userTokenColumns = `serial, kind, name_key, created_at, created_by, expires_at, used_at, revoked_at, revoked_by`
	selectUserToken  = `SELECT ` + userTokenColumns + ` FROM user_tokens WHERE serial = $1`
	selectUserTokens = `SELECT ` + userTokenColumns + ` FROM user_tokens`
	countUserTokens  = `SELECT COUNT(*) FROM user_tokens WHERE name_key = $1`
	insertUserToken  = `INSERT INTO user_tokens (` + userTokenColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`
	revokeUserToken  = `UPDATE user_tokens SET revoked_at = $1, revoked_by = $2 WHERE serial = $3 AND revoked_at = 0`
	useUserToken     = `UPDATE user_tokens SET used_at = $1 WHERE serial = $2 AND used_at < $1`
	pruneUserTokens  = `DELETE FROM user_tokens WHERE expires_at < $1`
)

// claimedSetting is the setting that has the last serial that was drawn before
// tokens of users had rows.
const claimedSetting = "claimed_serial"

func scanUser(rows *sql.Rows) (u UserRecord, err error) {
	var (
		projects, workspaces string
		created, deleted     int64
	)
	if err := rows.Scan(&u.Name, &u.Role, &projects, &workspaces, &u.UID, &u.Since, &created, &u.CreatedBy, &deleted); err != nil {
		return u, fmt.Errorf("read user: %w", err)
	}
	u.CreatedAt, u.DeletedAt = fromMicro(created), fromMicro(deleted)
	if err := errors.Join(fromJSON(projects, &u.Limits.Projects), fromJSON(workspaces, &u.Limits.Workspaces)); err != nil {
		return u, fmt.Errorf("read user %s: %w", u.Name, err)
	}
	return u, nil
}

func getUser(q querier, name string) (u UserRecord, found bool, err error) {
	err = each(q, selectUser, []any{wire.UserKey(name)}, func(rows *sql.Rows) (err error) {
		u, err = scanUser(rows)
		found = err == nil
		return err
	})
	return u, found, err
}

// User is the row of a name, whether or not the user has been deleted; found
// tells whether there is one. Nobody else changes users until the transaction ends.
func (tx *Tx) User(name string) (u UserRecord, found bool, err error) {
	if err := tx.lockRules(); err != nil {
		return u, false, err
	}
	return getUser(tx, name)
}

// PutUser keeps a user, in the place of the row of that name.
func (tx *Tx) PutUser(u UserRecord) error {
	if err := tx.lockRules(); err != nil {
		return err
	}
	if _, err := tx.exec(upsertUser, wire.UserKey(u.Name), u.Name, string(u.Role), toJSON(u.Limits.Projects, len(u.Limits.Projects)),
		toJSON(u.Limits.Workspaces, len(u.Limits.Workspaces)), u.UID, u.Since, micro(u.CreatedAt), u.CreatedBy, micro(u.DeletedAt)); err != nil {
		return fmt.Errorf("keep user %s: %w", u.Name, err)
	}
	if !u.DeletedAt.IsZero() { // who is called so next has sent nothing
		if _, err := tx.exec(deleteSender, wire.UserKey(u.Name)); err != nil {
			return fmt.Errorf("forget what user %s has sent: %w", u.Name, err)
		}
	}
	tx.Announce(NewsUsers)
	return nil
}

// Admins is how many users are admins.
func (tx *Tx) Admins() (n int, err error) {
	if err := tx.lockRules(); err != nil {
		return 0, err
	}
	if err := one(tx, countAdmins, nil, &n); err != nil {
		return 0, fmt.Errorf("count admins: %w", err)
	}
	return n, nil
}

// Users are those that have not been deleted, in the order of their names.
func (s *Store) Users(ctx context.Context) ([]UserRecord, error) {
	users := []UserRecord{}
	err := each(s.read(ctx), selectUsers, nil, func(rows *sql.Rows) error {
		u, err := scanUser(rows)
		users = append(users, u)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	return users, nil
}

func scanUserToken(rows *sql.Rows) (t UserTokenRecord, err error) {
	var created, expires, used, revoked int64
	if err := rows.Scan(&t.Serial, &t.Kind, &t.User, &created, &t.CreatedBy, &expires, &used, &revoked, &t.RevokedBy); err != nil {
		return t, fmt.Errorf("read token of user: %w", err)
	}
	t.CreatedAt, t.Expiry, t.UsedAt, t.RevokedAt = fromMicro(created), fromMicro(expires), fromMicro(used), fromMicro(revoked)
	return t, nil
}

// Bearer is what the store knows of a token that has this serial and claims to
// be a user's: NotFound where there is no such token.
func (s *Store) Bearer(ctx context.Context, serial int64, user string) (UserTokenRecord, UserRecord, error) {
	return bearer(s.read(ctx), serial, user)
}

// Bearer is Store.Bearer within the transaction; see User.
func (tx *Tx) Bearer(serial int64, user string) (UserTokenRecord, UserRecord, error) {
	if err := tx.lockRules(); err != nil {
		return UserTokenRecord{}, UserRecord{}, err
	}
	return bearer(tx, serial, user)
}

func bearer(q querier, serial int64, user string) (t UserTokenRecord, u UserRecord, err error) {
	found := false
	if err := each(q, selectUserToken, []any{serial}, func(rows *sql.Rows) (err error) {
		t, err = scanUserToken(rows)
		found = t.User == wire.UserKey(user)
		return err
	}); err != nil {
		return t, u, err
	}
	if !found {
		return t, u, wire.Errorf(wire.NotFound, "token %d of user %q not found", serial, user)
	}
	if u, found, err = getUser(q, user); err == nil && !found {
		err = wire.Errorf(wire.NotFound, "user %q not found", user)
	}
	return t, u, err
}

// ClaimedSerial is the last serial of the tokens that were made before the store
// had a row for each token of a user; 0: there are none.
func (tx *Tx) ClaimedSerial() (int64, error) {
	text, err := tx.Setting(claimedSetting)
	if err != nil || text == "" {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read serial of the last token without a row: %w", err)
	}
	return n, nil
}

// AddUserToken keeps that a token has been made.
func (tx *Tx) AddUserToken(t UserTokenRecord) error {
	if _, err := tx.exec(insertUserToken, t.Serial, string(t.Kind), wire.UserKey(t.User), micro(t.CreatedAt), t.CreatedBy,
		micro(t.Expiry), micro(t.UsedAt), micro(t.RevokedAt), t.RevokedBy); err != nil {
		return fmt.Errorf("keep token %d of user %s: %w", t.Serial, t.User, err)
	}
	return nil
}

// UserTokens are the tokens of a user, or of all where user is "", the oldest first.
func (s *Store) UserTokens(ctx context.Context, user string) ([]UserTokenRecord, error) {
	return userTokens(s.read(ctx), user)
}

// UserTokens is Store.UserTokens within the transaction; see User.
func (tx *Tx) UserTokens(user string) ([]UserTokenRecord, error) {
	if err := tx.lockRules(); err != nil {
		return nil, err
	}
	return userTokens(tx, user)
}

func userTokens(q querier, user string) ([]UserTokenRecord, error) {
	tokens := []UserTokenRecord{}
	var w where
	w.addText("name_key = ", wire.UserKey(user))
	err := each(q, selectUserTokens+w.String()+` ORDER BY serial`, w.args, func(rows *sql.Rows) error {
		t, err := scanUserToken(rows)
		tokens = append(tokens, t)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list tokens of users: %w", err)
	}
	return tokens, nil
}

// CountUserTokens is how many tokens of a user there are, old ones included.
func (tx *Tx) CountUserTokens(user string) (n int, err error) {
	if err := one(tx, countUserTokens, []any{wire.UserKey(user)}, &n); err != nil {
		return 0, fmt.Errorf("count tokens of user %s: %w", user, err)
	}
	return n, nil
}

// UserToken is one token, or NotFound; see User.
func (tx *Tx) UserToken(serial int64) (t UserTokenRecord, err error) {
	if err := tx.lockRules(); err != nil {
		return t, err
	}
	found := false
	err = each(tx, selectUserToken, []any{serial}, func(rows *sql.Rows) (err error) {
		t, err = scanUserToken(rows)
		found = true
		return err
	})
	if err == nil && !found {
		err = wire.Errorf(wire.NotFound, "token %d not found", serial)
	}
	return t, err
}

// RevokeUserToken ends a token. One that has been revoked stays as it was.
func (tx *Tx) RevokeUserToken(serial int64, by string, now time.Time) error {
	if _, err := tx.exec(revokeUserToken, micro(now), by, serial); err != nil {
		return fmt.Errorf("revoke token %d: %w", serial, err)
	}
	tx.Announce(NewsUsers)
	return nil
}

// UseUserToken keeps when a token was used last.
func (tx *Tx) UseUserToken(serial int64, at time.Time) error {
	if _, err := tx.exec(useUserToken, micro(at), serial); err != nil {
		return fmt.Errorf("keep last use of token %d: %w", serial, err)
	}
	return nil
}

// PruneUserTokens forgets the tokens that expired before a time.
func (tx *Tx) PruneUserTokens(before time.Time) error {
	if _, err := tx.exec(pruneUserTokens, micro(before)); err != nil {
		return fmt.Errorf("remove old tokens of users: %w", err)
	}
	return nil
}
