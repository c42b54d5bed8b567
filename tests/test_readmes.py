"""The shell blocks of the READMEs run one after the other as they stand."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.support import readme_lines, toy_retrieval

ROOT = pathlib.Path(__file__).parents[1]
ALL = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/**/README.md"))]
READMES = [path for path in ALL if readme_lines.read(path)]
PYTHON = [path for path in ALL if readme_lines.python_blocks(path)]


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


def test_every_readme_with_commands_is_run():
    names = {path.parent.name for path in READMES}
    assert names >= {ROOT.name, "plan", "olmo", "tulu", "refit", "data_ablation"}


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_commands_of_a_readme_run_one_after_the_other(readme, clone):
    command = [sys.executable, "-m", "tests.support.readme_lines", readme]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("readme", PYTHON, ids=lambda path: path.parent.name)
def test_the_python_of_a_readme_runs_as_it_stands(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "readme"}
    for block in readme_lines.python_blocks(readme):
        exec(compile(block, str(readme), "exec"), names)
