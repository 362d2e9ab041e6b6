"""Nobody gains a right by the server: attacks by its owner role, by other roles and containers, by readers of logs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import psycopg2
import pytest

from postgres.test_role import Result, Role, docker, make, passwords, remove

pytestmark = pytest.mark.docker

# What a superuser's session calls for the owner, if it lets the owner's objects win by name or by search_path.
TRAPS = """
    CREATE TABLE public.called (what text, caller text);
    CREATE FUNCTION public.trap(what text) RETURNS boolean LANGUAGE plpgsql AS $trap$
      BEGIN
        INSERT INTO public.called VALUES (what, current_user);
        IF current_user OPERATOR(pg_catalog.=) 'postgres' THEN
          ALTER ROLE autotasktracker SUPERUSER CREATEROLE;
        END IF;
        RETURN true;
      END $trap$;
    CREATE FUNCTION public.has_schema_privilege(text, text, text) RETURNS boolean LANGUAGE sql AS
      $trap$ SELECT public.trap('has_schema_privilege') $trap$;
    CREATE FUNCTION public.current_database() RETURNS name LANGUAGE sql AS
      $trap$ SELECT CASE WHEN public.trap('current_database') THEN pg_catalog.current_database() END $trap$;
    CREATE FUNCTION public.same(name, name) RETURNS boolean LANGUAGE sql AS
      $trap$ SELECT public.trap('=') AND $1 OPERATOR(pg_catalog.=) $2 $trap$;
    CREATE OPERATOR public.= (FUNCTION = public.same, LEFTARG = name, RIGHTARG = name);
    ALTER DATABASE autotasktracker SET search_path = public, pg_catalog
"""
SECRET = "whatTheScreenshotSaid"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """A server that the role made."""
    role = make(tmp_path_factory.mktemp("trust"))
    try:
        first = role.run()
        assert first.code == 0, first.output
        yield role
    finally:
        remove(role)


@pytest.fixture(scope="module")
def attacked(server: Role) -> Result:
    """A run after the owner has set traps, and has been given rights by hand; with all of Ansible's own output."""
    server.query(TRAPS)
    server.query(
        "ALTER ROLE autotasktracker SUPERUSER CREATEDB; GRANT pg_execute_server_program TO autotasktracker; "
        "CREATE ROLE maker CREATEDB; GRANT maker TO autotasktracker; "
        "GRANT ALTER SYSTEM ON PARAMETER archive_command TO autotasktracker",
        "postgres",
    )
    return server.run(environment={"ANSIBLE_DEBUG": "1"})


def test_no_superuser_calls_what_the_owner_made(server: Role, attacked: Result) -> None:
    assert attacked.code == 0, attacked.output[-3000:]
    rights = "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = 'autotasktracker'"
    assert server.query(rights, "postgres", "postgres") == [(False, False, False)]
    assert server.query("SELECT what FROM public.called WHERE caller <> 'autotasktracker'") == []


def test_rights_that_no_owner_needs_are_taken_away_and_told(server: Role, attacked: Result) -> None:
    assert (
        "had rights that no owner of a database needs: SUPERUSER, CREATEDB, member of maker, "
        "member of pg_execute_server_program, parameter archive_command" in attacked.output
    )
    assert server.query("SELECT has_parameter_privilege('archive_command', 'ALTER SYSTEM')") == [(False,)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        server.query("SET ROLE maker")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        server.query("COPY public.called FROM PROGRAM 'id'")


def test_status_names_the_same(server: Role, attacked: Result) -> None:
    server.query("ALTER ROLE autotasktracker CREATEDB; GRANT pg_read_server_files TO autotasktracker", "postgres")
    told = server.run("status", "-v")
    server.query("ALTER ROLE autotasktracker NOCREATEDB; REVOKE pg_read_server_files FROM autotasktracker", "postgres")
    assert "rights that no owner of a database needs: CREATEDB, member of pg_read_server_files. Next: " in told.output


def test_passwords_are_in_no_output_of_ansible(server: Role, attacked: Result) -> None:
    assert "starting run" in attacked.output, "ANSIBLE_DEBUG has no effect"
    assert [password for password in passwords(server) if password in attacked.output] == []


def test_container_has_no_rights_to_lose(server: Role) -> None:
    found = server.inspect()
    host = found["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"] or [], host["ReadonlyRootfs"]) == (["ALL"], [], True)
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["PidsLimit"] > 0
    assert 0 < host["Memory"] < int(docker("info", "--format", "{{.MemTotal}}"))
    assert host["ShmSize"] < host["Memory"]
    status = docker("exec", "--user=0", server.name, "cat", "/proc/1/status")
    values = {line.split(":")[0]: line.split(":")[1].split() for line in status.splitlines()}
    assert values["Uid"] == ["999"] * 4
    assert [int(values[name][0], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 4
    assert values["NoNewPrivs"] == ["1"]
    for path in ("/usr/bin/mine", "/var/lib/postgresql/mine"):
        refused = subprocess.run(["docker", "exec", server.name, "touch", path], capture_output=True, check=False)
        assert b"Read-only" in refused.stderr


@pytest.mark.parametrize("place", ["bridge", "another", "own"])
def test_another_container_does_not_reach_it(server: Role, place: str) -> None:
    networks = server.inspect()["NetworkSettings"]["Networks"]
    addresses = [network["IPAddress"] for network in networks.values()]
    assert len(addresses) == 1
    name = {"bridge": "bridge", "another": f"{server.name}-another", "own": next(iter(networks))}[place]
    if place == "another":
        docker("network", "create", name)
    try:
        found = subprocess.run(
            ["docker", "run", "--rm", f"--network={name}", "--entrypoint=pg_isready",
             server.inspect()["Config"]["Image"], f"--host={addresses[0]}", "--timeout=3"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "no response" in found.stdout, found.stdout + found.stderr
    finally:
        if place == "another":
            docker("network", "rm", name)


def test_only_the_owner_comes_in_and_to_its_own_database(server: Role) -> None:
    word = passwords(server)[0]
    server.query(f"CREATE ROLE stranger LOGIN PASSWORD '{word}'", "postgres", "postgres")
    for user, database in [
        ("stranger", "autotasktracker"),
        ("stranger", "postgres"),
        ("stranger", "template1"),
        ("autotasktracker", "postgres"),
        ("autotasktracker", "template1"),
    ]:
        with pytest.raises(psycopg2.OperationalError, match="no pg_hba.conf entry"):
            psycopg2.connect(f"postgresql://{user}@127.0.0.1:{server.port}/{database}", password=word)
    # Also where a line of pg_hba.conf would let it in.
    open_to = "SELECT datname FROM pg_database WHERE has_database_privilege('stranger', oid, 'CONNECT, TEMPORARY')"
    assert server.query(open_to, "postgres", "postgres") == []
    create = "SELECT has_schema_privilege('stranger', 'public', 'CREATE')"
    assert server.query(create, "postgres") == [(False,)]


def test_a_database_that_was_set_aside_stays_its_owners(server: Role) -> None:
    docker("exec", "--user=postgres", server.name, "createdb", "--owner=autotasktracker", "before")
    again = server.run()
    assert again.code == 0, again.output
    dsn = f"postgresql://autotasktracker@127.0.0.1:{server.port}/before"
    psycopg2.connect(dsn, password=passwords(server)[0]).close()
    assert server.run().changed == 0


def test_no_row_comes_into_the_servers_log(server: Role) -> None:
    server.query("CREATE TABLE rows (id int PRIMARY KEY, text varchar(40)); CREATE TYPE kind AS ENUM ('a')")
    server.query(f"INSERT INTO rows VALUES (1, '{SECRET}')")
    for statement in (
        f"INSERT INTO rows VALUES (1, '{SECRET}')",
        f"INSERT INTO rows VALUES (2, '{SECRET * 3}')",
        f"SELECT '{SECRET}'::int",
        f"SELECT '{SECRET}'::kind",
        f"SELECT 1 FROM rows WHERE {SECRET} = 1",
        f"SELECT 1 {SECRET} {SECRET} {SECRET}",
        f"SELECT '[\"{SECRET}'::json",
        f"DO $$ BEGIN RAISE WARNING '{SECRET}'; RAISE EXCEPTION '{SECRET}'; END $$",
        f"SELECT lo_import('/{SECRET}')",
    ):
        with pytest.raises(psycopg2.Error):
            server.query(statement)
    # The server names what a process did that somebody killed.
    connection = server.connect()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone() or (0,)
        kill = ["docker", "exec", "--detach", server.name, "bash", "-c", f"sleep 2; kill -9 {pid}"]
        subprocess.run(kill, check=True)
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute(f"SELECT pg_sleep(60), '{SECRET}'")
    connection.close()
    logs = subprocess.run(["docker", "logs", server.name], capture_output=True, text=True, check=True)
    assert "was terminated by signal 9" in logs.stdout + logs.stderr
    assert [line for line in (logs.stdout + logs.stderr).splitlines() if SECRET.lower() in line.lower()] == []
