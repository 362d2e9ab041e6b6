"""After migrate.yml: Pensieve runs on PostgreSQL with all that SQLite held, and no secret lies open."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://pensieve"]

QUERY = """
import json, sys, psycopg2
cursor = psycopg2.connect(sys.argv[2]).cursor()
cursor.execute(sys.argv[1])
print(json.dumps(cursor.fetchall(), default=str))
"""

SQLITE = """
import json, os, sqlite3, sys
path = os.path.expanduser("~/.memos/database.db")
connection = sqlite3.connect("file:%s?mode=ro" % path, uri=True)
print(json.dumps(connection.execute(sys.argv[1]).fetchall()))
"""

VECTORS = """
import json, os, sqlite3, struct, sys, psycopg2, sqlite_vec
path = os.path.expanduser("~/.memos/database.db")
source = sqlite3.connect("file:%s?mode=ro" % path, uri=True)
source.enable_load_extension(True)
sqlite_vec.load(source)
before = dict(source.execute("SELECT rowid, embedding FROM entities_vec_v2"))
target = psycopg2.connect(sys.argv[1]).cursor()
target.execute("SELECT rowid, embedding::text FROM entities_vec_v2")
after = {row: struct.pack("<768f", *json.loads(text)) for row, text in target.fetchall()}
wrong = sorted(row for row in before.keys() | after.keys() if before.get(row) != after.get(row))
print(json.dumps({"rows": len(before), "bytes": sum(map(len, before.values())), "wrong": wrong}))
"""

TABLES = (
    "libraries",
    "folders",
    "plugins",
    "library_plugins",
    "tags",
    "entities",
    "entity_tags",
    "metadata_entries",
    "entity_plugin_status",
)

LABELS = ("task_processor", "auto_processor", "ai", "vlm_processor")
"""`source_type` of AutoTaskTracker's rows in the sample."""


@pytest.fixture(scope="module")
def dsn(variables: dict[str, Any]) -> str:
    """URI of the database, without a password: libpq finds it in ~/.pgpass."""
    return f"postgresql://autotasktracker@127.0.0.1:{variables['postgres_port']}/autotasktracker"


@pytest.fixture(scope="module")
def query(inside: Callable[..., Any], dsn: str) -> Callable[[str], Any]:
    """Rows of a statement on PostgreSQL, as the owner."""
    return lambda statement: inside(QUERY, statement, dsn)


@pytest.fixture(scope="module")
def source(inside: Callable[..., Any]) -> Callable[[str], Any]:
    """Rows of a statement on the SQLite database, read only."""
    return lambda statement: inside(SQLITE, statement)


@pytest.fixture(scope="module")
def container(host: Host, variables: dict[str, Any]) -> dict[str, Any]:
    """What Docker says of the container."""
    done = host.run("docker inspect %s", variables["postgres_container_name"])
    assert done.rc == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


@pytest.fixture(scope="module")
def passwords(host: Host, variables: dict[str, Any]) -> list[str]:
    """The passwords that the migration generated: of the owner, and of the superuser."""
    home = variables["pensieve_user_home"]
    own = [
        line.rsplit(":", 1)[1]
        for line in host.file(f"{home}/.pgpass").content_string.splitlines()
        if str(variables["postgres_port"]) in line
    ]
    secrets = host.run("cat %s/.local/state/pensieve-postgres/secrets/*", home)
    assert secrets.rc == 0, secrets.stderr
    superuser = [word for line in secrets.stdout.splitlines() for word in [line.rsplit(":", 1)[-1]] if word]
    found = sorted({*own, *superuser})
    assert len(own) == 1
    assert len(found) >= 2
    assert all(len(password) >= 16 for password in found)
    return found


def test_the_port_is_bound_to_the_loopback_address_only(host: Host, variables: dict[str, Any]) -> None:
    listening = host.check_output(f"ss -Hltn 'sport = :{variables['postgres_port']}'").splitlines()
    assert [line.split()[3] for line in listening] == [f"127.0.0.1:{variables['postgres_port']}"]


def test_its_unit_keeps_it_running(unit: dict[str, str]) -> None:
    # One that was ended behind its back would have been restarted.
    assert (unit["ActiveState"], unit["NRestarts"]) == ("active", "0")
    assert unit["servers"] == unit["MainPID"]


def test_the_server_is_what_the_applications_need(query: Callable[[str], Any]) -> None:
    ((version, encoding, timezone, superuser),) = query(
        "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),"
        " current_setting('TimeZone'), (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
    )
    assert version // 10000 == 15
    assert encoding == "UTF8"
    assert timezone == "UTC"
    assert superuser is False


def test_the_extensions_are_in_schema_public(query: Callable[[str], Any]) -> None:
    found = {
        name: (schema, version)
        for name, schema, version in query(
            "SELECT extname, nspname, extversion FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace"
        )
    }
    assert found["pg_trgm"][0] == "public"
    schema, version = found["vector"]
    assert schema == "public"
    assert tuple(int(part) for part in version.split(".")) >= (0, 8)


def test_the_container_survives_a_reboot_and_is_watched(container: dict[str, Any]) -> None:
    assert container["HostConfig"]["RestartPolicy"]["Name"] in ("always", "unless-stopped")
    assert container["HostConfig"]["ShmSize"] >= 2**30
    assert [mount["Type"] for mount in container["Mounts"] if mount["Destination"].startswith("/var/lib/")] == [
        "volume"
    ]
    assert container["State"]["Health"]["Status"] == "healthy"


@pytest.mark.parametrize("table", TABLES)
def test_no_row_is_missing(table: str, query: Callable[[str], Any], source: Callable[[str], Any]) -> None:
    ((before,),) = source(f"SELECT count(*) FROM {table}")
    ((after,),) = query(f"SELECT count(*) FROM {table}")
    ((aside,),) = query(
        f"SELECT count(*) FROM data_copy.quarantine WHERE source_table = '{table}' AND source_column IS NULL"
    )
    assert after + aside == before
    if table == "entity_tags":
        assert aside > 0, "the sample has orphaned tags, which must be in the quarantine"


def test_entities_are_equal(query: Callable[[str], Any], source: Callable[[str], Any]) -> None:
    columns = "id, filepath, filename, size, file_type, file_type_group, library_id, folder_id"
    times = ("file_created_at", "file_last_modified_at", "created_at", "updated_at", "last_scan_at")
    before = source(
        f"SELECT {columns}, {', '.join(f'substr({time}, 1, 19)' for time in times)} FROM entities ORDER BY id"
    )
    after = query(
        f"SELECT {columns}, {', '.join(f'to_char({time}, $$YYYY-MM-DD HH24:MI:SS$$)' for time in times)}"
        " FROM entities ORDER BY id"
    )
    assert len(before) > 100
    assert after == before


def test_metadata_is_equal(query: Callable[[str], Any], source: Callable[[str], Any]) -> None:
    columns = "id, entity_id, key, value, source_type, source, data_type"
    before = source(f"SELECT {columns} FROM metadata_entries ORDER BY id")
    types = {"text": "TEXT_DATA", "json": "JSON_DATA", "float": "NUMBER_DATA"}
    expected = [
        [key_id, entity, key, value.replace("\0", "\u2400")]
        + (["PLUGIN_GENERATED", kind, types[data]] if kind in LABELS else [kind, origin, data])
        for key_id, entity, key, value, kind, origin, data in before
    ]
    after = query(f"SELECT {columns} FROM metadata_entries ORDER BY id")
    assert len(before) > 1000
    assert after == expected


def test_what_was_converted_is_kept_as_it_was(query: Callable[[str], Any], source: Callable[[str], Any]) -> None:
    ((nul,),) = query(
        "SELECT encode(original, 'hex') FROM data_copy.quarantine WHERE kind = 'nul_character'"
        " AND source_table = 'metadata_entries' AND source_column = 'value'"
    )
    assert bytes.fromhex(nul) == "before\0after \U0001f5a5".encode()
    ((labels,),) = source(
        f"SELECT count(*) FROM metadata_entries WHERE source_type IN {LABELS} AND data_type IS NOT NULL"
    )
    ((kept,),) = query(
        "SELECT count(*) FROM data_copy.quarantine WHERE kind = 'unknown_enum_label' AND source_column = 'source_type'"
    )
    assert kept == labels > 0


def test_vectors_are_equal_bit_for_bit(inside: Callable[..., Any], dsn: str) -> None:
    compared = inside(VECTORS, dsn)
    assert compared["wrong"] == []
    assert compared["rows"] > 100
    assert compared["bytes"] == compared["rows"] * 768 * 4


@pytest.mark.parametrize("word", ["invoice", "warehouse", "HNSW", "participants", "检索"])
def test_full_text_search_finds_what_is_written(
    word: str, api: Callable[..., Any], query: Callable[[str], Any]
) -> None:
    hits = api("GET", f"/search?q={word}&limit=5")["hits"]
    assert hits
    # Hits of later versions leave the recognised text out.
    best = int(hits[0]["document"]["id"])
    ((written,),) = query(f"SELECT lower(string_agg(value, ' ')) FROM metadata_entries WHERE entity_id = {best}")
    assert word.lower() in written


def test_vector_search_finds_what_no_word_search_can(api: Callable[..., Any], query: Callable[[str], Any]) -> None:
    # No record holds all of these words, so full text finds none, and what comes back is nearest by vector.
    words = "invoice purchase order delivery zebra"
    ((full_text,),) = query(
        "SELECT count(*) FROM entities_fts WHERE search_vector @@ plainto_tsquery('simple', 'invoice zebra')"
    )
    assert full_text == 0
    hits = api("GET", f"/search?q={words}&limit=3")["hits"]
    assert len(hits) == 3
    assert all("invoice" in json.dumps(hit["document"]).lower() for hit in hits)


def test_pensieve_reads_every_record(api: Callable[..., Any], query: Callable[[str], Any]) -> None:
    libraries = api("GET", "/libraries")
    assert {library["name"] for library in libraries} >= {"screenshots", "Projects 项目"}
    # On SQLite Pensieve answers 500 for these, because of AutoTaskTracker's labels.
    ((entity,),) = query("SELECT min(entity_id) FROM metadata_entries WHERE key = 'vlm_description'")
    assert "vlm_description" in {entry["key"] for entry in api("GET", f"/entities/{entity}")["metadata_entries"]}


def test_only_the_database_changes_in_the_settings(host: Host, variables: dict[str, Any], dsn: str) -> None:
    settings = host.file(f"{variables['pensieve_user_home']}/.memos/config.yaml")
    before = host.file("/srv/pensieve/before/config.yaml").content_string.split("\n")
    after = settings.content_string.split("\n")
    assert len(after) == len(before)
    changed = [(old, new) for old, new in zip(before, after) if old != new]
    assert len(changed) == 1
    old, new = changed[0]
    assert old == "database_path:   'database.db'  # SQLite, for now"
    assert new.startswith("database_path:")
    assert dsn in new
    assert new.endswith("# SQLite, for now")
    assert settings.mode == 0o640
    assert settings.user == "pensieve"


def test_the_consumer_reads_postgresql(consumer: Callable[[str], Any], source: Callable[[str], Any]) -> None:
    ((entities,),) = source("SELECT count(*) FROM entities")
    for way in ("", "--dashboard"):
        status = consumer(f"status {way}")
        assert status["type"] == "postgresql"
        assert status["entities"] == entities
        assert len(consumer(f"tasks {way}")["tasks"]) == 5


def test_settings_of_the_consumer_keep_what_stood_there(host: Host, variables: dict[str, Any]) -> None:
    settings = host.file(f"{variables['autotasktracker_dir']}/autotasktracker.env").content_string
    assert settings.startswith("# by hand\nAUTOTASK_DEBUG=false")


def test_the_password_file_is_private_and_keeps_other_entries(host: Host, variables: dict[str, Any]) -> None:
    file = host.file(f"{variables['pensieve_user_home']}/.pgpass")
    assert file.mode == 0o600
    assert file.user == "pensieve"
    assert "db.example.org:5432:*:ada:kept" in file.content_string.splitlines()


def test_no_password_in_docker(container: dict[str, Any], passwords: list[str]) -> None:
    said = json.dumps(container)
    assert not [password for password in passwords if password in said]


def test_no_password_in_what_ansible_said(ansible_output: str, passwords: list[str]) -> None:
    # The log is that of this run: it holds the very tasks that handle passwords.
    assert "TASK [postgres : secrets |" in ansible_output
    assert not [password for password in passwords if password in ansible_output]


def test_no_password_in_a_file_that_others_may_read(host: Host, passwords: list[str]) -> None:
    open_to_all = "find /srv/pensieve /tmp /var/tmp /etc -xdev -type f -perm -o=r -size -20M -print0"
    searched = host.run(f"{open_to_all} 2>/dev/null | tr '\\0' '\\n' | grep -c .")
    assert int(searched.stdout) > 100
    for password in passwords:
        found = host.run(f"{open_to_all} 2>/dev/null | xargs -0 grep -lF -e %s", password)
        assert found.stdout == "", f"a password stands in {found.stdout.split()}"


def test_no_password_in_what_pensieve_tells(
    api: Callable[..., Any], host: Host, variables: dict[str, Any], passwords: list[str]
) -> None:
    told = json.dumps(api("GET", "/config"))
    assert "postgresql://" in told
    processes = host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    logs = host.check_output("cat %s/.memos/logs/*", variables["pensieve_user_home"])
    for password in passwords:
        assert password not in told
        assert password not in processes
        assert password not in logs


def test_a_report_is_there(host: Host, variables: dict[str, Any]) -> None:
    reports = f"{variables['pensieve_user_home']}/.local/state/pensieve-postgres/reports"
    found = host.check_output("find %s -type f", reports).splitlines()
    assert {name.rsplit(".", 1)[-1] for name in found} >= {"html", "json"}
    assert host.file(f"{variables['pensieve_user_home']}/.local/state/pensieve-postgres").mode == 0o700


def test_new_records_get_new_ids_and_are_found(write_record: Callable[[], int], query: Callable[[str], Any]) -> None:
    # The last test: it writes, which the rollback after it must be told to give up.
    ((last,),) = query("SELECT max(id) FROM entities")
    assert write_record() > last
