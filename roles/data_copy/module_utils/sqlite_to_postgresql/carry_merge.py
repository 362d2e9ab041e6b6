"""Both sides were written to since they were equal: which row goes where, so that nothing of either is overwritten.

That happens when PostgreSQL was dead at a rollback, and Pensieve went on recording on SQLite; and when a carry-back
ended after its commit in SQLite, and Pensieve went on on either side. What both held when they were equal last, the
*base*, is what the mark in SQLite says (``carry_mark``), and for keys that it does not have the copy of the cutover.
Then:

* a row that only one side has changed is that side's;
* a row that both have changed or deleted is SQLite's, which is the later one, and the other is told as a conflict;
* ids that both sides have given to different rows: the one of PostgreSQL gets a new id, in every table that refers to
  it, vectors and full text included. If it is the same thing by its natural key (a tag of the same name, a
  screenshot of the same file, …), it is joined with the one of SQLite instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Optional

from .carry_mark import Mark, Marked, digest
from .carry_sides import Database, Key, Row, Target, chunks, key_columns
from .carry_values import stands_for, written
from .carry_words import WordsBack, squeezed
from .model import EngineError
from .plan import Plan, TablePlan
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

Texts = tuple[Optional[str], list[str], list[tuple[str, str]]]
Bag = Counter[bytes]  # rows of a table without a key, by their digests


class Merge:
    """Decides before anything is written; asked for each row afterwards."""

    def __init__(self, database: Database, target: Target, plan: Plan, base: Database | None, mark: Mark) -> None:
        self._database, self._target, self._plan, self._base, self._mark = database, target, plan, base, mark
        self._moved: dict[str, dict[Key, Key]] = {}  # PostgreSQL's key -> another one in SQLite
        self._joined: dict[str, set[Key]] = {}  # PostgreSQL's keys whose row SQLite has already
        self._kept: dict[str, set[Key]] = {}  # PostgreSQL's keys whose row does not go into SQLite
        self._taken: dict[str, dict[Key, Key]] = {}  # keys of SQLite whose row is one of PostgreSQL with another key
        self._settled: dict[str, set[Key]] = {}  # keys whose row is the same on both sides already
        self._given: dict[str, int] = {}  # highest id of each table
        self._work: dict[str, list[Key]] = {}
        self._unnoted: set[Key] = set()
        self._standing: dict[tuple[str, int], bool] = {}
        self._parents: dict[str, dict[int, str]] = {}
        self._order = {name: place for place, name in enumerate(plan.tables)}
        self._words = WordsBack()
        self.conflicts: list[dict[str, Any]] = []
        self.needed = False
        for table, key, at, joined in mark.moved():
            self._move(table, key, at, joined)

    def renumbered(self) -> list[dict[str, Any]]:
        """Rows of PostgreSQL that have another id in SQLite."""
        return [
            {"table": name, "postgresql": old[0], "sqlite": new[0], "joined": old in self._joined.get(name, ())}
            for name, keys in sorted(self._moved.items())
            for old, new in sorted(keys.items())
            if len(old) == 1 and name in self._plan.tables and self._plan.tables[name].table is not None
            if not (old in self._joined.get(name, ()) and old in self._kept.get(name, ()))
        ]

    # What goes where

    def decide(self, work: dict[str, list[Key]], unnoted: set[Key]) -> None:
        """Compare what both sides have of all touched keys. ``unnoted``: entries of full text that no log names."""
        self._work, self._unnoted = work, unnoted
        ordinary = [name for name in work if self._plan.tables[name].table is not None]
        for name in (*ordinary, *(name for name in work if name not in ordinary)):
            table = self._plan.tables[name]
            for some in chunks(work[name]):
                theirs = self._target.rows(table, some)
                texts = self._target.entity_texts([key[0] for key in some]) if table.is_full_text else {}
                for key in some:
                    if name in ordinary:
                        self._decide(table, key, theirs.get(key))
                    else:
                        self._decide_index(table, key, theirs.get(key), texts.get(key[0], (None, [], [])))

    def _decide(self, table: TablePlan, key: Key, values: Row | None) -> None:
        marked = self._mark.get(table.name, key)
        if marked is not None and marked.joined:
            one = self._database.row(table, marked.at)
            if marked.is_theirs(table.columns, values) and not self._is_same_thing(table, one, values):
                self._keep(table, key)  # they were one, and SQLite has deleted it since
                return
            self._unmove(table, key)
        elif marked is not None:
            self._decide_marked(table, key, values, marked)
            return
        if self._mapped_key(table, key, values) != key:
            return  # a parent in its key has another id in SQLite, so this row has another key there
        ours = self._database.row(table, key)
        if key in self._taken.get(table.name, ()):
            self._both_made(table, key, values)
            return
        if values is not None and ours is not None and self._same(table, ours, values):
            self._settled.setdefault(table.name, set()).add(key)
            return
        if ours is None and values is None:
            return
        before = self._before(table, key, ours or _as_stored(table, values))
        if ours == before:
            if values is not None and before is None:
                self._join(table, key, values)
            return
        if before is None:
            self._both_made(table, key, values)
        elif values is not None and self._same(table, before, values):
            self._keep(table, key)  # changed in SQLite alone
        else:
            self._keep(table, key)
            self._conflict(table, key, _reason(ours, values))

    def _decide_marked(self, table: TablePlan, key: Key, values: Row | None, marked: Marked) -> None:
        """The same for a row that an earlier carry-back has written."""
        ours = self._database.row(table, marked.at)
        if marked.is_ours(table.columns, ours):
            if marked.is_theirs(table.columns, values):
                self._settled.setdefault(table.name, set()).add(key)
            return
        self.needed = True
        if marked.is_theirs(table.columns, values):
            self._keep(table, key)
        elif ours == values or ours and values and self._same(table, ours, self._moved_to(table, key, values)):
            self._settled.setdefault(table.name, set()).add(key)
        elif marked.ours is None and values is not None:
            self._unmove(table, key)
            self._both_made(table, key, values)
        else:
            self._keep(table, key)
            self._conflict(table, key, _reason(ours, values))

    def _both_made(self, table: TablePlan, key: Key, values: Row | None) -> None:
        """Both sides have given this key."""
        self.needed = True
        if values is None:
            self._keep(table, key)  # PostgreSQL has deleted its row again
        elif not self._join(table, key, values):
            self._renumber(table, key, values)

    def _before(self, table: TablePlan, key: Key, now: Row | None) -> Row | None:
        """The row at the cutover. A column that an upgrade has added since counts as it is ``now``."""
        base = self._required_base(f"the row {key} of {table.name}")
        row, known = base.row(table, key), base.columns(table.name)
        if row is None or now is None or known.issuperset(table.columns):
            return row
        return tuple(then if name in known else cell for name, then, cell in zip(table.columns, row, now))

    def _required_base(self, what: str) -> Database:
        if self._base is None:
            raise EngineError(
                f"SQLite was written to since the cutover, and {what} differs on both sides",
                "a copy of SQLite as it was at the cutover, to tell which side has changed it",
                "both databases, which are as before this run",
                "name such a copy (base), or settle this by hand, then run again",
            )
        return self._base

    def _same(self, table: TablePlan, cells: Row, values: Row) -> bool:
        labels = {keeper: table.columns.index(label) for label, keeper in table.label_keepers.items()}
        return len(cells) == len(values) and all(
            stands_for(codec, cell, value, ("coerce", "quarantine"), cells[labels[name]] if name in labels else None)
            for name, codec, cell, value in zip(table.columns, table.codecs, cells, values)
        )

    def _keep(self, table: TablePlan, key: Key) -> None:
        self.needed = True
        self._kept.setdefault(table.name, set()).add(key)

    def _conflict(self, table: TablePlan, key: Key, reason: str) -> None:
        self.conflicts.append({"table": table.name, "key": list(key), "reason": reason})

    def refuse(self, table: TablePlan, key: Key, reason: str) -> None:
        """Tell that a row of PostgreSQL does not go into SQLite, and neither does what refers to it."""
        self._keep(table, key)
        self._unmove(table, key)
        self._conflict(table, key, reason)
        if len(key) == 1:
            self._standing[table.name, key[0]] = False

    def _move(self, table: str, key: Key, at: Key, joined: bool) -> None:
        self._moved.setdefault(table, {})[key] = at
        if joined:
            self._joined.setdefault(table, set()).add(key)
        else:
            self._taken.setdefault(table, {})[at] = key

    def _unmove(self, table: TablePlan, key: Key) -> None:
        self._moved.get(table.name, {}).pop(key, None)
        self._joined.get(table.name, set()).discard(key)

    def _join(self, table: TablePlan, key: Key, values: Row) -> bool:
        """Take a new row of PostgreSQL for one that SQLite has been given since, if they are the same thing."""
        natural = _natural(table)
        if not natural or len(key) != 1:
            return False
        mapped = self._mapped(table, values)
        wanted = [written(table.codecs[place], mapped[place], False) for place in natural]
        where = " AND ".join(f"{quoted(table.columns[place])} = ?" for place in natural)
        names = key_columns(table)
        sql = f"SELECT {quoted(names[0])} FROM {quoted(table.name)} WHERE {where} ORDER BY 1"
        for (found,) in self._database.execute(sql, wanted).fetchall():
            ours = self._database.row(table, (found,))
            if ours is None or not self._is_own(table, (found,), ours):
                continue
            self.needed = True
            self._move(table.name, key, (found,), True)
            if (
                table.name == "metadata_entries"
                and ours[table.columns.index("value")] != (values[table.columns.index("value")])
            ):
                self._conflict(table, key, f"SQLite has another value for the same key, in row {found}; SQLite's stays")
            return True
        return False

    def _is_own(self, table: TablePlan, at: Key, ours: Row) -> bool:
        """Whether a row of SQLite is neither of the cutover nor carried: the id alone does not tell, as it is given
        again when the row with the highest one is deleted.
        """
        key = self._taken.get(table.name, {}).get(at, at)
        marked = self._mark.get(table.name, key)
        if marked is None or marked.at != at or marked.joined or marked.ours is None:
            before = self._before(table, at, None)
            return before is None or any(before[place] != ours[place] for place in _natural(table))
        if marked.is_ours(table.columns, ours):
            return False
        return not self._is_same_thing(table, ours, self._target.rows(table, [key]).get(key))

    def _is_same_thing(self, table: TablePlan, ours: Row | None, values: Row | None) -> bool:
        """Whether a row of each side are the same thing."""
        if ours is None or values is None:
            return False
        mapped = self._mapped(table, values)
        return all(ours[place] == written(table.codecs[place], mapped[place], False) for place in _natural(table))

    def _renumber(self, table: TablePlan, key: Key, values: Row) -> None:
        if len(key) != 1 or not isinstance(key[0], int):
            self._keep(table, key)
            self._conflict(table, key, "both sides have made this row, with different values; SQLite's stays")
            return
        if table.name not in self._given:
            name = quoted(key_columns(table)[0])
            ours = self._database.execute(f"SELECT max({name}) FROM {quoted(table.name)}").fetchone()[0] or 0
            # An id that PostgreSQL has given and deleted again is no free one: its log still names it.
            shared = [name for name in self._work if table.name == ENTITIES and self._plan.tables[name].table is None]
            noted = (key[0] for name in (table.name, *shared) for key in self._work.get(name, ()))
            taken = (at[0] for at in self._taken.get(table.name, ()))
            self._given[table.name] = max([ours, self._target.highest(table), *noted, *taken])
        self._given[table.name] += 1
        self._move(table.name, key, (self._given[table.name],), False)

    def _mapped(self, table: TablePlan, values: Row) -> Row:
        """A row of PostgreSQL with the ids that its parents have in SQLite."""
        row = list(values)
        for place, parent in self._parents_of(table).items():
            if row[place] is not None:
                row[place] = self._moved.get(parent, {}).get((row[place],), (row[place],))[0]
        return tuple(row)

    def _parents_of(self, table: TablePlan) -> dict[int, str]:
        """Places of the columns that refer to a row of another table by its key, and that table."""
        if table.name not in self._parents:
            columns = _INDEX_REFERENCES if table.is_vectors else {}
            for foreign in table.target.foreign_keys():
                parent = self._plan.tables.get(str(foreign.parent))
                if parent is not None and len(foreign.columns) == 1 and foreign.parent_columns == key_columns(parent):
                    columns = {**columns, foreign.columns[0]: parent.name}
            there = {table.columns.index(name): parent for name, parent in columns.items() if name in table.columns}
            self._parents[table.name] = there
        return self._parents[table.name]

    def _mapped_key(self, table: TablePlan, key: Key, values: Row | None) -> Key:
        """Key that a row of PostgreSQL has in SQLite by those of its parents."""
        if values is None or len(key) == 1:
            return key
        mapped = self._mapped(table, values)
        return tuple(mapped[table.columns.index(name)] for name in key_columns(table))

    def _moved_to(self, table: TablePlan, key: Key, values: Row) -> Row:
        """A row of PostgreSQL as it goes into SQLite."""
        row = list(self._mapped(table, values))
        for name, part in zip(key_columns(table), self._moved.get(table.name, {}).get(key, ())):
            row[table.columns.index(name)] = part
        return tuple(row)

    def _is_orphan(self, table: TablePlan, values: Row) -> bool:
        """Whether SQLite has no row any more to which a row of PostgreSQL refers."""
        return not all(
            self._stands(parent, values[place])
            for place, parent in self._parents_of(table).items()
            if values[place] is not None and self._order[parent] < self._order[table.name]
        )

    def _stands(self, parent: str, number: int) -> bool:
        """Whether a row of PostgreSQL is in SQLite, now that all tables above the present one are written."""
        if (parent, number) not in self._standing:
            self._standing[parent, number] = self._looked_for(parent, number)
        return self._standing[parent, number]

    def _looked_for(self, parent: str, number: int) -> bool:
        table = self._plan.tables.get(parent)
        if table is None:
            return True
        at = self._moved.get(parent, {}).get((number,), (number,))
        if at == (number,) and at in self._taken.get(parent, ()):
            return False
        ours = self._database.row(table, at)
        return ours is not None and (parent != ENTITIES or self._is_same_file(table, number, at, ours))

    def _is_same_file(self, table: TablePlan, number: int, at: Key, ours: Row) -> bool:
        """Whether an entity of SQLite is that of PostgreSQL: SQLite gives the id of the last one again if that goes."""
        place = table.columns.index("filepath")
        before = self._base.row(table, at) if self._base is not None and at == (number,) else None
        if before is not None and before[place] == ours[place]:
            return True
        theirs = self._target.rows(table, [(number,)]).get((number,))
        lenient = ("coerce", "quarantine")
        return theirs is None or stands_for(table.codecs[place], ours[place], theirs[place], lenient, None)

    # Asked while rows are written

    def is_known(self, table: TablePlan, key: Key, cells: Row | None) -> bool:
        """Whether the base says without the mark that SQLite held just this row."""
        if self._base is None or self._mark.get(table.name, key) is not None:
            return False
        before = self._entry(self._base, table, key[0]) if table.is_full_text else self._base.row(table, key)
        return before == cells

    def joined_to(self, table: TablePlan, key: Key) -> Key | None:
        """Key of SQLite's own row that a row of PostgreSQL was taken for."""
        joined = key in self._joined.get(table.name, ()) and key not in self._kept.get(table.name, ())
        return self._moved[table.name][key] if joined else None

    def place(self, table: TablePlan, key: Key, values: Row | None) -> tuple[Key, Row | None] | None:
        """Key and values with which a row of PostgreSQL goes into SQLite; None if it does not go."""
        if key in self._kept.get(table.name, ()) or key in self._joined.get(table.name, ()):
            return None
        at = self._moved.get(table.name, {}).get(key)
        if values is None:
            return at or key, None
        if key not in self._settled.get(table.name, ()) and self._is_orphan(table, values):
            self.refuse(table, key, "the row that it belongs to was deleted in SQLite")
            return None
        row = self._moved_to(table, key, values)
        found = at or self._mapped_key(table, key, values)
        if at is None and found != key and self._database.row(table, found) is not None:
            return None  # SQLite says so already
        return found, row

    def place_index(self, table: TablePlan, key: Key, values: Row | None) -> tuple[Key, Row | None] | None:
        """The same for an entry of a search table, whose key is that of its entity."""
        if key in self._kept.get(table.name, ()):
            return None
        at = self._moved.get(table.name, {}).get(key)
        entity = self._moved.get(ENTITIES, {}).get(key, key)
        if values is None:
            return (at or key, None) if at or entity == key else None
        if key in self._joined.get(ENTITIES, ()) and self._entry(self._database, table, entity[0]) is not None:
            return None
        if not self._stands(ENTITIES, key[0]):
            return None
        return entity, (entity[0], *self._mapped(table, values)[1:])

    # Search tables

    def _entry(self, database: Database, table: TablePlan, entity: int) -> Row | None:
        if not table.is_full_text:
            return database.row(table, (entity,))
        found = database.entries_of(table, entity)
        return (entity, *database.entry(table, found[-1])) if found else None

    def _decide_index(self, table: TablePlan, key: Key, values: Row | None, texts: Texts) -> None:
        """Keep an entry that SQLite has written since, if it is not PostgreSQL's. ``texts``: of the entity's rows."""
        marked = self._mark.get(table.name, key)
        entity = self._moved.get(ENTITIES, {}).get(key, key)
        ours = self._entry(self._database, table, (marked.at if marked else entity)[0])
        theirs = values
        if values is not None and (marked is None or not marked.is_ours(table.columns, ours)):
            theirs = (key[0], *self._words.raw(values[1:], *texts)) if table.is_full_text else values
            theirs = (entity[0], *self._mapped(table, theirs)[1:])
        if marked is not None:
            changed = not marked.is_ours(table.columns, ours)
            kept = changed and (marked.is_theirs(table.columns, values) or not self._says(table, ours, theirs))
        elif self._says(table, ours, theirs):
            changed = kept = False
        elif entity != key:
            changed = kept = ours is not None
        elif self._base is None and table.is_full_text and key in self._unnoted:
            changed = kept = True  # PostgreSQL has not written it
        else:
            before = self._entry(self._required_base(f"the entry {key[0]} of {table.name}"), table, key[0])
            changed = kept = ours != before
        self.needed = self.needed or changed
        if kept:
            self._keep(table, key)

    def _says(self, table: TablePlan, ours: Row | None, theirs: Row | None) -> bool:
        if ours is None or theirs is None:
            return ours is theirs
        if not table.is_full_text:
            return self._same(table, ours, theirs)
        return [squeezed(str(part)) for part in ours[1:]] == [squeezed(str(part)) for part in theirs[1:]]

    # Tables without a key

    def bags(self, table: TablePlan, ours: Bag, theirs: Bag, before: Bag | None) -> tuple[Bag, Bag]:
        """Rows that SQLite gets, and that it loses. What both sides have added or removed is one.

        ``before``: those of the copy of the cutover, None if there is none.
        """
        known = self._mark.bag(table.name, table.columns)
        if known is None:
            if ours == theirs:
                return Counter(), Counter()
            if before is None:
                self._required_base(f"the table {table.name}")
            known = (before or Counter(), before or Counter())
        their_base, our_base = known
        self.needed = self.needed or ours != our_base
        come = (theirs - their_base) - (ours - our_base)
        go = (their_base - theirs) - (our_base - ours)
        return come, go


def bag(rows: Sequence[Row]) -> Bag:
    """Rows by their digests."""
    return Counter(map(digest, rows))


def _natural(table: TablePlan) -> list[int]:
    """Places of the columns that make two rows the same thing, none where nothing does."""
    names = _NATURAL.get(table.name, ())
    return [table.columns.index(name) for name in names] if set(names) <= set(table.columns) else []


def _reason(ours: Row | None, theirs: Row | None) -> str:
    what = {True: "deleted", False: "changed"}
    return f"{what[ours is None]} in SQLite, {what[theirs is None]} in PostgreSQL; SQLite's stays"


def _as_stored(table: TablePlan, values: Row | None) -> Row | None:
    """Give a row of PostgreSQL as SQLite would hold it."""
    return values and tuple(written(codec, value, False) for codec, value in zip(table.codecs, values))
