# CHANGELOG.md as Debian writes a changelog. What is "Unreleased" is the release
# that is being built: -v version=X.Y.Z -v date="Sun, 22 Nov 2026 00:00:00 +0000".
# A release's heading is "## X.Y.Z (YYYY-MM-DD)".

function item(   word, n, i, line) {
	n = split(text, word, " ")
	line = "  *"
	for (i = 1; i <= n; i++) {
		if (length(line) + 1 + length(word[i]) > 78) {
			print line
			line = "   "
		}
		line = line " " word[i]
	}
	if (n)
		print line
	text = ""
}

function section() {
	item()
	if (release)
		printf "\n -- %s  %s\n", maintainer, when
}

BEGIN { maintainer = "The Waypoint maintainers <waypointd@users.noreply.github.com>" }

/^## / {
	section()
	if (release)
		print ""
	release = $2
	when = date
	if (release == "Unreleased")
		release = version
	else if (match($0, /[0-9]+-[0-9]+-[0-9]+/)) {
		day = substr($0, RSTART, RLENGTH)
		gsub(/-/, " ", day)
		when = strftime("%a, %d %b %Y %H:%M:%S +0000", mktime(day " 00 00 00"))
	}
	printf "waypoint (%s) stable; urgency=medium\n\n", release
	next
}
!release { next }
/^$/     { item(); next }
/^- /    { item(); text = substr($0, 3); next }
         { text = text " " $0 }
END      { section() }
