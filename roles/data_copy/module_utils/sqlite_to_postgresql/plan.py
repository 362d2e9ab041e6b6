"""Which table goes where: the source's tables matched with the target's, nothing skipped in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .convert import Codec
from .source import Source, SourceTable, VirtualTable, quoted
from .target import (
    PENSIEVE_TABLES,
    TargetColumn,
    TargetConstraint,
    TargetIndex,
    TargetTable,
    codec,
    derived_type,
    expected_column,
    reference,
)
from .vec0 import parse

FULL_TEXT, VECTORS = "entities_fts", "entities_vec_v2"
_ACTIVE_APP = "idx_metadata_active_app"
_LONG_KEY = 2000
"""Bytes; the row of an index holds at most 2,704 of PostgreSQL's pages of 8 kB."""

#: An old label that a program wrote into an enum column is kept in the column beside it, where that is NULL.
_LABEL_KEEPERS = {("metadata_entries", "source_type"): "source"}


@dataclass(frozen=True)
class PartialLimit:
    """``column`` is in a btree index for the rows whose ``where`` column holds ``value``."""

    column: str
    where: str
    value: str


@dataclass
class TablePlan:
    """One table's way from source to target."""

    name: str
    target: TargetTable
    columns: list[str]
    codecs: list[Codec]
    key_names: tuple[str, ...]
    table: SourceTable | None = None
    virtual: VirtualTable | None = None
    label_keepers: dict[str, str] = field(default_factory=dict)
    partial_limits: list[PartialLimit] = field(default_factory=list)

    @property
    def is_vectors(self) -> bool:
        """Whether the rows come from a vec0 table."""
        return self.virtual is not None and self.virtual.module == "vec0"

    @property
    def is_full_text(self) -> bool:
        """Whether the rows are made by the tokenizer."""
        return self.virtual is not None and self.virtual.module == "fts5"

    def not_null(self, column: str) -> bool:
        """Whether the target takes no NULL in a column."""
        return self.target.columns[column].not_null


@dataclass
class Plan:
    """All tables, parents before children."""

    tables: dict[str, TablePlan]
    refused: list[str]
    notes: list[str]


def make_plan(source: Source, target: Mapping[str, TargetTable] | None) -> Plan:
    """Match the source with the target's tables, or with what Pensieve's code would make of them (None)."""
    schema = source.schema()
    refused: list[str] = []
    notes = [f"{other} of the source is not carried over" for other in schema.others]
    tables: dict[str, TablePlan] = {}
    for name, table in schema.tables.items():
        wanted = (target or {}).get(name)
        if wanted is None and name in PENSIEVE_TABLES and target is not None:
            refused.append(f"table {name}: the target does not have it; is its schema of another version?")
            continue
        known = wanted or (expected_table(table) if name in PENSIEVE_TABLES else None)
        tables[name] = _plan_rows(source, table, known, refused, notes)
    for virtual in schema.virtual.values():
        _plan_virtual(virtual, target, tables, refused, notes)
    _plan_active_app(tables)
    _drop_lost_keys(tables, notes)
    for name in target or {}:
        if name not in tables and name not in (v.name for v in schema.virtual.values()):
            notes.append(f"table {name} is on the target only; it stays empty")
    return Plan(_parents_first(tables), refused, notes)


def expected_table(table: SourceTable) -> TargetTable:
    """Tell what Pensieve's code makes on PostgreSQL of a table of its own."""
    columns = {
        c.name: expected_column(table.name, c.name, c.declared, c.not_null or c.primary_key > 0) for c in table.columns
    }
    made = TargetTable(table.name, columns)
    made.indexes, made.constraints = _derived_keys(table, {})
    return made


def _derived_keys(table: SourceTable, types: Mapping[str, str]) -> tuple[list[TargetIndex], list[TargetConstraint]]:
    """Give indexes and constraints for a table from what SQLite declares."""
    indexes: list[TargetIndex] = []
    constraints: list[TargetConstraint] = []

    def listed(columns: tuple[str, ...]) -> str:
        return ", ".join(map(quoted, columns))

    def unique_index(name: str, columns: tuple[str, ...], unique: bool = True) -> TargetIndex:
        create = f"CREATE {'UNIQUE ' if unique else ''}INDEX {quoted(name)} ON {quoted(table.name)} ({listed(columns)})"
        return TargetIndex(name, create, "btree", unique, columns)

    if table.primary_key:
        name = f"{table.name}_pkey"
        indexes.append(unique_index(name, table.primary_key))
        definition = f"PRIMARY KEY ({listed(table.primary_key)})"
        constraints.append(TargetConstraint(name, "p", definition, table.primary_key))
    for index in table.indexes:
        if index.origin == "pk" or index.partial or not index.columns:
            continue
        if index.origin == "u":
            name = f"{table.name}_{'_'.join(index.columns)}_key"
            indexes.append(unique_index(name, index.columns))
            constraints.append(TargetConstraint(name, "u", f"UNIQUE ({listed(index.columns)})", index.columns))
        else:
            indexes.append(unique_index(index.name, index.columns, index.unique))
    for key in table.foreign_keys:
        name = f"{table.name}_{'_'.join(key.columns)}_fkey"
        parent_columns = key.parent_columns or ("id",)
        definition = f"FOREIGN KEY ({listed(key.columns)}) REFERENCES {quoted(key.parent)}({listed(parent_columns)})"
        if key.on_delete not in ("NO ACTION", "RESTRICT"):
            definition += f" ON DELETE {key.on_delete}"
        constraints.append(TargetConstraint(name, "f", definition, key.columns, key.parent, parent_columns))
    return indexes, constraints


def _derived_table(source: Source, table: SourceTable, refused: list[str], notes: list[str]) -> TargetTable:
    """Make a definition for a table that only the source has."""
    columns: dict[str, TargetColumn] = {}
    parts = []
    for column in table.columns:
        kind = derived_type(column.declared, source.storage_classes(table.name, column.name))
        if kind is None:
            refused.append(
                f"column {table.name}.{column.name}: no type of PostgreSQL holds all that it does "
                f"({', '.join(sorted(source.storage_classes(table.name, column.name)))})"
            )
            kind = "text"
        not_null = column.not_null or column.primary_key > 0
        columns[column.name] = TargetColumn(column.name, kind, not_null)
        identity = " GENERATED BY DEFAULT AS IDENTITY" if column.name == table.rowid_alias else ""
        parts.append(f"{quoted(column.name)} {kind}{identity}{' NOT NULL' if not_null else ''}")
    made = TargetTable(table.name, columns)
    made.create = f"CREATE TABLE {reference(table.name)} ({', '.join(parts)})"
    made.indexes, made.constraints = _derived_keys(table, {})
    if table.rowid_alias:
        made.sequences[table.rowid_alias] = f"{table.name}_{table.rowid_alias}_seq"
        made.identities.add(table.rowid_alias)
    for index in table.indexes:
        if index.partial or not index.columns:
            notes.append(f"index {index.name} of {table.name} (partial or on an expression) is not carried over")
    notes.append(f"table {table.name} is not Pensieve's own; it is carried over with types derived from SQLite's")
    return made


def _plan_rows(
    source: Source, table: SourceTable, known: TargetTable | None, refused: list[str], notes: list[str]
) -> TablePlan:
    target = known or _derived_table(source, table, refused, notes)
    for column in table.columns:
        if column.name not in target.columns:
            kind = derived_type(column.declared, source.storage_classes(table.name, column.name))
            if kind is None:
                refused.append(f"column {table.name}.{column.name}: no type of PostgreSQL holds all that it does")
                continue
            target.columns[column.name] = TargetColumn(column.name, kind, False)
            target.added[column.name] = kind
            notes.append(f"column {table.name}.{column.name} is not Pensieve's own; it is carried over as {kind}")
    if known:
        _carry_indexes(source, table, target, notes)
    names = {column.name for column in table.columns}
    for made in target.columns.values():
        if made.name not in names and made.not_null and not made.generated:
            refused.append(f"column {table.name}.{made.name}: the target wants a value, the source has no such column")
    columns = [column.name for column in table.columns if column.name in target.columns]
    return TablePlan(
        name=table.name,
        target=target,
        columns=columns,
        codecs=_codecs(target, columns, refused),
        key_names=table.primary_key or ("rowid",),
        table=table,
        label_keepers={label: keeper for (owner, label), keeper in _LABEL_KEEPERS.items() if owner == table.name},
    )


def _codecs(target: TargetTable, columns: list[str], refused: list[str]) -> list[Codec]:
    indexed = target.indexed_columns()
    codecs = []
    for name in columns:
        chosen = codec(target.columns[name], name in indexed)
        if chosen is None:
            refused.append(f"column {target.name}.{name}: the engine does not write {target.columns[name].type}")
            continue
        codecs.append(chosen)
    return codecs


def _plan_virtual(
    virtual: VirtualTable,
    target: Mapping[str, TargetTable] | None,
    tables: dict[str, TablePlan],
    refused: list[str],
    notes: list[str],
) -> None:
    if virtual.module == "fts5" and virtual.name == FULL_TEXT:
        columns = ["id", "filepath", "tags", "metadata"]
        default = {
            "id": TargetColumn("id", "integer", True),
            **{name: TargetColumn(name, "text", False) for name in columns[1:]},
        }
        known = (target or {}).get(virtual.name) if target is not None else TargetTable(FULL_TEXT, default)
    elif virtual.module == "vec0":
        columns = ["rowid", *(f.name for f in parse(virtual))]
        known = (target or {}).get(virtual.name)
        if known is None and (target is None or virtual.name != VECTORS):
            known = _vector_table(virtual, notes)
    else:
        refused.append(f"table {virtual.name}: a virtual table of module {virtual.module}, which is not understood")
        return
    if known is None:
        refused.append(f"table {virtual.name}: the target does not have it; is its schema of another version?")
        return
    missing = [name for name in columns if name not in known.columns]
    if missing:
        refused.append(f"table {virtual.name}: the target has no columns {', '.join(missing)}")
        return
    tables[virtual.name] = TablePlan(
        virtual.name, known, columns, _codecs(known, columns, refused), (columns[0],), virtual=virtual
    )


def _vector_table(virtual: VirtualTable, notes: list[str]) -> TargetTable:
    """Make a definition for Pensieve's vectors, or for a vector table that only the source has.

    Pensieve 0.24 made a new table and left the old one, entities_vec, where it was.
    """
    integer = "integer" if virtual.name == VECTORS else "bigint"  # vec0's own have 64 bits
    types = {"rowid": integer}
    for f in parse(virtual):
        types[f.name] = {"float32": f"vector({f.dimensions})", "integer": integer, "text": "text"}[f.kind]
    made = TargetTable(virtual.name, {name: TargetColumn(name, kind, name == "rowid") for name, kind in types.items()})
    if virtual.name == VECTORS:
        return made
    parts = ", ".join(f"{quoted(name)} {kind}" for name, kind in types.items())
    made.create = f"CREATE TABLE {reference(virtual.name)} ({parts})"
    key = f"{virtual.name}_pkey"
    create = f"CREATE UNIQUE INDEX {quoted(key)} ON {quoted(virtual.name)} (rowid)"
    made.indexes = [TargetIndex(key, create, "btree", True, ("rowid",))]
    made.constraints = [TargetConstraint(key, "p", "PRIMARY KEY (rowid)", ("rowid",))]
    notes.append(f"table {virtual.name} is not in Pensieve's schema; its vectors are carried over, without an index")
    return made


def _plan_active_app(tables: dict[str, TablePlan]) -> None:
    """Add the partial index that Pensieve makes on SQLite only."""
    plan = tables.get("metadata_entries")
    if plan is None or not {"key", "entity_id", "value"} <= set(plan.columns):
        return
    if all(index.name != _ACTIVE_APP for index in plan.target.indexes):
        create = (
            f"CREATE INDEX {_ACTIVE_APP} ON metadata_entries USING btree (key, entity_id, value)"
            " WHERE key = 'active_app'"
        )
        columns = ("key", "entity_id", "value")
        plan.target.indexes.append(TargetIndex(_ACTIVE_APP, create, "btree", False, columns, "key = 'active_app'"))
    plan.partial_limits.append(PartialLimit("value", "key", "active_app"))


def _carry_indexes(source: Source, table: SourceTable, target: TargetTable, notes: list[str]) -> None:
    """Indexes that another application has made on one of Pensieve's tables, and whose queries are slow without.

    Text that is too long for an index of PostgreSQL is no reason to refuse the table: such an index stays behind.
    """
    there = {index.columns for index in target.indexes}
    taken = {index.name for index in target.indexes}
    for index in table.indexes:
        if index.origin != "c" or index.name == _ACTIVE_APP or index.name in taken or index.columns in there:
            continue
        said = f"index {index.name} of {table.name} is not Pensieve's own; it is"
        known = all(name in target.columns for name in index.columns)
        if index.partial or index.unique or not index.columns or not known:
            notes.append(f"{said} not carried over")
            continue
        fresh = [name for name in index.columns if name not in target.indexed_columns()]
        longest = sum(
            int(source.rows(f"SELECT max(length(CAST({quoted(name)} AS BLOB))) FROM {quoted(table.name)}")[0][0] or 0)
            for name in fresh
        )
        if longest > _LONG_KEY:
            notes.append(f"{said} not carried over, since it holds up to {longest} bytes a row")
            continue
        columns = ", ".join(quoted(name) for name in index.columns)
        create = f"CREATE INDEX {quoted(index.name)} ON {quoted(table.name)} USING btree ({columns})"
        target.indexes.append(TargetIndex(index.name, create, "btree", False, index.columns, None))
        notes.append(f"{said} carried over")


def _drop_lost_keys(tables: dict[str, TablePlan], notes: list[str]) -> None:
    """Leave out foreign keys that only SQLite declares and whose parent is no table that is copied."""
    for plan in tables.values():
        if plan.target.create is None:
            continue
        for key in plan.target.foreign_keys():
            if key.parent not in tables:
                plan.target.constraints.remove(key)
                notes.append(f"foreign key {key.name} is not carried over: there is no table {key.parent}")


def _parents_first(tables: dict[str, TablePlan]) -> dict[str, TablePlan]:
    """Order tables so that a foreign key's parent comes before its child."""
    ordered: dict[str, TablePlan] = {}

    def place(name: str, above: tuple[str, ...]) -> None:
        if name in ordered or name not in tables or name in above:
            return
        for key in tables[name].target.foreign_keys():
            place(str(key.parent), (*above, name))
        ordered[name] = tables[name]

    for name in tables:
        place(name, ())
    return ordered
