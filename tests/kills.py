"""Processes that die in the midst of writing."""

import os
import signal
import traceback
from collections.abc import Callable


def killed(act: Callable[[], object], count: int, after: bool) -> int:
    """How a process ended that was to die before or after its `count`-th rename or link."""
    process = os.fork()
    if process == 0:
        try:
            die_at(count, after)
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def die_at(count: int, after: bool) -> None:
    seen = 0

    def deadly(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            nonlocal seen
            seen += 1
            if seen == count and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                real(*args, **options)
            finally:
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in ("replace", "rename", "link", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
