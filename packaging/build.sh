#!/bin/sh
# Builds waypoint_VERSION_ARCH.deb and waypoint-VERSION-1.ARCH.rpm for each of
# ARCHS (amd64 arm64) in DIST (dist). It takes Go and nothing of a
# distribution's, and the same sources give the same bytes, whoever builds
# where and when: SOURCE_DATE_EPOCH is the last commit's time unless it is set,
# and where git knows of none, that of CHANGELOG.md.
set -eu
umask 022
cd "$(dirname "$0")/.."

# The release that the binary says, unless another is asked for.
: "${VERSION:=$(sed -n 's/^var number = "\(.*\)"$/\1/p' cmd/waypoint/version.go)}"
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}"
: "${ARCHS:=amd64 arm64}"
: "${DIST:=dist}"
export VERSION SOURCE_DATE_EPOCH CGO_ENABLED=0 LC_ALL=C TZ=UTC0

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$DIST"

binary() {
	GOOS=linux GOARCH=$1 go build -trimpath -buildvcs=false \
		-ldflags "-s -w -buildid= -X main.number=$VERSION" -o "$stage/$1/waypoint" ./cmd/waypoint
}
for arch in $ARCHS; do binary "$arch"; done
host=$stage/$(go env GOHOSTARCH)/waypoint
[ -x "$host" ] || binary "$(go env GOHOSTARCH)"

# What is in each binary, as the binary itself says.
go build -modfile=packaging/tools.mod -tags sbom -trimpath -buildvcs=false -o "$stage/sbom" ./packaging/sbom
for arch in $ARCHS; do
	"$stage/sbom" "$stage/$arch/waypoint" packaging/copyright >"$stage/$arch/waypoint.cdx.json"
done

for shell in bash zsh fish; do
	"$host" completion "$shell" >"$stage/waypoint.$shell"
done
awk -v version="$VERSION" -v date="$(date -uRd "@$SOURCE_DATE_EPOCH")" -f packaging/changelog.awk CHANGELOG.md |
	gzip -9n >"$stage/changelog.gz"

# document SOURCE DESTINATION: a file that an rpm marks as documentation.
document() {
	printf '  - {src: "%s", dst: "%s", packager: deb, file_info: {mode: 0644}}\n' "$1" "$2"
	printf '  - {src: "%s", dst: "%s", packager: rpm, type: doc, file_info: {mode: 0644}}\n' "$1" "$2"
}
{
	sed "s|\${STAGE}|$stage|g" packaging/nfpm.yaml
	for page in man/*.[1-8]; do
		name=$(basename "$page")
		gzip -9n <"$page" >"$stage/$name.gz"
		document "$stage/$name.gz" "/usr/share/man/man${name##*.}/$name.gz"
	done
	for file in contrib/drop-ins/*; do
		document "$file" "/usr/share/doc/waypoint/examples/${file##*/}"
	done
	for file in contrib/example/*; do
		document "$file" "/usr/share/doc/waypoint/examples/project/${file##*/}"
	done
} >"$stage/nfpm.yaml"

for arch in $ARCHS; do
	for format in deb rpm; do
		ARCH=$arch go tool -modfile=packaging/tools.mod nfpm package -f "$stage/nfpm.yaml" -p "$format" -t "$DIST/" >/dev/null
	done
done
ls "$DIST"/*"$VERSION"*
