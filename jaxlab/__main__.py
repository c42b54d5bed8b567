"""`jaxlab VERB` and `python -m jaxlab VERB`: the command line as a process.

A signal before the command line can take it, or after it has ended, ends the process
with its code, without a traceback.
"""

import os
import signal
import sys


def main() -> int:
    """Runs the command line of this process; its exit code."""

    def end(number, frame):
        if not ended:
            os.write(2, b"jaxlab: interrupted\n")
        os._exit(ended[0] if ended else 128 + number)

    ended: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, end)
    from jaxlab import cli

    ended.append(cli.run())
    return ended[0]


if __name__ == "__main__":
    sys.exit(main())
