"""Runs the checks of `check_accelerator.py` in one process: worker.py SECONDS [CHECK].

A check that fails says so in its row; the others go on.
"""

import sys

from jaxlab.core import process

process.start()  # malloc's settings and the compilation cache, as in every command

import attention  # noqa: E402
import decoding  # noqa: E402
import jax  # noqa: E402
import measure  # noqa: E402
import merging  # noqa: E402
import resume  # noqa: E402
import rows  # noqa: E402
import search  # noqa: E402
import training  # noqa: E402

CHECKS = {
    "resume": resume.check,
    "attention": attention.check,
    "training": training.check,
    "merging": merging.check,
    "search": search.check,
    "decoding": decoding.check,
}
_OPTIONAL = ("tensorflow", "tensorflow_datasets", "array_record", "torch")


def main() -> None:
    clock, chosen = rows.Clock(float(sys.argv[1]) - 1), sys.argv[2:] or [*CHECKS]
    device, peaks = jax.devices()[0], measure.Peaks()
    if len(sys.argv) == 2:
        words = f"jax {jax.__version__}, {len(jax.devices())} x {device.device_kind}"
        rows.emit("device", words, platform=device.platform)
        peaks.matmul(measure.dtype())
        peaks.copy()
    for number, name in enumerate(chosen):
        try:
            CHECKS[name](clock.part(1 / (len(chosen) - number) ** 0.7), peaks)
        except Exception as error:
            first = " ".join(str(error).split())[:200]
            rows.emit(name, "", good=False, note=f"{type(error).__name__}: {first}")
    if loaded := [name for name in _OPTIONAL if name in sys.modules]:
        rows.emit("imports", ", ".join(loaded), good=False, note="not needed here")


if __name__ == "__main__":
    main()
