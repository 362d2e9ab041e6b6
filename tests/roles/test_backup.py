"""The backup is complete, and settings come back byte for byte or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.file_record import Record, keep, place_of, undone
from backup_files import content_of, restore, save, sha256
from backup_superseded import superseded
from pensieve_setting import replace
from sqlite_backup import PAGES_PER_STEP, copy

from .conftest import Module, Refused, fill, small_disk
from .test_manifest import MANIFEST

URI = "postgresql://me@host/db"
FIRST, LAST = "# BEGIN ours (managed by Ansible)", "# END ours (managed by Ansible)"
BLOCK = f"{FIRST}\nA={URI}\n# why\nB=1\n{LAST}"
OVERWRITE = r"rollback_overwrite_config=true"


class Site:
    """A config.yaml, an environment file and a source file, as the migration keeps and writes them."""

    def __init__(self, folder: Path) -> None:
        self.config, self.environment, self.source = (
            folder / name for name in ("config.yaml", "new.env", "database.py")
        )
        self.ours = folder / "ours.py"
        self.copies = folder / "copies"
        self.copies.mkdir()
        self.entries: list[dict[str, Any]] = []

    def save(self) -> None:
        """As role backup does."""
        files: list[dict[str, Any]] = [
            {"path": str(self.config), "key": "database_path", "block": None},
            {"path": str(self.environment), "block": BLOCK},
            {"path": str(self.source)},
            {"path": str(self.ours)},
        ]
        names = [f"{number}-{Path(file['path']).name}" for number, file in enumerate(files)]
        self.entries = [save(file, self.copies / name, False) for file, name in zip(files, names)]

    def switch(self) -> None:
        """Write config.yaml, as role pensieve does."""
        replace(self.config, "database_path", URI, self.entries, False)

    def add_block(self) -> None:
        """Write the environment file with Ansible's own module, as role autotasktracker does."""
        lines = "\n".join(BLOCK.splitlines()[1:-1])
        marker = "# {mark} ours (managed by Ansible)"
        arguments = {"path": str(self.environment), "block": lines, "marker": marker, "create": True, "mode": "0600"}
        if self.environment.exists():
            del arguments["mode"]
        done = subprocess.run(
            [sys.executable, "-m", "ansible.modules.blockinfile"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def change(self, path: Path, after: bytes) -> None:
        """Write a source file, as role autotasktracker does."""
        keep(place_of(path, self.entries), path, content_of(path), after)
        path.write_bytes(after)

    def restore(self, overwrite: bool = False) -> dict[str, str]:
        """What was done to which file."""
        return {work.path.name: work.wanted.done for work in restore(Module(), self.entries, overwrite)}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Before the migration: there is no environment file."""
    here = Site(tmp_path)
    here.config.write_bytes(b"database_path: 'database.db'  # mine\r\n")
    here.config.chmod(0o640)
    here.source.write_bytes(b"import sqlite3\n\n\ndef connect():\n    return sqlite3.connect('x')\n\n\n# end\n")
    here.save()
    return here


def test_restoring_gives_bytes_and_mode_back_and_removes_what_was_not_there(site: Site) -> None:
    before = site.config.read_bytes(), site.source.read_bytes()
    site.switch()
    site.add_block()
    site.change(site.source, before[1].replace(b"sqlite3.connect", b"ours.connect"))
    site.change(site.ours, b"ours = 1\n")
    assert site.environment.stat().st_mode & 0o7777 == 0o600
    site.config.chmod(0o644)
    whole, gone = "given back byte for byte", "removed, since it was not there before"
    assert site.restore() == {"config.yaml": whole, "new.env": gone, "database.py": whole, "ours.py": gone}
    assert (site.config.read_bytes(), site.source.read_bytes()) == before
    assert site.config.stat().st_mode & 0o7777 == 0o640
    assert not site.environment.exists()
    assert not site.ours.exists()
    assert site.restore() == {}


def test_what_the_migration_has_not_written_stays(site: Site) -> None:
    """Edited while the bulk was copied; then the cutover failed before the switch."""
    edited = b"database_path: |-\n  database.db\nmine: 1\n"
    site.config.write_bytes(edited)
    site.config.chmod(0o600)
    site.environment.write_bytes(b"MINE=1\n")
    site.source.write_bytes(b"# another version\n")
    site.ours.write_bytes(b"# a person's\n")
    for overwrite in (False, True):
        assert site.restore(overwrite) == {}
    assert site.config.read_bytes() == edited
    assert site.config.stat().st_mode & 0o7777 == 0o600
    assert site.environment.read_bytes() == b"MINE=1\n"


def test_an_edit_before_the_switch_and_one_after_it_stay(site: Site) -> None:
    site.config.write_bytes(b"database_path: 'database.db'\nduring_the_bulk: 1\n")
    site.config.chmod(0o600)
    site.switch()
    site.config.write_bytes(b"after: 1\n" + site.config.read_bytes())
    site.config.chmod(0o644)
    assert site.restore() == {"config.yaml": "database_path put back, later edits kept"}
    assert site.config.read_bytes() == b"after: 1\ndatabase_path: 'database.db'\nduring_the_bulk: 1\n"
    assert site.config.stat().st_mode & 0o7777 == 0o644


def test_a_run_that_was_killed_between_record_and_write(site: Site) -> None:
    """A record of what was never written is no edit of a person."""
    before = site.config.read_bytes(), site.source.read_bytes()
    keep(place_of(site.config, site.entries), site.config, before[0], before[0].replace(b"'database.db'", URI.encode()))
    keep(place_of(site.source, site.entries), site.source, before[1], b"ours = 1\n" + before[1])
    keep(place_of(site.ours, site.entries), site.ours, None, b"ours = 1\n")
    assert site.restore() == {}
    site.config.write_bytes(before[0] + b"mine: 1\r\n")
    site.source.write_bytes(before[1] + b"# mine\n")
    assert site.restore() == {}
    assert site.config.read_bytes() == before[0] + b"mine: 1\r\n"
    assert site.source.read_bytes() == before[1] + b"# mine\n"


def test_a_switch_that_is_made_again_changes_nothing(site: Site) -> None:
    before = site.config.read_bytes()
    site.switch()
    switched = site.config.read_bytes()
    site.switch()
    assert site.config.read_bytes() == switched
    site.restore()
    assert site.config.read_bytes() == before


def test_a_file_that_no_entry_names_is_not_written(site: Site) -> None:
    (other := site.config.with_name("other.yaml")).write_bytes(b"database_path: x\n")
    with pytest.raises(ValueError, match="the manifest does not name .*other.yaml, so nothing could give it back"):
        replace(other, "database_path", URI, site.entries, False)
    assert other.read_bytes() == b"database_path: x\n"


def test_an_edit_of_the_value_stops_it_before_anything_changes(site: Site) -> None:
    site.switch()
    site.add_block()
    edited = site.config.read_bytes().replace(URI.encode(), b"postgresql://me:hunter2@other/db") + b"token: hunter2\r\n"
    site.config.write_bytes(edited)
    said = rf"Found: {site.config} was edited since the switch: database_path: postgresql://\(not shown\), "
    with pytest.raises(Refused, match=rf"{said}where the migration wrote {URI}(?s:.*){OVERWRITE}") as refused:
        site.restore()
    assert "hunter2" not in str(refused.value)
    assert site.config.read_bytes() == edited
    assert site.environment.exists()
    site.config.chmod(0o600)
    done = site.restore(overwrite=True)
    kept = Path(done["config.yaml"].partition("given back byte for byte; the edited one is kept as ")[2])
    assert kept.read_bytes() == edited
    assert kept.stat().st_mode & 0o7777 == 0o600
    assert site.config.read_bytes() == b"database_path: 'database.db'  # mine\r\n"
    assert site.config.stat().st_mode & 0o7777 == 0o640
    assert not site.environment.exists()


def test_a_whole_file_that_is_asked_for_keeps_the_edited_one_aside(site: Site) -> None:
    site.switch()
    site.config.write_bytes(edited := site.config.read_bytes() + b"mine: 1\r\n")
    done = site.restore(overwrite=True)
    assert site.config.read_bytes() == b"database_path: 'database.db'  # mine\r\n"
    assert Path(done["config.yaml"].rpartition(" ")[2]).read_bytes() == edited


@pytest.mark.parametrize("broken", [b"a: [\n", b"\xff\n", b"- a\n", f"a: 1\ndatabase_path: [{URI}]\n".encode()])
def test_settings_that_cannot_be_read_are_refused(site: Site, broken: bytes) -> None:
    site.switch()
    site.config.write_bytes(broken)
    with pytest.raises(Refused, match=f"was edited since the switch: (?s:.*){OVERWRITE}"):
        site.restore()
    assert site.config.read_bytes() == broken
    site.config.unlink()
    assert site.restore() == {"config.yaml": "given back byte for byte"}
    assert site.config.read_bytes() == b"database_path: 'database.db'  # mine\r\n"


@pytest.mark.parametrize(
    ("before", "edit", "back"),
    [
        (None, (b"", b""), None),
        (None, (LAST.encode() + b"\n", LAST.encode() + b"\nMINE=1\n"), b"MINE=1\n"),
        (b"A=0", (b"", b""), b"A=0"),
        (b"A=0\n", (b"", b""), b"A=0\n"),
        (b"A=0\r\n", (b"A=0", b"A=9"), b"A=9\r\n"),
        (b"A=0", (b"A=0", b"A=9"), b"A=9\n"),
        (b"A=0", (LAST.encode() + b"\n", LAST.encode() + b"\nMINE=1\n"), b"A=0\nMINE=1\n"),
        (b"A=0\n", (b"\n", b"\r\n"), b"A=0\r\n"),
        (f"A=0\n{FIRST}\nold\n{LAST}\nB\n".encode(), (b"A=0", b"A=9"), f"A=9\n{FIRST}\nold\n{LAST}\nB\n".encode()),
    ],
)
def test_the_block_is_taken_out_and_edits_stay(
    tmp_path: Path, before: bytes | None, edit: tuple[bytes, bytes], back: bytes | None
) -> None:
    site = Site(tmp_path)
    if before is not None:
        site.environment.write_bytes(before)
        site.environment.chmod(0o644)
    site.save()
    site.add_block()
    written = site.environment.read_bytes()
    assert BLOCK.encode() in written
    assert edit[0] in written
    site.environment.write_bytes(written.replace(*edit) if edit[0] else written)
    site.restore()
    assert content_of(site.environment) == back
    if before is not None:
        assert site.environment.stat().st_mode & 0o7777 == 0o644
    assert site.restore() == {}


@pytest.mark.parametrize("edit", [(b"B=1", b"B=2"), (FIRST.encode() + b"\n", b""), (b"# why", LAST.encode())])
def test_an_edit_within_the_block_is_refused(site: Site, edit: tuple[bytes, bytes]) -> None:
    site.environment.write_bytes(b"A=0\n")
    site.save()
    site.switch()
    site.add_block()
    site.environment.write_bytes(edited := site.environment.read_bytes().replace(*edit))
    switched = site.config.read_bytes()
    with pytest.raises(Refused, match=f"Found: {site.environment} was edited since the switch: .*(?s:.*){OVERWRITE}"):
        site.restore()
    assert (site.environment.read_bytes(), site.config.read_bytes()) == (edited, switched)
    site.restore(overwrite=True)
    assert site.environment.read_bytes() == b"A=0\n"


def test_an_edit_of_source_stays_unless_it_touches_what_was_changed(site: Site) -> None:
    before = site.source.read_bytes()
    site.change(site.source, after := before.replace(b"sqlite3.connect", b"ours.connect"))
    site.source.write_bytes(after.replace(b"# end", b"# mine"))
    assert site.restore() == {"database.py": "the lines that the migration changed put back, later edits kept"}
    assert site.source.read_bytes() == before.replace(b"# end", b"# mine")
    site.source.write_bytes(touched := after.replace(b"'x'", b"'y'"))
    with pytest.raises(Refused, match="the edit touches lines that the migration has changed"):
        site.restore()
    assert site.source.read_bytes() == touched
    site.source.unlink()
    site.change(site.ours, b"ours = 1\n")
    site.ours.write_bytes(b"ours = 2\n")
    with pytest.raises(Refused, match="the migration has made this file, and it was edited since"):
        site.restore()


@pytest.mark.parametrize("seed", range(200))
def test_random_edits_of_source_stay_or_are_refused(seed: int) -> None:
    """Lines of the migration and of a person, far apart and close together."""
    chance = random.Random(seed)
    before = [f"line {number}\n" for number in range(chance.randint(1, 30))]
    end = chance.choice([b"", b"\n"])

    def text(lines: list[str]) -> bytes:
        return "".join(lines).encode().rstrip(b"\n") + end

    def change(lines: list[str], places: set[int], word: str) -> list[str]:
        changed = {place: chance.choice([f"{word}\n", f"{word}\n{lines[place]}", ""]) for place in places}
        return [changed.get(number, line) for number, line in enumerate(lines)]

    ours = {chance.randrange(len(before)) for _ in range(chance.randint(1, 4))}
    far = {place for place in range(len(before)) if all(abs(place - own) > 2 for own in ours)}
    theirs = set(chance.sample(sorted(far), min(len(far), chance.randint(0, 3))))
    lines = {place: change(before, {place}, f"ours {place}")[place] for place in ours}
    edits = {place: change(before, {place}, f"mine {place}")[place] for place in theirs}
    after = text([lines.get(number, line) for number, line in enumerate(before)])
    wanted = text([edits.get(number, line) for number, line in enumerate(before)])
    now = text([{**lines, **edits}.get(number, line) for number, line in enumerate(before)])
    record = Record(text(before), after, 0o644, 0, 0)
    assert undone(record, now) == wanted
    # An edit right there is kept, or it is refused.
    place = chance.choice(sorted(ours))
    close = text([f"{lines.get(n, line)}mine\n" if n == place else lines.get(n, line) for n, line in enumerate(before)])
    with contextlib.suppress(ValueError):
        assert b"mine" in undone(record, close)


def test_a_manifest_of_an_earlier_version(site: Site) -> None:
    """It holds digests of what was written, and nothing is recorded."""
    entries = [
        {name: value for name, value in entry.items() if name not in ("key", "block", "record")}
        for entry in site.entries
    ]
    site.config.write_bytes(b"database_path: postgresql://x\r\n")
    site.environment.write_bytes(b"A=1\n")
    site.entries = [{**entry, "written": sha256(content_of(Path(entry["path"])) or b"")} for entry in entries]
    site.environment.write_bytes(b"A=1\nMINE=2\n")
    with pytest.raises(
        Refused, match=rf"edited since the switch: it is not what .*(?s:.*)lines 1 to 2 of (?s:.*){OVERWRITE}"
    ):
        site.restore()
    assert site.config.read_bytes() == b"database_path: postgresql://x\r\n"
    site.environment.write_bytes(b"A=1\n")
    assert set(site.restore()) == {"config.yaml", "new.env"}
    assert site.config.read_bytes() == b"database_path: 'database.db'  # mine\r\n"
    assert not site.environment.exists()


def test_a_damaged_record_or_copy_stops_it_before_anything_changes(site: Site) -> None:
    site.switch()
    site.change(site.source, b"ours = 1\n")
    record = Path(site.entries[2]["record"])
    whole = record.read_text()
    for damaged in (whole[:50], whole.replace("import", "export"), "[]", "{}"):
        record.write_text(damaged)
        with pytest.raises(Refused, match=f"Found: {record} is damaged: (?s:.*) Next: restore {site.source} by hand"):
            site.restore(overwrite=True)
    assert URI.encode() in site.config.read_bytes()
    record.write_text(whole)
    site.environment.write_bytes(b"A=0\n")
    site.save()
    Path(site.entries[1]["copy"]).write_bytes(b"something else")
    with pytest.raises(Refused, match="not what the manifest says"):
        site.restore()


def test_without_room_for_all_none_is_restored(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    with small_disk(tmp_path / "home", 1) as home:
        contents = {home / "config.yaml": b"database_path: database.db\n", home / "second.py": bytes(300_000)}
        for file, content in contents.items():
            file.write_bytes(content)
        files: list[dict[str, Any]] = [{"path": str(file)} for file in contents]
        entries = [save(file, tmp_path / "copies" / str(number), False) for number, file in enumerate(files)]
        for file, content in contents.items():
            keep(place_of(file, entries), file, content, b"of the migration")
            file.write_bytes(b"of the migration")
        filler = fill(home, 100_000)
        with pytest.raises(Refused, match=r"Found: .*second\.py: .*No space left.* Untouched: every settings file"):
            restore(Module(), entries, True)
        assert {file.read_bytes() for file in home.iterdir() if file != filler} == {b"of the migration"}
        assert len(list(home.iterdir())) == 3
        filler.unlink()
        assert restore(Module(), entries, True)
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
