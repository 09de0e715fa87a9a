#!/bin/sh
# Installs Waypoint on a host whose distribution has no package of it: program,
# units, users, directories, manual pages, completions, explanations for the
# journal, configuration. It is run as root from an unpacked tree in which
# "make build" was done, needs no network, and can be run again: that is an
# upgrade. Configuration that is there is never touched; where the new one
# differs it is put beside, as FILE.new.
set -eu
umask 022

usage() {
	cat <<'END'
Usage: contrib/install.sh [--prefix DIR] [--destdir DIR]
       contrib/install.sh --uninstall [--purge] [--prefix DIR]

  --prefix DIR   where program and pages go (default /usr/local); units go to
                 /usr/lib with /usr, else to /usr/local/lib, where systemd looks
  --destdir DIR  put the files below DIR ("" is the root) and do no more: no
                 users, no systemd; this is make install DESTDIR=DIR
  --uninstall    stop and remove all of it, but for configuration and state
  --purge        and those as well; the users stay, files of theirs may be elsewhere
END
}

say() { printf '%s\n' "$*"; }
fail() {
	printf 'install.sh: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
	exit 1
}

prefix=/usr/local destdir='' action=install purge=no live=yes
while [ $# -gt 0 ]; do
	case $1 in
	--prefix | --destdir)
		[ $# -ge 2 ] || { usage >&2; exit 2; }
		case $1 in --prefix) prefix=$2 ;; *) destdir=$2 live=no ;; esac
		shift
		;;
	--prefix=*) prefix=${1#*=} ;;
	--destdir=*) destdir=${1#*=} live=no ;;
	--uninstall) action=uninstall ;;
	--purge) purge=yes ;;
	-h | --help) usage; exit 0 ;;
	*) usage >&2; exit 2 ;;
	esac
	shift
done
case $prefix in /*) ;; *) fail "the prefix $prefix is no absolute path" ;; esac
case $purge$action in yesinstall) fail "--purge goes with --uninstall" ;; esac
case $action$live in uninstallno) fail "--destdir goes with an installation" ;; esac
prefix=${prefix%/} destdir=${destdir%/}
cd "$(dirname "$0")/.."

case $prefix in /usr) lib=/usr/lib ;; *) lib=/usr/local/lib ;; esac
share=$prefix/share
manifest=$share/waypoint/installed
sockets="waypoint-server.socket waypoint-server-runner.socket"
optional="waypoint-server-tcp.socket waypoint-server.service waypoint-runner.service"
booted=no
[ ! -d /run/systemd/system ] || booted=yes

# files lists all that is installed, a line each: mode, source, destination.
files() {
	say "0755 bin/waypoint $prefix/bin/waypoint"
	for f in packaging/units/*; do say "0644 $f $lib/systemd/system/${f##*/}"; done
	say "0644 packaging/90-waypoint.preset $lib/systemd/system-preset/90-waypoint.preset"
	say "0644 packaging/waypoint.catalog $lib/systemd/catalog/waypoint.catalog"
	say "0644 packaging/waypoint.sysusers $lib/sysusers.d/waypoint.conf"
	say "0644 packaging/waypoint.tmpfiles $lib/tmpfiles.d/waypoint.conf"
	for f in man/*.[1-8]; do say "0644 $f $share/man/man${f##*.}/${f##*/}"; done
	say "0644 completion:bash $share/bash-completion/completions/waypoint"
	say "0644 completion:zsh $share/zsh/site-functions/_waypoint"
	say "0644 completion:fish $share/fish/vendor_completions.d/waypoint.fish"
	for f in LICENSE packaging/copyright CHANGELOG.md; do say "0644 $f $share/doc/waypoint/${f##*/}"; done
	for f in contrib/drop-ins/*; do say "0644 $f $share/doc/waypoint/examples/${f##*/}"; done
	for f in contrib/example/*; do
		say "0644 $f $share/doc/waypoint/examples/project/${f##*/}"
	done
}

# put MODE SOURCE DESTINATION: whole or not at all, also over a program that runs.
put() {
	mkdir -p "$destdir$(dirname "$3")"
	case $2 in
	completion:*) ./bin/waypoint completion "${2#*:}" >"$destdir$3.tmp" ;;
	packaging/units/*) sed "s|/usr/bin/waypoint|$prefix/bin/waypoint|g" "$2" >"$destdir$3.tmp" ;;
	*) cp "$2" "$destdir$3.tmp" ;;
	esac
	chmod "$1" "$destdir$3.tmp"
	mv -f "$destdir$3.tmp" "$destdir$3"
}

# configure FILE: what an administrator may have written stays.
configure() {
	etc=$destdir/etc/waypoint/$1
	rm -f "$etc.new"
	if [ ! -e "$etc" ]; then
		(umask 027 && cp "packaging/etc/$1" "$etc")
	elif ! cmp -s "packaging/etc/$1" "$etc"; then
		(umask 077 && cp "packaging/etc/$1" "$etc.new")
		say "/etc/waypoint/$1 is as it was; the new one is beside it, as $1.new"
	fi
}

install_files() {
	[ -x bin/waypoint ] || fail "there is no bin/waypoint" "run make build first"
	new=$(files)
	mkdir -p "$destdir$share/waypoint" "$destdir/etc/waypoint"
	printf '%s\n' "$new" | while read -r mode source target; do put "$mode" "$source" "$target"; done
	configure server.toml
	configure runner.toml
	# What an older release had and this one has not.
	if [ "$live" = yes ] && [ -e "$manifest" ]; then
		while read -r old; do
			printf '%s\n' "$new" | grep -q " $old\$" || rm -f "$old"
		done <"$manifest"
	fi
	printf '%s\n' "$new" | sed 's/.* //' >"$destdir$manifest"
}

is_active() { systemctl --quiet is-active "$1"; }

start() {
	systemd-sysusers "$lib/sysusers.d/waypoint.conf"
	systemd-tmpfiles --create "$lib/tmpfiles.d/waypoint.conf"
	journalctl --update-catalog || say "the journal's catalog was not made anew"
	if [ "$booted" = no ]; then
		# shellcheck disable=SC2086 # a list
		systemctl enable $sockets || fail "the sockets were not enabled"
		say "systemd does not run here: the sockets are there after the next boot"
		return
	fi
	systemctl daemon-reload
	# shellcheck disable=SC2086 # a list
	systemctl enable --quiet $sockets
	# Sockets of a service that runs cannot be started, and have no need to be.
	# shellcheck disable=SC2086 # a list
	is_active waypoint-server.service || systemctl start $sockets
	# Those that run, but never waypoint-jobs.service: it is the parent of
	# running jobs, and renews itself once there is none.
	systemctl try-restart waypoint-server.service waypoint-runner.service 'waypoint-runner@*.service'
}

# foreign refuses where a package manager looks after these very files.
foreign() {
	if { command -v dpkg-query && dpkg-query -S /usr/bin/waypoint; } >/dev/null 2>&1 ||
		{ command -v rpm && rpm -qf /usr/bin/waypoint; } >/dev/null 2>&1; then
		fail "this host has a package of Waypoint" "upgrade or remove it with the host's own package manager"
	fi
}

uninstall() {
	[ -e "$manifest" ] || fail "nothing was installed below $prefix by this" "name the prefix that it was installed with: --prefix DIR"
	if [ "$booted" = yes ]; then
		# The runners go first: their jobs may finish, up to a limit, and each
		# end is reported as long as the server is there.
		systemctl stop waypoint-runner.service 'waypoint-runner@*.service' || true
		systemctl stop waypoint-jobs.service 'waypoint-jobs@*.service' || true
		# shellcheck disable=SC2086 # a list
		systemctl stop $sockets $optional || true
	fi
	# shellcheck disable=SC2086 # a list
	systemctl disable --quiet $sockets $optional || true
	rm -f /etc/systemd/system/multi-user.target.wants/waypoint-runner@*.service
	while read -r old; do rm -f "$old"; done <"$manifest"
	rm -f "$manifest" /etc/waypoint/server.toml.new /etc/waypoint/runner.toml.new
	rmdir "$share/waypoint" "$share/doc/waypoint/examples/project" "$share/doc/waypoint/examples" "$share/doc/waypoint" /run/waypoint 2>/dev/null || true
	journalctl --update-catalog || true
	[ "$booted" = no ] || systemctl daemon-reload
	if [ "$purge" = yes ]; then
		# Jobs may have left a mount behind: what is on it is not ours.
		rm -rf --one-file-system /var/lib/waypoint /var/lib/waypoint-runner /var/lib/waypoint-runner-* \
			/var/lib/waypoint-jobs /var/lib/waypoint-jobs-* /etc/waypoint
		say "Waypoint is removed, with its configuration and its state."
	else
		say "Waypoint is removed; its configuration (/etc/waypoint) and its state (/var/lib/waypoint*) are kept."
	fi
}

if [ "$live" = yes ]; then
	[ "$(id -u)" = 0 ] || fail "only root can do this" "run it with sudo, or with --destdir to look at the files"
	foreign
fi
case $action in
install)
	install_files
	[ "$live" = no ] || start
	[ "$live" = no ] || say "Waypoint is installed. Try: waypoint server status"
	;;
uninstall) uninstall ;;
esac
