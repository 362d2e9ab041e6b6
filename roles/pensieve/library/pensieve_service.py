#!/usr/bin/python
"""Ansible module: stop and start the services of one Pensieve installation, with proof."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pensieve_service
short_description: Stop and start the services of one Pensieve installation, with proof
description:
  - C(memos stop) always exits 0 and ends processes of other users' installations too. This module ends only the
    processes of the given home, and calls them stopped when they are gone, the port is closed and nothing has the
    database open.
  - Starting means C(memos start); where another installation on the machine keeps C(memos start) from doing anything,
    the service is started as C(memos start) would. Started means that health and libraries answer 200.
  - A service is started with the variables that it had when it was stopped, whoever started it then.
options:
  user_home:
    description: Home of the user who runs Pensieve.
    type: path
    required: true
  venv:
    description: Virtual environment that holds the package C(memos).
    type: path
    required: true
  endpoint:
    description: Address of the server, like C(http://127.0.0.1:8839).
    type: str
    required: true
  base_dir:
    description: Pensieve's base directory; log and pid files are below it.
    type: path
    required: true
  database:
    description: SQLite file that nothing may have open after a stop.
    type: path
  reader:
    description: JSON file that names C(pid) and C(started) of a process that only reads O(database), and may go on so.
    type: path
  services:
    description: Services to start. All running ones are stopped in any case.
    type: list
    elements: str
    choices: [serve, record, watch]
    default: [serve]
  units:
    description:
      - Units of systemd that keep services, each with C(name), C(scope) and C(services). Stop and start them before.
      - What they keep is waited for, not started.
    type: list
    elements: dict
    default: []
  environment:
    description:
      - JSON file that keeps the variables of each service from the stop to the start, with mode 0600.
      - A damaged one is put aside, with a warning; services start with the variables of this process then.
    type: path
  alone:
    description: With O(state=started), fail when a service runs already.
    type: bool
    default: false
  journal:
    description:
      - Directory of the journal, which is told of the stop before it, and of the start before and after it.
    type: path
  record:
    description: What the record before the stop or start says besides, like C(backend).
    type: dict
    default: {}
  record_required:
    description: Whether a stop or start fails that cannot be recorded. Those that bring Pensieve back after a failure
      do not.
    type: bool
    default: true
  state:
    description: What to reach. C(alone) changes nothing, and fails when a service runs.
    type: str
    choices: [started, stopped, alone]
    required: true
  timeout:
    description: Seconds to wait for either.
    type: int
    default: 90
attributes:
  check_mode:
    support: full
    description: Says what it would do.
  diff_mode:
    support: none
    description: There is no text to compare.
author:
  - Pensieve migration maintainers (@pensieve-migration)
"""

EXAMPLES = r"""
- name: Stop Pensieve
  pensieve_service:
    user_home: /home/ada
    venv: /home/ada/.memos/venv
    endpoint: http://127.0.0.1:8839
    base_dir: /home/ada/.memos
    database: /home/ada/.memos/database.db
    state: stopped
"""

RETURN = r"""
services:
  description: Services that ran before.
  returned: always
  type: list
  elements: str
  sample: [serve, watch]
at:
  description:
    - When the first process was told to stop, by a unit of systemd or by this module, or the server answered again, in
      seconds since 1970.
  returned: always
  type: float
seconds:
  description: How long it took.
  returned: always
  type: float
"""

import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable

from ansible.module_utils import migration_journal, processes, whole_file
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pensieve_process import (
    SERVICES,
    Unit,
    answers,
    find,
    healthy,
    holders,
    overrides,
    show,
)
from ansible.module_utils.settings_error import LIMIT, without_content, without_values

POLL = 0.1
"""Seconds between two looks."""


def wait(done: Callable[[], bool], seconds: float) -> bool:
    """Look until `done` or until `seconds` have passed."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


LOG_LIMIT = 1 << 20  # bytes of a log that are read for its last lines


def log_tail(base_dir: Path, service: str, config: Path, lines: int = 15) -> str:
    """Last lines of a service's log, without what it tells of a settings file."""
    log = base_dir / "logs" / f"{service}.log"
    if not log.is_file():
        return f"(no {log})"
    beyond = log.stat().st_size - LOG_LIMIT
    with log.open("rb") as file:
        file.seek(max(beyond, 0))
        text = file.read().decode("utf-8", "replace")
    if beyond > 0:  # a line may have been cut in two
        text = text.partition("\n")[2]
    text = "\n".join(without_content(text).splitlines()[-lines:])
    try:
        settings: bytes = whole_file.head(config, LIMIT)
        return str(without_values(text, settings.decode("utf-8", "replace")))
    except FileNotFoundError:
        return text
    except OSError as error:
        return f"(not shown, since {config} cannot be read: {error.strerror})"


def named_reader(file: Path | None) -> set[int]:
    """The process that a file names, if it is still the same: pid, and start in clock ticks since the machine's."""
    if file is None:
        return set()
    try:
        named = json.loads(whole_file.read(file))
        pid = int(named["pid"])
        ours = processes.user(pid) == os.geteuid() and processes.started(pid) == named["started"]
        return {pid} if ours else set()
    except (OSError, ValueError, LookupError, TypeError):  # A process that is gone, or a file that names none.
        return set()


def variables_in(content: bytes) -> dict[str, dict[str, str]]:
    """Variables of each service. Raises ValueError when that is not what stands there."""
    kept = json.loads(content)
    if not isinstance(kept, dict) or not all(isinstance(variables, dict) for variables in kept.values()):
        raise ValueError("not a mapping of variables for each service")
    if not all(isinstance(value, str) for variables in kept.values() for value in variables.values()):
        raise ValueError("a variable that is no text")
    return kept


class Installation:
    """The services of one installation."""

    def __init__(self, module: AnsibleModule) -> None:
        params = module.params
        self.module = module
        self.home = Path(params["user_home"])
        self.python = Path(params["venv"]) / "bin" / "python"
        self.endpoint: str = params["endpoint"]
        self.base_dir = Path(params["base_dir"])
        self.database = Path(params["database"]) if params["database"] else None
        self.reader = Path(params["reader"]) if params["reader"] else None
        self.timeout = float(params["timeout"])
        self.units = {Unit(unit["name"], unit["scope"]): unit["services"] for unit in params["units"]}
        self.environments = Path(params["environment"]) if params["environment"] else None
        self.alone: bool = params["alone"]
        self.journal = Path(params["journal"]) if params["journal"] else None

    def record(self, required: bool, **record: Any) -> None:
        """Tell the journal; fail, or only warn, when it cannot be written."""
        if self.journal is None:
            return
        try:
            migration_journal.append(self.journal, record)
        except OSError as error:
            said = f"the journal in {self.journal} cannot be written: {error}"
            if not required:
                self.module.warn(said)
                return
            self.module.fail_json(
                msg=f"Found: {said}. Expected: that a {record['step']} is recorded before it is done. "
                "Untouched: Pensieve's services by this step, which has done nothing. "
                "Next: free some space on its disk (or mend what stands above), then run the playbook again."
            )

    def running(self) -> list[str]:
        """Services that run now, in the order in which they start."""
        present = {process.service for process in find(self.home)}
        return [service for service in SERVICES if service in present]

    def gone(self, pids: list[int]) -> bool:
        """None of these processes runs any more."""
        return not {process.pid for process in find(self.home)} & set(pids)

    def kept(self) -> dict[str, dict[str, str]]:
        """Variables of each service as it was stopped last; none where the file is damaged, which is put aside then."""
        if self.environments is None or not self.environments.is_file():
            return {}
        try:
            return variables_in(whole_file.read(self.environments))
        except (OSError, ValueError) as error:
            self.module.warn(
                f"{self.environments}, with the variables that services had, is damaged ({error}). {self.put_aside()}; "
                "what does not run now starts with the variables of this process."
            )
            return {}

    def put_aside(self) -> str:
        """Keep the damaged file under another name; say where it is."""
        assert self.environments is not None
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.environments.with_name(f"{self.environments.name}.damaged-{stamp}")
        try:
            whole_file.rename(self.environments, aside.name)
        except OSError as error:
            return f"It stays there, since it cannot be renamed ({error})"
        return f"It is kept as {aside}"

    def keep_environments(self) -> None:
        """Remember the variables of the services that run; those of the others stay as they were kept."""
        found = {process.service: process.environment for process in find(self.home) if process.environment}
        if self.environments is None or not found:
            return
        content = json.dumps({**self.kept(), **found}).encode()
        try:
            whole_file.make_folder(self.environments.parent)
            whole_file.write(self.environments, content, 0o600)
        except OSError as error:  # A full disk is no reason to leave Pensieve where it is.
            self.module.warn(f"the services' variables cannot be kept for their start: {error}")

    def environment(self, service: str) -> dict[str, str]:
        """The variables that a service had, else those of this process; without what beats config.yaml."""
        ours = ("MEMOS_", migration_journal.MARK)
        own = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        variables = self.kept().get(service, own)
        beating = overrides(variables)
        return {**{name: value for name, value in variables.items() if name not in beating}, "HOME": str(self.home)}

    def began(self) -> float:
        """When the first unit was told to stop, in seconds since 1970; now when none was."""
        now, clock = time.time(), time.monotonic()
        told = [show(unit, "ActiveExitTimestampMonotonic") for unit in self.units]
        moments = [int(unit.get("ActiveExitTimestampMonotonic", 0)) / 1e6 for unit in told]
        return min([now, *(now - (clock - moment) for moment in moments if moment)])

    def stop(self) -> None:
        """Stop every service; fail with the reason when one does not go, or comes back."""
        self.keep_environments()
        if self.running():
            self.record(
                self.module.params["record_required"], step="stop", owes_start=True, **self.module.params["record"]
            )
        for service in reversed(SERVICES):
            pids = [process.pid for process in find(self.home) if process.service == service]
            for number in (signal.SIGTERM, signal.SIGKILL):
                for pid in pids:
                    send(pid, number)
                if wait(partial(self.gone, pids), 10):
                    break
        held: list[int] = []
        readers = named_reader(self.reader)

        def free() -> bool:
            nonlocal held
            held = [pid for pid in holders(self.database) if pid not in readers] if self.database else []
            return not self.running() and not held and answers(self.endpoint, "/api/health", 1.0) is None

        if not wait(free, min(self.timeout, 20)):
            self.module.fail_json(
                msg=f"Found: Pensieve does not stay stopped: services {self.running() or 'none'}, processes {held} "
                f"with {self.database} open, {self.endpoint} answering {answers(self.endpoint, '/api/health', 1.0)}. "
                "Expected: none of these. Untouched: both databases and every setting. "
                "Next: end what restarts it (systemd unit, launch script) or has the file open, then run again."
            )

    def require_alone(self) -> None:
        """Fail when something else has started a service meanwhile."""
        if strangers := find(self.home):
            named = ", ".join(f"{process.service} as process {process.pid}" for process in strangers)
            self.module.fail_json(
                msg=f"Found: something else has started Pensieve while it had to stand still: {named}. "
                "Expected: nothing that records between the copy and the start. "
                "Untouched: both databases; this has started nothing. "
                "Next: end what restarts it (cron, supervisor, launch script), then run again."
            )

    def start(self, services: list[str]) -> None:
        """Start services, serve first; return when the server and its database answer."""
        if self.alone:
            self.require_alone()
        params = self.module.params
        if services or params["record"]:
            self.record(params["record_required"], step="start", **params["record"])
        for service in SERVICES:
            if service in services:
                self.start_one(service)
            if service == "serve" and not wait(self.up, self.timeout):
                state = "runs, but its database does not answer" if "serve" in self.running() else "died"
                self.module.fail_json(
                    msg=f"Pensieve's server {state}: {self.endpoint}/api/libraries is not 200. "
                    f"Its log ends with:\n{log_tail(self.base_dir, 'serve', self.home / '.memos' / 'config.yaml')}"
                )
        self.record(False, step="started", owes_start=False)

    def start_one(self, service: str) -> None:
        """Start a service as `memos start` does, by it where it does anything."""
        environment = self.environment(service)
        subprocess.run(
            [str(self.python), "-m", "memos.commands", "start", service],
            env=environment,
            cwd=str(self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        if service not in self.running():
            self.start_directly(service, environment)

    def up(self) -> bool:
        """Healthy, and by a process of this installation."""
        return "serve" in self.running() and healthy(self.endpoint)

    def start_directly(self, service: str, environment: dict[str, str]) -> None:
        """Start a service where `memos start` takes another installation's process for this one's."""
        for folder in ("logs", "pids"):
            whole_file.make_folder(self.base_dir / folder, 0o777)
        with whole_file.appending(self.base_dir / "logs" / f"{service}.log") as (_folder, log):
            process = subprocess.Popen(
                [str(self.python), "-m", "memos.commands", service],
                env=environment,
                cwd=str(self.home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            whole_file.write(self.base_dir / "pids" / f"{service}.pid", str(process.pid).encode(), 0o644)
        except OSError as error:  # A full disk, on which it runs all the same; it is found by its command, too.
            self.module.warn(f"`memos ps` does not see {service}, process {process.pid}: {error}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "user_home": {"type": "path", "required": True},
            "venv": {"type": "path", "required": True},
            "endpoint": {"type": "str", "required": True},
            "base_dir": {"type": "path", "required": True},
            "database": {"type": "path"},
            "reader": {"type": "path"},
            "services": {"type": "list", "elements": "str", "choices": list(SERVICES), "default": ["serve"]},
            "units": {"type": "list", "elements": "dict", "default": []},
            "environment": {"type": "path"},
            "alone": {"type": "bool", "default": False},
            "journal": {"type": "path"},
            "record": {"type": "dict", "default": {}},
            "record_required": {"type": "bool", "default": True},
            "state": {"type": "str", "choices": ["started", "stopped", "alone"], "required": True},
            "timeout": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    installation = Installation(module)
    stopping, clock = module.params["state"] == "stopped", time.monotonic()
    began = installation.began() if stopping else 0.0
    before = installation.running()
    changed, act = stopping and bool(before), installation.stop if stopping else installation.require_alone
    if module.params["state"] == "started":
        waited_for = {service for kept in installation.units.values() for service in kept}
        missing = [name for name in module.params["services"] if name not in before and name not in waited_for]
        changed, act = bool(missing), partial(installation.start, missing)
    if not module.check_mode:
        act()
    result: dict[str, Any] = {"changed": changed, "services": before, "seconds": round(time.monotonic() - clock, 3)}
    result["at"] = began if stopping else time.time()
    module.exit_json(**result)


if __name__ == "__main__":
    main()
