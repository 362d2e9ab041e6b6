"""Both sides were written to since the cutover: which row goes where, so that nothing of either is overwritten.

That happens when PostgreSQL was dead at a rollback, and Pensieve went on recording on SQLite. SQLite as it was at the
cutover (``base``) tells what was written there since. Then:

* a row that only one side has changed is that side's;
* a row that both have changed or deleted is SQLite's, which is the later one, and the other is told as a conflict;
* ids that both sides have given to different rows: the one of PostgreSQL gets a new id, in every table that refers to
  it, vectors and full text included. If it is the same thing by its natural key (a tag of the same name, a
  screenshot of the same file, …), it is joined with the one of SQLite instead.
"""

from __future__ import annotations

from typing import Any

from .carry_sides import Database, Key, Row, Target, chunks, key_columns
from .carry_values import stands_for, written
from .carry_words import WordsBack, squeezed
from .model import EngineError
from .plan import FULL_TEXT, Plan, TablePlan
from .source import quoted

ENTITIES = "entities"
_INDEX_REFERENCES = {"library_id": "libraries"}  # columns of the vector table that refer to another table

#: What makes two rows of Pensieve's tables the same thing.
_NATURAL: dict[str, tuple[str, ...]] = {
    "libraries": ("name",),
    "plugins": ("name",),
    "tags": ("name",),
    "folders": ("library_id", "path"),
    "entities": ("library_id", "filepath"),
    "library_plugins": ("library_id", "plugin_id"),
    "entity_tags": ("entity_id", "tag_id"),
    "metadata_entries": ("entity_id", "key"),
}


class Merge:
    """Decides before anything is written; asked for each row afterwards."""

    def __init__(self, database: Database, target: Target, plan: Plan, base: Database | None) -> None:
        self._database, self._target, self._plan, self._base = database, target, plan, base
        self._ids: dict[str, dict[int, int]] = {}  # PostgreSQL's id -> another one in SQLite
        self._joined: dict[str, set[int]] = {}  # PostgreSQL's ids whose row SQLite has already
        self._kept: dict[str, set[Key]] = {}  # keys that stay as SQLite has them
        self._given: dict[str, int] = {}  # highest id of each table
        self.conflicts: list[dict[str, Any]] = []
        self.needed = False

    def renumbered(self) -> list[dict[str, Any]]:
        """Rows of PostgreSQL that have another id in SQLite."""
        return [
            {"table": name, "postgresql": old, "sqlite": new, "joined": old in self._joined.get(name, ())}
            for name, ids in sorted(self._ids.items())
            for old, new in sorted(ids.items())
        ]

    def decide(self, work: dict[str, list[Key]]) -> None:
        """Compare what both sides have of all touched keys."""
        for name, keys in work.items():
            table = self._plan.tables[name]
            if not key_columns(table) or table.is_full_text or table.is_vectors:
                continue
            for some in chunks(keys):
                theirs = self._target.rows(table, some)
                for key in some:
                    self._decide(table, key, theirs.get(key))
        for name, keys in work.items():
            table = self._plan.tables[name]
            if table.is_vectors or table.is_full_text:
                for key in keys:
                    if self._index_differs(table, key):
                        self.needed = True
                        self._keep(table, key)

    def _decide(self, table: TablePlan, key: Key, values: Row | None) -> None:
        ours = self._database.row(table, key)
        if values is not None and ours is not None and self._same(table, ours, values):
            return
        if ours is None and values is None:
            return
        before = self._before(table, key, ours or _as_stored(table, values))
        if ours == before:
            if values is not None and before is None:
                self._join(table, key, values)
            return
        self.needed = True
        if values is not None and before is None:
            # Both sides have given this key.
            if not self._join(table, key, values):
                self._renumber(table, key, values)
        elif before is not None and values is not None and self._same(table, before, values):
            self._keep(table, key)  # changed in SQLite, and put back in PostgreSQL
        elif values is None and before is None:
            self._keep(table, key)  # given and deleted in PostgreSQL, given in SQLite
        else:
            self._keep(table, key)
            what = {True: "deleted", False: "changed"}
            reason = f"{what[ours is None]} in SQLite, {what[values is None]} in PostgreSQL; SQLite's stays"
            self._conflict(table, key, reason)

    def _before(self, table: TablePlan, key: Key, now: Row | None) -> Row | None:
        """The row at the cutover. A column that an upgrade has added since counts as it is ``now``."""
        if self._base is None:
            raise EngineError(
                f"SQLite was written to since the cutover, and the row {key} of {table.name} differs on both sides",
                "a copy of SQLite as it was at the cutover, to tell which side has changed it",
                "both databases; nothing was carried back",
                "name such a copy (base), or settle this row by hand, then run again",
            )
        row, known = self._base.row(table, key), self._base.columns(table.name)
        if row is None or now is None or known.issuperset(table.columns):
            return row
        return tuple(then if name in known else cell for name, then, cell in zip(table.columns, row, now))

    def _same(self, table: TablePlan, cells: Row, values: Row) -> bool:
        labels = {keeper: table.columns.index(label) for label, keeper in table.label_keepers.items()}
        return all(
            stands_for(codec, cell, value, ("coerce", "quarantine"), cells[labels[name]] if name in labels else None)
            for name, codec, cell, value in zip(table.columns, table.codecs, cells, values)
        )

    def _keep(self, table: TablePlan, key: Key) -> None:
        self._kept.setdefault(table.name, set()).add(key)

    def _conflict(self, table: TablePlan, key: Key, reason: str) -> None:
        self.conflicts.append({"table": table.name, "key": list(key), "reason": reason})

    def _join(self, table: TablePlan, key: Key, values: Row) -> bool:
        """Take a new row of PostgreSQL for one that SQLite has been given since, if they are the same thing."""
        natural = _NATURAL.get(table.name)
        if natural is None or len(key) != 1 or not set(natural) <= set(table.columns):
            return False
        mapped = self._mapped(table, values)
        if mapped is None:
            return False
        wanted = []
        for name in natural:
            place = table.columns.index(name)
            wanted.append(written(table.codecs[place], mapped[place], False))
        where = " AND ".join(f"{quoted(name)} = ?" for name in natural)
        names = key_columns(table)
        sql = f"SELECT {quoted(names[0])} FROM {quoted(table.name)} WHERE {where} ORDER BY 1"
        for (found,) in self._database.execute(sql, wanted).fetchall():
            if self._before(table, (found,), None) is not None:
                continue
            self.needed = True
            self._ids.setdefault(table.name, {})[key[0]] = found
            self._joined.setdefault(table.name, set()).add(key[0])
            ours = self._database.row(table, (found,))
            if (
                table.name == "metadata_entries"
                and ours is not None
                and ours[table.columns.index("value")] != (values[table.columns.index("value")])
            ):
                self._conflict(table, key, f"SQLite has another value for the same key, in row {found}; SQLite's stays")
            return True
        return False

    def _renumber(self, table: TablePlan, key: Key, values: Row) -> None:
        if len(key) != 1 or not isinstance(key[0], int):
            mapped = self._mapped(table, values)
            if mapped is not None and tuple(mapped[table.columns.index(name)] for name in key_columns(table)) != key:
                return  # a parent in its key has another id in SQLite, so this row has another key there
            self._keep(table, key)
            self._conflict(table, key, "both sides have made this row, with different values; SQLite's stays")
            return
        if table.name not in self._given:
            name = quoted(key_columns(table)[0])
            ours = self._database.execute(f"SELECT max({name}) FROM {quoted(table.name)}").fetchone()[0] or 0
            self._given[table.name] = max([ours, *(known[0] for known in self._target.keys(table))])
        self._given[table.name] += 1
        self._ids.setdefault(table.name, {})[key[0]] = self._given[table.name]

    def _mapped(self, table: TablePlan, values: Row) -> Row | None:
        """A row of PostgreSQL with the ids that its parents have in SQLite; None if SQLite has deleted a parent."""
        parents = {
            foreign.columns[0]: str(foreign.parent)
            for foreign in table.target.foreign_keys()
            if len(foreign.columns) == 1
        }
        if table.is_vectors:
            parents = _INDEX_REFERENCES
        row = list(values)
        for column, parent in parents.items():
            if column not in table.columns or row[(place := table.columns.index(column))] is None:
                continue
            row[place] = self._ids.get(parent, {}).get(row[place], row[place])
            if (row[place],) in self._kept.get(parent, ()) and not self._is_there(parent, row[place]):
                return None
        return tuple(row)

    def _is_there(self, table: str, number: int) -> bool:
        plan = self._plan.tables.get(table)
        return plan is None or self._database.row(plan, (number,)) is not None

    # Asked while rows are written

    def keeps(self, table: TablePlan, key: Key) -> bool:
        """Whether SQLite's row of this key stays as it is."""
        return key in self._kept.get(table.name, ())

    def place(self, table: TablePlan, key: Key, values: Row) -> tuple[Key, Row] | None:
        """Key and values with which a row of PostgreSQL goes into SQLite; None if it does not go."""
        if self.keeps(table, key) or (len(key) == 1 and key[0] in self._joined.get(table.name, ())):
            return None
        mapped = self._mapped(table, values)
        if mapped is None:
            self._conflict(table, key, "the row that it belongs to was deleted in SQLite")
            return None
        names = key_columns(table)
        row = list(mapped)
        if len(key) == 1 and key[0] in self._ids.get(table.name, {}):
            row[table.columns.index(names[0])] = self._ids[table.name][key[0]]
        at = tuple(row[table.columns.index(name)] for name in names)
        if at != key and len(names) > 1 and self._database.row(table, at) is not None:
            return None  # SQLite says so already
        return at, tuple(row)

    def place_index(self, table: TablePlan, key: Key, values: Row | None) -> tuple[Key, Row | None] | None:
        """The same for an entry of a search table, whose key is that of its entity."""
        if self.keeps(table, key):
            return None
        entity: int = self._ids.get(ENTITIES, {}).get(int(key[0]), int(key[0]))
        if values is None:
            return (key, None) if entity == key[0] else None
        if key[0] in self._joined.get(ENTITIES, ()) and self._has_entry(self._database, table, entity):
            return None
        if not self._is_there(ENTITIES, entity):
            return None
        mapped = self._mapped(table, values)
        if mapped is None:
            return None
        return (entity,), (entity, *mapped[1:])

    def _has_entry(self, database: Database, table: TablePlan, entity: int) -> bool:
        return self._entry(database, table, entity) is not None

    def _entry(self, database: Database, table: TablePlan, entity: int) -> Row | None:
        if table.name != FULL_TEXT:
            return database.row(table, (entity,))
        found = database.entries_of(table, entity)
        return (entity, *database.entry(table, found[-1])) if found else None

    def _index_differs(self, table: TablePlan, key: Key) -> bool:
        """Whether SQLite has written another entry for an entity since, that is not PostgreSQL's."""
        if key[0] in self._ids.get(ENTITIES, {}):
            return False
        ours = self._entry(self._database, table, key[0])
        theirs = self._target.rows(table, [key]).get(key)
        if table.is_full_text and ours is not None and theirs is not None:
            raw = WordsBack().raw(theirs[1:], *self._target.entity_texts([key[0]]).get(key[0], (None, [], [])))
            if [squeezed(str(part)) for part in ours[1:]] == [squeezed(part) for part in raw]:
                return False
        elif (
            ours is None
            and theirs is None
            or ours
            and theirs
            and not table.is_full_text
            and (self._same(table, ours, theirs))
        ):
            return False
        if self._base is None:
            self._before(table, key, None)
        assert self._base is not None
        return ours != self._entry(self._base, table, key[0])


def _as_stored(table: TablePlan, values: Row | None) -> Row | None:
    """Give a row of PostgreSQL as SQLite would hold it."""
    return values and tuple(written(codec, value, False) for codec, value in zip(table.codecs, values))
