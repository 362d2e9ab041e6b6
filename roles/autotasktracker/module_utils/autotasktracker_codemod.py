"""The source changes that make AutoTaskTracker use PostgreSQL first, on the syntax tree (LibCST).

Each change looks for a construct, not for lines, so that versions which keep their constructs are recognised. What a
change does is little: it asks the module `postgresql_first`, which comes along, where the database is, and lets it make
the connections. A construct that cannot be found is named, and nothing is changed at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import libcst as cst
import libcst.matchers as m
from libcst.codemod import CodemodContext
from libcst.codemod.visitors import AddImportsVisitor

PACKAGE = "autotasktracker"
OURS = "postgresql_first"
LEFT_ALONE = re.compile(r"(^|/)(tests?|backups?|docs|examples|venv|\.venv|node_modules|\.git)/|_backup_\d")
"""Folders and files whose code does not run in the application."""
HARD_CODED = re.compile(r"postgres(ql)?://[^@/:\s]+:[^@/\s]+@localhost:\d+/autotasktracker")
ANOTHER_HOME = re.compile(r"/(Users|home)/\w+/[^'\"]*\.memos(/|$)")
WRAPPERS = ("uri_or", "memos_path")
TRIGGERS = re.compile(r"psycopg2|postgres(ql)?://|\.memos\b")
"""What a file holds in which there may be something to change."""


class Hidden(cst.CSTTransformer):
    """Code without what texts and comments say, which may be a password."""

    def leave_SimpleString(self, original_node: cst.SimpleString, updated_node: cst.SimpleString) -> cst.SimpleString:
        return updated_node.with_changes(value=f"{updated_node.prefix}{updated_node.quote}...{updated_node.quote}")

    def leave_FormattedStringText(
        self, original_node: cst.FormattedStringText, updated_node: cst.FormattedStringText
    ) -> cst.FormattedStringText:
        return updated_node.with_changes(value="...")

    def leave_Comment(self, original_node: cst.Comment, updated_node: cst.Comment) -> cst.Comment:
        return updated_node.with_changes(value="# ...")


def without_texts(code: str) -> str:
    """Python as a person may be shown it."""
    return cst.parse_module(code).visit(Hidden()).code


class Change(NamedTuple):
    """A file and its content before (None: absent) and after."""

    path: str
    before: str | None
    after: str


class Unrecognised(Exception):
    """The checkout lacks constructs; `missing` names them."""

    def __init__(self, missing: Sequence[str]) -> None:
        """`missing`: one sentence a construct."""
        super().__init__("; ".join(missing))
        self.missing = list(missing)


class Rules(cst.CSTTransformer):
    """What all changes share: the import, and the constructs that were seen."""

    needed: tuple[str, ...] = ()
    """Constructs without which the file is not recognised."""

    def __init__(self, path: str, context: CodemodContext) -> None:
        super().__init__()
        self.path = path
        self.context = context
        self.seen: set[str] = set()
        self.classes: list[str] = []
        self.functions: list[str] = []

    def ours(self, name: str) -> cst.Attribute:
        """`postgresql_first.name`, imported where it is used."""
        AddImportsVisitor.add_needed_import(self.context, PACKAGE, OURS)
        return cst.Attribute(cst.Name(OURS), cst.Name(name))

    def wrapped(self, value: cst.BaseExpression) -> cst.Call:
        """`postgresql_first.uri_or(value)`."""
        return cst.Call(self.ours("uri_or"), [cst.Arg(value)])

    def decorated(self, function: cst.FunctionDef, name: str) -> cst.FunctionDef:
        """The function with our decorator next to it, below others such as property."""
        decorator = cst.Decorator(self.ours(name))
        return function.with_changes(decorators=[*function.decorators, decorator])

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        self.classes.append(node.name.value)

    def leave_ClassDef(self, original_node: cst.ClassDef, updated_node: cst.ClassDef) -> cst.ClassDef:
        self.classes.pop()
        return updated_node

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self.functions.append(node.name.value)

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:
        self.functions.pop()
        return updated_node


def is_ours(node: cst.CSTNode, name: str | None = None) -> bool:
    """Whether an expression, or what it calls, is of our module."""
    if isinstance(node, cst.Call):
        node = node.func
    found = m.matches(node, m.Attribute(value=m.Name(OURS)))
    return found and (name is None or (isinstance(node, cst.Attribute) and node.attr.value == name))


Value = TypeVar("Value", cst.Arg, cst.Index)


KEYWORDS = {
    "SidebarSection": {"content": "render_func"},
    "CommonSidebar.render": {"title": "header_title", "icon": "header_icon"},
}
"""Functions of the package that pages call with keywords which these do not have: wrong one → right one."""


METHODS = {"get_raw_data": "raw_data", "get_database_size": "database_size", "get_ai_coverage_stats": "coverage"}
"""Methods that pages call and that the object lacks, in one version or in all → functions of ours that take it."""


def renamed(arg: cst.Arg, keywords: dict[str, str]) -> cst.Arg:
    """An argument with the keyword that the function has."""
    if arg.keyword is not None and arg.keyword.value in keywords:
        return arg.with_changes(keyword=cst.Name(keywords[arg.keyword.value]))
    return arg


def read_by_alias(place: Value) -> Value:
    """The text of a screenshot is selected AS ocr_text, and read as the key that it has in the table."""
    if (
        m.matches(place.value, m.SimpleString())
        and cst.ensure_type(place.value, cst.SimpleString).raw_value == "ocr_result"
    ):
        return place.with_changes(value=cst.SimpleString('"ocr_text"'))
    return place


class Everywhere(Rules):
    """Connections and hard-coded places, in every file."""

    def leave_ImportFrom(
        self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
    ) -> cst.ImportFrom | cst.RemovalSentinel:
        module = updated_node.module
        if module is not None and isinstance(updated_node.names, Sequence):
            source = cst.Module([]).code_for_node(module)
            names = {str(alias.evaluated_name) for alias in updated_node.names}
            if (source, names) in (
                ("psycopg2.pool", {"ThreadedConnectionPool"}),
                ("psycopg2.extras", {"RealDictCursor"}),
            ):
                return updated_node.with_changes(module=cst.Attribute(cst.Name(PACKAGE), cst.Name(OURS)))
        return updated_node

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        only_uri = (
            len(updated_node.args) == 1 and updated_node.args[0].keyword is None and not updated_node.args[0].star
        )
        if only_uri and m.matches(updated_node.func, m.Attribute(m.Name("psycopg2"), m.Name("connect"))):
            return updated_node.with_changes(func=self.ours("connect"))
        if any(is_ours(updated_node, name) and is_ours(updated_node.args[0].value, name) for name in WRAPPERS):
            # A text that was wrapped already.
            return cst.ensure_type(updated_node.args[0].value, cst.Call)
        return updated_node

    def leave_SimpleString(self, original_node: cst.SimpleString, updated_node: cst.SimpleString) -> cst.BaseExpression:
        content = updated_node.evaluated_value
        if not isinstance(content, str):
            return updated_node
        if HARD_CODED.fullmatch(content):
            return self.wrapped(updated_node)
        if ANOTHER_HOME.match(content):
            return cst.Call(self.ours("memos_path"), [cst.Arg(updated_node)])
        return updated_node


class Page(Everywhere):
    """A Streamlit page. It is run as a script, which knows no package to import from relatively; and several pages name
    what is not there, on SQLite neither.
    """

    def leave_ImportFrom(
        self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
    ) -> cst.ImportFrom | cst.RemovalSentinel:
        level = len(updated_node.relative)
        if not level:
            return super().leave_ImportFrom(original_node, updated_node)
        parts = [*Path(self.path).parts[:-level]]
        if updated_node.module is not None:
            parts += cst.Module([]).code_for_node(updated_node.module).split(".")
        module: cst.Name | cst.Attribute = cst.Name(parts[0])
        for part in parts[1:]:
            module = cst.Attribute(module, cst.Name(part))
        return updated_node.with_changes(relative=[], module=module, whitespace_after_from=cst.SimpleWhitespace(" "))

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        is_repository = any(m.matches(base.value, m.Name("BaseRepository")) for base in node.bases)
        self.classes.append("BaseRepository" if is_repository else node.name.value)

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        updated_node = super().leave_Call(original_node, updated_node)
        name = cst.Module([]).code_for_node(updated_node.func)
        if name in KEYWORDS:
            return updated_node.with_changes(args=[renamed(arg, KEYWORDS[name]) for arg in updated_node.args])
        if name == "selected_screenshot.get":
            return updated_node.with_changes(args=[read_by_alias(arg) for arg in updated_node.args])
        if name == "time_filter.get":
            return updated_node.with_changes(
                func=self.ours("bound_of"), args=[cst.Arg(cst.Name("time_filter")), *updated_node.args]
            )
        method = updated_node.func.attr.value if isinstance(updated_node.func, cst.Attribute) else ""
        if method in METHODS and not is_ours(updated_node):
            owner = cst.ensure_type(updated_node.func, cst.Attribute).value
            return updated_node.with_changes(func=self.ours(METHODS[method]), args=[cst.Arg(owner), *updated_node.args])
        return updated_node

    def leave_Subscript(self, original_node: cst.Subscript, updated_node: cst.Subscript) -> cst.Subscript:
        if not m.matches(updated_node.value, m.Name("selected_screenshot")):
            return updated_node
        index = cst.ensure_type(updated_node.slice[0].slice, cst.Index)
        return updated_node.with_changes(slice=[cst.SubscriptElement(read_by_alias(index))])

    def leave_Attribute(self, original_node: cst.Attribute, updated_node: cst.Attribute) -> cst.BaseExpression:
        if m.matches(updated_node, m.Attribute(m.Attribute(attr=m.Name("capabilities")), m.Name("backend_type"))):
            return updated_node.with_changes(attr=cst.Name("performance_tier"))
        if self.classes[-1:] == ["BaseRepository"] and m.matches(
            updated_node, m.Attribute(m.Name("self"), m.Name("db_manager"))
        ):
            return updated_node.with_changes(attr=cst.Name("db"))
        if m.matches(updated_node, m.Attribute(m.Call(m.Name("get_config")), m.Name("MEMOS_CONFIG_PATH"))):
            return cst.Call(self.ours("memos_config"))
        return updated_node


LOST = {
    "SCREENSHOT_INTERVAL_SECONDS": "RECORD_INTERVAL",
    "MIN_SESSION_DURATION_SECONDS": "30",
    "MAX_SESSION_GAP_SECONDS": "600",
    "IDLE_THRESHOLD_SECONDS": "IDLE_TIMEOUT",
}
"""Settings that the time tracker reads and that newer versions, which have RECORD_INTERVAL, lack."""


class Configuration(Everywhere):
    """config.py: the place of the database is PostgreSQL's URI, and importing the package does not lock itself out."""

    needed = (
        "class Config",
        "a method of Config that answers with the database: get_db_path, get_database_url or DATABASE_URL",
    )
    ANSWERS = ("get_db_path", "get_database_url", "DATABASE_URL")

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        super().visit_ClassDef(node)
        if node.name.value == "Config":
            self.seen.add(self.needed[0])

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:
        updated_node = super().leave_FunctionDef(original_node, updated_node)
        if self.classes[-1:] == ["Config"] and not self.functions and updated_node.name.value in self.ANSWERS:
            self.seen |= {self.needed[1], updated_node.name.value}
            if not any(is_ours(decorator.decorator) for decorator in updated_node.decorators):
                return self.decorated(updated_node, "uri_first")
        return updated_node

    def leave_AnnAssign(self, original_node: cst.AnnAssign, updated_node: cst.AnnAssign) -> cst.AnnAssign:
        if self.classes[-1:] != ["Config"] or self.functions or updated_node.value is None:
            return updated_node
        if m.matches(updated_node, m.AnnAssign(target=m.Name("PENSIEVE_CONFIG_SYNC"), value=m.Name("True"))):
            # Asking Pensieve for its settings asks for this very configuration, whose lock is held.
            return updated_node.with_changes(value=cst.Name("False"))
        if isinstance(updated_node.target, cst.Name):
            self.seen.add(updated_node.target.value)
        return updated_node

    def visit_SimpleStatementLine(self, node: cst.SimpleStatementLine) -> None:
        if self.classes[-1:] == ["Config"] and not self.functions and m.matches(node.body[0], m.Assign()):
            target = cst.ensure_type(node.body[0], cst.Assign).targets[0].target
            self.seen.add(target.value if isinstance(target, cst.Name) else "")

    def leave_Lambda(self, original_node: cst.Lambda, updated_node: cst.Lambda) -> cst.Lambda:
        asks = m.findall(updated_node.body, m.SimpleString(value=m.MatchIfTrue(lambda text: "DATABASE_URL" in text)))
        if self.classes[-1:] == ["Config"] and asks and not is_ours(updated_node.body):
            return updated_node.with_changes(body=self.wrapped(updated_node.body))
        return updated_node

    def leave_ClassDef(self, original_node: cst.ClassDef, updated_node: cst.ClassDef) -> cst.ClassDef:
        updated_node = super().leave_ClassDef(original_node, updated_node)
        lost = [name for name in LOST if name not in self.seen] if "RECORD_INTERVAL" in self.seen else []
        if updated_node.name.value == "Config" and lost:
            body = cst.ensure_type(updated_node.body, cst.IndentedBlock)
            settings = [cst.parse_statement(f"{name} = {LOST[name]}\n") for name in lost]
            updated_node = updated_node.with_changes(body=body.with_changes(body=[*body.body, *settings]))
        answer = next((name for name in self.ANSWERS[1:] if name in self.seen), None)
        if updated_node.name.value != "Config" or "get_db_path" in self.seen or answer is None:
            return updated_node
        call = f"self.{answer}()" if answer.islower() else f"self.{answer}"
        method = cst.parse_statement(
            f"\n@{OURS}.uri_first\ndef get_db_path(self) -> str:\n"
            f'    """The database, as other parts of the package ask for it."""\n    return {call}\n'
        )
        body = cst.ensure_type(updated_node.body, cst.IndentedBlock)
        return updated_node.with_changes(body=body.with_changes(body=[*body.body, method]))


class Manager(Everywhere):
    """core/database.py: the manager opens PostgreSQL unless it is told another place, with connections of ours."""

    needed = (
        "class DatabaseManager",
        "DatabaseManager.__init__: self.db_path set from the configuration",
        "DatabaseManager._initialize_postgresql: a ThreadedConnectionPool",
    )
    DECORATED = {"get_pool_stats": "pool_statistics", "test_connection": "answers"}

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        super().visit_ClassDef(node)
        if node.name.value == "DatabaseManager":
            self.seen.add(self.needed[0])

    def visit_Call(self, node: cst.Call) -> None:
        if self.functions[-1:] == ["_initialize_postgresql"] and m.matches(node.func, m.Name("ThreadedConnectionPool")):
            self.seen.add(self.needed[2])

    def leave_Assign(self, original_node: cst.Assign, updated_node: cst.Assign) -> cst.Assign:
        place = m.AssignTarget(target=m.Attribute(value=m.Name("self"), attr=m.Name("db_path")))
        if self.functions[-1:] != ["__init__"] or not m.matches(updated_node, m.Assign(targets=[place])):
            return updated_node
        if m.matches(updated_node.value, m.Name()):
            return updated_node
        self.seen.add(self.needed[1])
        if is_ours(updated_node.value):
            return updated_node
        return updated_node.with_changes(value=self.wrapped(updated_node.value))

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:
        updated_node = super().leave_FunctionDef(original_node, updated_node)
        decorator = self.DECORATED.get(updated_node.name.value)
        if decorator is not None and not updated_node.decorators:
            return self.decorated(updated_node, decorator)
        return updated_node


class Reader(Everywhere):
    """pensieve/config_reader.py: a URI in Pensieve's config.yaml is no path below its folder."""

    needed = ("PensieveConfigReader: database_path joined to Pensieve's folder unless os.path.isabs(…)",)

    def leave_If(self, original_node: cst.If, updated_node: cst.If) -> cst.If:
        tests = m.findall(updated_node.test, m.Call(func=m.Attribute(attr=m.Name("isabs"))))
        if not tests:
            return updated_node
        self.seen.add(self.needed[0])
        code = cst.Module([]).code_for_node(updated_node.test)
        if "://" in code:
            return updated_node
        path = cst.Module([]).code_for_node(cst.ensure_type(tests[0], cst.Call).args[0].value)
        return updated_node.with_changes(test=cst.parse_expression(f'"://" not in str({path}) and {code}'))


class Base(Everywhere):
    """dashboards/base.py: dashboards open what the manager opens."""

    needed = ("BaseDashboard.db_manager: a call of DatabaseManager or SimpleDatabaseManager",)

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        if self.functions[-1:] == ["db_manager"] and m.matches(
            updated_node.func, m.Name("SimpleDatabaseManager") | m.Name("DatabaseManager")
        ):
            self.seen.add(self.needed[0])
            return cst.Call(cst.Name("DatabaseManager"))
        return super().leave_Call(original_node, updated_node)


SPECIAL: dict[str, type[Rules]] = {
    f"{PACKAGE}/config.py": Configuration,
    f"{PACKAGE}/core/database.py": Manager,
    f"{PACKAGE}/pensieve/config_reader.py": Reader,
    f"{PACKAGE}/dashboards/base.py": Base,
}


def changed(path: str, text: str, missing: list[str]) -> str:
    """The text of one file after the changes; constructs that it lacks are added to `missing`."""
    kind = SPECIAL.get(path) or (Page if "/dashboards/" in path and "__main__" in text else Everywhere)
    if kind is Everywhere and not TRIGGERS.search(text):
        return text
    try:
        tree = cst.parse_module(text)
    except cst.ParserSyntaxError:
        if path in SPECIAL:
            missing.append(f"{path}: a file that Python can read")
        return text
    context = CodemodContext(filename=path)
    rules = kind(path, context)
    tree = tree.visit(rules)
    missing += [f"{path}: {construct}" for construct in rules.needed if construct not in rules.seen]
    return str(AddImportsVisitor(context).transform_module(tree).code)


def sources(checkout: Path) -> Iterable[str]:
    """Python files that run in the application, relative to the checkout: the package, and the scripts beside it."""
    found = (str(path.relative_to(checkout)) for path in (*checkout.glob("*.py"), *(checkout / PACKAGE).rglob("*.py")))
    return sorted(path for path in found if not LEFT_ALONE.search(path))


def changes(checkout: Path, module: str) -> list[Change]:
    """What there is to change in a checkout; `module` is the text of our module.

    Raises:
        Unrecognised: a construct is missing.
    """
    missing = [f"{path}: the file" for path in SPECIAL if not (checkout / path).is_file()]
    if missing:
        raise Unrecognised(missing)
    found = []
    for path in sources(checkout):
        if path == f"{PACKAGE}/{OURS}.py":
            continue
        before = (checkout / path).read_bytes().decode("utf-8", "surrogateescape")
        after = changed(path, before, missing)
        if after != before:
            found.append(Change(path, before, after))
    if missing:
        raise Unrecognised(missing)
    ours = checkout / PACKAGE / f"{OURS}.py"
    present = ours.read_text(encoding="utf-8") if ours.exists() else None
    if present != module:
        found.append(Change(f"{PACKAGE}/{OURS}.py", present, module))
    return found
