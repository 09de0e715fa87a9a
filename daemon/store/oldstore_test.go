package store

import (
	"bytes"
	"database/sql"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/queue"
	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux/wire"
)

// Stores of older schemas are kept as text, in testdata/schema-N.sql: the
// migrations as they were, and rows. What is x'…' in them is bytes. The one of
// a schema is made once, with its migration:
//
//	go test ./daemon/store -run TestOldStores -old-store
//
// and never again, after fillOldStore says something in each new table and column. Those that are
// missing are written together, of one store: each has the columns that its schema had.
var writeOldStore = flag.Bool("old-store", false, "write testdata/schema-N.sql of the schemas that have none")

// literal is a value in SQL for SQLite.
func literal(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case int64:
		return fmt.Sprint(v)
	case []byte:
		return "x'" + hex.EncodeToString(v) + "'"
	case string:
		return "'" + strings.ReplaceAll(v, "'", "''") + "'"
	}
	panic(fmt.Sprintf("a value of type %T", v))
}

// rowsOf are all rows of a table, of the given columns or all, in SQL.
func rowsOf(t *testing.T, db rowsReader, table string, columns ...string) (names []string, list [][]string) {
	t.Helper()
	what := "*"
	if len(columns) > 0 {
		what = strings.Join(columns, ", ")
	}
	rows, err := db.QueryContext(t.Context(), "SELECT "+what+" FROM "+table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if names, err = rows.Columns(); err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		values, into := make([]any, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		row := make([]string, len(names))
		for i, v := range values {
			row[i] = literal(v)
		}
		list = append(list, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, slices.Compare)
	return names, list
}

// dump is the text of an old store: list is the schema's, db has at least its columns.
func dump(t *testing.T, db *sql.DB, list []migration) string {
	var text strings.Builder
	fmt.Fprintf(&text, "-- A store of schema %d: the migrations as they were, and rows.\n\n%s;\n", schemaOf(list[len(list)-1].name), createMigrations)
	for _, m := range list {
		fmt.Fprintf(&text, "\n%s", m.text)
	}
	was, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		t.Fatal(err)
	}
	defer was.Close()
	was.SetMaxOpenConns(1)
	if err := makeTables(t.Context(), was, list); err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if _, err := was.Exec(recordMigration, m.name, m.sum, 1_763_000_000_000_000); err != nil {
			t.Fatal(err)
		}
	}
	tables, err := tablesOf(t.Context(), was)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		var from rowsReader = db
		if table == "migrations" {
			from = was
		}
		columns, _ := rowsOf(t, was, table)
		_, rows := rowsOf(t, from, table, columns...)
		for _, row := range rows {
			fmt.Fprintf(&text, "INSERT INTO %s (%s) VALUES (%s);\n", table, strings.Join(columns, ", "), strings.Join(row, ", "))
		}
	}
	return text.String()
}

var bytesLiteral = regexp.MustCompile(`\bx'([0-9a-f]*)'`)

// load makes the store of a text at dsn and returns a connection to it.
func load(t *testing.T, dsn, text string) *sql.DB {
	t.Helper()
	e, err := newEngine(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := e.(*postgres); ok {
		text = bytesLiteral.ReplaceAllString(text, `'\x$1'`)
	}
	writer, reader, err := e.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	if _, err := writer.Exec(text); err != nil {
		t.Fatal(err)
	}
	return writer
}

// schemaText is every column and index of a store.
func schemaText(t *testing.T, s *Store) []string {
	t.Helper()
	q := `SELECT m.name || ' ' || c.name || ' ' || c.type || ' ' || c."notnull" || ' ' || COALESCE(c.dflt_value, '-') || ' ' || c.pk
			FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'
		UNION ALL SELECT m.name || ' ' || m.tbl_name || ' ' || i.seqno || ' ' || COALESCE(i.name, '') || ' ' || i."desc" || ' ' || COALESCE(m.sql, '')
			FROM sqlite_master m, pragma_index_xinfo(m.name) i WHERE m.type = 'index' ORDER BY 1`
	if s.Shared() {
		q = `SELECT table_name || ' ' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || COALESCE(column_default, '-')
				FROM information_schema.columns WHERE table_schema = current_schema()
			UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1`
	}
	rows, err := s.reader.Query(q)
	if err != nil {
		t.Fatal(err)
	}
	list, err := texts(rows)
	if err != nil || len(list) < 100 {
		t.Fatal(list, err)
	}
	return list
}

// TestOldStores opens what every older schema left behind, on both engines:
// each value is still there, what waited and what ran goes on, and the schema is
// that of a new store.
func TestOldStores(t *testing.T) {
	list, err := readMigrations(migrations)
	if err != nil {
		t.Fatal(err)
	}
	if *writeOldStore {
		path := filepath.Join(t.TempDir(), "waypoint.db")
		fillOldStore(t, path)
		db := load(t, path, "")
		defer db.Close()
		for i := range list {
			name := filepath.Join("testdata", fmt.Sprintf("schema-%d.sql", i+1))
			if _, err := os.Stat(name); err == nil {
				continue
			}
			if err := os.WriteFile(name, []byte(dump(t, db, list[:i+1])), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, m := range list {
		name := fmt.Sprintf("schema-%d", schemaOf(m.name))
		text, err := os.ReadFile(filepath.Join("testdata", name+".sql"))
		if err != nil {
			t.Errorf("%v: each schema needs a store that the next ones are tried on; "+
				"write it with -old-store, once fillOldStore says something in what %s has added", err, m.name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			if testing.Short() && i >= 3 && i < len(list)-2 {
				t.Skip("the first and the last ones have every migration and every column")
			}
			onBoth(t, func(t *testing.T, dsn string) { oldStore(t, dsn, string(text)) })
		})
	}
}

func oldStore(t *testing.T, dsn, text string) {
	db := load(t, dsn, text)
	var version int
	if applied, err := readApplied(t.Context(), db); err != nil {
		t.Fatal(err)
	} else {
		version = newestOf(applied)
	}
	tables := map[string][][]string{}
	columns := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^INSERT INTO (\w+)`).FindAllStringSubmatch(text, -1) {
		if table := m[1]; tables[table] == nil {
			columns[table], tables[table] = rowsOf(t, db, table)
		}
	}
	newest, err := SchemaVersion()
	if err != nil {
		t.Fatal(err)
	}
	all := 17 // "again" is three of them
	for _, as := range oldJobs {
		if as.since > 0 && as.since <= version {
			all++
		}
	}
	if len(tables["jobs"]) != all || len(tables["runners"]) != 4 {
		t.Fatalf("%d jobs, %d runners", len(tables["jobs"]), len(tables["runners"]))
	}
	if version == newest && !strings.Contains(dsn, "://") {
		all, err := tablesOf(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range all {
			if len(tables[table]) == 0 {
				t.Errorf("there is nothing in %s", table)
			}
			for i, column := range columns[table] {
				if table == "log_chunks" && column == "start" { // it would take much output
					continue
				}
				if !slices.ContainsFunc(tables[table], func(row []string) bool { return !slices.Contains([]string{"''", "0", "x''"}, row[i]) }) {
					t.Errorf("nothing is said in %s of %s", column, table)
				}
			}
		}
	}
	db.Close()

	b := &bench{t: t, Store: open(t, dsn, Config{Software: "waypoint test"}), now: time.UnixMicro(1_763_100_000_000_000).UTC(), runners: []queue.Runner{{ID: "r1"}}}
	for table, was := range tables {
		_, now := rowsOf(t, b.reader, table, columns[table]...)
		if table == "migrations" {
			now = slices.DeleteFunc(now, func(row []string) bool {
				return !slices.ContainsFunc(was, func(w []string) bool { return slices.Equal(w, row) })
			})
		}
		if table == "settings" { // what a migration has added: TestTokensBeforeUsersAreRemembered
			now = slices.DeleteFunc(now, func(row []string) bool { return slices.Contains(row, "'"+claimedSetting+"'") })
		}
		if !reflect.DeepEqual(was, now) {
			t.Errorf("%s had\n%v\nand has\n%v", table, was, now)
		}
	}
	fresh := filepath.Join(t.TempDir(), "fresh.db")
	if b.Shared() {
		fresh = storetest.Database(t)
	}
	if was, now := schemaText(t, open(t, fresh, Config{})), schemaText(t, b.Store); !slices.Equal(was, now) {
		t.Errorf("a new store has\n%s\nthis one has\n%s", strings.Join(was, "\n"), strings.Join(now, "\n"))
	}
	if !b.Shared() && version < newest {
		kept := fmt.Sprintf("%s.before-schema-%d", dsn, newest)
		if err := CheckSnapshot(t.Context(), kept, oldID); err != nil {
			t.Errorf("what was kept: %v", err)
		}
		db, err := openFile(kept, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for table, was := range tables {
			if _, now := rowsOf(t, db, table); !reflect.DeepEqual(was, now) {
				t.Errorf("of %s is kept\n%v\nthere was\n%v", table, now, was)
			}
		}
	}

	ids := map[string]string{}
	for name, as := range oldJobs {
		if as.since > version {
			continue
		}
		jobs := b.jobsOf(name, as.state)
		if len(jobs) != 1 {
			t.Fatalf("there are %d jobs %q", len(jobs), name)
		}
		ids[name] = jobs[0]
		b.is(jobs[0], as.state, as.reason)
		if as.state == wire.Queued {
			b.blocked(jobs[0], as.blocked)
		}
	}
	for name, want := range map[string]string{"built": oldOutput, "running": oldOutput[:9]} {
		chunks, n, err := b.Log(t.Context(), ids[name], 1, 0, 1<<20)
		var got []byte
		for _, c := range chunks {
			got = append(got, c.Bytes...)
		}
		if err != nil || string(got) != want || n != int64(len(want)) {
			t.Errorf("the output of %s is %q (%d), %v", name, got, n, err)
		}
	}
	if recs := b.records(wire.RecordFilter{Kind: wire.RecordArtifact, Project: "shop"}); len(recs) != 1 || recs[0].Digest != "sha256:ab" || recs[0].Outputs["url"] != "https://example.org/?a='b'" {
		t.Errorf("%+v", recs)
	}
	if blob, err := b.BlobChunk(t.Context(), "sha256:ab", 0); err != nil || string(blob) != oldBlob {
		t.Errorf("%q, %v", blob, err)
	}
	if r, err := b.Runner(t.Context(), "r1"); err != nil || r.State != wire.Adopted || !r.Draining || r.Labels["os"] != "it's" || !bytes.Equal(r.Key, []byte{0, 0, 255}) {
		t.Errorf("%+v, %v", r, err)
	}
	if id, err := b.Setting(t.Context(), "server_id"); err != nil || id != oldID {
		t.Error(id, err)
	}
	if keys, err := b.TokenKeys(t.Context()); err != nil || version >= 2 && (len(keys) != 2 || !slices.ContainsFunc(keys, func(k token.Key) bool { return bytes.Equal(k.Private.Seed(), oldSeed) })) {
		t.Errorf("%d keys, %v", len(keys), err)
	}

	if version >= 4 {
		b.hasOldLate(ids)
	}
	b.hasOldServer(version >= 5)
	if version >= 6 {
		b.hasOldUsers(ids)
	}
	if active, err := b.Active(t.Context()); err != nil || len(active) != 3 || version >= 7 && active[0].Spool != "spool-1" {
		t.Errorf("%+v, %v", active, err)
	}
	if entries, _, err := b.AuditEntries(t.Context(), wire.AuditFilter{}); err != nil || version >= 8 && (len(entries) != 2 ||
		entries[0].Count != 7 || entries[0].Reason != "no token; it's said" || entries[1].Actor != oldUser || entries[1].Detail["project"] != "it's") {
		t.Errorf("%+v, %v", entries, err)
	}
	if proven, err := b.Proven(t.Context(), wire.UserKey(oldUser), []string{"sha256:ab", "sha256:cd"}); err != nil || proven["sha256:cd"] || proven["sha256:ab"] != (version >= 10) {
		t.Errorf("%v, %v", proven, err)
	}

	// What ran ends, what waited behind it comes, and a new job too.
	for _, name := range []string{"running", "deploying"} {
		b.succeed(ids[name])
	}
	b.requeue(ids["assigned"])
	for _, name := range []string{"waits for job", "deploys next", "ready", "assigned"} {
		b.blocked(ids[name], "")
	}
	id := b.one(run())
	done := map[string]bool{}
	for !done[id] {
		all := b.assign()
		if len(all) == 0 {
			t.Fatal("nothing is handed out any more")
		}
		for _, a := range all {
			b.ack(a.Job)
			b.succeed(a.Job)
			done[a.Job] = true
		}
	}
	for _, name := range []string{"waits for job", "deploys next", "assigned"} {
		if !done[ids[name]] {
			t.Errorf("%q was not handed out", name)
		}
	}
}
