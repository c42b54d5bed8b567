"""One line on stderr when this process is aborted because another host died.

When a host dies, jax aborts the others from a thread of C++, where no Python handler
runs (the callback for missed heartbeats cannot be written in Python: jax 0.10 ends in
`std::bad_cast`). So a shell waits at a pipe that this process holds: a line through it
means that all is well, its end without one that the process was aborted or killed.
"""

import atexit
import socket
import subprocess

import jax

_WAIT = 'trap "" HUP INT TERM; read -r _ || echo "$1" >&2'


def watch() -> None:
    """Starts the witness; it ends with this process and writes to its stderr."""
    message = (
        f"jaxlab: the process on {socket.gethostname()} was ended: another host is "
        "gone, or this one was killed (lines above may tell). The newest checkpoint "
        "is whole; start the same command on every host to continue"
    )
    shell = subprocess.Popen(
        ["sh", "-c", _WAIT, "sh", message],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    atexit.register(_end, shell)


def _end(shell: subprocess.Popen) -> None:
    jax.distributed.shutdown()  # waits for the other hosts, and aborts if one is gone
    shell.communicate(b"\n")
