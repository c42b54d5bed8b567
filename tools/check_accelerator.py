"""First contact with a device: is it right, and what share of its peak is reached?

    python tools/check_accelerator.py                 whatever device jax finds
    python tools/check_accelerator.py --minutes 2 --json device.json

    peak        the best matmul and the best copy seen here: what a share is a share of
    attention   xla, cuDNN and splash against f32: outputs, gradients, speed
    training    FLOPs of a whole step of `jaxlab train`, at a few sizes
    merging     bytes of merges that a device's memory bounds
    search      exact top-k, compared with float64
    decoding    bytes of the weights that each new token reads
    resume      a run that was saved and read again goes on bit for bit
    peers       the same steps in torch (compiled, flash attention) and transformers,
                where they are installed; a share of torch's own peak

Each check runs until its part of the minutes is used; what does not fit is named. Exits
with 1 where a result is wrong, not where one is slow: on an accelerator the table says
"low" below 0.5 of a matmul's peak or 0.8 of a copy's. Needs jax, flax, optax and orbax.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time

WORKER = pathlib.Path(__file__).parent / "accelerator" / "worker.py"
PEERS = WORKER.with_name("peers.py")
_LAST_SECONDS = 3.0  # kept for the table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="default: 4")
    parser.add_argument("--json", metavar="FILE", help="also write the rows here")
    parser.add_argument("--no-peers", action="store_true", help="leave out torch")
    arguments = parser.parse_args()
    if not 0 < arguments.minutes < 1e4:
        parser.error(f"--minutes {arguments.minutes}; use a number above 0")
    end = time.monotonic() + 60 * arguments.minutes - _LAST_SECONDS
    rows = []
    has_peers = not arguments.no_peers and importlib.util.find_spec("torch")
    rows += run(WORKER, end, share=0.65 if has_peers else 0.95)
    device = next((row for row in rows if row["check"] == "device"), {})
    if device.get("platform") == "gpu":
        rows += run(WORKER, end, "resume", flags="xla_gpu_exclude_nondeterministic_ops")
    if has_peers:
        rows += run(PEERS, end, device.get("platform", "cpu"))
    rows += ratios(rows)
    print("\n" + table(rows))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")
    if not any(row["check"] == "peak" for row in rows):
        print("nothing was measured; see above, or give more --minutes")
        return 1
    return 1 if any(row["good"] is False for row in rows) else 0


def run(
    program: pathlib.Path, end: float, *words: str, share: float = 1.0, flags: str = ""
) -> list[dict]:
    """The rows that a worker prints until its part of the time has passed.

    A process of its own: a compilation cannot be interrupted, a process can be killed;
    and a device's memory is free again for the next one.
    """
    seconds = share * (end - time.monotonic())
    if seconds < 2:
        return [row("time", f"{program.stem} {' '.join(words)}", note="no time left")]
    root = str(pathlib.Path(__file__).resolve().parents[1])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if flags:
        before = os.environ.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{before} --{flags}=true".strip()
    process = subprocess.Popen(
        [sys.executable, str(program), str(seconds), *words],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    lines: queue.Queue = queue.Queue()

    def read() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    rows, until = [], time.monotonic() + seconds
    try:
        while line := lines.get(timeout=max(until - time.monotonic(), 0.01)):
            if not line.startswith("{"):  # not a row: some library's own words
                sys.stderr.write(line)
                continue
            rows.append(json.loads(line))
            print(sentence(rows[-1]), flush=True)
        code = process.wait(timeout=max(until - time.monotonic(), 1))
    except (queue.Empty, subprocess.TimeoutExpired):
        code = 0
        rows.append(row("time", "the rest", note="the minutes were over"))
        print(sentence(rows[-1]), flush=True)
    finally:
        process.kill()
        process.wait()
    if code:
        rows.append(row("time", program.stem, good=False, note=f"ended with {code}"))
    if flags:
        for found in rows:
            found["what"] += f", {flags}"
    return rows


def row(check: str, what: str, *, good: bool | None = None, note: str = "") -> dict:
    """A row without a measured number."""
    return {"check": check, "what": what, "value": None, "unit": "", "share": None,
            "of": "", "goal": None, "good": good, "note": note}  # fmt: skip


def ratios(rows: list[dict]) -> list[dict]:
    """How many times a peer's speed ours is, of rows of the same name."""
    ours = {found["what"]: found for found in rows if found["check"] != "peers"}
    found = []
    for peer in rows:
        own = ours.get(peer["what"])
        if peer["check"] == "peers" and own and own["value"] and peer["value"]:
            ratio = row("ratio", peer["what"], note="jaxlab / peer")
            found.append(ratio | {"value": own["value"] / peer["value"], "unit": "x"})
    return found


def verdict(found: dict) -> str:
    if found["good"] is False:
        return "WRONG"
    if found["goal"] is not None and found["share"] < found["goal"]:
        return "low"
    return "right" if found["good"] else ""


def cells(found: dict) -> tuple[str, ...]:
    value = "" if found["value"] is None else f"{found['value']:,.4g} {found['unit']}"
    share = "" if found["share"] is None else f"{found['share']:.2f} of {found['of']}"
    return found["check"], found["what"], value, share, verdict(found), found["note"]


def sentence(found: dict) -> str:
    return "  ".join(filter(None, cells(found)))


def table(rows: list[dict]) -> str:
    """A Markdown table, aligned for the terminal."""
    head = ("check", "what", "value", "share", "", "note")
    lines = [head, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
