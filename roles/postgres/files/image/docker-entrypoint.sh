#!/usr/bin/env bash
# Starts PostgreSQL in a container, and makes its cluster at the first start.
# Of the official image's contract: POSTGRES_USER, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE, POSTGRES_DB,
# POSTGRES_INITDB_ARGS, PGDATA; uid and gid 999; arguments that begin with '-' go to the server.
set -euo pipefail

fail() {
  printf 'docker-entrypoint: %s\n' "$*" >&2
  exit 1
}

# The superuser's password, on standard output.
password() {
  if [[ -n "${POSTGRES_PASSWORD:-}" && -n "${POSTGRES_PASSWORD_FILE:-}" ]]; then
    fail 'POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are both set; expected one of them.'
  elif [[ -n "${POSTGRES_PASSWORD_FILE:-}" ]]; then
    cat -- "$POSTGRES_PASSWORD_FILE"
  else
    printf '%s' "${POSTGRES_PASSWORD:-}"
  fi
}

make_cluster() {
  local user="${POSTGRES_USER:-postgres}"
  local database="${POSTGRES_DB:-$user}"
  local secret
  secret="$(password)"
  [[ -n "$secret" ]] || fail 'No cluster yet, and no superuser password; expected POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD.'

  local -a arguments=()
  read -r -a arguments <<<"${POSTGRES_INITDB_ARGS:-}"
  initdb --pgdata="$PGDATA" --username="$user" --pwfile=<(printf '%s\n' "$secret") "${arguments[@]}"
  if ! grep -qE '^host[[:space:]]+all[[:space:]]+all[[:space:]]+all[[:space:]]' "$PGDATA/pg_hba.conf"; then
    printf '\n# Clients of the published port reach the server from outside 127.0.0.1.\nhost all all all scram-sha-256\n' \
      >>"$PGDATA/pg_hba.conf"
  fi

  if [[ "$database" != postgres ]]; then
    # Without TCP: a client that waits for the port must not take this short-lived server for the real one.
    pg_ctl --pgdata="$PGDATA" --options="-c listen_addresses=''" --wait start
    PGPASSWORD="$secret" createdb --username="$user" --maintenance-db=postgres -- "$database"
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
  fi
}

if [[ "${1:-}" == -* ]]; then
  set -- postgres "$@"
fi

if [[ "${1:-}" == postgres ]]; then
  if [[ "$(id -u)" == 0 ]]; then
    # A fresh volume belongs to root; the server refuses to run as root.
    mkdir -p "$PGDATA" /run/postgresql
    chown postgres:postgres /run/postgresql
    find "$PGDATA" \! -user postgres -exec chown postgres:postgres {} +
    chmod 0700 "$PGDATA"
    export HOME=/var/lib/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$BASH_SOURCE" "$@"
  fi
  if [[ ! -s "$PGDATA/PG_VERSION" ]]; then
    make_cluster
  fi
  unset POSTGRES_PASSWORD
fi

exec "$@"
