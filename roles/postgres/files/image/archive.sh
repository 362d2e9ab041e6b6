#!/bin/sh
# Runs in the base system, with apt's configuration for the build in /etc/apt. Prints as JSON which versions are to be had now, and
# whether they are newer than those that an image was built of ('' where that is not known).
# Arguments: the mirror, the version of pgvector that is wanted, the SHA-256 of its source, and what the image has of postgresql-15 and
# of pgvector. Where the mirror does not have this source any more, pgvector's newest in the release of its index is taken.
set -eu
mirror=$1 wanted=$2 sha256=$3 had_postgresql=$4 had_pgvector=$5

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# newer THAN VERSION: true or false, as JSON has them.
newer() {
  if [ -n "$1" ] && dpkg --compare-versions "$2" gt "$1"; then echo true; else echo false; fi
}

source="$mirror/pool/main/p/pgvector/pgvector_$wanted.orig.tar.gz"
if [ -n "$sha256" ] && /usr/lib/apt/apt-helper download-file "$source" /tmp/pgvector.tar.gz "SHA256:$sha256" >&2; then
  pgvector=$wanted
else
  sha256=
  cp /etc/apt/build/pgvector.sources /etc/apt/sources.list.d/
fi
apt-get update --quiet=2 --error-on=any >&2
postgresql=$(apt-cache policy postgresql-15 | sed -n 's/^ *Candidate: *//p')
[ -n "$postgresql" ] || fail 'the archive has no postgresql-15'
package=
if [ -z "$sha256" ]; then
  for version in $(apt-cache showsrc --only-source pgvector | sed -n 's/^Version: *//p'); do
    if dpkg --compare-versions "$version" ge "${package:-$wanted}"; then
      package=$version
    fi
  done
  [ -n "$package" ] || fail "the archive has no pgvector $wanted, and none that is newer"
  pgvector=${package%-*}
fi
printf '{"postgresql": {"version": "%s", "newer": %s}, "pgvector": {"version": "%s", "newer": %s, "sha256": "%s", "package": "%s"}}\n' \
  "$postgresql" "$(newer "$had_postgresql" "$postgresql")" "$pgvector" "$(newer "$had_pgvector" "$pgvector")" "$sha256" "$package"
