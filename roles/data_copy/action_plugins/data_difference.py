"""Shows progress while data_difference catches up."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader

_shared = action_loader.get("data_copy", class_only=True)


class ActionModule(_shared):  # type: ignore[misc, valid-type]
    """The same as for data_copy while Pensieve runs. While it is stopped the module runs in the foreground: to start it
    in the background and to look whether it has ended would take longer.
    """

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the module."""
        if self._task.args.get("state") == "caught_up":
            followed: dict[str, Any] = super().run(tmp, task_vars)
            return followed
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        result.update(self._execute_module(module_args=dict(self._task.args), task_vars=task_vars))
        return result
