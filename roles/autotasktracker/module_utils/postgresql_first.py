"""PostgreSQL first: where the database is, and a psycopg2 connection that understands queries written for SQLite.

Put into this package by the migration to PostgreSQL, and taken out by its rollback. The package's own code asks

- `database_uri()` / `uri_or(…)` / `@uri_first` where the database is: `AUTOTASK_DATABASE_URL`, `MEMOS_DATABASE_PATH`,
  `MEMOS_DB_PATH` of the process, else of `autotasktracker.env` beside the package, else `database_path` of Pensieve's
  config.yaml. What is no PostgreSQL URI does not count. The password stands in libpq's password file.
- `connect`, `ThreadedConnectionPool`, `RealDictCursor` for connections, in place of psycopg2's.

Emergency: `AUTOTASK_EMERGENCY_SQLITE=/path/to/database.db` puts everything back on that SQLite file for as long as it
is set. Nothing falls back by itself: rows written to SQLite while PostgreSQL restarts would be missing there.

What is different from psycopg2: `?` placeholders; `"text"` in double quotes where no column has that name; `%` in LIKE;
LIKE ignores case; date(), datetime(), strftime() with SQLite's modifiers; INSERT OR REPLACE/IGNORE; labels of metadata
that Pensieve's enums do not know; PRAGMA; sqlite_master. Rows answer to index and name as sqlite3.Row does, timestamps
are text as in SQLite, and each statement is committed at once, as on the package's own SQLite connections.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import select
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Callable, NamedTuple

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import psycopg2.pool

# pandas takes any connection of DB-API 2 and warns each time.
warnings.filterwarnings("ignore", message="pandas only supports SQLAlchemy", category=UserWarning)

SETTINGS = Path(__file__).resolve().parent.parent / "autotasktracker.env"
VARIABLES = ("AUTOTASK_DATABASE_URL", "MEMOS_DATABASE_PATH", "MEMOS_DB_PATH")
EMERGENCY = "AUTOTASK_EMERGENCY_SQLITE"
SCHEMES = ("postgresql://", "postgres://")


# Where the database is


def _settings() -> dict[str, str]:
    """`NAME=value` lines of the settings file, under the variables of the process."""
    found: dict[str, str] = {}
    if SETTINGS.exists():
        for line in SETTINGS.read_text(encoding="utf-8").splitlines():
            name, separator, value = line.strip().partition("=")
            if separator and not name.startswith("#"):
                found[name.replace("export ", "", 1).strip()] = value.strip().strip("\"'")
    return {**found, **os.environ}


def memos_dir() -> Path:
    """Pensieve's folder."""
    return Path(os.environ.get("MEMOS_BASE_DIR") or "~/.memos").expanduser()


def memos_path(path: str) -> str:
    """The same file below Pensieve's folder, for a path that names such a folder on another person's machine."""
    _, separator, rest = path.partition(".memos")
    return str(memos_dir()) + rest if separator and path.startswith("/") else path


def memos_config() -> Path:
    """Pensieve's settings file."""
    return memos_dir() / "config.yaml"


def database_uri() -> str | None:
    """URI of PostgreSQL, None when none is set or the emergency file is to be used."""
    settings = _settings()
    if settings.get(EMERGENCY):
        return None
    for name in VARIABLES:
        if settings.get(name, "").startswith(SCHEMES):
            return settings[name]
    config = memos_config()
    if config.exists():
        import yaml

        try:
            path = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("database_path")
        except Exception as error:
            # Without the line, which may hold a password: pages show this.
            mark = getattr(error, "problem_mark", None)
            place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise ValueError(f"{config}{place}: no YAML mapping ({type(error).__name__})") from None
        if str(path).startswith(SCHEMES):
            return str(path)
    return None


def uri_or(otherwise: Any) -> Any:
    """The URI, else the emergency file, else what the caller had found."""
    return database_uri() or _settings().get(EMERGENCY) or otherwise


def uri_first(method: Callable[..., str]) -> Callable[..., str]:
    """Decorator of a method that tells where the database is."""

    @functools.wraps(method)
    def first(*arguments: Any) -> str:
        found = database_uri() or _settings().get(EMERGENCY)
        return found if found else method(*arguments)

    return first


def pool_statistics(method: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Decorator of a method that tells how many connections are in use: on PostgreSQL, those of its pool."""

    @functools.wraps(method)
    def statistics(manager: Any) -> dict[str, Any]:
        pool = getattr(manager, "_postgresql_pool", None)
        return pool.statistics() if pool is not None else method(manager)

    return statistics


def answers(method: Callable[..., bool]) -> Callable[..., bool]:
    """Decorator of a manager's method that tells whether the database answers: on PostgreSQL, ask the database itself,
    not Pensieve, which need not run for reading.
    """

    @functools.wraps(method)
    def asked(manager: Any) -> bool:
        if getattr(manager, "_postgresql_pool", None) is None:
            return method(manager)
        try:
            with manager.get_connection() as connection:
                connection.execute("SELECT 1")
        except Exception as error:
            logging.getLogger(__name__).error("PostgreSQL does not answer: %s", error)
            return False
        return True

    return asked


_RAW = """
SELECT e.id, e.filepath, e.created_at, e.created_at AS timestamp, w.value AS active_window, w.value AS window_title,
       c.value AS category, t.value AS tasks, o.value AS ocr_text
FROM entities e
LEFT JOIN metadata_entries w ON w.entity_id = e.id AND w.key = 'active_window'
LEFT JOIN metadata_entries c ON c.entity_id = e.id AND c.key = 'category'
LEFT JOIN metadata_entries t ON t.entity_id = e.id AND t.key = 'tasks'
LEFT JOIN metadata_entries o ON o.entity_id = e.id AND o.key = 'ocr_result'
WHERE e.created_at >= ? AND e.created_at <= ?
ORDER BY e.created_at
"""


def raw_data(repository: Any, start_date: Any, end_date: Any) -> Any:
    """The screenshots of a period as a data frame, one row each; for pages that ask a repository for a method which it
    does not have.
    """
    found = repository._execute_query(_RAW, (str(start_date), str(end_date)))
    return found.drop_duplicates("id") if "id" in found else found


def bound_of(period: Any, name: str, otherwise: Any = None) -> Any:
    """`start_date` or `end_date` of a period: pages take it for a dictionary, and get the name that was chosen."""
    if not isinstance(period, str):
        return period.get(name, otherwise)
    now = datetime.now()
    days = {"Last 15 Minutes": 15 / 1440, "Last Hour": 1 / 24, "Today": 1, "Yesterday": 2, "Last 24 Hours": 1}
    days.update({"This Week": 7, "Last 7 Days": 7, "This Month": 31, "Last 30 Days": 30})
    start = now - timedelta(days=days[period]) if period in days else datetime(2000, 1, 1)
    return {"start_date": start, "end_date": now}.get(name, otherwise)


_COVERAGE = """
SELECT count(*) AS total, count(*) FILTER (WHERE EXISTS (SELECT FROM metadata_entries m
           WHERE m.entity_id = e.id AND m.key = 'ocr_result')) AS ocr,
       count(*) FILTER (WHERE EXISTS (SELECT FROM metadata_entries m
           WHERE m.entity_id = e.id AND m.key IN ('minicpm_v_result', 'vlm_structured'))) AS vlm,
       count(*) FILTER (WHERE EXISTS (SELECT FROM metadata_entries m
           WHERE m.entity_id = e.id AND m.key = 'embedding')) AS embedding
FROM entities e WHERE e.file_type_group = 'image'
"""


def coverage(manager: Any) -> dict[str, Any]:
    """How many screenshots have text, a description, an embedding: the manager's own answer where it has one."""
    if hasattr(manager, "get_ai_coverage_stats"):
        return dict(manager.get_ai_coverage_stats())
    with manager.get_connection() as connection:
        row = connection.execute(_COVERAGE).fetchone()
    result = {"total_screenshots": row["total"]}
    for name in ("ocr", "vlm", "embedding"):
        result[f"{name}_count"] = row[name]
        result[f"{name}_percentage"] = row[name] / row["total"] * 100 if row["total"] else 0
    return result


def database_size(manager: Any) -> int:
    """Size of the database in bytes, as `raw_data` for pages."""
    with manager.get_connection() as connection:
        return int(connection.execute("SELECT pg_database_size(current_database())").fetchone()[0])


# SQL


class Catalog(NamedTuple):
    """What translating needs to know of the database: columns with their types, and unique keys, of each table."""

    columns: dict[str, dict[str, str]]
    keys: dict[str, list[set[str]]]


class Token(NamedTuple):
    """A piece of SQL. `kind`: text, name (in double quotes), word, mark (placeholder), space, other."""

    kind: str
    value: str
    number: int = -1
    """Of a `?` or `%s`: which of the parameters it stands for."""

    @property
    def upper(self) -> str:
        """For comparing with keywords."""
        return self.value.upper() if self.kind in ("word", "other") else ""


class Translated(NamedTuple):
    """A statement for psycopg2: parameters are named `p0`, `p1`, …, and `like0` … where they are patterns of LIKE."""

    sql: str
    marks: int


_PIECES = re.compile(
    r"(?P<space>\s+|--[^\n]*|/\*.*?\*/)"
    r"|(?P<text>'(?:[^']|'')*')"
    r'|(?P<name>"(?:[^"]|"")*")'
    r"|(?P<mark>\?|%s|%\(\w+\)s)"
    r"|(?P<word>[^\W\d][\w$]*)"
    r"|(?P<other>::|\|\||->>|->|<=|>=|<>|!=|==|%%|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|.)",
    re.DOTALL,
)
_LABELS = "'USER_GENERATED', 'SYSTEM_GENERATED', 'PLUGIN_GENERATED'"
_KINDS = "WHEN 'text' THEN 'TEXT_DATA' WHEN 'json' THEN 'JSON_DATA' WHEN 'float' THEN 'NUMBER_DATA'"
_TYPES = {"DATETIME": "timestamp", "REAL": "double precision", "BLOB": "bytea", "AUTOINCREMENT": ""}
_MASTER = (
    "(SELECT 'table' AS type, table_name::text AS name, table_name::text AS tbl_name FROM information_schema.tables"
    " WHERE table_schema = 'public' UNION ALL SELECT 'index', indexname::text, tablename::text FROM pg_indexes"
    " WHERE schemaname = 'public') AS sqlite_master"
)
_COLUMNS = (
    "SELECT ordinal_position - 1 AS cid, column_name AS name, upper(data_type) AS type,"
    " (is_nullable = 'NO')::int AS notnull, column_default AS dflt_value, (column_name = 'id')::int AS pk"
    " FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '{}' ORDER BY 1"
)
_ENDS_PATTERN = {"AND", "OR", "ORDER", "GROUP", "LIMIT", "THEN", "ELSE", "END", "WHEN", "UNION", "HAVING", ")", ","}
_CLAUSES = {"SELECT", "FROM", "ON", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "SET", "VALUES"}
_ASCII = 'COLLATE "C"'  # SQLite's LIKE knows the capitals of ASCII only, and so does this
# What stands before and between the two sides of a comparison of which nothing else is made.
_BEGINS = {"", "SELECT", "WHERE", "ON", "AND", "OR", "NOT", "WHEN", "HAVING", "(", ","}
_SIGNS = {"=", "==", ">=", ">", "<=", "<"}
_COMPARES = {"=", "==", "!=", "<>", "IN", "NOT", "LIKE"}
_STRFTIME = {"%Y": "YYYY", "%m": "MM", "%d": "DD", "%H": "HH24", "%M": "MI", "%S": "SS", "%f": "SS.MS", "%j": "DDD"}
_UTC_NOW = "timezone('UTC', now())"


def local_zone() -> str:
    """The time zone of this process as PostgreSQL knows it: by name where there is one, else by its present offset."""
    zone = os.environ.get("TZ", "").lstrip(":")
    if not zone:
        zone = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2]
    if re.fullmatch(r"[A-Za-z_]+(/[\w+-]+)*", zone):
        return zone
    offset = time.localtime().tm_gmtoff
    return f"<local>{'-' if offset >= 0 else '+'}{abs(offset) // 3600:02}:{abs(offset) // 60 % 60:02}"


def tokens_of(statement: str) -> list[Token]:
    """The pieces of a statement; comments become a space, placeholders get their number."""
    tokens, marks = [], 0
    for found in _PIECES.finditer(statement):
        kind, value = str(found.lastgroup), found.group()
        if kind == "mark" and not value.startswith("%("):
            tokens.append(Token(kind, value, marks))
            marks += 1
        else:
            tokens.append(Token(kind, " " if kind == "space" and not value.isspace() else value))
    return tokens


def split(tokens: Sequence[Token], separator: str = ",") -> list[list[Token]]:
    """Parts between separators that stand in no brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.value == "(") - (token.value == ")") if token.kind == "other" else 0
        if token.value == separator and token.kind == "other" and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def closing(tokens: Sequence[Token], opening: int) -> int:
    """Position of the bracket that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(tokens)):
        if tokens[position].kind == "other":
            depth += (tokens[position].value == "(") - (tokens[position].value == ")")
        if depth == 0:
            return position
    raise psycopg2.ProgrammingError("a bracket is not closed")


def significant(tokens: Sequence[Token]) -> list[Token]:
    """Tokens without the space between them."""
    return [token for token in tokens if token.kind != "space"]


class Translator:
    """One statement, from SQLite's SQL to PostgreSQL's."""

    def __init__(self, catalog: Catalog, bound: bool) -> None:
        """`bound`: the statement is sent with parameters, so that psycopg2 takes `%%` for `%`."""
        self.catalog = catalog
        self.bound = bound
        self.tokens: list[Token] = []
        self.tables: list[str] = []
        self.names: set[str] = set()
        self.aliases: set[str] = set()
        self.clause = ""
        self.formatted = False
        self.creates = False

    def translate(self, statement: str) -> Translated:
        """The statement for PostgreSQL."""
        self.tokens = tokens_of(statement)
        words = significant(self.tokens)
        marks = sum(token.number >= 0 for token in words)
        self.formatted = any(token.kind == "mark" and token.value != "?" for token in words)
        first = words[0].upper if words else ""
        self.creates = first == "CREATE"
        for before, token in zip(words, words[1:]):
            if token.kind not in ("word", "name"):
                continue
            if before.upper in ("FROM", "JOIN", "INTO", "UPDATE", "TABLE"):
                self.tables.append(token.value.strip('"').lower())
            if before.upper == "AS":
                self.aliases.add(token.value.strip('"').lower())
        for table in self.tables:
            self.names |= {table, *self.catalog.columns.get(table, ())}
        if first == "PRAGMA":
            return Translated(self.pragma(words), marks)
        if first in ("INSERT", "REPLACE"):
            return Translated(self.insert(words), marks)
        return Translated(self.plain(self.ordered_distinct(self.tokens) if first == "SELECT" else self.tokens), marks)

    def plain(self, tokens: Sequence[Token]) -> str:
        """Tokens in their order."""
        out: list[str] = []
        position, pattern = 0, False
        before = Token("other", "")
        while position < len(tokens):
            token = tokens[position]
            if token.kind == "space":
                out.append(token.value)
                position += 1
                continue
            rest = significant(tokens[position + 1 : position + 8])
            after = rest[0] if rest else Token("other", "")
            self.clause = token.upper if token.upper in _CLAUSES else self.clause
            pattern = pattern and token.upper not in _ENDS_PATTERN
            function = FUNCTIONS.get(token.upper) if after.value == "(" and token.kind == "word" else None
            if function is not None and before.value != ".":
                end = closing(tokens, tokens.index(after, position))
                inner = tokens[tokens.index(after, position) + 1 : end]
                arguments = split(inner) if significant(inner) else []
                alone = token.upper == "DATE" and before.upper in _BEGINS
                days, more = self.days(arguments, tokens[end + 1 :]) if alone else ("", 0)
                out.append(days or function(self, arguments))
                position = end + more
            elif token.upper == "SOURCE_TYPE" and after.upper in ("=", "==") and self.reads_labels(rest):
                prefix = out.pop(-2) + out.pop() if before.value == "." else ""
                value = self.plain(rest[1:2])
                out.append(f"{value} IN ({prefix}{token.value}::text, {prefix}source)")
                position = tokens.index(rest[1], position)
            elif token.upper == "NOT" and after.upper == "LIKE":
                out.append(f"{_ASCII} NOT")
            elif token.upper == "LIKE" and before.value != ".":
                out.append("ILIKE" if before.upper == "NOT" else f"{_ASCII} ILIKE")
                pattern = not any(t.upper == "ESCAPE" for t in significant(tokens[position + 1 : position + 12]))
            else:
                out.append(self.single(token, before, after, pattern))
            before = tokens[position]
            position += 1
        return "".join(out)

    def single(self, token: Token, before: Token, after: Token, pattern: bool) -> str:
        """One token. `pattern`: it is part of a pattern of LIKE, where SQLite has no escape character.

        A pattern that is a parameter comes from a query of its own, so that PostgreSQL plans without it. Of '%word%' it
        would believe that almost nothing matches, and read everything where SQLite reads until there is enough.
        """
        if token.kind == "text":
            return self.text(token.value[1:-1], pattern)
        if token.kind == "name":
            return self.name(token.value[1:-1].replace('""', '"'), before, after, pattern)
        if token.kind == "mark":
            if token.number < 0:
                return token.value
            return f"(SELECT %(like{token.number})s)" if pattern else f"%(p{token.number})s"
        if token.kind == "word":
            return self.word(token, before, after)
        if token.value in ("%", "%%"):
            return "%%" if self.bound else "%"
        return "=" if token.value == "==" else token.value

    def text(self, content: str, pattern: bool = False) -> str:
        """A string literal; its quotes are doubled already."""
        if self.formatted and self.bound:
            content = content.replace("%%", "%")
        if pattern:
            content = content.replace("\\", "\\\\")
        return "'" + (content.replace("%", "%%") if self.bound else content) + "'"

    def name(self, content: str, before: Token, after: Token, pattern: bool = False) -> str:
        """What stands in double quotes: a name where SQLite finds one, else text.

        SQLite also takes it for a name that the result's columns have been given, even where rows are chosen:
        `value AS category … key = "category"` compares a column with itself there. Text is what was meant.
        """
        sorts = self.clause in ("ORDER", "GROUP", "HAVING") and content.lower() in self.aliases
        named = "." in (before.value, after.value) or before.upper in ("AS", "INDEX", "TABLE", "INTO", "FROM", "JOIN")
        if content.lower() in self.names or sorts or named:
            content = content.lower() if content.lower() in self.names else content
            return '"' + content.replace('"', '""').replace("%", "%%" if self.bound else "%") + '"'
        return self.text(content.replace("'", "''"), pattern)

    def word(self, token: Token, before: Token, after: Token) -> str:
        """A keyword or a name without quotes."""
        if token.upper == "SQLITE_MASTER":
            return _MASTER
        if token.upper == "FILE_PATH" and "file_path" not in self.names and "filepath" in self.names:
            return "filepath"
        if token.upper in ("DATA_TYPE", "SOURCE_TYPE") and after.upper in _COMPARES:
            return f"{token.value}::text"
        if self.creates and token.upper in _TYPES:
            return _TYPES[token.upper]
        if self.creates and token.upper == "INTEGER" and after.upper == "PRIMARY":
            return "serial"
        return token.value

    def reads_labels(self, rest: Sequence[Token]) -> bool:
        """Whether labels of metadata are compared with one value; the migration keeps unknown labels in `source`."""
        return "metadata_entries" in self.tables and len(rest) > 1 and rest[1].kind in ("text", "name", "mark")

    def pragma(self, words: Sequence[Token]) -> str:
        """`table_info` answers from the catalogue; settings of SQLite's file mean nothing here, and answer nothing."""
        if len(words) > 3 and words[1].upper == "TABLE_INFO":
            return _COLUMNS.format(words[3].value.strip("\"'").replace("'", "''"))
        return "SELECT NULL WHERE false"

    def ordered_distinct(self, tokens: Sequence[Token]) -> Sequence[Token]:
        """SELECT DISTINCT may be ordered by what it does not select in SQLite only; as GROUP BY it may in both."""
        words = significant(tokens)
        places: dict[str, int] = {}
        depth = 0
        for number, word in enumerate(words):
            depth += (word.value == "(") - (word.value == ")") if word.kind == "other" else 0
            if depth == 0 and word.upper in ("FROM", "GROUP", "ORDER", "LIMIT", "UNION"):
                places.setdefault(word.upper, number)
        if (
            len(words) < 2
            or words[1].upper != "DISTINCT"
            or not {"FROM", "ORDER"} <= places.keys()
            or "GROUP" in places
        ):
            return tokens
        if "UNION" in places:
            return tokens
        items = split(words[2 : places["FROM"]])
        names = [item[-1].value for item in items]
        values = [item[:-2] if len(item) > 2 and item[-2].upper == "AS" else item for item in items]
        end = places.get("LIMIT", len(words))
        keys = split(words[places["ORDER"] + 2 : end])
        bare = [[t for t in key if t.upper not in ("ASC", "DESC")] for key in keys]
        unknown = [key for key in bare if key not in values and not (len(key) == 1 and key[0].value in names)]
        if not unknown or any(token.kind == "mark" for value in values for token in value):
            return tokens
        comma, space = Token("other", ","), Token("space", " ")
        out = [words[0], *words[2 : places["ORDER"]], *_words("GROUP BY")]
        for value in values:
            out += [*value, comma]
        out[-1:] = _words("ORDER BY")
        for key, plain in zip(keys, bare):
            downward = key[-1].upper == "DESC"
            wrapped = [Token("word", "MAX" if downward else "MIN"), Token("other", "("), *plain, Token("other", ")")]
            out += [*(wrapped if plain in unknown else plain), *_words("DESC" if downward else "ASC"), comma]
        out[-1:] = words[end:]
        return [piece for token in out for piece in (token, space)]

    def insert(self, words: list[Token]) -> str:
        """INSERT … VALUES with SQLite's ways to meet a conflict, and with labels that the enums know."""
        into = next(number for number, word in enumerate(words) if word.upper == "INTO")
        resolution = {word.upper for word in words[:into]} & {"REPLACE", "IGNORE"}
        opening = into + 2
        if len(words) <= opening or words[opening].value != "(":
            return f"INSERT {self.spaced(words[into:])}{' ON CONFLICT DO NOTHING' if resolution else ''}"
        end = closing(words, opening)
        table = words[into + 1].value.strip('"').lower()
        columns = [part[0].value.strip('"').lower() for part in split(words[opening + 1 : end])]
        if len(words) <= end + 1 or words[end + 1].upper != "VALUES":
            return f"INSERT {self.spaced(words[into:])}{' ON CONFLICT DO NOTHING' if resolution else ''}"
        rows, position = [], end + 2
        while position < len(words) and words[position].value in ("(", ","):
            if words[position].value == "(":
                close = closing(words, position)
                rows.append([self.spaced(part) for part in split(words[position + 1 : close])])
                position = close
            position += 1
        tail = words[position:]
        if table == "metadata_entries":
            columns, rows = with_labels(columns, rows)
        target = f"{table} ({', '.join(_quoted(column) for column in columns)})"
        keys = self.catalog.keys.get(table, [])
        if [word.upper for word in tail[:2]] == ["ON", "CONFLICT"] and tail[2].value == "(" and len(rows) == 1:
            key = {word.value.lower() for word in tail[3 : closing(tail, 2)] if word.kind == "word"}
            if key not in keys:
                return self.update_or_insert(table, target, key, dict(zip(columns, rows[0])), tail)
        values = ", ".join(f"({', '.join(row)})" for row in rows)
        return f"INSERT INTO {target} VALUES {values} {self.spaced(tail)}{conflict(resolution, columns, keys)}"

    def update_or_insert(
        self, table: str, target: str, key: set[str], row: dict[str, str], tail: Sequence[Token]
    ) -> str:
        """ON CONFLICT (key) DO UPDATE where no index makes the key unique: change such rows, or add one."""
        start = next((number for number, word in enumerate(tail) if word.upper == "SET"), len(tail))
        changes = []
        for part in split(tail[start + 1 :]):
            new = significant(part)
            if len(new) == 5 and new[2].upper == "EXCLUDED":
                changes.append(f"{new[0].value} = {row[new[4].value.lower()]}")
            else:
                changes.append(self.spaced(new))
        where = " AND ".join(f"{_quoted(name)} = {row[name]}" for name in sorted(key))
        first = (
            f"UPDATE {table} SET {', '.join(changes)} WHERE {where} RETURNING 1"
            if changes and changes[0]
            else f"SELECT FROM {table} WHERE {where}"
        )
        return (
            f"WITH found AS ({first}) INSERT INTO {target} SELECT {', '.join(row.values())}"
            " WHERE NOT EXISTS (SELECT FROM found)"
        )

    def spaced(self, words: Sequence[Token]) -> str:
        """Tokens that have lost the space between them."""
        return self.plain([piece for word in words for piece in (word, Token("space", " "))]).strip()

    def moment(self, arguments: Sequence[Sequence[Token]]) -> str:
        """Timestamp (UTC, without zone) of the arguments of SQLite's date functions: a value, then modifiers."""
        given = [significant(argument) for argument in arguments] or [[Token("text", "'now'")]]
        if len(given[0]) == 1 and given[0][0].value.lower().strip("'\"") == "now":
            stamp = _UTC_NOW
        elif self.is_moment(given[0]):
            stamp = self.plain(arguments[0]).strip()
        else:
            stamp = f"timezone('UTC', ({self.plain(arguments[0]).strip()})::timestamptz)"
        for modifier in given[1:]:
            stamp = self.modified(stamp, modifier)
        return stamp

    def is_moment(self, given: Sequence[Token]) -> bool:
        """Whether this is a timestamp already: what datetime() gives, or a column that is one in all tables.

        A name that the statement itself gives to something may be anything.
        """
        if given and given[0].upper == "DATETIME":
            return len(given) > 1 and closing(given, 1) == len(given) - 1
        if [token.kind for token in given] not in (["word"], ["word", "other", "word"]):
            return False
        name = given[-1].value.lower()
        if name in self.aliases:
            return False
        types = {self.catalog.columns.get(table, {}).get(name) for table in self.tables} - {None}
        return types == {"timestamp without time zone"}

    def days(self, arguments: list[list[Token]], tokens: Sequence[Token]) -> tuple[str, int]:
        """date(column) compared with a day, and how many `tokens`, which follow date(…), that takes; else nothing, 0.

        The comparison decides; the column itself is compared with about the same, for which an index can be used.
        Where clocks are set back at midnight, by two hours at most, a part of a day lies outside of it.
        """
        given = [significant(argument) for argument in arguments]
        places = [place for place, token in enumerate(tokens) if token.kind != "space"][:3]
        signs = [tokens[place].value for place in places]
        of_column = given and given[1:] in ([], [[Token("text", "'localtime'")]]) and self.is_moment(given[0])
        if not of_column or len(places) < 2 or signs[0] not in _SIGNS:
            return "", 0
        end = places[1] + 1
        if tokens[places[1]].upper == "DATE" and signs[2:] == ["("]:
            end = closing(tokens, places[2]) + 1
        elif tokens[places[1]].kind not in ("mark", "text"):
            return "", 0
        following = significant(tokens[end:])
        if following and following[0].upper not in _ENDS_PATTERN:
            return "", 0
        value = f"({self.plain(tokens[places[1] : end])})::date"
        sign = "=" if signs[0] == "==" else signs[0]
        parts = [f"{FUNCTIONS['DATE'](self, arguments)} {sign} {value}"]
        for bounds, day, hours in ((">=", value, -2), ("<", f"{value} + 1", 2)):
            if sign == "=" or sign[0] == bounds[0]:
                bound = f"({day})::timestamp"
                if len(given) > 1:
                    bound = f"{self.modified(bound, [Token('text', 'utc')])} + interval '{hours} hours'"
                parts.append(f"{self.plain(arguments[0]).strip()} {bounds} {bound}")
        return f"({' AND '.join(parts)})", end

    def modified(self, stamp: str, modifier: Sequence[Token]) -> str:
        """A timestamp after one of SQLite's modifiers."""
        if len(modifier) == 1 and modifier[0].kind == "mark":
            return f"({stamp} + {self.plain(modifier)}::interval)"
        content = modifier[0].value.strip("'\"").lower() if len(modifier) == 1 else ""
        if content in ("localtime", "utc"):
            here = local_zone()
            of, to = ("UTC", here) if content == "localtime" else (here, "UTC")
            return stamp if here in ("UTC", "Etc/UTC") else f"timezone('{to}', timezone('{of}', {stamp}))"
        if content in ("start of day", "start of month", "start of year"):
            return f"date_trunc('{content.rpartition(' ')[2]}', {stamp})"
        if re.fullmatch(r"[-+]?\d+(\.\d+)? (second|minute|hour|day|month|year)s?", content):
            return f"({stamp} + interval '{content}')"
        raise psycopg2.NotSupportedError(f"date modifier {content or self.plain(modifier)!r} is not known here")

    def strftime(self, arguments: Sequence[Sequence[Token]]) -> str:
        """SQLite's strftime as to_char: letters that mean nothing to SQLite stand in quotes."""
        given = significant(arguments[0])
        if len(given) != 1 or given[0].kind not in ("text", "name"):
            raise psycopg2.NotSupportedError("strftime needs its format as text")
        out = ""
        for piece in re.findall(r"%.|[^%]+", given[0].value[1:-1]):
            if piece.startswith("%") and piece not in (*_STRFTIME, "%%"):
                raise psycopg2.NotSupportedError(f"strftime: {piece} is not known here")
            out += _STRFTIME.get(piece) or '"' + piece.replace("%%", "%").replace('"', '\\"') + '"'
        return f"to_char({self.moment(arguments[1:])}, {self.text(out)})"

    def renamed(self, function: str, arguments: Sequence[Sequence[Token]]) -> str:
        """A function that has another name in PostgreSQL."""
        return f"{function}({', '.join(self.plain(argument).strip() for argument in arguments)})"


FUNCTIONS: dict[str, Callable[[Translator, list[list[Token]]], str]] = {
    "DATETIME": lambda made, arguments: f"date_trunc('second', {made.moment(arguments)})",
    "DATE": lambda made, arguments: f"({made.moment(arguments)})::date",
    "STRFTIME": Translator.strftime,
    "IFNULL": lambda made, arguments: made.renamed("coalesce", arguments),
}
"""SQLite's functions that PostgreSQL lacks, or knows otherwise."""


def _words(keywords: str) -> list[Token]:
    return [Token("word", word) for word in keywords.split()]


def _quoted(name: str) -> str:
    return '"' + name + '"'


def with_labels(columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Rows for metadata_entries. A `source_type` that Pensieve's enum does not know becomes the `source` where that is
    NULL, and PLUGIN_GENERATED; `data_type` text, json, float become Pensieve's.
    """
    if "source_type" in columns and "source" not in columns:
        columns, rows = [*columns, "source"], [[*row, "NULL"] for row in rows]
    changed = []
    for row in rows:
        values = dict(zip(columns, row))
        if "source_type" in values:
            label = f"{values['source_type']}::text"
            known = f"CASE WHEN {label} IN ({_LABELS}) THEN"
            values["source"] = f"coalesce({values['source']}::text, {known} NULL ELSE {label} END)"
            values["source_type"] = f"({known} {label} ELSE 'PLUGIN_GENERATED' END)::metadatasource"
        if "data_type" in values:
            kind = f"{values['data_type']}::text"
            values["data_type"] = f"(CASE {kind} {_KINDS} ELSE {kind} END)::metadatatype"
        changed.append(list(values.values()))
    return columns, changed


def conflict(resolution: set[str], columns: Sequence[str], keys: Sequence[set[str]]) -> str:
    """ON CONFLICT for SQLite's OR IGNORE and OR REPLACE, which look at every unique key of the table."""
    if "IGNORE" in resolution:
        return " ON CONFLICT DO NOTHING"
    key = next((key for key in keys if key <= set(columns)), None)
    if "REPLACE" not in resolution or key is None:
        return ""
    changes = ", ".join(f"{_quoted(name)} = EXCLUDED.{_quoted(name)}" for name in columns if name not in key)
    return f" ON CONFLICT ({', '.join(sorted(key))}) DO " + (f"UPDATE SET {changes}" if changes else "NOTHING")


# Connections

_CATALOG = """
SELECT c.relname, array_agg(a.attname::text), array_agg(format_type(a.atttypid, NULL)),
       (SELECT array_agg((SELECT array_to_string(array_agg(k.attname::text), ' ') FROM pg_attribute k
                          WHERE k.attrelid = c.oid AND k.attnum = ANY (i.indkey)))
        FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v') GROUP BY c.oid, c.relname
"""
_catalogs: dict[str, Catalog] = {}
_read = 0
_asked = 0


def statements() -> int:
    """Statements that read tables, of this process."""
    return _asked


def rows_read() -> int:
    """Rows that this process has read from PostgreSQL; what verifying looks at."""
    return _read


def _count(rows: int, asked: int = 0) -> None:
    global _asked, _read
    _read += rows
    _asked += asked


@functools.lru_cache(maxsize=1024)
def _translated(statement: str, bound: bool, dsn: str, known: int) -> Translated:
    """`known`: how many tables there are, so that a new one is noticed."""
    return Translator(_catalogs[dsn], bound).translate(statement)


def _value(value: Any) -> Any:
    """A parameter that psycopg2 can send; NumPy's numbers become Python's."""
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def _parameters(translated: Translated, given: Any) -> dict[str, Any] | None:
    """Parameters by the names that the translation gave them."""
    if isinstance(given, dict):
        return given
    if len(given) != translated.marks:
        raise psycopg2.ProgrammingError(f"the statement has {translated.marks} placeholders, {len(given)} values given")
    named: dict[str, Any] = {}
    for number, value in enumerate(_value(value) for value in given):
        named[f"p{number}"] = value
        named[f"like{number}"] = value.replace("\\", "\\\\") if isinstance(value, str) else value
    return named


class Row(tuple):  # type: ignore[type-arg]
    """A row that answers to index and, whatever the case of its letters, to name, as sqlite3.Row does."""

    names: dict[str, int]

    def keys(self) -> list[str]:
        """Names of the columns."""
        return list(self.names)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        if key in self.names:
            return tuple.__getitem__(self, self.names[key])
        place = next((place for name, place in self.names.items() if name.lower() == key.lower()), None)
        if place is None:
            raise IndexError(f"no column {key}")
        return tuple.__getitem__(self, place)


def _stamp(value: Any, cursor: Any) -> Any:
    """A timestamp as SQLite holds it: text, with six decimals or none."""
    if value is None or "." not in value:
        return value
    whole, _, decimals = value.partition(".")
    return f"{whole}.{decimals:0<6}" if decimals.isdigit() else value


def _alike(found: Sequence[tuple[Any, ...]], stamps: list[int]) -> Sequence[tuple[Any, ...]]:
    """Rows in which the timestamps of a column all have decimals, or none has.

    SQLite's CURRENT_TIMESTAMP has none, PostgreSQL's has six; a column holds those of before the switch and those of
    after it, and pandas reads only what is all alike.
    """
    mixed = {place for place in stamps if len({"." in row[place] for row in found if row[place] is not None}) > 1}
    if not mixed:
        return found
    return [
        tuple(
            f"{value}.000000" if place in mixed and value is not None and len(value) == _WHOLE else value
            for place, value in enumerate(row)
        )
        for row in found
    ]


_TIMESTAMP = 1114
_WHOLE = len("2025-01-31 12:00:00")
_AS_IN_SQLITE = (
    psycopg2.extensions.new_type((1082, _TIMESTAMP, 1184), "STAMP_AS_TEXT", _stamp),
    psycopg2.extensions.new_type((1700,), "NUMERIC_AS_FLOAT", lambda value, _: None if value is None else float(value)),
)


class _Understanding:
    """Mixed into a cursor: it takes statements written for SQLite."""

    connection: Connection
    description: Any

    def execute(self, query: Any, vars: Any = None) -> Any:
        """Translate, then execute; gives back the cursor, as sqlite3 does."""
        if not isinstance(query, str):
            super().execute(query, vars)  # type: ignore[misc]
            return self
        dsn = self.connection.dsn
        if dsn not in _catalogs or re.search(r"\b(CREATE|DROP|ALTER)\b", query, re.IGNORECASE):
            _catalogs[dsn] = self.connection.read_catalog()
            _translated.cache_clear()
        _count(0, "from" in query.lower())
        bound = vars is not None and len(vars) > 0
        translated = _translated(query, bound, dsn, len(_catalogs[dsn].columns))
        super().execute(translated.sql, _parameters(translated, vars) if bound else None)  # type: ignore[misc]
        if translated.sql.lstrip()[:6].upper() == "CREATE":
            _catalogs.pop(dsn, None)
        return self

    def executemany(self, query: Any, vars_list: Any) -> Any:
        """Execute once for each set of parameters."""
        for vars in vars_list:
            self.execute(query, vars)
        return self

    def executescript(self, script: str) -> Any:
        """Execute statements one after another, which stand between semicolons."""
        for part in split(tokens_of(script), ";"):
            if significant(part):
                self.execute("".join(token.value for token in part))
        return self

    @property
    def lastrowid(self) -> int | None:
        """The id that the last INSERT of this connection got."""
        with psycopg2.extensions.connection.cursor(
            self.connection, cursor_factory=psycopg2.extensions.cursor
        ) as cursor:
            cursor.execute("SELECT lastval()")
            found = cursor.fetchone()
        return found[0] if found else None

    def close(self) -> None:
        """Nothing is kept open; what was fetched stays."""
        super().close()  # type: ignore[misc]


class Cursor(_Understanding, psycopg2.extensions.cursor):  # type: ignore[misc]
    """Rows as of sqlite3: see Row; timestamps as text, numeric as float."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for kind in _AS_IN_SQLITE:
            psycopg2.extensions.register_type(kind, self)

    def _rows(self, found: Sequence[tuple[Any, ...]]) -> list[Row]:
        _count(len(found))
        names = {column[0]: number for number, column in enumerate(self.description or ())}
        stamps = [number for number, column in enumerate(self.description or ()) if column[1] == _TIMESTAMP]
        rows = [Row(values) for values in _alike(found, stamps)]
        for row in rows:
            row.names = names
        return rows

    def fetchone(self) -> Row | None:
        """The next row, None after the last."""
        found = super().fetchone()
        return None if found is None else self._rows([found])[0]

    def fetchmany(self, size: int | None = None) -> list[Row]:  # type: ignore[override]
        """The next rows."""
        return self._rows(super().fetchmany(*([] if size is None else [size])))

    def fetchall(self) -> list[Row]:  # type: ignore[override]
        """All rows that are left, none when the statement gives none."""
        return self._rows(super().fetchall()) if self.description else []

    def __iter__(self) -> Iterator[Row]:  # type: ignore[override]
        return iter(self.fetchall())


class RealDictCursor(_Understanding, psycopg2.extras.RealDictCursor):  # type: ignore[misc]
    """psycopg2's, for code that was written for PostgreSQL: rows are dictionaries of Python's own types."""

    def fetchall(self) -> Any:
        """All rows that are left."""
        found = super().fetchall()
        _count(len(found))
        return found


class Connection(psycopg2.extensions.connection):
    """Commits each statement, and has sqlite3's shortcuts."""

    row_factory: Any = None
    autocommit = property(lambda self: True, lambda self, value: None)

    def cursor(self, *arguments: Any, **named: Any) -> Any:
        """A cursor that understands SQLite's SQL, unless another class is asked for."""
        if not arguments:
            named.setdefault("cursor_factory", Cursor)
        return super().cursor(*arguments, **named)

    def execute(self, query: str, vars: Any = None) -> Any:
        """A new cursor that has executed this."""
        return self.cursor().execute(query, vars)

    def executemany(self, query: str, vars_list: Any) -> Any:
        """A new cursor that has executed this for each set of parameters."""
        return self.cursor().executemany(query, vars_list)

    def executescript(self, script: str) -> Any:
        """A new cursor that has executed all of this."""
        return self.cursor().executescript(script)

    def read_catalog(self) -> Catalog:
        """Columns and unique keys of the tables in schema public."""
        with super().cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute(_CATALOG)
            rows = cursor.fetchall()
        return Catalog(
            {name: dict(zip(columns, types)) for name, columns, types, _ in rows},
            {name: [set(key.split()) for key in keys or ()] for name, _, _, keys in rows},
        )


def connect(dsn: str | None = None, **named: Any) -> Connection:
    """psycopg2.connect, with a connection that understands SQLite's SQL; times are UTC, as Pensieve stores them."""
    named.setdefault("connect_timeout", 10)
    connection: Connection = psycopg2.connect(dsn, connection_factory=Connection, **named)
    psycopg2.extensions.connection.autocommit.__set__(connection, True)  # type: ignore[attr-defined]
    with psycopg2.extensions.connection.cursor(connection, cursor_factory=psycopg2.extensions.cursor) as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
    return connection


class _Shared(psycopg2.pool.ThreadedConnectionPool):
    """The connections of this process to one database. Who finds all in use waits."""

    def __init__(self, minconn: int, maxconn: int, *arguments: Any, **named: Any) -> None:
        self.free = threading.BoundedSemaphore(maxconn)
        self.users = 0
        self.arguments, self.named = arguments, named
        super().__init__(minconn, maxconn, *arguments, **named)
        # Of what comes back, psycopg2 keeps this many.
        self.minconn = maxconn

    _used: dict[Any, Connection]
    _rused: dict[int, Any]
    _pool: list[Connection]

    def _connect(self, key: Any = None) -> Connection:
        connection = connect(*self.arguments, **self.named)
        if key is not None:
            self._used[key] = connection
            self._rused[id(connection)] = key
        else:
            self._pool.append(connection)
        return connection


def _speaks(connection: Connection) -> bool:
    """Whether something has come from the server unasked, such as that it ends. Takes no time, as asking it would."""
    watch = select.poll()
    watch.register(connection, select.POLLIN)
    return bool(watch.poll(0))


class ThreadedConnectionPool:
    """psycopg2's, but all pools of a process that lead to one database share their connections.

    Each manager of the package makes a pool of its own, and there are many managers.
    """

    WAIT = 30.0
    """Seconds to wait for a connection when all are in use."""

    _all: dict[Any, _Shared] = {}
    _lock = threading.Lock()

    def __init__(self, minconn: int, maxconn: int, *arguments: Any, **named: Any) -> None:
        self.key = (os.getpid(), arguments, tuple(sorted(named.items())))
        with self._lock:
            if self.key not in self._all:
                self._all[self.key] = _Shared(minconn, maxconn, *arguments, **named)
            self.shared = self._all[self.key]
            self.shared.users += 1
        self.closed = False

    def getconn(self, key: Any = None) -> Connection:
        """A connection that the server has not closed."""
        if not self.shared.free.acquire(timeout=self.WAIT):
            raise psycopg2.pool.PoolError(f"no connection became free within {self.WAIT:.0f} s")
        try:
            while True:
                connection: Any = self.shared.getconn(key)
                try:
                    if connection.closed or _speaks(connection):
                        connection.execute("SELECT 1")
                    checked: Connection = connection
                    return checked
                except (psycopg2.OperationalError, psycopg2.InterfaceError):
                    # The server has closed it since; the next one is an older one yet, or new.
                    self.shared.putconn(connection, key, close=True)
        except BaseException:
            self.shared.free.release()
            raise

    def putconn(self, conn: Connection | None = None, key: Any = None, close: bool = False) -> None:
        """Give a connection back."""
        self.shared.putconn(conn, key, close)
        self.shared.free.release()

    def closeall(self) -> None:
        """Close the connections when no other pool shares them."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self.shared.users -= 1
            if self.shared.users == 0 and not self.shared._used:
                self._all.pop(self.key, None)
                self.shared.closeall()

    def statistics(self) -> dict[str, Any]:
        """How many connections there are, in the words of the package's SQLite pool."""
        used, idle = len(self.shared._used), len(self.shared._pool)
        return {
            "active_connections": used + idle,
            "max_connections": self.shared.maxconn,
            "readonly_pooled": idle,
            "readwrite_pooled": 0,
            "wal_mode_enabled": False,
        }
