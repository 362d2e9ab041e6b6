"""Tells what Pensieve's own code is at, when it lasts."""

from __future__ import annotations

import threading
import time
from typing import Any

from ansible.plugins.action.normal import ActionModule as Normal
from ansible.utils.display import Display

display = Display()

_EVERY = 8.0  # seconds
_AT = {
    "pensieve_schema": "Pensieve's own code is at the tables of {database}",
    "pensieve_search": "Pensieve's own search looks for words in {database}",
    "pensieve_service": "waiting for Pensieve to be {state}",
}


class ActionModule(Normal):  # type: ignore[misc]
    """Runs the module as ever, and shows a line now and then."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the module."""
        ended = threading.Event()
        teller = threading.Thread(target=self._tell, args=(ended, task_vars))
        teller.start()
        try:
            result: dict[str, Any] = super().run(tmp, task_vars)
        finally:
            ended.set()
            teller.join()
        return result

    def _tell(self, ended: threading.Event, task_vars: Any) -> None:
        several = len(task_vars["ansible_play_hosts_all"]) > 1
        host = f"[{task_vars['inventory_hostname']}] " if several else ""
        at, began = _AT[self._task.action].format(**self._task.args), time.monotonic()
        while not ended.wait(_EVERY):
            display.display(f"    {host}{at} ({time.monotonic() - began:.0f} s so far)")
