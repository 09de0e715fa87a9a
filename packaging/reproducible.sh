#!/bin/sh
# Builds the packages twice, in directories of different depth, with another
# umask, another time zone, another language, and compares them byte by byte.
set -eu
cd "$(dirname "$0")/.."
: "${SOURCE_DATE_EPOCH:=$(stat -c %Y CHANGELOG.md)}"
export SOURCE_DATE_EPOCH

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
one=$temp/one two=$temp/some/where/else/two
for copy in "$one" "$two"; do
	mkdir -p "$copy"
	tar -c --exclude=./.git --exclude=./bin --exclude=./dist . | tar -x -C "$copy"
done
(umask 002 && TZ=UTC LC_ALL=C DIST=$temp/1 "$one/packaging/build.sh")
find "$two" -exec touch -d "2 days ago" {} + # a checkout of another day
(umask 077 && TZ=Asia/Kathmandu LC_ALL=C.UTF-8 DIST=$temp/2 "$two/packaging/build.sh")

for package in "$temp"/1/*; do
	cmp "$package" "$temp/2/${package##*/}"
	echo "the same twice: ${package##*/}"
done
