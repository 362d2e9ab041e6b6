"""The role postgres on this machine: a real container, in a home and under names of its own."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker_state
import psycopg2
import pytest
import yaml

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
ANSIBLE = Path(sys.executable).parent / "ansible-playbook"


def docker(*arguments: str) -> str:
    """What the Docker client prints."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def free_port() -> int:
    """A port on the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Result:
    """A run of the role: exit code, output as one line, changed and failed tasks."""

    code: int
    output: str
    changed: int
    changes: list[str]


@dataclass
class Role:
    """The role with the variables of one installation."""

    home: Path
    port: int
    name: str
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def passfile(self) -> Path:
        return self.home / ".pgpass"

    @property
    def superuser(self) -> Path:
        return self.home / "state" / "secrets" / "postgres-superuser"

    def run(
        self, entry: str = "main", *options: str, environment: dict[str, str] | None = None, **extra: Any
    ) -> Result:
        """Run an entry point with ansible-playbook, as a person does."""
        variables = {
            "pensieve_user_home": str(self.home),
            "pensieve_state_dir": str(self.home / "state"),
            "ansible_python_interpreter": sys.executable,
            "postgres_python": sys.executable,
            "postgres_container_name": self.name,
            "postgres_volume_name": f"{self.name}-data",
            "postgres_port": self.port,
            **self.variables,
            **extra,
        }
        book = self.home.parent / f"{entry}.yml"
        role = {"name": "postgres", "tasks_from": entry}
        book.write_text(
            yaml.safe_dump(
                [
                    {
                        "hosts": "localhost",
                        "connection": "local",
                        "gather_facts": False,
                        "vars": variables,
                        "tasks": [{"ansible.builtin.include_role": role}],
                    }
                ]
            )
        )
        done = subprocess.run(
            [str(ANSIBLE), "-i", "localhost,", *options, str(book)],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        recap = re.search(r"changed=(\d+)", output)
        changes = re.findall(
            r"^TASK \[postgres : ([^\]]*)\][^\n]*\n(?:(?!TASK)[^\n]*\n)*?changed: ", output, re.MULTILINE
        )
        return Result(done.returncode, re.sub(r"\s+", " ", output), int(recap[1]) if recap else -1, changes)

    def connect(
        self, user: str = "autotasktracker", database: str = "autotasktracker"
    ) -> psycopg2.extensions.connection:
        """A connection as the applications make it: without a password, which libpq finds."""
        passfile = self.superuser if user == "postgres" else self.passfile
        return psycopg2.connect(
            f"postgresql://{user}@127.0.0.1:{self.port}/{database}",
            passfile=str(passfile),
            connect_timeout=10,
            # No test falls into what the owner has made, either.
            options="-c search_path=pg_catalog" if user == "postgres" else "",
        )

    def query(
        self, sql: str, user: str = "autotasktracker", database: str = "autotasktracker"
    ) -> list[tuple[Any, ...]]:
        """Rows of one statement, committed."""
        connection = self.connect(user, database)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def inspect(self) -> dict[str, Any]:
        """What Docker tells everybody about the container."""
        found: dict[str, Any] = json.loads(docker("container", "inspect", self.name))[0]
        return found

    def exists(self) -> tuple[bool, bool]:
        """Whether there are a container, and a volume or network, of our name."""
        containers = docker("ps", "--all", "--format", "{{.Names}}").split()
        volumes = docker("volume", "ls", "--format", "{{.Name}}").split()
        networks = docker("network", "ls", "--format", "{{.Name}}").split()
        return self.name in containers, f"{self.name}-data" in volumes or self.name in networks


def make(folder: Path) -> Role:
    """An installation that nothing was done to."""
    home = folder / "home"
    home.mkdir()
    return Role(home, free_port(), f"test-postgres-{secrets.token_hex(4)}")


def remove(role: Role) -> None:
    """Take container and volume away, by the role itself."""
    gone = role.run("absent", postgres_absent_confirmed=role.name)
    assert gone.code == 0, gone.output
    assert role.exists() == (False, False)


FOREIGN = "# kept as it is\r\n*:*:*:*:for everything\nother:5432:db:me:pa\\:ss"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """A server that the role made; the user had a password file before."""
    role = make(tmp_path_factory.mktemp("server"))
    role.passfile.write_bytes(FOREIGN.encode())
    role.passfile.chmod(0o644)
    first = role.run()
    try:
        assert first.code == 0, first.output
        role.variables["first_output"] = first.output
        yield role
    finally:
        remove(role)


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[Role]:
    """A machine where the role has done nothing, and, as is checked afterwards, does nothing."""
    role = make(tmp_path)
    yield role
    assert list(role.home.iterdir()) == []
    assert role.exists() == (False, False)


def test_server_is_on_the_loopback_only(server: Role) -> None:
    bindings = server.inspect()["HostConfig"]["PortBindings"]
    assert bindings == {"5432/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(server.port)}]}
    assert server.query("SELECT 1") == [(1,)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; tells the address of this machine's own interface
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.fail("this machine has no other address to try")
    with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        socket.create_connection((own, server.port), timeout=3).close()


def test_database_is_as_pensieve_needs_it(server: Role) -> None:
    extensions = server.query(
        "SELECT extname, extversion, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace ORDER BY 1"
    )
    versions = {name: (version, schema) for name, version, schema in extensions}
    assert versions["pg_trgm"][1] == "public"
    assert versions["vector"][1] == "public"
    assert tuple(map(int, versions["vector"][0].split("."))) >= (0, 8, 0)
    assert server.query(
        "SELECT current_setting('server_version_num')::int / 10000, current_setting('TimeZone'),"
        " pg_encoding_to_char(encoding), datcollate, pg_get_userbyid(datdba)"
        " FROM pg_database WHERE datname = current_database()"
    ) == [(15, "UTC", "UTF8", "C.UTF-8", "autotasktracker")]
    # A setting of the database holds for clients of any server; the container's is only its default.
    settings = server.query("SELECT setconfig FROM pg_db_role_setting WHERE setrole = 0")
    assert sorted(value.lower() for (values,) in settings for value in values) == [
        "cpu_tuple_cost=0.04",
        "hnsw.ef_search=1000",
        "hnsw.iterative_scan=strict_order",
        "join_collapse_limit=4",
        "parallel_setup_cost=5000",
        "timezone=utc",
    ]


def test_owner_is_no_superuser_and_owns_what_it_makes(server: Role) -> None:
    assert server.query(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
        " FROM pg_roles WHERE rolname = current_user"
    ) == [(False,) * 5]
    server.query("CREATE TABLE public.made_by_owner (id int, text text, embedding vector(3))")
    server.query("CREATE INDEX ON made_by_owner USING hnsw (embedding vector_cosine_ops)")
    server.query("CREATE INDEX ON made_by_owner USING gin (text gin_trgm_ops)")
    server.query("INSERT INTO made_by_owner VALUES (1, '屏幕 screenshot', '[1,2,3]')")
    assert server.query("SELECT id FROM made_by_owner ORDER BY embedding <=> '[1,2,2]' LIMIT 1") == [(1,)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        server.query("SELECT pg_read_file('/etc/passwd')")


def test_a_wrong_or_missing_password_is_refused(server: Role, tmp_path: Path) -> None:
    for user in ("autotasktracker", "postgres"):
        for password in ("wrong", ""):
            with pytest.raises(psycopg2.OperationalError, match="password"):
                psycopg2.connect(
                    f"postgresql://{user}@127.0.0.1:{server.port}/autotasktracker",
                    password=password,
                    passfile=str(tmp_path / "none"),
                )


def test_parallel_hnsw_build_has_its_shared_memory(server: Role) -> None:
    quarter = int(docker("info", "--format", "{{.MemTotal}}")) / 4
    assert max(2**30, quarter - 2**30) <= server.inspect()["HostConfig"]["ShmSize"] <= max(2**30, quarter + 2**30)
    # 30,000 vectors of 128 dimensions, and workers that share more than Docker's 64 MB.
    server.query("CREATE TABLE vectors AS SELECT g AS id, array_agg(random())::real[]::vector(128) AS embedding"
                 " FROM generate_series(1, 8000) g, generate_series(1, 128) d GROUP BY g")  # fmt: skip
    server.query("ALTER TABLE vectors SET (parallel_workers = 2)")
    server.query(
        "SET maintenance_work_mem = '256MB'; SET max_parallel_maintenance_workers = 2;"
        " CREATE INDEX ON vectors USING hnsw (embedding vector_cosine_ops)"
    )
    assert server.query("SELECT indisvalid FROM pg_index WHERE indrelid = 'vectors'::regclass") == [(True,)]


def test_health_is_asked_over_tcp(server: Role) -> None:
    found = server.inspect()
    assert "--host=127.0.0.1" in found["Config"]["Healthcheck"]["Test"]
    assert found["State"]["Health"]["Status"] == "healthy"
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"


def test_settings_follow_the_machine(server: Role) -> None:
    memory = int(docker("info", "--format", "{{.MemTotal}}")) // 2**30
    values = dict(server.query("SELECT name, setting FROM pg_settings WHERE source = 'command line'"))
    assert int(values["shared_buffers"]) * 8 == min(max(memory, 1) * 128, 2048) * 1024
    assert int(values["maintenance_work_mem"]) == min(max(memory, 1) * 64, 512) * 1024
    assert (values["wal_compression"], values["random_page_cost"], values["jit"]) == ("lz4", "1.1", "off")


def passwords(role: Role) -> list[str]:
    """The passwords of owner and superuser."""
    found = [re.search(rf"^127\.0\.0\.1:{role.port}:[^:]*:[^:]*:(\w{{20,}})$", path.read_bytes().decode(), re.MULTILINE)
             for path in (role.passfile, role.superuser)]  # fmt: skip
    assert all(found)
    return [match[1] for match in found if match]


def test_secrets_stay_secret(server: Role) -> None:
    verbose = server.run("main", "--check", "--diff", "-vvv")
    assert (verbose.code, verbose.changed) == (0, 0), verbose.output
    everywhere = {
        "docker inspect": json.dumps(server.inspect()),
        "volume inspect": docker("volume", "inspect", f"{server.name}-data"),
        "docker logs": subprocess.run(
            ["docker", "logs", server.name], capture_output=True, text=True, check=True, errors="replace"
        ).stdout,
        "processes": docker("top", server.name, "-ef"),
        "first run": str(server.variables["first_output"]),
        "verbose run": verbose.output,
    }
    for password in passwords(server):
        for place, text in everywhere.items():
            assert password not in text, place
    assert not [value for value in server.inspect()["Config"]["Env"] if re.match(r"\w*PASSWORD=", value)]
    for path in (server.passfile, server.superuser):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert path.stat().st_uid == server.home.stat().st_uid, path
    assert stat.S_IMODE(server.superuser.parent.stat().st_mode) == 0o700
    readable = [
        path
        for path in server.home.rglob("*")
        if path.is_file()
        and path.stat().st_mode & 0o077
        and any(p.encode() in path.read_bytes() for p in passwords(server))
    ]
    assert readable == []


def test_other_entries_of_the_password_file_stay(server: Role) -> None:
    content = server.passfile.read_bytes()
    assert content.endswith(FOREIGN.encode())
    assert content.startswith(f"127.0.0.1:{server.port}:autotasktracker:autotasktracker:".encode())
    assert content.count(b"\n") == FOREIGN.count("\n") + 1


def test_second_run_changes_nothing(server: Role) -> None:
    before = (server.inspect()["Id"], server.inspect()["State"]["StartedAt"], server.passfile.read_bytes())
    again = server.run()
    assert (again.code, again.changed) == (0, 0), again.output
    assert before == (server.inspect()["Id"], server.inspect()["State"]["StartedAt"], server.passfile.read_bytes())


def test_changed_setting_keeps_the_data(server: Role) -> None:
    server.query("CREATE TABLE kept AS SELECT 42 AS answer")
    before = server.inspect()["Id"]
    predicted = server.run("main", "--check", postgres_settings={"work_mem": "24MB"})
    assert predicted.code == 0, predicted.output
    assert predicted.changed > 0
    assert server.inspect()["Id"] == before
    changed = server.run(postgres_settings={"work_mem": "24MB"})
    assert changed.code == 0, changed.output
    assert server.query("SHOW work_mem") == [("24MB",)]
    assert server.query("SELECT answer FROM kept") == [(42,)]
    server.variables["postgres_settings"] = {"work_mem": "24MB"}


def test_stopped_container_with_all_secrets_lost_comes_back(server: Role) -> None:
    server.query("CREATE TABLE kept_too AS SELECT 43 AS answer")
    old = passwords(server)
    docker("stop", server.name)
    server.superuser.unlink()
    server.passfile.unlink()
    mended = server.run()
    assert mended.code == 0, mended.output
    assert not set(passwords(server)) & set(old)
    assert not [password for password in passwords(server) if password in mended.output]
    assert server.query("SELECT current_user", user="postgres", database="postgres") == [("postgres",)]
    assert server.query("SELECT answer FROM kept_too") == [(43,)]


def test_removed_container_comes_back_with_its_data(server: Role) -> None:
    server.query("CREATE TABLE kept_again AS SELECT 44 AS answer")
    docker("rm", "--force", server.name)
    back = server.run()
    assert back.code == 0, back.output
    assert server.query("SELECT answer FROM kept_again") == [(44,)]


def test_check_mode_on_an_empty_machine(untouched: Role) -> None:
    # Neither the modules' Python nor, the second time, an engine.
    for environment in ({}, {"DOCKER_HOST": "unix:///nonexistent.sock"}):
        predicted = untouched.run("main", "--check", environment=environment, postgres_python="/nonexistent/python")
        assert predicted.code == 0, predicted.output
        assert predicted.changed > 0, "it must say that a real run changes something"
        assert f"makes the container {untouched.name}" in predicted.output


def refused(role: Role, entry: str, found: str, next_step: str, **extra: Any) -> None:
    """Require a refusal with the four parts of its text, before anything changed."""
    environment = extra.pop("environment", {})
    result = role.run(entry, environment=environment, **extra)
    assert result.code == 2, result.output
    assert result.changed == 0, result.changes
    assert re.search(
        rf"Found: .*?{found}.*?Expected: .*?Untouched: everything.*?Next: .*?{next_step}", result.output
    ), result.output


@pytest.mark.parametrize("entry", ["preflight", "main"])
def test_port_taken_by_another_program(untouched: Role, entry: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", untouched.port))
        other.listen()
        name = Path("/proc/self/comm").read_text().strip()
        holder = rf"port {untouched.port} is taken by {re.escape(name)} \(process {os.getpid()}\)"
        refused(untouched, entry, holder, f"postgres_port={untouched.port + 1}")


def test_port_taken_by_another_container(untouched: Role, server: Role) -> None:
    refused(
        untouched,
        "preflight",
        f"port {server.port} is taken by the container {server.name}",
        "postgres_port=",
        postgres_port=server.port,
    )


@pytest.mark.parametrize("entry", ["preflight", "main", "image"])
def test_no_docker_and_not_allowed_to_install(untouched: Role, entry: str) -> None:
    refused(
        untouched,
        entry,
        "no Docker engine answers",
        "-e postgres_install_docker=true",
        environment={"DOCKER_HOST": "unix:///nonexistent.sock"},
        postgres_install_docker=False,
    )


def test_no_docker_where_one_was_named(untouched: Role) -> None:
    refused(
        untouched,
        "preflight",
        r"no Docker engine answers \(.*nonexistent",
        "start that engine",
        postgres_docker_host="unix:///nonexistent.sock",
    )


def test_engine_of_the_clients_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Docker Desktop and rootless engines make one; modules go by its address.
    (tmp_path / "docker.sock").symlink_to("/var/run/docker.sock")
    address = f"unix://{tmp_path / 'docker.sock'}"
    asked = {"container": "none", "volume": "none", "network": "none", "images": [], "port": 1}
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert docker_state.observe(asked)["host"] == ""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    for arguments in (["create", "desktop", f"--docker=host={address}"], ["use", "desktop"]):
        subprocess.run(["docker", "context", *arguments], check=True, capture_output=True)
    told = docker_state.observe(asked)
    assert told["reachable"], told["error"]
    assert told["host"] == address


def test_client_that_its_engine_does_not_understand(untouched: Role) -> None:
    # With installing allowed: a second engine would be of no use.
    found = "client version 9.99 is too new"
    refused(untouched, "preflight", found, "DOCKER_API_VERSION", environment={"DOCKER_API_VERSION": "9.99"})


def test_no_docker_client_at_all(untouched: Role, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("env", "sh", "python3", "df"):
        (tools / tool).symlink_to(
            next(path for path in (Path("/usr/bin") / tool, Path("/bin") / tool) if path.exists())
        )
    refused(
        untouched,
        "preflight",
        "no Docker engine answers.*not found",
        "install_docker=true",
        environment={"PATH": str(tools)},
        postgres_install_docker=False,
    )


def test_registry_out_of_reach(untouched: Role) -> None:
    result = untouched.run(postgres_image_source="registry", postgres_image_registry="127.0.0.1:1/none:15")
    assert result.code == 2, result.output
    assert re.search(
        r"Found: 127\.0\.0\.1:1/none:15 cannot be pulled \(.*?Expected: .*?Untouched: .*?Next: .*?source=debian",
        result.output,
    ), result.output


@pytest.fixture
def tag() -> Iterator[str]:
    """A name for an image, which is removed afterwards."""
    name = f"test-postgres-{secrets.token_hex(4)}:15"
    yield name
    subprocess.run(["docker", "image", "rm", name], capture_output=True, check=False)


def test_archive_without_pgvector(untouched: Role, tag: str) -> None:
    result = untouched.run(
        "image", postgres_image_source="debian", postgres_image_debian=tag, postgres_pgvector_version="99.0.0"
    )
    assert result.code == 2, result.output
    assert re.search(
        r"Found: .*? failed: .*?no pgvector 99\.0\.0.*?Expected: .*?pgvector 99\.0\.0.*?Untouched: .*?Next: name",
        result.output,
    ), result.output
    leftovers = [path.name for folder in ("/tmp", "/var/tmp") for path in Path(folder).glob("*.postgres-*")]
    assert leftovers == []


@pytest.mark.slow
def test_auto_builds_the_image_where_no_registry_answers(untouched: Role, tag: str) -> None:
    names: dict[str, Any] = {"postgres_image_debian": tag, "postgres_image_registry": "127.0.0.1:1/none:15"}
    predicted = untouched.run("image", "--check", **names)
    assert (predicted.code, predicted.changed > 0) == (0, True), predicted.output
    assert tag not in docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    built = untouched.run("image", **names)
    assert built.code == 0, built.output
    again = untouched.run("image", **names)
    assert (again.code, again.changed) == (0, 0), again.output
    image = json.loads(docker("image", "inspect", tag))[0]
    assert image["Size"] < 500e6
    assert len(image["RootFS"]["Layers"]) == 1
    found = docker(
        "run", "--rm", "--network=none", tag, "sh", "-c", "id -u postgres; find /etc/apt -name '*build*'; ls /tmp"
    )
    assert found.split() == ["999"], "traces of the build"


def test_foreign_container_and_volume_of_our_name(tmp_path: Path, server: Role) -> None:
    role = make(tmp_path)
    image = server.inspect()["Config"]["Image"]
    docker("create", "--name", role.name, image)
    try:
        refused(
            role,
            "preflight",
            f"a container {role.name} .* was not made from here",
            "postgres_container_name=",
        )
        refused(role, "main", f"a container {role.name}", "postgres_container_name=")
        refused(role, "absent", f"a container {role.name}", "docker inspect", postgres_absent_confirmed=role.name)
        assert role.exists()[0], "a foreign container was removed"
    finally:
        docker("rm", "--volumes", role.name)
    docker("volume", "create", f"{role.name}-data")
    try:
        refused(
            role,
            "preflight",
            f"a volume {role.name}-data that was not made from here",
            "postgres_volume_name=",
        )
    finally:
        docker("volume", "rm", f"{role.name}-data")
    # Another user's installation, under the very same names.
    role.name = server.name
    refused(role, "preflight", f"belongs to {server.home}", "postgres_container_name=", postgres_port=server.port)
    assert list(role.home.iterdir()) == []


def test_no_room(untouched: Role) -> None:
    refused(untouched, "preflight", "free for .*docker", "free some space", postgres_required_bytes=10**18)


def test_removal_has_to_be_confirmed(server: Role) -> None:
    refused(server, "absent", "postgres_absent_confirmed is ''", f"postgres_absent_confirmed={server.name}")
    refused(
        server,
        "absent",
        "postgres_absent_confirmed is 'yes'",
        "postgres_absent_confirmed=",
        postgres_absent_confirmed="yes",
    )
    assert server.exists() == (True, True)
