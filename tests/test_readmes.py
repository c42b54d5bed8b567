"""The shell blocks of the READMEs run one after the other as they stand."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.support import readme_lines, toy_retrieval

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
SYSTEMS = ROOT / "jaxlab" / "systems"


@pytest.fixture
def clone(tmp_path):
    """A clone to work in, with what the downloads of a README would bring."""
    for name in ("jaxlab", "configs", "pyproject.toml", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "parts").mkdir()
    encoder = toy_retrieval.write_encoder(tmp_path / "parts")
    encoder.rename(tmp_path / "all-MiniLM-L6-v2")
    scifact = toy_retrieval.write_set(tmp_path / "scifact")
    judgments = (scifact / "qrels.train.tsv").read_text()
    (scifact / "qrels.train.tsv").unlink()
    (scifact / "qrels").mkdir()
    for split in ("train", "test"):
        (scifact / "qrels" / f"{split}.tsv").write_text(judgments)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "readme",
    [README, *(SYSTEMS / name / "README.md" for name in ("olmo", "tulu", "refit"))],
    ids=lambda path: path.parent.name,
)
def test_the_commands_of_a_readme_run_one_after_the_other(readme, clone):
    assert len(readme_lines.read(readme)) >= 4
    command = [sys.executable, "-m", "tests.support.readme_lines", readme]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
