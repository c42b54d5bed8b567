"""Domains: which a folder has, and what is wrong with those it should have."""

import json

import pytest

from jaxlab.core import errors
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import domains as domains_lib


def test_domains_are_subfolders_and_json_lines_of_the_wanted_split(tmp_path):
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "a.txt").write_text("law")
    for split in ("train", "val"):
        (tmp_path / f"code.{split}.jsonl").write_text(json.dumps({"text": split}))
    (tmp_path / "README.md").write_text("not a domain")
    domains = domains_lib.read_domains(tmp_path)
    assert {k: [d.text for d in v] for k, v in domains.items()} == {
        "code": ["train"],
        "law": ["law"],
    }
    assert [
        d.text for d in domains_lib.read_domains(tmp_path, split="val")["code"]
    ] == ["val"]


def test_missing_and_empty_domains_are_named(tmp_path):
    with pytest.raises(errors.UserError, match="holds no domain"):
        domains_lib.read_domains(tmp_path)
    (tmp_path / "law").mkdir()
    with pytest.raises(errors.UserError, match="law holds no document"):
        domains_lib.read_domains(tmp_path)
    (tmp_path / "law" / "a.txt").write_text(" \n")
    with pytest.raises(errors.UserError, match=r"domain 'law' .* holds no text"):
        domains_lib.read_domains(tmp_path)
    (tmp_path / "law.jsonl").write_text("{}")
    with pytest.raises(errors.UserError, match="domain 'law' is both"):
        domains_lib.read_domains(tmp_path)
    with pytest.raises(errors.UserError, match="does not exist"):
        list(documents_lib.read_documents(tmp_path / "nothing"))
