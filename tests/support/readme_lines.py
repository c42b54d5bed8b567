"""Shell lines of a README, run one after the other: `python -m` this, FILE.

In a process of its own, since a reader has one device and the tests have eight. Lines
that begin with `jaxlab` run in that process, others in bash. Left out is what needs a
network; studies are made shorter, by flags alone.
"""

import pathlib
import re
import shlex
import subprocess
import sys

ELSEWHERE = re.compile(
    r"^(\.venv|hf|curl|unzip|git|bash|python3? -m venv|pip|source)\b|gs://"
)
SHORTER = {
    "=olmo:tiny": "=olmo:tiny --config.steps=20",
    "--size small": "--size quick",
    "--trained 5": "--trained 1",
    "=refit:cross_encoder": "=refit:cross_encoder --config.steps=4"
    " --config.mine.depth=10 --config.eval.depth=5",
}


def read(readme: pathlib.Path) -> list[str]:
    """The lines of its ```bash blocks, but those for a network or a checkout."""
    blocks = re.findall(r"(?ms)^```bash\n(.*?)^```", readme.read_text("utf-8"))
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return [line for line in lines if not ELSEWHERE.search(line)]


def run(line: str) -> int:
    """Runs a line, made shorter, as a shell would."""
    for long, short in SHORTER.items():
        line = line.replace(long, short)
    print("$", line, flush=True)
    if not line.startswith("jaxlab "):
        return subprocess.run(["bash", "-c", line], check=False).returncode
    from jaxlab import cli

    return cli.run(shlex.split(line, comments=True)[1:])


if __name__ == "__main__":
    failed = [line for line in read(pathlib.Path(sys.argv[1])) if run(line)]
    print(*failed, sep="\n", file=sys.stderr)
    sys.exit(len(failed) > 0)
