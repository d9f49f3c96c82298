"""What a worker keeps from one task to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any


class State(dict[Any, Any]):
    """A dictionary of this process, which outlives tasks: for what is expensive to make, like a model or a connection.

    All tasks that run here share it, whichever master they are of; different masters should use different keys. It is
    lost when the worker is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.RLock()

    def setdefault_with(self, key: Hashable, factory: Callable[[], Any]) -> Any:
        """What is under ``key``; if nothing is, what ``factory()`` returns, which is kept there.

            model = worker_state().setdefault_with("model", load_model)

        Unlike `dict.setdefault` it makes nothing that is not needed, and one thing only, whichever threads ask.
        """
        with self._making:
            if key not in self:
                self[key] = factory()
            return self[key]

    def __reduce__(self) -> Any:
        raise TypeError("the state of a worker stays where it is; return what you need of it")


_state = State()


def worker_state() -> State:
    """The state of the process that this runs in: in a task, of the worker."""
    return _state
