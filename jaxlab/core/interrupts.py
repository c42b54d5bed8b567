"""Ctrl-C and SIGTERM as one exception, and a memory of both; standard library only.

Libraries swallow exceptions: Orbax reads a description in an event loop and goes on
without it, and what is raised while Python collects garbage is printed and forgotten.
So a signal is remembered too, and whoever is about to say that a file is corrupt, or
that the work is done, asks `check` first. An import that is interrupted prints a
traceback of some extension's, or leaves half a module: the first signal waits for its
end, a second one does not.
"""

import contextlib
import signal
import sys
import threading
import types
from collections.abc import Iterator

_AGAIN_SECONDS = 0.05  # after a signal whose exception was dropped

_received: list[int] = []
_sent_again: list[int] = []  # by us, to come


class Interrupt(KeyboardInterrupt):
    """A signal came.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell calls the end of a process by a signal: 130 of Ctrl-C, 143.

    >>> exit_code(KeyboardInterrupt()), exit_code(Interrupt(signal.SIGTERM))
    (130, 143)
    """
    return 128 + getattr(error, "number", signal.SIGINT)


@contextlib.contextmanager
def raise_signals() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise `Interrupt`, and are remembered.

    A signal that is ignored, as that of a command behind `nohup` or `&`, stays so.
    """
    _received.clear()
    _sent_again.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number, frame):
        if _sent_again:
            _sent_again.clear()
        else:
            _received.append(number)
        if len(_received) < 2 and _is_importing(frame):
            _send_later(number)
            return
        raise Interrupt(number)

    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            handlers[number] = signal.signal(number, receive)
    hook, sys.unraisablehook = sys.unraisablehook, _send_again(sys.unraisablehook)
    try:
        yield
    except Exception:
        check()  # an import that is interrupted raises ImportError
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _received.clear()


def check() -> None:
    """Raises `Interrupt` if a signal came, whatever became of its exception."""
    if _received:
        raise Interrupt(_received[-1])


def _send_again(hook):
    """An unraisable hook that sends a signal again whose exception was dropped."""

    def unraisable(dropped):
        if not isinstance(dropped.exc_value, Interrupt):
            hook(dropped)
            return
        _send_later(dropped.exc_value.number)

    return unraisable


def _send_later(number: int) -> None:
    """Sends a signal to the main thread again, if its command still runs then."""

    def send():
        if _received:
            _sent_again.append(number)
            signal.pthread_kill(threading.main_thread().ident, number)

    timer = threading.Timer(_AGAIN_SECONDS, send)
    timer.daemon = True
    timer.start()


def _is_importing(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
