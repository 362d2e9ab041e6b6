"""Shows progress while data_difference catches up."""

from __future__ import annotations

from ansible.plugins.loader import action_loader

_shared = action_loader.get("data_copy", class_only=True)


class ActionModule(_shared):  # type: ignore[misc, valid-type]
    """The same as for data_copy while Pensieve runs. While it is stopped the module runs in the foreground: to start it
    in the background and to look whether it has ended would take longer.
    """

    def _in_background(self) -> bool:
        return bool(super()._in_background()) and self._task.args.get("state") == "caught_up"
