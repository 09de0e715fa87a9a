package main

import (
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/waypointd/waypoint/cmd/internal/argv"
	"github.com/waypointd/waypoint/mux/wire"
)

// globals are the flags of every command. A flag's environment twin is in the
// tag "from"; the flag wins.
type globals struct {
	ServerAddr           string `placeholder:"ADDR" help:"The server: unix:///path, tcp://host:port or host[:port] ($$WAYPOINT_SERVER_ADDR). Without one, the default context, else the system socket if it exists, else local mode."`
	ServerTLS            *bool  `name:"server-tls" negatable:"" from:"WAYPOINT_SERVER_TLS" help:"TLS on TCP, which is the default; without it on loopback addresses only."`
	ServerTLSCA          string `name:"server-tls-ca" placeholder:"FILE" from:"WAYPOINT_SERVER_TLS_CA" help:"Certificates in PEM that vouch for the server, in place of the system's."`
	ServerTLSFingerprint string `name:"server-tls-fingerprint" placeholder:"F" from:"WAYPOINT_SERVER_TLS_FINGERPRINT" help:"Trust the server with this fingerprint as well. Not needed with a token, which carries it."`
	ServerTLSSkipVerify  *bool  `name:"server-tls-skip-verify" from:"WAYPOINT_SERVER_TLS_SKIP_VERIFY" help:"Trust any certificate. Whoever answers can read the token."`
	Token                string `placeholder:"TOKEN" help:"Who asks ($$WAYPOINT_SERVER_TOKEN). The list of processes shows it to every user of this host until the program has begun: better use --token-file."`
	TokenFile            string `placeholder:"FILE" help:"A file with the token; - is standard input. This keeps it out of the list of processes."`
	Context              string `placeholder:"NAME" help:"The server and the token that are kept under this name ($$WAYPOINT_CONTEXT); see waypoint login and waypoint context."`
	NoServer             bool   `help:"Local mode: a server and a runner in this process, state in $$XDG_STATE_HOME/waypoint."`
	Project              string `short:"p" placeholder:"NAME" help:"The project."`
	App                  string `short:"a" placeholder:"NAME" help:"The app."`
	Workspace            string `short:"w" placeholder:"NAME" from:"WAYPOINT_WORKSPACE" help:"The workspace (default \"default\")."`
	JSON                 bool   `name:"json" help:"Answer with one JSON document."`
	Plain                bool   `from:"WAYPOINT_PLAIN" help:"No colour, nothing that moves; also with $$NO_COLOR."`
	Verbose              int    `short:"v" type:"counter" help:"Say more on stderr; twice for everything ($$WAYPOINT_LOG_LEVEL)."`
}

// workspace is the one that work is done in.
func (g *globals) workspace() string {
	if g.Workspace == "" {
		return "default"
	}
	return g.Workspace
}

// branch is a first word with all that can follow it.
type branch struct {
	name, help string
	node       any // what the parser fills
}

// branches are every command there is.
func branches() []branch {
	return []branch{
		{"server", "Run a server, and look after one.", new(struct {
			Run       serverRun       `cmd:"" help:"Run the server."`
			Status    serverStatus    `cmd:"" help:"What the server is and what it has to do."`
			Reload    serverReload    `cmd:"" help:"Have the server read its configuration again, and wait until it has."`
			Bootstrap serverBootstrap `cmd:"" help:"The first admin's token of a fresh server."`
			Snapshot  serverSnapshot  `cmd:"" help:"A copy of all that the server keeps, while it runs."`
			Restore   serverRestore   `cmd:"" help:"Put a snapshot in the place of a stopped server's store."`
			TokenKey  struct {
				Rotate tokenKeyRotate `cmd:"" help:"A new key signs tokens; the old one verifies until its tokens have expired."`
			} `cmd:"" help:"The keys that sign tokens."`
		})},
		{"runner", "Run a runner, and look after all of them.", new(struct {
			Agent      runnerAgent      `cmd:"" help:"Run the runner."`
			List       runnerList       `cmd:"" help:"The runners, in the order of their ids."`
			Inspect    runnerInspect    `cmd:"" help:"Everything known of a runner."`
			Adopt      runnerAdopt      `cmd:"" help:"Admit runners: jobs are given to them from then on."`
			Reject     runnerReject     `cmd:"" help:"Refuse runners: no further job is given to them."`
			Forget     runnerForget     `cmd:"" help:"Remove what is known of runners."`
			Token      runnerToken      `cmd:"" help:"Make a token that admits a runner beforehand."`
			Drain      runnerDrain      `cmd:"" help:"Give a runner no more jobs."`
			Resume     runnerResume     `cmd:"" help:"Give jobs to a runner again."`
			Status     runnerStatus     `cmd:"" help:"How the agent on this host fares, also without a server."`
			Supervisor runnerSupervisor `cmd:"" help:"Run the parent of a runner's jobs, which outlives the agent."`
		})},
		{"run", "Run one command as a job: waypoint run [flags] -- CMD [ARG...]", new(runCommand)},
		{"build", "Build the artifact of an app.", new(build)},
		{"deploy", "Deploy an artifact of an app.", new(deploy)},
		{"release", "Release a deployment of an app, or list the releases.", new(struct {
			Release release     `cmd:"" default:"withargs" hidden:"" help:"Release a deployment of an app. (waypoint release list: the releases.)"`
			List    releaseList `cmd:"" help:"The releases, newest first."`
		})},
		{"up", "Build, deploy and release.", new(up)},
		{"init", "Write waypoint.toml, or check the one that is there.", new(initProject)},
		{"status", "Show what is built, deployed and released.", new(projectStatus)},
		{"artifact", "List what builds have made.", new(struct {
			List artifactList `cmd:"" help:"The artifacts, newest first."`
		})},
		{"deployment", "List what has been deployed.", new(struct {
			List deploymentList `cmd:"" help:"The deployments, newest first."`
		})},
		{"job", "Look after jobs: list, stream, cancel and so on.", new(struct {
			List    jobList    `cmd:"" help:"The jobs, newest first."`
			Inspect jobInspect `cmd:"" help:"Everything known of a job."`
			Why     jobWhy     `cmd:"" help:"Why a job is where it is, in one sentence."`
			Stream  jobStream  `cmd:"" aliases:"get-stream,attach" help:"A job's output from the start, then live to the end."`
			Cancel  jobCancel  `cmd:"" help:"End a job: SIGTERM, and SIGKILL ten seconds later."`
			Wait    jobWait    `cmd:"" help:"Wait for the end of jobs; exit code of the first that failed."`
			Retry   jobRetry   `cmd:"" help:"Queue the same again as a new job, and print its id."`
		})},
		{"login", "Log in to a server and make it the default.", new(login)},
		{"context", "Keep several servers, and choose between them.", new(struct {
			Create  contextCreate  `cmd:"" help:"Keep a server under a name, without trying it."`
			List    contextList    `cmd:"" help:"The contexts, in the order of their names."`
			Use     contextUse     `cmd:"" help:"Make a context the default."`
			Inspect contextInspect `cmd:"" help:"Everything known of a context but its token."`
			Rename  contextRename  `cmd:"" help:"Give a context another name."`
			Delete  contextDelete  `cmd:"" help:"Delete contexts with their tokens."`
			Verify  contextVerify  `cmd:"" help:"Connect to a context's server and say who it is."`
		})},
		{"user", "Who may use the server, and what they may do.", new(struct {
			Token  userToken  `cmd:"" help:"Make a token of your own, to log in with."`
			Invite userInvite `cmd:"" help:"Invite somebody: an invite is good for one login."`
			List   userList   `cmd:"" help:"The users, or with --tokens what they log in with."`
			Set    userSet    `cmd:"" help:"Change what a user may do."`
			Revoke userRevoke `cmd:"" help:"End tokens and invites, and the connections made with them."`
			Delete userDelete `cmd:"" help:"End users, with all their tokens and connections."`
		})},
		{"audit", "Who did what, from where, when, and how it came out.", new(struct {
			List   auditList   `cmd:"" help:"The newest entries."`
			Export auditExport `cmd:"" help:"All entries as lines of JSON, the oldest first."`
		})},
		{"version", "Print the version of this program.", new(version)},
		{"completion", "Print a script with which a shell completes the words of a command line.", new(completionScript)},
	}
}

const description = `Waypoint runs jobs on Linux hosts.

Exit codes: 0 done, 1 the operation failed, 2 wrong usage, 3 not found, 4 denied,
5 no server reached, 6 conflict with the present state, 7 timed out, 130 interrupted or detached.
run, job stream and job wait exit with the command's own code (128+N for signal N), 124 when it timed out,
126 not executable, 127 not found, 125 when the job ended in another way.`

// helpShown unwinds the parser after --help.
type helpShown struct{}

// execute parses the words and runs the command they name.
func (a *app) execute(args []string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(helpShown); !ok {
				panic(r)
			}
			err = nil
		}
	}()
	parser, err := a.parser(args)
	if err != nil {
		return err
	}
	args = flagNames(parser.Model).Rewrite(args)
	_, words, found := argv.Split(args)
	a.words = words
	parsed, err := parser.Parse(args)
	if err != nil {
		return usageError(err, found)
	}
	if a.Workspace != "" && !validName(a.Workspace) {
		return wire.Errorf(wire.BadUsage, "parse arguments: %q is no name of a workspace", a.Workspace).
			WithHint(nameHint)
	}
	switch first, _, _ := strings.Cut(parsed.Command(), " "); first {
	case "job":
		a.findWith = "waypoint job list"
	case "runner":
		a.findWith = "waypoint runner list"
	case "context":
		a.findWith = "waypoint context list"
	case "user":
		a.findWith = "waypoint user list"
	}
	return parsed.Run(a)
}

// parser makes the parser for args. Where their first word says which command
// it is, only that branch is made: all of them take longer than most commands
// do.
func (a *app) parser(args []string) (*kong.Kong, error) {
	options := []kong.Option{
		kong.Name("waypoint"),
		kong.Description(description),
		kong.Writers(a.stdout, a.stderr),
		kong.Exit(func(int) { panic(helpShown{}) }),
		kong.Help(a.printHelp),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.ValueFormatter(func(v *kong.Value) string {
			help := kong.DefaultHelpValueFormatter(v)
			if v.Tag != nil && v.Tag.Has("from") {
				help = strings.TrimSuffix(help, ".") + " ($" + v.Tag.Get("from") + ")."
			}
			return help
		}),
		kong.Resolvers(kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, f *kong.Flag) (any, error) {
			if v := a.env.get(f.Tag.Get("from")); f.Tag.Has("from") && v != "" {
				return v, nil
			}
			return nil, nil
		})),
	}
	all := branches()
	if i := slices.IndexFunc(all, func(b branch) bool { return len(args) > 0 && b.name == args[0] }); i >= 0 {
		all = all[i : i+1]
	}
	for _, b := range all {
		options = append(options, kong.DynamicCommand(b.name, b.help, "", b.node))
	}
	parser, err := kong.New(a.globals, options...)
	if err != nil {
		return nil, err
	}
	parser.Model.HelpFlag.Help = "Say what a command does and which flags it has."
	for _, f := range parser.Model.Flags { // behind the command's own
		if f.Name != "help" {
			f.Group = &kong.Group{Key: "global", Title: everywhere}
		}
	}
	return parser, nil
}

// printHelp prints the help of the command at hand. `waypoint release` is a
// command and has one below it, which the parser knows as a group whose
// hidden default is called as the group is; people see one name.
func (a *app) printHelp(options kong.HelpOptions, ctx *kong.Context) error {
	if n := ctx.Selected(); n != nil && n.Path() == "release" {
		inner, err := kong.Trace(ctx.Kong, []string{"release", "release"})
		if err != nil {
			return err
		}
		ctx = inner
	}
	var text strings.Builder
	out := ctx.Stdout
	ctx.Stdout = &text
	err := kong.DefaultHelpPrinter(options, ctx)
	ctx.Stdout = out
	if err != nil {
		return err
	}
	shown := strings.ReplaceAll(text.String(), "release release", "release")
	shown = strings.Replace(shown, "waypoint run [<command> ...] [flags]", "waypoint run [flags] -- CMD [ARG...]", 1)
	page := "waypoint"
	if n := ctx.Selected(); n != nil {
		shown = namesOnly(shown, ctx.Model.Flags)
		page = strings.Join(append([]string{page}, commandWords(n.Path())...), "-")
	}
	_, err = io.WriteString(out, shown+"\nMore of it, with examples: man "+page+"\n")
	return err
}

// everywhere is the heading of the flags that every command has.
const everywhere = "Flags of every command:"

// namesOnly leaves of the flags of every command their names, since what they mean is
// longer than the help of most commands.
func namesOnly(help string, flags []*kong.Flag) string {
	before, rest, found := strings.Cut(help, "\n"+everywhere+"\n")
	if !found {
		return help
	}
	_, behind, _ := strings.Cut(rest, "\n\n")
	var text strings.Builder
	text.WriteString(before + "\n" + everywhere + "\n")
	line := ""
	for _, f := range flags {
		if f.Name == "help" {
			continue
		}
		name := "--" + f.Name
		if f.Tag.Negatable != "" {
			name = "--[no-]" + f.Name
		}
		if f.Short != 0 {
			name = "-" + string(f.Short) + ", " + name
		}
		if name = "  " + name; len(line)+len(name) > 80 {
			text.WriteString(line + "\n")
			line = ""
		}
		line += name
	}
	text.WriteString(line + "\n  What they mean: waypoint --help\n")
	if behind != "" {
		text.WriteString("\n" + behind)
	}
	return text.String()
}

// usageError makes one of ours of what the parser found; found tells of a "--"
// among the words.
func usageError(err error, found bool) error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	why := plainer(err.Error())
	command := "waypoint"
	if pe, ok := errors.AsType[*kong.ParseError](err); ok && pe.Context != nil {
		if path := pe.Context.Command(); path != "" {
			command = "waypoint " + strings.Join(commandWords(path), " ")
		}
		if n := pe.Context.Selected(); n == nil || len(n.Children) > 0 {
			why = strings.Replace(why, "unexpected argument", "unknown command", 1)
		}
	}
	e := wire.Errorf(wire.BadUsage, "parse arguments: %s", why)
	if command == "waypoint run" && !found {
		return e.WithHint("the command belongs behind a --: waypoint run [flags] -- CMD [ARG...]")
	}
	return e.WithHint("%s --help", command)
}

// How the parser says what people say in another way.
var (
	missingValue = regexp.MustCompile(`^(--?[^ :]+): .*but got "EOL".*`)
	notNumber    = regexp.MustCompile(`^(--?[^ :]+): expected a valid 64 bit int but got (.*)`)
	aboutToken   = regexp.MustCompile(`^(--?token): .* but got ".*`)
	looksLike    = regexp.MustCompile(`^(--?[^ :]+): expected .* value but got "(-.*)" \(short flag\); .*`)
	otherShort   = regexp.MustCompile(`^(unknown flag -[^-]), did you mean .*`)
)

func plainer(why string) string {
	why = missingValue.ReplaceAllString(why, "$1 needs a value")
	why = notNumber.ReplaceAllString(why, "$1: $2 is no number, or too large a one")
	// What was given may be a secret, if no token.
	why = aboutToken.ReplaceAllString(why, "$1: what follows looks like a flag: write $1=TOKEN, or better use --token-file")
	why = looksLike.ReplaceAllString(why, `$1: "$2" looks like a flag: write $1=$2`)
	return otherShort.ReplaceAllString(why, "$1")
}

// commandWords are the words of a command's path without its arguments.
func commandWords(path string) []string {
	var words []string
	for w := range strings.FieldsSeq(path) {
		if strings.ContainsAny(w[:1], "<[(") {
			break
		}
		words = append(words, w)
	}
	return slices.Compact(words) // "release release" is one word to people
}

// flagNames are all names of flags in the grammar.
func flagNames(m *kong.Application) argv.Flags {
	f := argv.Flags{Long: map[string]bool{}, Short: map[string]string{}}
	var visit func(n *kong.Node)
	visit = func(n *kong.Node) {
		for _, flag := range n.Flags {
			f.Long[flag.Name] = true
			if flag.Tag.Negatable != "" {
				f.Long["no-"+flag.Name] = true
			}
			if flag.Short != 0 {
				f.Short[string(flag.Short)] = flag.Name
			}
		}
		for _, child := range n.Children {
			visit(child)
		}
	}
	visit(m.Node)
	return f
}
