#!/usr/bin/python
"""Ansible module: find a Pensieve installation and say what stands in the way of moving it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_facts
short_description: Find a Pensieve installation and what stands in the way of moving it
description:
  - Reads the installation of one user, its interpreter, its C(config.yaml), its services and its database settings.
  - Who owns the home is asked first. Nothing in it is believed that is somebody else's, and Pensieve's interpreter runs
    as that owner alone; not at all where others may write it.
  - Changes nothing. What would make a migration fail is returned as RV(problems), each with what was found, what was
    expected and the command that helps.
options:
  user_home:
    description: Home of the user who runs Pensieve. Its C(.memos/config.yaml) is read for the rest.
    type: path
    required: true
  venv:
    description:
      - Virtual environment that holds the package C(memos).
      - Found from RV(installation.services) or the PATH when empty.
    type: path
    default: ''
  places:
    description:
      - Other folders that are run from, or written to, as the owner of the home, like virtual environments. Nobody else
        may write them, nor what is above them; those that are not there do not matter.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: It changes nothing.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Find Pensieve
  pensieve_facts:
    user_home: /home/ada
  register: found
"""

RETURN = r"""
installation:
  description: What was found. Keys are missing where a problem kept them from being read.
  returned: always
  type: dict
  sample: {"version": "0.30.1", "database": "/home/ada/.memos/database.db", "endpoint": "http://127.0.0.1:8839"}
problems:
  description: What stands in the way, in the order in which it was met.
  returned: always
  type: list
  elements: dict
  sample:
    - code: extension_loading
      found: "the sqlite3 of /opt/venv/bin/python cannot load extensions"
      expected: "an interpreter whose sqlite3 has enable_load_extension"
      next: "make Pensieve's virtual environment anew with /usr/bin/python3 -m venv"
      curable: false
"""

import inspect
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ansible.module_utils import settings_error, whole_file
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ownership import (
    ROOT,
    ForeignError,
    name_of,
    owner_of,
    require_own_environment,
    running_as,
)
from ansible.module_utils.pensieve_process import Process, find, healthy, holders, overrides, units
from ansible.module_utils.settings_error import shown

PROBE = (
    inspect.getsource(settings_error)
    + r"""
import importlib.metadata as metadata, importlib.util as util, json, os, sqlite3, sys
from pathlib import Path
out = {"python": sys.executable, "python_version": sys.version.split()[0]}
def say():
    print("PROBE" + json.dumps(out)); sys.exit()
out["extension_loading"] = hasattr(sqlite3.Connection, "enable_load_extension")
try:
    out["version"] = metadata.version("memos")
except metadata.PackageNotFoundError:
    say()
root = Path(util.find_spec("memos").origin).parent
out["knows_postgresql"] = (root / "databases").is_dir()
if not out["knows_postgresql"]:
    say()
import yaml
try:
    with open(os.environ["PENSIEVE_CONFIG"], "rb") as file:
        content = file.read(LIMIT + 1)
    if len(content) > LIMIT:
        out["config_error"] = "more than %d bytes, where settings have fewer" % LIMIT
        say()
    config = yaml.safe_load(content.decode("utf-8"))
except OSError as error:
    out["config_error"] = str(error)
    say()
except Exception as error:
    out["config_error"] = told(error)
    say()
if not isinstance(config, dict):
    out["config_error"] = "the top level is %s, not a mapping" % type(config).__name__
    say()
import sqlalchemy
from sqlalchemy.engine import make_url
out["sqlalchemy"] = sqlalchemy.__version__
try:
    dialect = make_url("postgresql://").get_dialect()
    out["postgres_driver"] = dialect.driver
    dialect.import_dbapi()
    out["postgres_driver_present"] = True
except ImportError:
    out["postgres_driver_present"] = False
plugin = root / "plugins" / "structured_vlm"
out["prompt_missing"] = plugin.is_dir() and not list(plugin.glob("prompt_v1.*"))
try:
    from memos.config import Settings
    settings = Settings()
except Exception as error:
    out["config_error"] = told(error)
    say()
database = settings.resolved_database_path
if database is None and settings.database_path.startswith("sqlite:///"):
    database = settings.database_path[len("sqlite:///"):]
# SQLite keeps its write-ahead log beside the file itself, not beside a link to it.
database = None if database is None else Path(database).resolve()
out.update(
    base_dir=str(settings.resolved_base_dir), database_setting=settings.database_path, is_sqlite=settings.is_sqlite,
    database=None if database is None else str(database), screenshots_dir=str(settings.resolved_screenshots_dir),
    port=settings.server_port, endpoint=settings.server_endpoint, dimensions=settings.embedding.num_dim,
)
say()
"""
)

ANSWERS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("python", "python_version", "version", "config_error", "sqlalchemy", "postgres_driver"), str),
    **dict.fromkeys(("extension_loading", "knows_postgresql", "postgres_driver_present", "prompt_missing"), bool),
    **dict.fromkeys(("base_dir", "database_setting", "screenshots_dir", "endpoint"), str),
    **{"is_sqlite": bool, "database": (str, type(None)), "port": int, "dimensions": int},
}
"""What the probe says, and of what type. It is the user's own interpreter that speaks."""

#: What may be asked whether it answers.
ADDRESS = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?")

#: Of a database_path: what names a server.
NO_PATH = re.compile(r"\s*[\"']?(\w[\w+.-]*:|//|\w+\s*=)")

#: What libpq takes from the environment wherever a URI is silent. Host, port, user and database never are.
LIBPQ = (
    *("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGHOSTADDR", "PGOPTIONS", "PGTZ", "PGCLIENTENCODING"),
    *("PGSSLMODE", "PGREQUIRESSL", "PGSSLROOTCERT", "PGSSLCERTMODE", "PGSSLNEGOTIATION", "PGGSSENCMODE"),
    *("PGREQUIREAUTH", "PGCHANNELBINDING", "PGTARGETSESSIONATTRS"),
)
USUAL_VENVS = (
    ".memos/venv",
    ".local/share/pipx/venvs/memos",
    ".local/pipx/venvs/memos",  # pipx before 1.3
    ".local/share/uv/tools/memos",
    ".venv",
)
"""Where Pensieve's environment is looked for in the home, when no service runs and no `memos` is on the PATH."""


def problem(code: str, found: str, expected: str, next_step: str, curable: bool = False) -> dict[str, Any]:
    """One obstacle, in the four parts that every message of this project has (the caller adds what is untouched)."""
    return {"code": code, "found": found, "expected": expected, "next": next_step, "curable": curable}


def find_venv(home: Path, processes: list[Process]) -> Path | None:
    """The virtual environment of a running service, else of the `memos` on the PATH, else a usual place in the home."""
    candidates = [Path(process.command[0]).parent.parent for process in processes]
    on_path = shutil.which("memos") or shutil.which("pen")
    if on_path:
        candidates += [Path(on_path).parent.parent, Path(on_path).resolve().parent.parent]
    candidates += [home / place for place in USUAL_VENVS]
    for candidate in candidates:
        if (candidate / "bin" / "python").exists() and list(candidate.glob("lib/python*/site-packages/memos")):
            return candidate
    return None


def run_probe(python: Path, home: Path, config: Path, owner: int) -> dict[str, Any]:
    """What Pensieve's own interpreter says, run as the owner of the home; {"error": …} when it does not run."""
    own = running_as(owner)
    # What root has among its variables is none of another user's business.
    kept = ("LANG", "LC_ALL", "PATH") if own else os.environ
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment = {name: value for name, value in environment.items() if not name.startswith(("MEMOS_", "PYTHON"))}
    environment.update(HOME=str(home), PENSIEVE_CONFIG=str(config))
    try:
        done = subprocess.run(
            [str(python), "-c", PROBE],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            **own,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBE")]
    if not lines:
        return {"error": (done.stderr or done.stdout).strip()[-800:]}
    try:
        answer = json.loads(lines[-1][len("PROBE") :])
        known = {name: answer[name] for name in ANSWERS if name in answer}
    except (ValueError, TypeError) as error:
        return {"error": f"{error}: {lines[-1][:200]}"}
    if strange := [name for name, value in known.items() if not isinstance(value, ANSWERS[name])]:
        return {"error": f"it says of {', '.join(strange)} what cannot be: {lines[-1][:200]}"}
    return known


def judge(probe: dict[str, Any], venv: Path, config: Path) -> list[dict[str, Any]]:
    """Problems that the probe's answer shows."""
    if "error" in probe:
        return [
            problem(
                "interpreter",
                f"{venv}/bin/python does not run: {probe['error']}",
                "the working interpreter of Pensieve's virtual environment",
                f"run `{venv}/bin/python -m memos.commands version` and mend what it says",
            )
        ]
    problems = []
    if not probe["extension_loading"]:
        version = f"=={probe['version']}" if "version" in probe else ""
        problems.append(
            problem(
                "extension_loading",
                f"the sqlite3 of {venv}/bin/python (Python {probe['python_version']}) cannot load extensions",
                "an interpreter built with loadable SQLite extensions; Pensieve itself cannot run without (pyenv's and "
                "python.org's builds lack them, Debian's and Ubuntu's have them)",
                "make Pensieve's virtual environment anew: /usr/bin/python3 -m venv NEW && "
                f"NEW/bin/pip install memos{version}, then -e pensieve_venv=NEW",
            )
        )
    if "version" not in probe:
        problems.append(
            problem(
                "memos_missing",
                f"no package memos in {venv}",
                "the virtual environment that holds Pensieve",
                "say which one it is: -e pensieve_venv=/path/to/venv",
            )
        )
        return problems
    if not probe["knows_postgresql"]:
        problems.append(
            problem(
                "version",
                f"memos {probe['version']} in {venv}, which knows SQLite only",
                "memos 0.25.0 or newer, which knows PostgreSQL too",
                f"{venv}/bin/pip install --upgrade 'memos>=0.25,<0.32' (wheels from 0.32 on lack a file), restart "
                "Pensieve, which brings its database up to date, then run the playbook again",
            )
        )
        return problems
    if "config_error" in probe:
        problems.append(
            problem(
                "config_invalid",
                f"{config}: {probe['config_error']}",
                "a config.yaml that Pensieve can read",
                f"mend {config} (where, stands above), then run the playbook again",
            )
        )
        return problems
    if not probe["postgres_driver_present"]:
        problems.append(
            problem(
                "postgres_driver",
                f"SQLAlchemy {probe['sqlalchemy']} wants {probe['postgres_driver']}, which is not installed",
                "psycopg2 with SQLAlchemy < 2.1, with which Pensieve works",
                f"{venv}/bin/pip install 'SQLAlchemy<2.1' psycopg2-binary (or leave pensieve_manage_packages at true)",
                curable=True,
            )
        )
    elif probe["postgres_driver"] != "psycopg2":
        problems.append(
            problem(
                "postgres_driver",
                f"SQLAlchemy {probe['sqlalchemy']} uses {probe['postgres_driver']}, with which every search fails "
                "(function vector(unknown) does not exist)",
                "psycopg2 with SQLAlchemy < 2.1",
                f"{venv}/bin/pip install 'SQLAlchemy<2.1' psycopg2-binary (or leave pensieve_manage_packages at true)",
                curable=True,
            )
        )
    if probe["prompt_missing"]:
        problems.append(
            problem(
                "prompt_missing",
                f"memos {probe['version']} lacks plugins/structured_vlm/prompt_v1.txt, so `memos serve` cannot start",
                "that file from Pensieve's repository, or memos 0.31.0 and older",
                "put the file there, start Pensieve, then run the playbook again",
            )
        )
    return problems


def libpq_variables(home: Path, environment: Mapping[str, str]) -> list[str]:
    """Variables that would lead Pensieve or the playbooks away from their database or password."""
    found = [name for name in LIBPQ if environment.get(name)]
    if "PGPASSFILE" in found and Path(environment["PGPASSFILE"]).resolve() == (home / ".pgpass").resolve():
        found.remove("PGPASSFILE")
    return found


def judge_user(home: Path, owner: int) -> list[dict[str, Any]]:
    """A problem when this process is another user's than the home, whose files and services would become this one's."""
    if owner == os.geteuid():
        return []
    own, whose = name_of(os.geteuid()), name_of(owner)
    return [
        problem(
            "other_user",
            f"this runs as {own}, and {home} belongs to {whose}",
            f"both the same user; with sudo or the group docker, {whose} needs no root",
            f"as {whose}: ansible-playbook …; on another machine: ansible_user: {whose} in the inventory",
        )
    ]


def judge_trust(code: str, path: Path, check: Callable[[], Any], owner: int) -> list[dict[str, Any]]:
    """A problem when something that is read or run is not the owner's, or when others may write it."""
    try:
        check()
    except ForeignError as error:
        at = f" ({error.filename})" if error.filename != str(path) else ""
        return [
            problem(
                code,
                f"{path}: {error.strerror}{at}",
                f"files of {name_of(owner)} that nobody else may write, and such folders and links above",
                f"see whose {error.filename} is; then chown it, or chmod go-w, and run the playbook again",
            )
        ]
    except OSError:  # not there, or not readable: whoever needs it says so
        return []
    return []


def judge_environments(home: Path, processes: list[Process]) -> list[dict[str, Any]]:
    """Problems with the variables of this process, and of the services, which start again with theirs."""
    problems = []
    if names := sorted({name for process in processes for name in overrides(process.environment)}):
        problems.append(
            problem(
                "environment_override",
                f"a running service has {', '.join(names)} in its environment, which beats config.yaml",
                f"services that take their settings from {home}/.memos/config.yaml",
                f"write {', '.join(name.lower().removeprefix('memos_') for name in names)} there, unset the variables "
                "where Pensieve is started, restart it, then run the playbook again",
            )
        )
    expected = f"an environment without them: the password is in {home}/.pgpass, the rest in the URI"
    if own := libpq_variables(home, os.environ):
        problems.append(
            problem(
                "libpq_environment",
                f"{', '.join(own)} in the environment, which libpq obeys where Pensieve's URI is silent",
                expected,
                f"env {' '.join(f'--unset={name}' for name in own)} ansible-playbook …; unset them where "
                "Pensieve is started, too",
            )
        )
    found = {name for process in processes for name in libpq_variables(home, process.environment)}
    if variables := [name for name in LIBPQ if name in found]:
        problems.append(
            problem(
                "libpq_service",
                f"{', '.join(variables)} in the environment of a running service, whose libpq would obey them",
                expected,
                "unset them where Pensieve is started, restart it, then run the playbook again",
            )
        )
    return problems


def judge_setting(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A problem with a database_path that is meant for a server, and that Pensieve takes for the name of a file."""
    value = facts.get("database_setting", "")
    if not facts.get("is_sqlite") or value.startswith("sqlite:///") or not NO_PATH.match(value):
        return []
    return [
        problem(
            "database_setting",
            f"database_path {shown(value)} in {facts['config']}, which Pensieve takes for the name of a file",
            "a path, sqlite:///PATH or postgresql://USER@HOST/DATABASE",
            "write where the database is, restart Pensieve, then run the playbook again",
        )
    ]


def judge_server(facts: dict[str, Any], processes: list[Process]) -> list[dict[str, Any]]:
    """Problems of a server that answers, but is not this installation's, or has another database open."""
    serving = {process.pid for process in processes if process.service == "serve"}
    if not serving:
        return [
            problem(
                "server_unknown",
                f"{facts['endpoint']} answers, but no process `memos serve` with HOME={facts['home']} runs here",
                "the server of this installation on its port, since only what is found can be stopped",
                "start it with `memos start`; another user's, or one in a container, needs another server_port",
            )
        ]
    if facts["is_sqlite"] and facts["database"] and not serving & set(holders(Path(facts["database"]))):
        return [
            problem(
                "server_elsewhere",
                f"the server (pid {', '.join(map(str, sorted(serving)))}) does not have {facts['database']} open",
                f"a server that records where {facts['config']} points",
                "memos stop && memos start, which reads config.yaml anew; when Pensieve shows what you expect, run the "
                "playbook again",
            )
        ]
    return []


def gather(home: Path, wanted_venv: str, places: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Installation and problems of one user's Pensieve."""
    config = home / ".memos" / "config.yaml"
    facts: dict[str, Any] = {"home": str(home), "config": str(config), "services": [], "units": []}
    missing = problem(
        "config_missing",
        f"no {config}",
        "the home of a user who runs Pensieve",
        "say whose it is: -e pensieve_user_home=/home/NAME",
    )
    try:
        owner = owner_of(home)
    except ForeignError as error:
        return facts, [{**missing, "code": "home_foreign", "found": f"{home}: {error.strerror} ({error.filename})"}]
    except OSError:
        return facts, [missing]
    other = judge_user(home, owner)
    if other and os.geteuid() != ROOT:
        return facts, other
    processes = find(home)
    facts["services"] = sorted({process.service for process in processes})
    facts["units"] = [
        {"name": unit.name, "scope": unit.scope, "services": kept} for unit, kept in units(processes).items()
    ]
    venv = Path(wanted_venv) if wanted_venv else find_venv(home, processes)
    if venv is not None:
        facts["venv"] = str(venv)
    if foreign := judge_trust("config_foreign", config, partial(whole_file.head, config, 1, owner), owner):
        return facts, foreign + other
    if not config.is_file():
        return facts, [missing, *other]
    if venv is None or not (venv / "bin" / "python").exists():
        return facts, [
            problem(
                "venv_missing",
                f"no Pensieve in {wanted_venv or f'the environments of running services, of the PATH and of {home}'}",
                "the virtual environment that holds the package memos",
                "say which one it is: -e pensieve_venv=/path/to/venv",
            ),
            *other,
        ]
    foreign = []
    for place in [venv, *map(Path, places)]:
        foreign += judge_trust("place_foreign", place, partial(require_own_environment, place, owner, home), owner)
    if foreign:
        return facts, foreign + other
    probe = run_probe(venv / "bin" / "python", home, config, owner)
    facts.update(probe)
    unknown = judge_setting(facts)
    if unknown or not facts.get("is_sqlite", True):
        # It is told to people, and only compared with a URI of ours, which holds no password.
        facts["database_setting"] = shown(facts["database_setting"])
    if unknown:  # the file that Pensieve has made is named after all of it
        facts["database"] = None
    problems = unknown + judge(probe, venv, config) + other + judge_environments(home, processes)
    if "endpoint" in facts and not ADDRESS.fullmatch(facts["endpoint"]):
        problems.append(
            problem(
                "server_host",
                f"server_host and server_port give the address {facts['endpoint']!r}, which is none",
                "the name or the number of a machine, like 127.0.0.1",
                f"mend server_host in {config}, restart Pensieve, then run the playbook again",
            )
        )
        # Nothing answers there, whoever asks.
        facts["endpoint"] = "http://server-host.invalid"
    if "endpoint" in facts:
        facts["healthy"] = facts["endpoint"].startswith(("http://", "https://")) and healthy(facts["endpoint"])
        if facts["healthy"]:
            problems += judge_server(facts, processes)
    return facts, problems


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "user_home": {"type": "path", "required": True},
            "venv": {"type": "path", "default": ""},
            "places": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    installation, problems = gather(Path(params["user_home"]), params["venv"], params["places"])
    module.exit_json(changed=False, installation=installation, problems=problems)


if __name__ == "__main__":
    main()
