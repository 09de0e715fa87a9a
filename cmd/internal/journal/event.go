package journal

import "strings"

// Event is a message that an administrator looks for or wants to be told of.
// Its id belongs to its text: who filters by it finds it in every release.
type Event struct {
	Text    string // the literal message of a log call
	ID      string // MESSAGE_ID: 128 random bits, made once
	Subject string // of the catalog's entry; @FIELD@ is that field's value
	Body    string // what has happened, and what to do
}

// byText finds the event of a message.
var byText = func() map[string]*Event {
	m := make(map[string]*Event, len(Events))
	for i := range Events {
		m[Events[i].Text] = &Events[i]
	}
	return m
}()

// Catalog is the file for /usr/lib/systemd/catalog.
func Catalog() string {
	var b strings.Builder
	b.WriteString("# Explanations of Waypoint's messages for journalctl --catalog.\n" +
		"# Made from the table in cmd/internal/journal.\n")
	for _, e := range Events {
		b.WriteString("\n-- " + e.ID + "\nSubject: " + e.Subject + "\nDefined-By: Waypoint\nDocumentation: man:waypoint(7)\n\n" +
			strings.TrimSpace(e.Body) + "\n")
	}
	return b.String()
}
