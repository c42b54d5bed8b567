"""Shell lines of a README, run one after the other: `python -m` this, FILE.

In a process of its own, since a reader has one device and the tests have eight. Lines
that begin with `jaxlab` run in that process, others in bash. What is left out is listed
with its reason; studies are made shorter, by flags alone.
"""

import pathlib
import re
import shlex
import subprocess
import sys

ELSEWHERE = {
    r"^(hf|curl|unzip|git|python3? -m venv|pip|source|\.venv)\b": "needs a network",
    r"^bash ": "scripts and what CI runs have tests of their own",
    r"gs://": "needs a bucket",
    r"\b(DIR|TEXT|POOL|DOMAINS|SIB200)\b": "stands for data of hours, which it says",
}
SHORTER = {
    "=olmo:tiny": "=olmo:tiny --config.steps=20",
    "--size small": "--size quick --unit-steps=4 --units=core,legal,python_source",
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
    elsewhere = re.compile("|".join(ELSEWHERE))
    return [line for line in lines if not elsewhere.search(line)]


def python_blocks(readme: pathlib.Path) -> list[str]:
    """Its ```python blocks."""
    return re.findall(r"(?ms)^```python\n(.*?)^```", readme.read_text("utf-8"))


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
