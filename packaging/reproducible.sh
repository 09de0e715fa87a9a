#!/bin/sh
# Builds the packages twice, in directories of different depth, with another
# umask, another time zone, another language, and compares them byte by byte.
# Where a directory with packages of this tree is given, they are the first.
set -eu
cd "$(dirname "$0")/.."
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}"
export SOURCE_DATE_EPOCH

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
copy() {
	mkdir -p "$1"
	tar -c --exclude=./.git --exclude=./bin --exclude=./dist . | tar -x -C "$1"
}

first=${1:-}
if [ -z "$first" ]; then
	first=$temp/1
	copy "$temp/one"
	(umask 002 && TZ=UTC LC_ALL=C DIST=$first "$temp/one/packaging/build.sh")
fi
second=$temp/2 two=$temp/some/where/else/two
copy "$two"
find "$two" -exec touch -d "2 days ago" {} + # a checkout of another day
(umask 077 && TZ=Asia/Kathmandu LC_ALL=C.UTF-8 DIST=$second "$two/packaging/build.sh")

for package in "$second"/*; do
	cmp "$first/${package##*/}" "$package"
	echo "the same twice: ${package##*/}"
done
