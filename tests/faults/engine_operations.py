"""The operations of the engine, and what must be true when a fault has struck one of them.

Each is run by the Ansible module that playbooks run. After the fault it ended with an error in four parts whose
"Untouched" is true, or was killed, or is done in spite of it. Then it is run again without a fault, and must complete;
whether all is right then is judged by the verifier, or by the bytes of the files.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils import migration_manifest, whole_file
from sqlite_to_postgresql import snapshot
from sqlite_to_postgresql.pages import PageMap

from faults import engine_fill as fill
from faults import engine_writes as writes
from faults.engine_place import (
    Outcome,
    Place,
    Refused,
    World,
    content_of_sqlite,
    content_of_target,
    copied,
    counts_of_target,
    digest_of_files,
    module,
    query,
    sqlite,
    unequal,
)
from faults.engine_shim import Kind

State = dict[str, str]

#: On files, and while SQL is spoken. A server that is gone is a session that is lost, where there is one session.
FILES = (Kind.EIO, Kind.FULL, Kind.KILL, Kind.TORN, Kind.POWER)
EVERY = (*FILES, Kind.CUT, Kind.UNHEARD)

#: What a promise says, and what has to be as before then.
PROMISES = {
    r"everything": ("source", "target", "books", "files"),
    r"the source|SQLite database|database, which was only read": ("source",),
    r"tables of the target are as they were|the target shows the snapshot as before|all of the target": ("target",),
    r"both databases|every row of SQLite and of PostgreSQL": ("source", "target"),
    r"every row of PostgreSQL": ("target",),
    r"PostgreSQL was not told": ("books",),
    r"every settings file|the manifest of before|this step, which has done nothing": ("files",),
    r"content of the damaged files": ("damaged",),
    # Of these only that they are said can be told.
    r"all that this connection was to change|^all but |^no file that was to change": (),
}
PARTS = re.compile(r"Found: (.+?)\s+Expected: (.+?)\s+Untouched: (.+?)\s+Next: (.+)", re.DOTALL)


class Operation(ABC):
    """One operation. ``base``: what of PostgreSQL each point begins with, a name in BASES; none where it is not asked.

    ``kept``: what no fault may change. ``durable``: what is done is on the disk, also when the power goes right then.
    ``idempotent``: what is done is not done again. ``kinds``: what strikes it.
    """

    name = ""
    base = ""
    kept: tuple[str, ...] = ()
    durable = idempotent = False
    kinds: tuple[Kind, ...] = EVERY

    def prepare(self, place: Place) -> None:
        """Make what one point begins with; nothing, if not said otherwise."""
        return

    @abstractmethod
    def act(self, place: Place) -> dict[str, Any]:
        """Do it; the fault strikes here. Raises Refused, where a module says that it failed."""

    @abstractmethod
    def state(self, place: Place) -> State:
        """Digests of what an error may say is untouched."""

    def meanwhile(self, place: Place) -> None:
        """What happens before it is run again; nothing, if not said otherwise."""
        return

    def again(self, place: Place) -> Iterator[str]:
        """Run it again; what is wrong with that."""
        self.act(place)
        yield from ()

    @abstractmethod
    def proof(self, place: Place) -> Iterator[str]:
        """What is wrong when it is done."""

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        """What is wrong, besides promises, right after the fault."""
        yield from ()

    def judge(self, place: Place, outcome: Outcome, before: State, power: bool) -> Iterator[str]:
        """All that is wrong."""
        now = self.state(place)
        if outcome.how == "raised":
            yield "ended without an error in four parts: " + "\n".join(outcome.told.splitlines()[-3:])
        if outcome.how == "refused":
            yield from broken_promises(outcome.told, before, now)
        yield from (f"{name} has changed" for name in self.kept if now[name] != before[name])
        yield from self.after_fault(place, before, now)
        if outcome.how == "done" and (self.durable or not power):
            yield from (f"said to be done: {wrong}" for wrong in self.proof(place))
        self.meanwhile(place)
        try:
            yield from self.again(place)
        except Refused as error:
            yield f"run again, it fails: {error}"
            return
        yield from (f"run again: {wrong}" for wrong in self.proof(place))
        if self.idempotent and self.act(place)["changed"]:
            yield "run a third time, it changes something"


def broken_promises(told: str, before: State, now: State) -> Iterator[str]:
    """Parts of an error that lack, and what it says is untouched and is not."""
    parts = PARTS.search(told)
    if parts is None:
        yield f"an error without four parts: {told}"
        return
    known = [names for words, names in PROMISES.items() if re.search(words, parts[3])]
    known += [(name,) for name in before if f"/{name}" in parts[3]]  # a file that is named
    promised = {name for names in known for name in names}
    if not known or promised and not promised & before.keys():
        yield f"a promise that engine_operations.py does not know: {parts[3]}"
    for name in sorted(promised & before.keys()):
        if before[name] != now[name]:
            yield f"'Untouched: {parts[3]}' is false, {name} has changed (found: {parts[1]})"


# Copy and verify


class Copy(Operation):
    """The bulk."""

    name, base, kept, idempotent = "copy", "empty", ("source",), True

    def prepare(self, place: Place) -> None:
        copied(place.world.sample, place.disk)

    def act(self, place: Place) -> dict[str, Any]:
        return module("data_copy", source=str(place.disk / "database.db"), target_dsn=place.dsn, jobs=1)

    def state(self, place: Place) -> State:
        return {
            "source": digest_of_files(place.disk / "database.db"),
            "target": json.dumps(content_of_target(place.dsn)),
        }

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        shown = place.world.base("copied") / "target.json"
        if now["target"] != before["target"] and json.loads(now["target"]) != json.loads(shown.read_text()):
            yield "the target shows neither nothing nor all"

    def proof(self, place: Place) -> Iterator[str]:
        yield from unequal(place, place.disk / "database.db")
        yield from wrong_books(place.dsn)


def wrong_books(dsn: str) -> Iterator[str]:
    """Where the ledger, or what lies beside the tables, is not as after one good copy."""
    if query(dsn, "SELECT 1 FROM pg_namespace WHERE nspname = 'data_copy_staging'"):
        yield "the staging schema is still there"
    runs = query(dsn, "SELECT state, result -> 'tables' FROM data_copy.run")
    if [state for state, _ in runs] != ["complete"]:
        yield f"runs: {[state for state, _ in runs]}"
        return
    kept = dict(
        query(dsn, "SELECT source_table, count(*) FROM data_copy.quarantine WHERE source_column IS NULL GROUP BY 1")
    )
    counts = counts_of_target(dsn)
    for table, said in runs[0][1].items():
        there = counts[table], kept.get(table, 0)
        if (said["target"], said["quarantined"]) != there:
            yield f"the ledger says {said} of {table}; there are {there[0]}, and {there[1]} in quarantine"


class Verify(Operation):
    """The comparison of every cell."""

    name, base, kept = "verify", "copied", ("source", "target")
    kinds: tuple[Kind, ...] = (*FILES, Kind.CUT)  # that it only reads, the server cannot tell from the others

    def prepare(self, place: Place) -> None:
        copied(place.world.sample, place.disk)

    def act(self, place: Place) -> dict[str, Any]:
        return module("data_verify", source=str(place.disk / "database.db"), target_dsn=place.dsn, jobs=1)

    state = Copy.state

    def proof(self, place: Place) -> Iterator[str]:
        return unequal(place, place.disk / "database.db")


# Snapshot, difference, catching up


def read_back(folder: Path) -> snapshot.Snapshot:
    """What is known of a snapshot."""
    found = snapshot.read(folder)
    assert found is not None
    return found


def settled(folder: Path) -> snapshot.Snapshot | None:
    """Wait until the pages of a snapshot are mapped, or will not be."""
    for _ in range(600):
        found = snapshot.read(folder)
        if found is None or found.mapped or found.reason or not found.held:
            return found
        time.sleep(0.02)
    return found


class Hold(Operation):
    """The snapshot, made by the process that holds it."""

    name, kept = "snapshot", ("source",)

    def prepare(self, place: Place) -> None:
        copied(place.world.base("difference") / "database.db", place.disk)

    def act(self, place: Place) -> dict[str, Any]:
        made = module(
            "data_snapshot",
            source=str(place.disk / "database.db"),
            database=str(place.disk / "copy.db"),
            folder=str(place.disk / "snapshot"),
        )
        settled(place.disk / "snapshot")
        return made

    def state(self, place: Place) -> State:
        return {"source": digest_of_files(place.disk / "database.db", place.disk / "database.db-wal")}

    def again(self, place: Place) -> Iterator[str]:
        if self.act(place)["snapshot"]["state"] != "held":
            yield "it is not held"

    def proof(self, place: Place) -> Iterator[str]:
        found = settled(place.disk / "snapshot")
        if found is None or found.held and not found.mapped and not found.reason:
            yield f"neither mapped nor told why not: {found}"
            return
        if found.state != "failed" and content_of_sqlite(place.disk / "copy.db") != content_of_sqlite(
            place.disk / "database.db"
        ):
            yield "the copy is another than the source"
        if found.mapped:
            PageMap.load(place.disk / "snapshot" / "map")

    def judge(self, place: Place, outcome: Outcome, before: State, power: bool) -> Iterator[str]:
        yield from super().judge(place, outcome, before, power)
        found = snapshot.read(place.disk / "snapshot")
        module("data_snapshot", folder=str(place.disk / "snapshot"), state="absent")
        if found is None or found.held or (place.disk / "snapshot").exists():
            yield "it does not let go"


class Difference(Operation):
    """The difference to a snapshot that is held, and its comparison."""

    name, base, kept = "difference", "difference", ("source",)
    kinds: tuple[Kind, ...] = (Kind.CUT, Kind.UNHEARD, Kind.GONE)

    def source(self, place: Place) -> Path:
        return place.world.base("difference") / "database.db"

    def folder(self, place: Place) -> Path:
        return place.world.base("difference") / "snapshot"

    def act(self, place: Place) -> dict[str, Any]:
        return module(
            "data_difference",
            source=str(self.source(place)),
            folder=str(self.folder(place)),
            target_dsn=place.dsn,
            jobs=1,
            note_changes=True,
        )

    def state(self, place: Place) -> State:
        source = self.source(place)
        return {
            "source": digest_of_files(source, source.with_name(f"{source.name}-wal")),
            "target": json.dumps(content_of_target(place.dsn)),
        }

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        if now["target"] != before["target"]:
            for wrong in unequal(place, self.source(place)):
                yield f"the target shows neither the snapshot nor the source: {wrong}"

    def proof(self, place: Place) -> Iterator[str]:
        yield from unequal(place, self.source(place))
        yield from wrong_books(place.dsn)


class LetGo(Difference):
    """The difference to a snapshot that is held no more: the source is copied, and all pages are compared."""

    name = "difference of files"
    kinds: tuple[Kind, ...] = (Kind.EIO, Kind.FULL, Kind.KILL)  # what it writes is made anew each time

    def source(self, place: Place) -> Path:
        return place.disk / "database.db"

    def folder(self, place: Place) -> Path:
        return place.disk / "snapshot"

    def prepare(self, place: Place) -> None:
        base = place.world.base("difference")
        copied(base / "database.db", place.disk)
        copied(base / "copy.db", place.disk, "copy.db")
        shutil.copytree(base / "snapshot", place.disk / "snapshot")
        moved(read_back(base / "snapshot"), place)


def moved(found: snapshot.Snapshot, place: Place) -> None:
    """Let a copied snapshot be that of a place, and released."""
    said = replace(
        found,
        source=str(place.disk / "database.db"),
        database=str(place.disk / "copy.db"),
        state="released",
        reason="it was told to",
        pid=0,
        started=0,
    )
    folder = place.disk / "snapshot"
    (folder / "snapshot.json").write_text(json.dumps(vars(said)))
    tables = json.loads((folder / "map" / "tables.json").read_text())
    (folder / "map" / "tables.json").write_text(json.dumps({**tables, "path": said.database}))


class NewRun(Difference):
    """The difference; then Pensieve goes on on SQLite, and the next run begins with a copy of its own."""

    name = "difference, then another run"
    kinds: tuple[Kind, ...] = (Kind.UNHEARD,)

    def again(self, place: Place) -> Iterator[str]:
        later = copied(place.world.base("difference") / "later.db", place.disk, "later.db")
        module("data_copy", source=str(later), target_dsn=place.dsn, jobs=1)
        yield from ()

    def proof(self, place: Place) -> Iterator[str]:
        later = place.disk / "later.db"
        yield from unequal(place, later if later.exists() else self.source(place))
        yield from wrong_books(place.dsn)


class CatchUp(LetGo):
    """A later snapshot follows the first, and takes its place; the next run begins with a snapshot and a copy."""

    name = "catching up"
    kinds: tuple[Kind, ...] = (Kind.KILL,)  # its parts have met the others above

    def act(self, place: Place) -> dict[str, Any]:
        done = module(
            "data_difference",
            state="caught_up",
            rounds=1,
            source=str(self.source(place)),
            folder=str(self.folder(place)),
            target_dsn=place.dsn,
            jobs=1,
        )
        settled(self.folder(place))
        return done

    def again(self, place: Place) -> Iterator[str]:
        source, copy, folder = str(self.source(place)), str(place.disk / "copy.db"), str(self.folder(place))
        module("data_snapshot", source=source, database=copy, folder=folder)
        settled(self.folder(place))
        module("data_copy", source=copy, target_dsn=place.dsn, jobs=1)
        super().act(place)
        module("data_snapshot", folder=folder, state="absent")
        if self.folder(place).exists() or snapshot.later(self.folder(place)).exists():
            yield "it does not let go"


# Carry back


class Changes(Operation):
    """The log of changes begins."""

    name, base, kept, idempotent = "change log", "copied", ("source", "target"), True

    def prepare(self, place: Place) -> None:
        copied(place.world.sample, place.disk)

    def act(self, place: Place) -> dict[str, Any]:
        return module("data_changes", source=str(place.disk / "database.db"), target_dsn=place.dsn)

    state = Copy.state

    def again(self, place: Place) -> Iterator[str]:
        log = self.act(place)["log"]
        if not log["source_unchanged"] or log["count"] or log["whole"]:
            yield f"the log says {log}"

    def proof(self, place: Place) -> Iterator[str]:
        noting = "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE 'data_copy_note_%'"
        watched = Counter(table for (table,) in query(place.dsn, noting))
        if watched != Counter(dict.fromkeys(counts_of_target(place.dsn), 2)):
            yield f"watched are {dict(watched)}"
        if query(place.dsn, "SELECT count(*) FROM data_copy.change_log") != [(1,)]:
            yield "not one log"


class CarryBack(Operation):
    """What PostgreSQL has got since the cutover goes into SQLite; the next try follows at once."""

    name, base, durable, idempotent = "carry back", "served", True, True
    kinds: tuple[Kind, ...] = (*EVERY, Kind.GONE)
    reference = "carried"

    def prepare(self, place: Place) -> None:
        copied(place.world.sample, place.disk)
        copied(place.world.sample, place.root, "base.db")

    def act(self, place: Place) -> dict[str, Any]:
        done = carried_back(place)
        if done["conflicts"] or done["renumbered"]:
            raise AssertionError(f"conflicts: {done['conflicts']}, renumbered: {done['renumbered']}")
        return done

    def state(self, place: Place) -> State:
        return {
            "source": json.dumps(content_of_sqlite(place.disk / "database.db")),
            "target": json.dumps(content_of_target(place.dsn)),
            "books": json.dumps(content_of_target(place.dsn, "data_copy")),
        }

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        wanted = json.loads((place.world.base(self.reference) / "content.json").read_text())
        if now["source"] != before["source"] and json.loads(now["source"]) != wanted:
            yield "SQLite is neither as it was nor as after a run without a fault"
        if now["target"] != before["target"]:
            yield "rows of PostgreSQL have changed"

    def proof(self, place: Place) -> Iterator[str]:
        yield from damage(place.disk / "database.db")
        yield from unequal(place, place.disk / "database.db", sequences=False)


def carried_back(place: Place) -> dict[str, Any]:
    """Run the module."""
    return module(
        "data_carry_back",
        source=str(place.disk / "database.db"),
        target_dsn=place.dsn,
        base=str(place.root / "base.db"),
    )


def damage(database: Path) -> Iterator[str]:
    """What SQLite itself finds."""
    with sqlite(database) as connection:
        for (line,) in connection.execute("PRAGMA integrity_check"):
            if line != b"ok":
                yield f"integrity_check: {line.decode()}"


class CarryBackLater(CarryBack):
    """The same; before the next try, Pensieve goes on on PostgreSQL and changes, deletes and tags what was carried."""

    name = "carry back, served on"
    kinds: tuple[Kind, ...] = (Kind.FULL, Kind.KILL, Kind.POWER, Kind.CUT, Kind.UNHEARD)

    def meanwhile(self, place: Place) -> None:
        writes.serve_on(place.dsn)


class CarryBackBoth(CarryBack):
    """Both sides were written to since the cutover. The result is that of a run without a fault."""

    name = "carry back of both sides"
    kinds: tuple[Kind, ...] = (Kind.FULL, Kind.KILL, Kind.POWER, Kind.CUT, Kind.UNHEARD)
    reference = "both"

    def prepare(self, place: Place) -> None:
        copied(place.world.base("both") / "database.db", place.disk)
        copied(place.world.sample, place.root, "base.db")

    def act(self, place: Place) -> dict[str, Any]:
        return carried_back(place)

    def proof(self, place: Place) -> Iterator[str]:
        yield from damage(place.disk / "database.db")
        wanted = json.loads((place.world.base("both") / "content.json").read_text())
        yield from other_rows(place.disk / "database.db", wanted)


def other_rows(database: Path, wanted: State) -> Iterator[str]:
    """Tables of SQLite that hold something else than they should."""
    found = content_of_sqlite(database)
    if wrong := sorted(table for table in wanted if found.get(table) != wanted[table]):
        yield f"SQLite has other rows than it should, in {', '.join(wrong)}"


class Settle(CarryBack):
    """The carry-back is settled, and Pensieve goes on on SQLite; nothing that it does there is undone by another."""

    name, base, idempotent = "carry back settled", "carried", False

    def prepare(self, place: Place) -> None:
        copied(place.world.base("carried") / "database.db", place.disk)
        copied(place.world.sample, place.root, "base.db")
        self._keep(place)

    def _keep(self, place: Place) -> None:
        place.keep("wanted", content_of_sqlite(place.disk / "database.db"))

    def act(self, place: Place) -> dict[str, Any]:
        done = module("data_carry_back", source=str(place.disk / "database.db"), target_dsn=place.dsn, state="settled")
        if not done["settled"]:
            raise Refused(
                f"Found: {done['reason']} Expected: - Untouched: every row of SQLite and of PostgreSQL Next: -"
            )
        return done

    def meanwhile(self, place: Place) -> None:
        writes.go_on_carried(place.disk / "database.db")
        self._keep(place)

    def again(self, place: Place) -> Iterator[str]:
        carried_back(place)
        yield from super().again(place)

    def proof(self, place: Place) -> Iterator[str]:
        yield from damage(place.disk / "database.db")
        yield from other_rows(place.disk / "database.db", place.kept("wanted"))
        if query(place.dsn, "SELECT FROM data_copy.change"):
            yield "the change log is not empty"
        with sqlite(place.disk / "database.db") as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'data_copy_carried'").fetchone():
                yield "the mark is still in SQLite"


# Files

OLD = "# by hand: 你好\ndatabase_path: database.db  # mine\nport: 8839\n".encode()
NEW = OLD.replace(b"database.db", b"postgresql://x@127.0.0.1:1/x")
EDIT = b"later: edited\n"
BLOCK = "# begin\nMEMOS=1\n# end\n"


class SettingsSaved(Operation):
    """Copies of settings are made."""

    name, durable = "settings saved", True
    kept: tuple[str, ...] = ("files",)

    def files(self, place: Place) -> list[Path]:
        """Two of Pensieve's kind, and one that is not there yet."""
        return [place.disk / "home" / name for name in ("config.yaml", "tracker.yaml", "tracker.env")]

    def prepare(self, place: Place) -> None:
        (place.disk / "home").mkdir()
        (place.disk / "backup").mkdir()
        for file in self.files(place)[:2]:
            file.write_bytes(OLD)
            file.chmod(0o640)

    def act(self, place: Place) -> dict[str, Any]:
        config, tracker, environment = self.files(place)
        files = [{"path": str(file), "key": "database_path"} for file in (config, tracker)]
        files.append({"path": str(environment), "block": BLOCK})
        done = module("backup_files", state="saved", files=files, directory=str(place.disk / "backup"))
        place.keep("entries", done["entries"])
        return done

    def state(self, place: Place) -> State:
        files = self.files(place)
        return {"files": digest_of_files(*files), **{file.name: digest_of_files(file) for file in files}}

    def proof(self, place: Place) -> Iterator[str]:
        for entry in place.kept("entries"):
            if not entry["absent"] and Path(entry["copy"]).read_bytes() != OLD:
                yield f"the copy {entry['copy']} is not what was copied"


class SettingWritten(SettingsSaved):
    """One setting is written into a file, and recorded before; taken back, the file is what it was."""

    name, kept = "setting written", ()

    def prepare(self, place: Place) -> None:
        super().prepare(place)
        super().act(place)

    def act(self, place: Place) -> dict[str, Any]:
        return set_path(place, self.files(place)[0])

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        if self.files(place)[0].read_bytes() not in (OLD, NEW):
            yield "the file is neither old nor new"

    def proof(self, place: Place) -> Iterator[str]:
        config = self.files(place)[0]
        if config.read_bytes() != NEW or config.stat().st_mode & 0o777 != 0o640:
            yield "the file is not what it should be"
        module("backup_files", state="restored", entries=place.kept("entries"))
        if config.read_bytes() != OLD or config.stat().st_mode & 0o777 != 0o640:
            yield "taken back, the file is not what it was"


def set_path(place: Place, file: Path) -> dict[str, Any]:
    """Run the module."""
    uri = "postgresql://x@127.0.0.1:1/x"
    return module("pensieve_setting", path=str(file), key="database_path", value=uri, entries=place.kept("entries"))


class SettingsRestored(SettingsSaved):
    """What the migration wrote is taken back: in a file as it left it, in one that was edited since, in a new one."""

    name, kept = "settings restored", ()

    def prepare(self, place: Place) -> None:
        super().prepare(place)
        super().act(place)
        config, tracker, environment = self.files(place)
        set_path(place, config)
        set_path(place, tracker)
        tracker.write_bytes(tracker.read_bytes() + EDIT)
        environment.write_text(BLOCK)

    def act(self, place: Place) -> dict[str, Any]:
        return module("backup_files", state="restored", entries=place.kept("entries"))

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        config, tracker, environment = self.files(place)
        if config.read_bytes() not in (OLD, NEW) or tracker.read_bytes() not in (OLD + EDIT, NEW + EDIT):
            yield "a file is neither old nor new"
        if environment.exists() and environment.read_text() != BLOCK:
            yield "a new file is neither whole nor gone"

    def proof(self, place: Place) -> Iterator[str]:
        config, tracker, environment = self.files(place)
        for file, wanted in ((config, OLD), (tracker, OLD + EDIT)):
            if file.read_bytes() != wanted or file.stat().st_mode & 0o777 != 0o640:
                yield f"{file.name} is not what it should be"
        if environment.exists():
            yield f"{environment.name} is still there"


class Journal(Operation):
    """A record is added to the journal."""

    name, durable = "journal", True

    def _append(self, place: Place, step: str) -> dict[str, Any]:
        record = {"step": step, "backend": "sqlite", "owes_start": step == "stop", "words": "x" * 6000}
        return module("pensieve_journal", state_dir=str(place.disk / "state"), state="recorded", record=record)

    def prepare(self, place: Place) -> None:
        self._append(place, "begin")

    def act(self, place: Place) -> dict[str, Any]:
        return self._append(place, "stop")

    def state(self, place: Place) -> State:
        return {"files": self._read(place)}

    def _read(self, place: Place) -> str:
        found = module("pensieve_journal", state_dir=str(place.disk / "state"), state="told")
        return json.dumps([found["standing"]["step"], found["standing"]["owes_start"]])

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        if now["files"] not in (before["files"], '["stop", true]'):
            yield f"the journal says {now['files']}"

    def proof(self, place: Place) -> Iterator[str]:
        if self._read(place) != '["stop", true]':
            yield f"the journal says {self._read(place)}"


class Manifest(Operation):
    """The manifest is written over an earlier one."""

    name, durable = "manifest", True

    CONTENT = {
        "phase": "copied",
        "stamp": "20251125T110555Z",
        "uri": "postgresql://autotasktracker@127.0.0.1:5433/autotasktracker",
        "setting": "база.db",
        "source": {"database": "/home/ada/.memos/database.db"},
        "backup": {"database": ""},
        "files": [],
        "services": ["serve"],
    }

    def prepare(self, place: Place) -> None:
        module("pensieve_manifest", state_dir=str(place.disk / "state"), content=self.CONTENT)

    def act(self, place: Place) -> dict[str, Any]:
        content = {**self.CONTENT, "phase": "switched", "services": ["serve"] * 1000}
        return module("pensieve_manifest", state_dir=str(place.disk / "state"), content=content)

    def state(self, place: Place) -> State:
        return {"files": digest_of_files(place.disk / "state" / migration_manifest.NAME)}

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        found = module("pensieve_manifest", state_dir=str(place.disk / "state"))
        yield from (f"damaged: {problem['found']}" for problem in found["problems"])

    def proof(self, place: Place) -> Iterator[str]:
        state = place.disk / "state"
        for file in (state / migration_manifest.NAME, *state.glob(f"backups/*/{migration_manifest.NAME}")):
            if migration_manifest.read(file)["phase"] != "switched":
                yield f"{file} is still the old one"


class Restore(Operation):
    """A damaged SQLite database is put aside, and its backup takes its place."""

    name, durable = "SQLite restored", True

    DAMAGED = (b"damaged" * 1000, b"log")

    def prepare(self, place: Place) -> None:
        place.keep("sha256", whole_file.digest(copied(place.world.sample, place.disk, "backup.db")))
        for name, content in zip(("database.db", "database.db-wal"), self.DAMAGED):
            (place.disk / name).write_bytes(content)

    def act(self, place: Place) -> dict[str, Any]:
        return module(
            "sqlite_restore",
            path=str(place.disk / "database.db"),
            backup=str(place.disk / "backup.db"),
            sha256=place.kept("sha256"),
            seconds=0,
        )

    def state(self, place: Place) -> State:
        there = {file.read_bytes() for file in place.disk.glob("database.db*")}
        return {
            "files": digest_of_files(*(place.disk / name for name in ("database.db", "database.db-wal"))),
            "damaged": ", ".join(str(content in there) for content in self.DAMAGED),
            "backup.db": whole_file.digest(place.disk / "backup.db"),
        }

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        if now["damaged"] != before["damaged"]:
            yield "a damaged file is gone"

    def proof(self, place: Place) -> Iterator[str]:
        database = place.disk / "database.db"
        digests = [whole_file.digest(file) for file in (database, place.disk / "backup.db")]
        if digests != [place.kept("sha256")] * 2:
            yield "the database is not its backup"
        beside = place.disk / "database.db-wal"
        if beside.exists() and beside.read_bytes() in self.DAMAGED:
            yield "a log of the damaged database lies beside it"
        aside = {file.read_bytes() for file in place.disk.glob("database.db.damaged-*")}
        if not aside.issuperset(self.DAMAGED):
            yield "the damaged files are not kept"


class Intact(Restore):
    """An intact database, with what it needs in its log, is looked at, and stays."""

    name, kept = "SQLite intact", ("source",)

    def prepare(self, place: Place) -> None:
        copied(place.world.base("difference") / "database.db", place.disk)
        place.keep("sha256", whole_file.digest(copied(place.world.sample, place.disk, "backup.db")))

    def state(self, place: Place) -> State:
        return {"source": digest_of_files(*(place.disk / name for name in ("database.db", "database.db-wal")))}

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        if list(place.disk.glob("*.damaged-*")):
            yield "it was put aside"

    def proof(self, place: Place) -> Iterator[str]:
        yield from other_rows(
            place.disk / "database.db", content_of_sqlite(place.world.base("difference") / "database.db")
        )
        yield from self.after_fault(place, {}, {})


class Backup(Operation):
    """A complete copy of a live SQLite database."""

    name, kept, durable = "SQLite saved", ("source",), True

    def prepare(self, place: Place) -> None:
        copied(place.world.base("difference") / "database.db", place.disk)

    def act(self, place: Place) -> dict[str, Any]:
        return module("sqlite_backup", src=str(place.disk / "database.db"), dest=str(place.disk / "copy.db"))

    def state(self, place: Place) -> State:
        source = digest_of_files(place.disk / "database.db", place.disk / "database.db-wal")
        return {"source": source, "database.db": source}

    def after_fault(self, place: Place, before: State, now: State) -> Iterator[str]:
        if (place.disk / "copy.db").exists():
            yield from self.proof(place)

    def again(self, place: Place) -> Iterator[str]:
        (place.disk / "copy.db").unlink(missing_ok=True)
        self.act(place)
        yield from ()

    def proof(self, place: Place) -> Iterator[str]:
        if content_of_sqlite(place.disk / "copy.db") != content_of_sqlite(place.disk / "database.db"):
            yield "the copy is another than the source"
        if (place.disk / "copy.db.part").exists():
            yield "a part is left behind"


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Copy(), Verify(), Hold(), Difference(), LetGo(), NewRun(), CatchUp(), Changes(), CarryBack(), CarryBackLater(),
        CarryBackBoth(), Settle(), SettingsSaved(), SettingWritten(), SettingsRestored(), Manifest(), Journal(),
        Restore(), Intact(), Backup(),
    )
}  # fmt: skip


# What operations begin with


def _copied(world: World, dsn: str) -> None:
    module("data_copy", source=str(world.sample), target_dsn=dsn, jobs=1)
    (world.base("copied") / "target.json").write_text(json.dumps(content_of_target(dsn)))


def _difference(world: World, dsn: str) -> None:
    base = world.base("difference")
    source = copied(world.sample, base)
    snapshot.hold(source, base / "copy.db", base / "snapshot", 1 << 30, 86400)
    settled(base / "snapshot")
    module("data_copy", source=str(base / "copy.db"), target_dsn=dsn, jobs=1)
    fill.go_on(source, 2)
    fill.go_on(copied(source, base, "later.db"), 3)


def _served(world: World, dsn: str) -> None:
    module("data_changes", source=str(world.sample), target_dsn=dsn)
    writes.serve(dsn)


def _both(world: World, dsn: str) -> None:
    base = world.base("both")
    source = copied(world.sample, base)
    writes.go_on_sqlite(source)
    merged = copied(source, base, "merged.db")
    module("data_carry_back", source=str(merged), target_dsn=dsn, base=str(world.sample))
    (base / "content.json").write_text(json.dumps(content_of_sqlite(merged)))


def _carried(world: World, dsn: str) -> None:
    base = world.base("carried")
    source = copied(world.sample, base)
    module("data_carry_back", source=str(source), target_dsn=dsn, base=str(world.sample))
    (base / "content.json").write_text(json.dumps(content_of_sqlite(source)))


def _sample(world: World, _dsn: str) -> None:
    fill.fill(world.sample)


#: By name: what it is made of ("empty" has Pensieve's tables), and how.
BASES: dict[str, tuple[str, Callable[[World, str], None]]] = {
    "sample": ("", _sample),
    "copied": ("empty", _copied),
    "difference": ("empty", _difference),
    "served": ("copied", _served),
    "carried": ("served", _carried),
    "both": ("served", _both),
}


def release(world: World) -> None:
    """End what was begun for all points."""
    snapshot.end(world.base("difference") / "snapshot")
