"""Runs that are tuned in the chat template of their start."""

import json
import pathlib
import re
import shutil

import pytest

from jaxlab import cli, load
from jaxlab.core import config as config_lib
from jaxlab.core import errors, runs, tokenizer_files
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import chat, own_template
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.systems.tulu import preference_tuning
from tests.support import devices, published
from tests.support.runs import losses

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"

# Two of a role are refused, as Gemma's does; the model's end of text ends no turn.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKERS = ("<|im_start|>", "<|im_end|>", "<think>")  # 259, 260, 261
EOS, END, THINK = 2, 260, 261


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A published model with a template, whose tokenizer's end is not a turn's."""
    folder = tmp_path_factory.mktemp("start") / "published"
    return published.write(
        folder,
        extra=MARKERS,
        settings={"chat_template": TEMPLATE},
        generation={"eos_token_id": [7]},
        max_position_embeddings=128,
    )


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    rows = [
        {
            "prompt": f"Say {n % 4}.",
            "completion": f"<|im_end|>{n % 4}",
            "chosen": f"<think>{n % 4}",
            "rejected": "No.",
        }
        for n in range(16)
    ]
    file = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return file


@pytest.fixture(scope="module", autouse=True)
def one_device():
    one = devices.one()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_lib, "make_mesh", lambda *args, **kwargs: one)
        yield


@pytest.fixture
def line(capsys):
    """Runs a command line that must fail, and returns its line behind warnings."""

    def run(*argv):
        capsys.readouterr()
        assert cli.run([str(part) for part in argv]) == 2
        *warnings, line = capsys.readouterr().err.splitlines()
        assert all(warning.startswith("WARNING: ") for warning in warnings)
        return line

    return run


def tune(variant, start, talk, workdir, *flags):
    settings = [
        f"init_from={start}", f"data.source={talk}", "data.style=own",
        "data.length=64", "data.batch_size=4", "steps=4", "run.save_every=2",
        "data.held_out_fraction=0.0",
    ]  # fmt: skip
    every = [f"--config.{flag}" for flag in (*settings, *flags)]
    return cli.run(
        ["train", f"--config=tulu:{variant}", f"--workdir={workdir}", *every]
    )


@pytest.fixture(scope="module")
def tuned(start, talk, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    assert tune("tiny", start, talk, workdir) == 0
    return workdir


def test_a_run_in_its_starts_template_is_handed_on_with_it(
    tuned, start, tmp_path, capsys
):
    assert runs.read(tuned).config["data"]["style"] == "own"
    out = tmp_path / "out"
    assert cli.run(["convert", str(tuned), str(out)]) == 0
    assert (out / "chat_template.jinja").read_text() == TEMPLATE
    assert tokenizer_files.chat_templates(out) == {"default": TEMPLATE}
    kept = json.loads((out / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [7, EOS, END]
    for model in (tuned, out):
        assert set(load.decoder(model).eos_ids) == {7, EOS, END}
        assert load.chat_of(model).ask("a") == load.chat_of(start).ask("a")
    assert cli.run(["generate", str(tuned), "--chat", "--prompt=a"]) == 0
    said = capsys.readouterr().out
    assert "user\na\nassistant\n" in said


@pytest.mark.parametrize("variant", ["tiny", "tiny_dpo"])
def test_a_killed_run_continues_bit_for_bit_with_the_template_that_it_kept(
    variant, tuned, start, talk, tmp_path
):
    moved = shutil.copytree(start, tmp_path / "start")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert tune(variant, moved, talk, whole) == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "4")
    settings = json.loads((moved / "tokenizer_config.json").read_text())
    settings["chat_template"] = "other"
    (moved / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tune(variant, moved, talk, resumed) == 0
    assert losses(resumed) == losses(whole)


def talks(*contents, learnt=True):
    roles = ("user", "assistant")
    return [chat.Message(roles[i % 2], x, learnt) for i, x in enumerate(contents)]


def learnt_texts(start, *conversations, allowed=(), **settings):
    """What is learnt of each conversation, as text."""
    template = load.chat_template(start, allowed=allowed)
    names = [f"row {n}" for n in range(len(conversations))]
    examples = own_template.encode(template, conversations, names, **settings)
    tokenizer, first, texts = tokenizer_lib.load(start), 0, []
    for stop in examples.ends:
        ids = examples.tokens[first:stop][examples.is_label[first:stop]]
        texts.append(tokenizer.decode(ids, special=True))
        first = stop
    return texts, examples


def test_only_answers_and_their_ends_are_learnt_and_forge_nothing(start):
    hostile = talks("<|im_end|>", "<think>a<|im_end|>", "b<|im_start|>", "")
    (text,), examples = learnt_texts(start, hostile)
    assert text == "<think>a<|im_end|><|im_end|><|im_end|>"
    assert (examples.tokens == END).sum() == 4
    assert THINK not in examples.tokens
    assert THINK in learnt_texts(start, hostile, allowed=["<think>"])[1].tokens
    assert learnt_texts(start, hostile, last_only=True)[0] == ["<|im_end|>"]
    some = [*talks("a", "bad", learnt=False), *talks("c", "good", "left open")]
    assert learnt_texts(start, some)[0] == ["good<|im_end|>"]
    assert learnt_texts(start, some[:2])[1].dropped == 1


def test_rows_are_cut_and_dropped_as_in_other_styles(start):
    long = talks("a", "b" * 100_000)
    texts, examples = learnt_texts(start, long, talks("c" * 100, "d"), length=64)
    assert (examples.truncated, examples.dropped) == (1, 1)
    assert texts == ["b" * (64 - len("^<user\na>\n<assistant\n"))]


def test_rows_that_the_template_refuses_are_named(start):
    good, bad = talks("a", "b"), [chat.Message("system", "s"), *talks("a", "b")]
    with pytest.raises(
        errors.UserError,
        match=r"^row 1 \(and row 3\): the chat template of .* refuses this "
        "conversation: no system role; change or remove the rows$",
    ):
        learnt_texts(start, good, bad, good, bad)


def test_a_pair_has_one_prompt(start, talk, tmp_path):
    config = config_lib.load(f"{CONFIGS / 'tulu.py'}:tiny_dpo")
    config.init_from, config.data.source = str(start), str(talk)
    config.data.update({"style": "own", "allowed": ("<think>",), "length": 64})
    mesh = devices.one()
    with mesh_lib.use(mesh):
        made = preference_tuning.dpo(config, tmp_path / "run", mesh)
    batch = made.batches(0)
    for tokens, mask in zip(batch["tokens"], batch["loss_mask"], strict=True):
        first = [int(side.argmax()) for side in mask]
        assert first[0] == first[1]
        assert (tokens[0, : first[0]] == tokens[1, : first[0]]).all()
        assert tokens[0, first[0]] == THINK
        assert tokens[1][mask[1] > 0][-1] == END


def test_what_a_start_cannot_be_tuned_in_is_one_line(start, talk, tmp_path, line):
    bare = published.write(tmp_path / "bare")
    argv = ("train", "--config=tulu:tiny", f"--workdir={tmp_path / 'run'}")
    argv += (f"--config.data.source={talk}", "--config.data.style=own")
    of_bare = (*argv, f"--config.init_from={bare}")
    for flags in ((), ("--dry-run",)):
        assert "bare has no chat template; put its" in line(*of_bare, *flags)
    allowed = "--config.data.allowed=('<tool>',)"
    assert "has no added token '<tool>'" in line(
        *argv, f"--config.init_from={start}", allowed
    )
    (bare / "chat_template.jinja").write_text("{% for %}")
    for flags in ((), ("--dry-run",)):
        assert "is damaged (line 1" in line(*of_bare, *flags)


def test_a_start_with_a_template_is_told_of_it_in_another_style(
    start, talk, tmp_path, capsys
):
    assert tune("tiny", start, talk, tmp_path / "run", "data.style=olmo") == 0
    assert "--config.data.style=own tunes in its own" in capsys.readouterr().err
    assert load.chat_format(tmp_path / "run") == ("olmo", "bos")
    assert cli.run(["convert", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert load.chat_format(tmp_path / "out") == ("olmo", "bos")
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [7, EOS]


@pytest.mark.parametrize("form", ["hf", "orbax"])
def test_a_merge_has_the_template_that_its_models_share(
    form, tuned, start, talk, tmp_path, capsys
):
    other = tmp_path / "other"
    assert tune("tiny", start, talk, other, "data.style=template") == 0
    for name, models in {"alike": (tuned, tuned), "mixed": (tuned, other)}.items():
        capsys.readouterr()
        argv = ["merge", *map(str, models), "-o", str(tmp_path / name)]
        assert cli.run([*argv, f"--format={form}"]) == 0
        warned = capsys.readouterr().err
        assert ("chat templates of the models differ" in warned) == (name == "mixed")
        assert load.chat_texts(tmp_path / name) == {"default": TEMPLATE}
        assert set(load.decoder(tmp_path / name).eos_ids) == {7, EOS, END}


def inspected(workdir, capsys, *flags):
    capsys.readouterr()
    argv = ["data", "inspect", "--workdir", str(workdir), "--step", "1", *flags]
    assert cli.run(argv) == 0
    return capsys.readouterr().out.splitlines()


def test_a_step_shows_its_conversations_and_what_is_learnt(tuned, capsys, line):
    head, asked, learnt, rest, *_, last = inspected(tuned, capsys)
    assert re.fullmatch(
        r"step 1 row 0: epoch 0, talk.jsonl:\d+, \d+ tokens, 12 learnt", head
    )
    assert asked.startswith("  | <s><|im_start|>user\\nSay ")
    assert asked.endswith("<|im_start|>assistant\\n")
    assert re.fullmatch(r"\+ \| <\|im_end\|>\d<\|im_end\|>", learnt)
    assert rest == "  | \\n"
    assert last == f"data: sha256 {runs.read(tuned).config['data_order']['sha256']}"
    assert inspected(tuned, capsys, "--text")[:3] == [head, asked, learnt]
    argv = ("data", "inspect", "--workdir", tuned, "--step", "4")
    assert "is a run of 4 steps; use --step 0 to 3" in line(*argv)


def test_a_step_shows_both_sides_of_its_pairs(start, talk, tmp_path, capsys, line):
    own = shutil.copyfile(talk, tmp_path / "talk.jsonl")
    assert tune("tiny_dpo", start, own, tmp_path / "run") == 0
    lines = inspected(tmp_path / "run", capsys)
    heads = [line.split(", ")[1] for line in lines if line.startswith("step")]
    assert heads[1] == heads[0].replace("chosen", "rejected") != heads[0]
    assert sum(line.startswith("+ | <think>") for line in lines) == 4
    own.write_text(own.read_text().replace("Say", "Tell"))
    argv = ("data", "inspect", "--workdir", tmp_path / "run", "--step", "0")
    assert "the data is not what" in line(*argv)


def test_an_adapter_is_handed_on_with_the_template_that_it_was_tuned_in(
    start, talk, tmp_path, capsys
):
    for style in ("own", "olmo"):
        run, out = tmp_path / style, tmp_path / f"{style}_adapter"
        flags = ("adapter.rank=2", f"data.style={style}")
        assert tune("tiny", start, talk, run, *flags) == 0
        assert cli.run(["convert", str(run), str(out), "--adapter"]) == 0
        assert load.chat_texts(out) == load.chat_texts(run) != {}
        assert load.chat_of(out).ask("a") == load.chat_of(run).ask("a")
        assert set(load.decoder(out).eos_ids) == set(load.decoder(run).eos_ids)
