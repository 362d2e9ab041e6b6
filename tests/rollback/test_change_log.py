"""The change log notes every row that anybody touches, and the verifier takes our triggers for ours."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest
from sqlite_to_postgresql import change_log
from sqlite_to_postgresql.target import connect, query
from sqlite_to_postgresql.verify import catalog, verify

from rollback.world import Run

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

FOLDER = "INSERT INTO folders (path, library_id, type, last_modified_at) VALUES ('/x', 1, 'DUMMY', now()) RETURNING id"


def log(run: Run) -> change_log.ChangeLog:
    """What the log says."""
    connection = connect(run.dsn)
    try:
        found = change_log.read(connection)
    finally:
        connection.close()
    assert found is not None
    return found


def keys(run: Run, table: str) -> list[Any]:
    """Touched keys of a table."""
    return [key for (key,) in run.sql(f"SELECT key FROM data_copy.change WHERE table_name = '{table}' ORDER BY key")]


def test_every_kind_of_write_is_noted_once(run: Run) -> None:
    assert log(run).count == 0
    assert log(run).whole == []
    ((added,),) = run.sql(FOLDER)
    run.sql(
        f"UPDATE folders SET path = '/y' WHERE id = {added}",
        f"UPDATE folders SET path = '/z' WHERE id = {added}",
        f"UPDATE folders SET id = {added + 5} WHERE id = {added}",
        "UPDATE entity_plugin_status SET processed_at = now()",
        "DELETE FROM entity_tags WHERE id = (SELECT min(id) FROM entity_tags)",
    )
    assert keys(run, "folders") == [[added], [added + 5]]
    ((statuses,),) = run.sql("SELECT count(*) FROM entity_plugin_status")
    assert log(run).rows == {"folders": 2, "entity_plugin_status": statuses, "entity_tags": 1}
    assert all(len(key) == 2 for key in keys(run, "entity_plugin_status"))


def test_a_transaction_that_is_rolled_back_leaves_no_entry(run: Run) -> None:
    connection = psycopg2.connect(run.dsn)
    with connection.cursor() as cursor:
        cursor.execute(FOLDER)
    connection.rollback()
    connection.close()
    assert log(run).count == 0


def test_another_role_is_noted_too_without_rights_in_our_schema(run: Run) -> None:
    server, database = run.world.server, run.dsn.rpartition("/")[2]
    server.run("DROP ROLE IF EXISTS dashboard", "CREATE ROLE dashboard", database=database)
    server.run(
        "GRANT INSERT, UPDATE, SELECT ON tags TO dashboard",
        "SET ROLE dashboard",
        "UPDATE tags SET color = 'red' WHERE id = (SELECT min(id) FROM tags)",
        database=database,
    )
    assert log(run).rows == {"tags": 1}
    server.run("DROP OWNED BY dashboard", "DROP ROLE dashboard", database=database)


def test_truncated_and_remade_tables_count_as_changed_wholly(run: Run) -> None:
    run.sql("TRUNCATE entities_vec_v2", "CREATE TABLE again (LIKE tags INCLUDING ALL)", "DROP TABLE entity_tags")
    run.sql("ALTER TABLE again RENAME TO entity_tags")
    assert log(run).whole == ["entities_vec_v2", "entity_tags"]


def test_a_disabled_trigger_is_not_trusted(run: Run) -> None:
    run.sql("ALTER TABLE tags DISABLE TRIGGER data_copy_note_row")
    assert log(run).whole == ["tags"]


def test_beginning_again_changes_nothing_and_removing_leaves_nothing(run: Run) -> None:
    run.sql(FOLDER)
    assert run.engine("changes")["begun"] is False
    assert log(run).rows == {"folders": 1}
    connection = connect(run.dsn)
    try:
        assert change_log.remove(connection)
        assert not change_log.remove(connection)
        assert change_log.read(connection) is None
    finally:
        connection.close()
    assert run.sql("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == [(0,)]
    assert run.sql("SELECT count(*) FROM pg_proc WHERE pronamespace = 'data_copy'::regnamespace") == [(0,)]


def test_a_log_begins_without_waiting_for_a_table(run: Run) -> None:
    """Autovacuum holds such a lock, and gives it up only after a second; the copy has made the triggers."""
    run.sql("DELETE FROM data_copy.change_log")
    connection, other = connect(run.dsn, lock_timeout="1s"), connect(run.dsn)
    try:
        other.autocommit = False
        query(other, "LOCK TABLE entities, folders, data_copy.change IN SHARE UPDATE EXCLUSIVE MODE; SELECT 1")
        assert change_log.install(connection, run.source)
        other.rollback()
        assert log(run).rows == {}
        run.sql("UPDATE folders SET path = path || '-' WHERE id = (SELECT max(id) FROM folders)")
        assert log(run).rows == {"folders": 1}
    finally:
        connection.close()
        other.close()


def test_verifier_knows_our_triggers_and_no_others(run: Run) -> None:
    made = catalog(run.world.server.dsn(run.world.template))
    assert verify(run.source, run.dsn, jobs=1, expected_catalog=made).equal
    run.sql(
        "DROP TRIGGER data_copy_note_row ON tags",
        *(
            f"CREATE TRIGGER {name} AFTER INSERT ON tags FOR EACH ROW EXECUTE FUNCTION data_copy.note_row_tags()"
            for name in ("data_copy_note_row", "mine")
        ),
    )
    found = verify(run.source, run.dsn, jobs=1, expected_catalog=made)
    assert {next(iter(d.key.values())) for d in found.differences} == {"tags.data_copy_note_row", "tags.mine"}


def test_a_catalog_noted_while_a_log_was_kept_holds_without_it(run: Run) -> None:
    """A cutover that failed leaves its log; the next one notes the definitions beside it, and makes new tables."""
    noted = catalog(run.dsn)
    connection = connect(run.dsn)
    try:
        assert change_log.remove(connection)
    finally:
        connection.close()
    assert verify(run.source, run.dsn, jobs=1, expected_catalog=noted).equal


def test_no_name_of_a_table_breaks_the_log(run: Run) -> None:
    """A name is written into functions: it must not end their text, nor be cut off to that of another table."""
    alike = "a_table_whose_name_is_as_long_as_postgresql_lets_it_be_" + "x" * 7
    names = ["d$note$;--", "with 'quotes' and \"more\"", "屏幕" * 10, alike + "1", alike + "2", "dot.dot"]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    run.sql(*(f"CREATE TABLE {name} (id integer PRIMARY KEY)" for name in quoted))
    made = catalog(run.dsn)
    connection = connect(run.dsn)
    try:
        change_log.watch(connection)
        assert all(table.complete for table in change_log.tables(connection))
        assert catalog(run.dsn) == made, "the verifier takes our triggers for somebody else's"
        for number, name in enumerate(quoted):
            run.sql(f"INSERT INTO {name} VALUES ({number})")
        noted = run.sql("SELECT table_name, key FROM data_copy.change")
        assert sorted(noted) == sorted((name, [number]) for number, name in enumerate(names))
        run.sql("TRUNCATE data_copy.change", *(f"TRUNCATE {name}" for name in quoted))
        assert sorted(run.sql("SELECT table_name, key FROM data_copy.change")) == sorted((name, None) for name in names)
        assert change_log.remove(connection)
    finally:
        connection.close()
    assert run.sql("SELECT count(*) FROM pg_proc WHERE pronamespace = 'data_copy'::regnamespace") == [(0,)]
