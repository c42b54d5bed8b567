"""Domains: which a folder has, and what is wrong with those it should have."""

import contextlib
import json
import os
import socket

import pytest

from jaxlab.core import errors
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import domains as domains_lib
from jaxlab.data.corpus import token_writer
from tests.support import letters


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


@pytest.mark.parametrize(
    "name", ["loose.txt", "NEWS.json", "t.parquet", "README.md", "x.Val.jsonl", "gone"]
)
def test_what_is_beside_the_domains_is_named(tmp_path, name, caplog):
    (tmp_path / "law").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / name).write_text("text")
    if name == "gone":
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("nowhere")
    for _ in range(2):
        assert [*domains_lib.find_domains(tmp_path)] == ["law"]
    (message,) = caplog.messages
    assert name in message
    assert ".git" not in message


def test_names_count_in_upper_case_and_have_to_be_utf8(tmp_path):
    for name in ("a.JSONL", "b.Jsonl.GZ", "c.NDJSON"):
        (tmp_path / name).write_text("{}")
    assert [*domains_lib.find_domains(tmp_path)] == ["a", "b", "c"]
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text("{}")
    with pytest.raises(errors.UserError, match=r"caf.xe9.jsonl' is not UTF-8; rename"):
        domains_lib.find_domains(tmp_path)


def test_text_behind_links_is_read_once_however_they_lead(tmp_path):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "b.txt").write_text("far")
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "a.txt").write_text("near")
    (tmp_path / "law" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "deep" / "round").symlink_to(tmp_path / "law")
    (tmp_path / "law" / "itself").symlink_to(".")
    found = documents_lib.read_documents(tmp_path / "law")
    assert [d.id for d in found] == ["a.txt", "linked/deep/b.txt"]


def test_what_leads_to_no_text_in_a_domain_is_named(tmp_path, caplog):
    law = tmp_path / "law"
    law.mkdir()
    (law / "a.txt").write_text("near")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "c.txt").write_text("not law")
    for name, target in (("gone.txt", "nowhere"), ("round.txt", "round.txt")):
        (law / name).symlink_to(target)
    (law / "up").symlink_to("..")  # to all domains
    (law / ".hidden").symlink_to("nowhere")
    os.mkfifo(law / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(law):
        opened.bind("socket.txt")
    for _ in range(2):
        found = documents_lib.read_documents(law)
        assert [d.id for d in found] == ["a.txt"]
    reasons = {
        "gone.txt": "broken link",
        "round.txt": "link to itself",
        "up": "folder it lies in",
        "pipe.jsonl": "pipe",
        "socket.txt": "socket",
    }
    for name, reason in reasons.items():
        (said,) = (x for x in caplog.messages if f"{law / name} " in x)
        assert reason in said
    assert not any(".hidden" in x for x in caplog.messages)


def test_ids_and_names_that_are_no_utf8_are_written_as_escapes(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("one")
    (tmp_path / "d.jsonl").write_text('{"text": "two", "id": "\\ud83d"}\n')
    documents = documents_lib.read_documents(tmp_path)
    file = token_writer.write_tokens(documents, letters.Letters(), tmp_path / "out")
    assert [file.span(i).id for i in range(2)] == ["caf\\udce9.txt", "\\ud83d"]


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


@pytest.mark.parametrize("name", ["b\nTOTAL 0", "b\x1b[2K", "b\u202e.jsonl", "\x07"])
def test_a_name_that_would_command_a_terminal_is_refused_and_spelled(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(errors.UserError, match="holds a control character; rename"):
        domains_lib.find_domains(tmp_path)
