"""`jaxlab VERB` and `python -m jaxlab VERB`: the command line as a process.

A signal before the command line can take it, or after it has ended, ends the process
with its code, without a traceback; so do a second and a third one.
"""

import atexit
import os
import signal
import sys

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    """Runs the command line of this process; its exit code."""

    def end(number, frame):
        if not ended:
            os.write(2, b"jaxlab: interrupted\n")
        os._exit(ended[0] if ended else 128 + number)

    ended: list[int] = []
    heard = [n for n in _SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    _handle(heard, end)
    # Python's end gives a signal back to the system, whose answer is death by it. What
    # is registered first runs last.
    atexit.register(_handle, heard, signal.SIG_IGN)
    from jaxlab import cli

    try:
        ended.append(cli.run())
    except KeyboardInterrupt as error:  # another one, while the first was told
        ended.append(128 + getattr(error, "number", signal.SIGINT))
    _handle(heard, end)  # a signal may have kept `run` from giving them back
    return ended[0]


def _handle(signals, handler):
    for number in signals:
        signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
