"""The backup is complete, and settings come back byte for byte or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from backup_files import content_of, restore, save, sha256
from backup_superseded import superseded
from sqlite_backup import PAGES_PER_STEP, copy

from .conftest import Module, Refused, fill, small_disk
from .test_manifest import MANIFEST


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A settings file as it was saved, then as the migration wrote it; and its entry in the manifest."""
    config = tmp_path / "config.yaml"
    config.write_bytes(b"database_path: database.db\r\n")
    config.chmod(0o640)
    entries = [
        save(config, tmp_path / "0-config.yaml", False),
        save(tmp_path / "new.env", tmp_path / "1-new.env", False),
    ]
    config.write_bytes(b"database_path: postgresql://x\r\n")
    config.chmod(0o644)
    (tmp_path / "new.env").write_bytes(b"A=1\n")
    return config, [{**entry, "written": sha256(content_of(Path(entry["path"])) or b"")} for entry in entries]


def test_restoring_gives_bytes_and_mode_back_and_removes_what_was_not_there(saved: Any) -> None:
    config, entries = saved
    changed, differences = restore(Module(), entries, False)
    assert changed
    assert "+database_path: database.db" in differences[0]
    assert config.read_bytes() == b"database_path: database.db\r\n"
    assert config.stat().st_mode & 0o7777 == 0o640
    assert not (config.parent / "new.env").exists()
    assert restore(Module(), entries, False) == (False, [])


def test_an_edit_by_hand_stops_it_before_anything_changes(saved: Any) -> None:
    config, entries = saved
    (config.parent / "new.env").write_bytes(b"A=1\nMINE=2\n")
    with pytest.raises(Refused, match=r"edited since the switch(?s:.*)-MINE=2(?s:.*)rollback_overwrite_config=true"):
        restore(Module(), entries, False)
    assert config.read_bytes() == b"database_path: postgresql://x\r\n"
    restore(Module(), entries, True)
    assert config.read_bytes() == b"database_path: database.db\r\n"


def test_what_is_shown_of_an_edit_holds_no_secret(saved: Any) -> None:
    config, entries = saved
    config.write_text("database_path: postgresql://me@host/db\nvlm:\n  token: hunter2\n")
    with pytest.raises(Refused, match=r"token: \(not shown\)") as refused:
        restore(Module(), entries, False)
    assert "hunter2" not in str(refused.value)


def test_a_damaged_copy_stops_it_before_anything_changes(saved: Any) -> None:
    config, entries = saved
    Path(entries[0]["copy"]).write_bytes(b"something else")
    with pytest.raises(Refused, match="not what the manifest says"):
        restore(Module(), entries, True)
    assert config.read_bytes() == b"database_path: postgresql://x\r\n"
    assert (config.parent / "new.env").exists()


def test_without_room_for_all_none_is_restored(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    with small_disk(tmp_path / "home", 1) as home:
        first, second = home / "config.yaml", home / "second.env"
        contents = {first: b"database_path: database.db\n", second: bytes(300_000)}
        for file, content in contents.items():
            file.write_bytes(content)
        entries = [save(file, tmp_path / "copies" / file.name, False) for file in contents]
        for file in contents:
            file.write_bytes(b"of the migration")
        filler = fill(home, 100_000)
        with pytest.raises(Refused, match=r"Found: .*second\.env: .*No space left.* Untouched: every settings file"):
            restore(Module(), entries, True)
        assert {file.read_bytes() for file in home.iterdir() if file != filler} == {b"of the migration"}
        assert len(list(home.iterdir())) == 3
        filler.unlink()
        assert restore(Module(), entries, True)[0]
        assert {file: file.read_bytes() for file in home.iterdir()} == contents


def test_the_backup_has_what_stands_in_the_wal(tmp_path: Path) -> None:
    source, destination = tmp_path / "database.db", tmp_path / "copy.db"
    writer = sqlite3.connect(source)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE t (v)")
    writer.commit()
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(1000)])
    writer.commit()
    before = source.read_bytes()
    copy(source, destination)
    with contextlib.closing(sqlite3.connect(destination)) as reader:
        assert reader.execute("SELECT count(*), sum(v) FROM t").fetchone() == (1000, 499500)
    assert source.read_bytes() == before
    assert destination.stat().st_mode & 0o7777 == 0o600
    writer.close()


def test_the_backup_goes_to_the_disk_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever commits while gigabytes wait to be written waits for them too."""
    source, sizes, flush = tmp_path / "database.db", [0], os.fdatasync
    with contextlib.closing(sqlite3.connect(source)) as writer, writer:
        writer.execute("CREATE TABLE t (v)")
        writer.executemany("INSERT INTO t VALUES (zeroblob(1 << 20))", [()] * 50)

    def flushed(descriptor: int) -> None:
        flush(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fdatasync", flushed)
    copy(source, tmp_path / "copy.db")
    sizes.append(source.stat().st_size)
    assert max(later - earlier for earlier, later in itertools.pairwise(sizes)) <= PAGES_PER_STEP * 4096


def test_a_damaged_source_leaves_no_copy(tmp_path: Path) -> None:
    source = tmp_path / "database.db"
    source.write_bytes(b"SQLite format 3\0" + b"x" * 8192)
    with pytest.raises(sqlite3.DatabaseError):
        copy(source, tmp_path / "copy.db")
    assert list(tmp_path.iterdir()) == [source]


def backed_up(state: Path, stamp: str, phase: str | None, database: str = "database.db") -> Path:
    """A backup as a run leaves it that came to this phase, and its manifest as the present one."""
    (folder := state / "backups" / stamp).mkdir(parents=True)
    (folder / database).write_bytes(b"SQLite format 3\0")
    if phase is not None:
        (folder / "0-config.yaml").write_bytes(b"database_path: database.db\n")
        manifest = {**MANIFEST, "phase": phase, "stamp": stamp, "backup": {"database": str(folder / database)}}
        for place in (folder, state):
            (place / "manifest.json").write_text(json.dumps(manifest))
    return folder / database


def test_of_failed_runs_only_the_last_copy_of_the_database_stays(tmp_path: Path) -> None:
    for day, phase in enumerate(("prepared", "failed", None), start=1):
        backed_up(tmp_path, f"2025070{day}T120000Z", phase)
    half = tmp_path / "backups" / "20250703T120000Z" / "database.db.part"
    half.touch()
    last = backed_up(tmp_path, "20250704T120000Z", "prepared")
    removed = superseded(tmp_path)
    assert [str(file.relative_to(tmp_path / "backups")) for file in removed] == [
        "20250701T120000Z/database.db",
        "20250702T120000Z/database.db",
        "20250703T120000Z/database.db",
        "20250703T120000Z/database.db.part",
    ]
    assert last.exists()


def test_what_a_rollback_or_a_later_run_can_need_is_kept(tmp_path: Path) -> None:
    for day, phase in enumerate(("switched", "complete", "rolled_back", "of another version"), start=1):
        backed_up(tmp_path, f"2025070{day}T120000Z", phase)
    backed_up(tmp_path, "20250705T120000Z", "rolled_back", "cutover.db")
    # Of an earlier version of this project, which kept no copy of the manifest.
    (backed_up(tmp_path, "20250706T120000Z", "failed").parent / "manifest.json").unlink()
    backed_up(tmp_path, "a person's own", None)
    # A run that was killed; the next one goes on with its snapshot, and its manifest names that.
    held = backed_up(tmp_path, "20250707T120000Z", "prepared")
    backed_up(tmp_path, "20250708T120000Z", "prepared").unlink()
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "backup": {"database": str(held)}}))
    assert superseded(tmp_path) == []
    # Nobody knows what a damaged manifest names; a copy that was made before any manifest is not that.
    manifest.write_bytes(b"")
    assert superseded(tmp_path) == [] == superseded(tmp_path / "nothing there")
    unnamed = backed_up(tmp_path, "20250709T120000Z", None)
    assert superseded(tmp_path) == [unnamed]
