"""Random writes on either side and carry-backs that end anywhere, against a model of what SQLite must hold then.

The model knows things, not rows: a screenshot by its path, its metadata by key, its tags by name, its entries in both
search tables. It knows no ids, which both sides give by themselves, SQLite those of deleted rows again.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlite_to_postgresql.fts import searchable_path

from rollback.carrier import POINTS
from rollback.test_cuts import Carrier, carrier, copy_of
from rollback.world import Run, World

pytestmark = [pytest.mark.docker, pytest.mark.pensieve]

__all__ = ["carrier"]  # the fixture

Thing = tuple[str, ...]  # kind, path or name, key or name of a tag
State = dict[Thing, Any]

KEYS = ("k1", "k2", "k3")
SHARED = ("/shared/1", "/shared/2")  # both sides may record these
TAGS = ("tag one", "tag two", "tag three")

INSERT = {
    "entity": "INSERT INTO entities (filepath, filename, size, file_created_at, file_last_modified_at, file_type,"
    " file_type_group, library_id, folder_id) SELECT ?, 'n', ?, file_created_at, file_last_modified_at, 'webp',"
    " 'image', library_id, folder_id FROM entities ORDER BY id LIMIT 1",
    "tag": "INSERT INTO tags (name, color) VALUES (?, ?)",
    "meta": "INSERT INTO metadata_entries (entity_id, key, value, source_type, source, data_type)"
    " SELECT id, ?, ?, 'USER_GENERATED', 'me', 'TEXT_DATA' FROM entities WHERE filepath = ?",
    "link": "INSERT INTO entity_tags (entity_id, tag_id, source) SELECT e.id, t.id, ? FROM entities e, tags t"
    " WHERE e.filepath = ? AND t.name = ?",
    "vec": "INSERT INTO entities_vec_v2 (rowid, embedding, file_type_group, created_at_timestamp,"
    " file_created_at_timestamp, file_created_at_date, app_name, library_id) SELECT id, (SELECT embedding FROM"
    " entities_vec_v2 LIMIT 1), 'image', 1, 1, '2025-01-01', ?, library_id FROM entities WHERE filepath = ?",
    "fts": "INSERT INTO entities_fts (id, filepath, tags, metadata) SELECT id, ?, '', ? FROM entities"
    " WHERE filepath = ?",
}
OWN = "(SELECT id FROM entities WHERE filepath = ?)"
DELETE = {
    "entity": "DELETE FROM entities WHERE filepath = ?",
    "meta": f"DELETE FROM metadata_entries WHERE entity_id = {OWN} AND key = ?",
    "link": f"DELETE FROM entity_tags WHERE entity_id = {OWN} AND tag_id = (SELECT id FROM tags WHERE name = ?)",
    "vec": f"DELETE FROM entities_vec_v2 WHERE rowid = {OWN}",
    "fts": f"DELETE FROM entities_fts WHERE id = {OWN}",
}
UPDATE = {
    "entity": "UPDATE entities SET size = ? WHERE filepath = ?",
    "tag": "UPDATE tags SET color = ? WHERE name = ?",
    "meta": f"UPDATE metadata_entries SET value = ? WHERE entity_id = {OWN} AND key = ?",
    "link": f"UPDATE entity_tags SET source = ? WHERE entity_id = {OWN}"
    " AND tag_id = (SELECT id FROM tags WHERE name = ?)",
}
READ = {
    "entity": "SELECT filepath, size FROM entities",
    "tag": "SELECT name, color FROM tags",
    "meta": "SELECT e.filepath, m.key, m.value FROM metadata_entries m JOIN entities e ON e.id = m.entity_id",
    "link": "SELECT e.filepath, t.name, l.source FROM entity_tags l JOIN entities e ON e.id = l.entity_id"
    " JOIN tags t ON t.id = l.tag_id",
    "vec": "SELECT e.filepath, v.app_name FROM entities_vec_v2 v JOIN entities e ON e.id = v.rowid",
    "fts": "SELECT e.filepath, f.metadata FROM entities_fts f JOIN entities e ON e.id = f.id",
}
ORPHANS = (
    "SELECT (SELECT count(*) FROM metadata_entries WHERE entity_id NOT IN (SELECT id FROM entities)), (SELECT count(*)"
    " FROM entity_tags WHERE entity_id NOT IN (SELECT id FROM entities) OR tag_id NOT IN (SELECT id FROM tags)),"
    " (SELECT count(*) FROM entities_vec_v2 WHERE rowid NOT IN (SELECT id FROM entities)), (SELECT count(*) FROM"
    " entities_fts WHERE id NOT IN (SELECT id FROM entities))"
)


class Side:
    """What one side holds, and what writes to it."""

    def __init__(self, name: str, things: State) -> None:
        self.name, self.things = name, dict(things)
        self.used: set[Thing] = set(things)  # what was here once is not made again

    def of(self, kind: str) -> list[Thing]:
        """Things of a kind that are there."""
        return sorted(thing for thing in self.things if thing[0] == kind)

    def parts(self, path: str) -> list[Thing]:
        """What belongs to a screenshot, the screenshot last."""
        return sorted((thing for thing in self.things if thing[1] == path), key=lambda thing: thing[0] == "entity")


class Model:
    """Both sides, and for each thing what they held when they were equal last."""

    def __init__(self, things: State) -> None:
        self.theirs, self.ours = Side("p", things), Side("s", things)
        self._base: dict[Thing, tuple[Any, Any]] = {thing: (value, value) for thing, value in things.items()}
        self._joined: set[Thing] = set()
        self.conflicts = 0

    def carry(self) -> None:
        """What a carry-back makes of SQLite."""
        theirs, ours, self.conflicts = self.theirs.things, self.ours.things, 0
        for thing in sorted({*theirs, *ours, *self._base}, key=lambda thing: thing[0] not in ("entity", "tag")):
            their, our = theirs.get(thing), ours.get(thing)
            their_base, our_base = self._base.get(thing, (None, None))
            if thing in self._joined:
                continue
            if their is not None and our is not None and their_base is None and our_base is None:
                self._joined.add(thing)
            elif their == our:
                self._base[thing] = (their, our)
            elif their == their_base:
                continue
            elif our != our_base or their is not None and not self._stands(thing):
                self.conflicts += thing[0] not in ("vec", "fts")
            else:
                self.set_ours(thing, their)
                self._base[thing] = (their, their)

    def _stands(self, thing: Thing) -> bool:
        """Whether SQLite has what a thing belongs to."""
        there = thing[0] in ("entity", "tag") or ("entity", thing[1]) in self.ours.things
        return there and (thing[0] != "link" or ("tag", thing[2]) in self.ours.things)

    def set_ours(self, thing: Thing, value: Any) -> None:
        """Change SQLite."""
        if value is None:
            self.ours.things.pop(thing, None)
        else:
            self.ours.things[thing] = value
            self.ours.used.add(thing)

    def untouched(self, path: str) -> bool:
        """Whether SQLite has nothing of its own on what belongs to a screenshot."""
        return all(
            self.ours.things.get(thing) == self._base.get(thing, (None, None))[1]
            for thing in {*self._base, *self.ours.things}
            if thing[1] == path and thing[0] != "entity"
        )


class Game:
    """One seed."""

    def __init__(self, run: Run, carrier: Carrier, seed: int) -> None:
        self.run, self.carrier, self.chance, self.count = run, carrier, random.Random(seed), 0
        self.base = copy_of(run, "base.db")
        self.model = Model(self.read())
        self.orphans = carrier.read(run, ORPHANS)

    def read(self) -> State:
        """What SQLite holds."""
        found: State = {}
        for kind, sql in READ.items():
            for *name, value in self.carrier.read(self.run, sql):
                assert (kind, *name) not in found or not name[0].startswith(("/shared", "/new", "/seed")), (kind, name)
                found[(kind, *name)] = value
        return found

    def fresh(self) -> int:
        """A value that nothing had before."""
        self.count += 1
        return 1000 + self.count

    def put(self, side: Side, thing: Thing) -> list[tuple[str, list[Any]]]:
        """Make a thing, or change it."""
        kind, there, number = thing[0], thing in side.things, self.fresh()
        value: Any = number if kind == "entity" else f"{side.name}{number}"
        if kind == "link":
            sources = ["USER_GENERATED"] if side.name == "p" else ["SYSTEM_GENERATED", "PLUGIN_GENERATED"]
            value = self.chance.choice(sources)
        side.things[thing] = value
        side.used.add(thing)
        if there and kind in UPDATE:
            return [(UPDATE[kind], [value, *thing[1:]])]
        path = thing[1]
        values = {
            "entity": [path, value], "tag": [path, value], "meta": [*thing[2:], value, path],
            "link": [value, *thing[1:]], "vec": [value, path],
            "fts": [searchable_path(path) if side.name == "p" else path, value, path],
        }[kind]  # fmt: skip
        gone = [(DELETE[kind], [path])] if there else []
        return [*gone, (INSERT[kind], values)]

    def drop(self, side: Side, thing: Thing) -> list[tuple[str, list[Any]]]:
        """Delete a thing, with all that belongs to it."""
        gone = side.parts(thing[1]) if thing[0] == "entity" else [thing]
        for one in gone:
            del side.things[one]
        return [(DELETE[one[0]], list(one[1:])) for one in gone]

    def step(self, side: Side) -> list[tuple[str, list[Any]]]:
        """Something that Pensieve might do."""
        chance, other = self.chance, self.model.theirs if side.name == "s" else self.model.ours
        ours = [thing for thing in side.of("entity") if thing[1].startswith(("/seed", "/new", "/shared"))]
        # What SQLite writes for a screenshot that PostgreSQL has deleted is left to itself.
        alive = [t for t in ours if side.name == "p" or t in other.things or t not in other.used]
        kind = chance.choice(["record", "record", "change", "change", "meta", "meta", "tag", "index", "part", "delete"])
        if kind == "record" or not alive:
            free = [path for path in SHARED if ("entity", path) not in side.used]
            path = chance.choice(free) if free and chance.random() < 0.3 else f"/new/{side.name}{self.fresh()}"
            made = [("entity", path), ("meta", path, chance.choice(KEYS)), ("vec", path), ("fts", path)]
            return [statement for thing in made for statement in self.put(side, thing)]
        path = chance.choice(alive)[1]
        if kind == "change":
            return self.put(side, ("entity", path))
        if kind == "meta":
            thing: Thing = ("meta", path, chance.choice(KEYS))
            return self.put(side, thing) if thing in side.things or thing not in side.used else []
        if kind == "tag":
            tag, link = ("tag", chance.choice(TAGS)), ("link", path, chance.choice(TAGS))
            done = [] if tag in side.things and chance.random() < 0.7 else self.put(side, tag)
            if ("tag", link[2]) in side.things and (link in side.things or link not in side.used):
                done += self.put(side, link)
            return done
        if kind == "index":
            return [*self.put(side, ("vec", path)), *self.put(side, ("fts", path))]
        if kind == "part":
            parts = [thing for thing in side.parts(path) if thing[0] in ("meta", "link")]
            return self.drop(side, chance.choice(parts)) if parts else []
        highest = side.name == "s" and chance.random() < 0.5
        path = ours[-1][1] if highest else path
        if side.name == "p" and not self.model.untouched(path):
            return []
        return self.drop(side, ("entity", path))

    def write(self, side: Side, steps: int) -> None:
        """Write at random."""
        statements = [statement for _ in range(steps) for statement in self.step(side)]
        if side.name == "s":
            self.carrier.write(self.run, *(list(statement) for statement in statements))
            return
        connection = psycopg2.connect(self.run.dsn)
        with connection, connection.cursor() as cursor:
            for sql, values in statements:
                cursor.execute(sql.replace("?", "%s"), values)
        connection.close()

    def cut(self) -> None:
        """A carry-back that ends anywhere, or not."""
        point = self.chance.choice([*POINTS[:6], POINTS[1], self.chance.randint(1, 150), None])
        if point is None:
            self.carry()
        elif self.carrier.cut(self.run, point, base=self.base)["committed"]:
            self.model.carry()
            self.compare()

    def carry(self) -> dict[str, Any]:
        """A whole one."""
        carried = self.carrier.carry(self.run, base=self.base)
        self.model.carry()
        self.compare()
        return carried

    def compare(self) -> None:
        """SQLite is as the model says."""
        found, wanted = self.read(), self.model.ours.things
        apart = {thing: (found.get(thing), wanted.get(thing)) for thing in {*found, *wanted}}
        assert not {thing: both for thing, both in apart.items() if both[0] != both[1]}
        assert self.carrier.read(self.run, ORPHANS) == self.orphans


@pytest.fixture
def game(shared: World, carrier: Carrier, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Game]:
    """A migration whose last screenshots are those that are written to."""
    made = Run(shared, Path(shutil.copy(shared.sample.base / "database.db", tmp_path / "seeded.db")), "")
    paths = [f"/seed/{number}" for number in range(4)]
    carrier.write(made, *([INSERT["entity"], [path, 1]] for path in paths))
    for path in paths:
        carrier.write(
            made,
            [INSERT["meta"], ["k1", "v", path]],
            [INSERT["vec"], ["v", path]],
            [INSERT["fts"], [path, "k1: v", path]],
        )
    run = shared.migrate(tmp_path, made.source)
    yield Game(run, carrier, request.param)
    shared.server.drop_database(run.dsn.rpartition("/")[2])


SEEDS = range(1, 7)


@pytest.mark.parametrize("game", SEEDS, indirect=True)
def test_postgresql_alone_goes_on(game: Game) -> None:
    """A rollback that fails, and Pensieve on PostgreSQL again, some times over."""
    for _ in range(6):
        game.write(game.model.theirs, 6)
        game.cut()
    carried = game.carry()
    assert not carried["conflicts"]
    assert not carried["renumbered"]
    assert game.model.ours.things == game.model.theirs.things
    found = game.run.verify()
    assert found.equal, found.differences[:5]


@pytest.mark.parametrize("game", SEEDS, indirect=True)
def test_sqlite_alone_goes_on(game: Game) -> None:
    """A dead server, and Pensieve on SQLite; then carry-backs that fail while it goes on there."""
    game.write(game.model.theirs, 20)
    for _ in range(6):
        game.write(game.model.ours, 6)
        game.cut()
    game.carry()
    assert not game.carry()["changed"]


@pytest.mark.parametrize("game", SEEDS, indirect=True)
def test_either_goes_on(game: Game) -> None:
    for _ in range(8):
        game.write(game.chance.choice([game.model.theirs, game.model.ours]), 6)
        game.cut()
    carried = game.carry()
    assert bool(carried["conflicts"]) >= bool(game.model.conflicts)
    assert not game.carry()["changed"]
