"""A profile of a few training steps, for TensorBoard, XProf or Perfetto.

    jaxlab train --config=... --workdir=DIR --config.run.profile=5

writes DIR/profile/plugins/profile/<time>/. The first step of a start compiles and is
never traced.
"""

import pathlib
import types
from typing import Any

import jax

from jaxlab.core import errors, paths


class Profile:
    """Traces `steps` steps of a loop, a context manager around it.

    Args:
        workdir: gets the folder `profile`.
        first: the step that the loop starts from.
        steps: how many steps are traced, from the second on; 0 for none.

    Raises:
        UserError: a profile of a run in a bucket.
    """

    def __init__(self, workdir: pathlib.Path, first: int, steps: int):
        if steps and paths.is_remote(workdir):
            raise errors.UserError(
                f"{workdir} is a bucket and a profile is written to a local folder; "
                "use run.profile=0, or another --workdir for the steps to be profiled"
            )
        self._folder = pathlib.Path(workdir) / "profile"
        self._range = range(first + 1, first + 1 + steps)
        self._is_tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._stop()

    def next(self, step: int, state: Any) -> None:
        """Starts or stops the trace; called before `step`, with what it begins from."""
        if step not in self._range:
            if self._is_tracing:
                jax.block_until_ready(state)  # the last traced step may still run
                self._stop()
        elif not self._is_tracing:
            from clu import profiler

            jax.block_until_ready(state)
            profiler.start(str(self._folder))
            self._is_tracing = True

    def _stop(self) -> None:
        if self._is_tracing:
            from clu import profiler

            profiler.stop()
            self._is_tracing = False
