"""Runs the engine's modules and shows their progress while they work."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

_LONGEST = 24 * 3600  # seconds that a module may run
_POLL = 1.0  # seconds between two looks at the progress file
_SILENT = 8.0  # seconds after which a line is shown even if nothing is new
_ALIVE = 15.0  # seconds between two looks at whether the module still runs


class ActionModule(ActionBase):  # type: ignore[misc]
    """Starts the module asynchronously, follows its progress file, and gives its result.

    In check mode, which Ansible does not combine with asynchronous modules, and where a second counts, the module runs
    in the foreground. A thread looks at the progress file then, for the first time after ``_SILENT`` seconds, so that
    a short run costs nothing.
    """

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the module."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if not self._in_background():
            result.update(self._in_foreground(arguments, task_vars))
            return result
        own = not arguments.get("progress_file")
        if own:
            arguments["progress_file"] = self._connection._shell.join_path(
                self._shell_home(task_vars), f".{self._task.action}-{self._task._uuid}.jsonl"
            )
        file = arguments["progress_file"]
        self._quietly(f"rm -f {self._connection._shell.quote(file)}")
        self._task.async_val = _LONGEST
        try:
            started = self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = 0
        if started.get("failed") or "ansible_job_id" not in started:
            result.update(started)
            return result
        try:
            result.update(self._follow(started["ansible_job_id"], file, task_vars))
        finally:
            if own:
                self._quietly(f"rm -f {self._connection._shell.quote(file)}")
        return result

    def _in_background(self) -> bool:
        return not self._task.check_mode

    def _shell_home(self, task_vars: Any) -> str:
        return str(self._remote_expand_user("~"))

    def _quietly(self, command: str) -> str:
        done = self._low_level_execute_command(command, sudoable=True)
        return str(done.get("stdout", ""))

    def _in_foreground(self, arguments: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        ended = threading.Event()
        teller = threading.Thread(target=self._tell, args=(ended, arguments.get("progress_file"), task_vars))
        teller.start()
        try:
            done: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
        finally:
            ended.set()
            teller.join()
        return done

    def _tell(self, ended: threading.Event, file: str | None, task_vars: Any) -> None:
        host, began = _prefix(task_vars), time.monotonic()
        while not ended.wait(_SILENT):
            try:
                line = self._last(file) if file else {}
            except AnsibleError:  # The module's own connection tells what is the matter.
                line = {}
            # A file that says the end is of the module before.
            known = line.get("text") if line.get("state") == "running" else None
            display.display(
                f"    {host}{known or self._task.action + ': at work'} ({time.monotonic() - began:.0f} s so far)"
            )

    def _follow(self, job: str, file: str, task_vars: Any) -> dict[str, Any]:
        host = _prefix(task_vars)
        shown, shown_at, alive_at, began = "", time.monotonic(), time.monotonic(), time.monotonic()
        while True:
            line = self._last(file)
            now = time.monotonic()
            if line.get("state") in ("ended", "failed") or now - alive_at > _ALIVE:
                alive_at = now
                status = self._status(job, task_vars)
                if status.get("finished"):
                    self._status(job, task_vars, mode="cleanup")
                    return {key: value for key, value in status.items() if key not in _ASYNC_KEYS}
            text = str(line.get("text", ""))
            if text and text != shown and now - shown_at >= _POLL:
                display.display(f"    {host}{text}")
                shown, shown_at = text, now
            elif now - shown_at >= _SILENT:
                known = text or f"{self._task.action}: starting"
                display.display(f"    {host}{known} ({now - began:.0f} s so far)")
                shown_at = now
            time.sleep(_POLL)

    def _last(self, file: str) -> dict[str, Any]:
        quoted = self._connection._shell.quote(file)
        text = self._quietly(f"test -f {quoted} && tail -n 1 {quoted} || true").strip()
        try:
            line = json.loads(text)
        except ValueError:
            return {}
        return line if isinstance(line, dict) else {}

    def _status(self, job: str, task_vars: Any, mode: str = "status") -> dict[str, Any]:
        status: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.async_status",
            module_args={
                "jid": job,
                "mode": mode,
                "_async_dir": self.get_shell_option("async_dir", "~/.ansible_async"),
            },
            task_vars=task_vars,
        )
        if status.get("failed") and "ansible_job_id" not in status:
            raise AnsibleActionFail(f"The module's process is gone: {status.get('msg', status)}")
        return status


def _prefix(task_vars: Any) -> str:
    return f"[{task_vars['inventory_hostname']}] " if len(task_vars["ansible_play_hosts_all"]) > 1 else ""


_ASYNC_KEYS = {
    "ansible_job_id",
    "finished",
    "started",
    "results_file",
    "stdout",
    "stderr",
    "stdout_lines",
    "stderr_lines",
}
