"""`jaxlab ablate`, run in this process on a tiny real pool of three partitions."""

import json
import math
import pathlib
import random
import re
import shutil

import pytest

from jaxlab import ablation, cli, train
from jaxlab.ablation import method_names
from jaxlab.systems import sizes

WORDS = {
    "law": "the licensee shall retain this notice and any person may distribute it",
    "code": "def total ( items ) : return sum ( value for value in items )",
    "cook": "stir the butter into warm flour then add salt and simmer gently",
    "sea": "the captain sailed his ship over the cold waves to a far harbour",
}
TINY = sizes.Size(32, 1, 2, 64, 330, 32, 8, 6, 1e-2, 1, 3, 5e-3, 2, 0)
MADE = ("--size=quick", "--unit-steps=3")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.SIZES, "quick", TINY)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Folders of text: three partitions, and one to be added."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    for domain, words in WORDS.items():
        place = folder / ("more" if domain == "sea" else "text") / domain
        place.mkdir(parents=True)
        for number in range(16):
            lines = [" ".join(draw.choices(words.split(), k=9)) for _ in range(12)]
            (place / f"{number}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def pool(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("pools") / "pool"
    assert run("pool", path, "--data", text / "text", *MADE) == 0
    return path


@pytest.fixture
def copied(pool, tmp_path):
    """A pool that was moved; what is done to it leaves the others alone."""
    return pathlib.Path(shutil.copytree(pool, tmp_path / "moved"))


def run(*argv):
    return cli.run(["ablate", *map(str, argv)])


@pytest.fixture
def said(capsys):
    """Runs an action that must succeed, and returns its stdout.

    A slow machine's lines of progress, `[   8s] law: batches ...`, are left out.
    """

    def succeed(*argv):
        capsys.readouterr()
        assert run(*argv) == 0
        lines = capsys.readouterr().out.splitlines(keepends=True)
        return "".join(x for x in lines if not re.match(r"\[ *\S+\] .* left$", x))

    return succeed


@pytest.fixture
def line(capsys):
    """Runs an action that must fail, and returns its one line."""

    def fail(*argv):
        capsys.readouterr()
        assert run(*argv) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return fail


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("something is trained")

    monkeypatch.setattr(train, "fit", fail)


def forbid_models(monkeypatch, *names):
    """Lets what runs models fail: nothing may call it."""

    def fail(*args, **kwargs):
        raise AssertionError("a model is run")

    for name in names:
        monkeypatch.setattr(ablation, name, fail)


def contents(folder):
    """Path -> bytes of every file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(shown, heading):
    """Rows of the printed table under a heading, as lists of cells."""
    lines = shown[shown.index(heading) :].splitlines()
    start = next(i for i, row in enumerate(lines) if "mixture" in row.split()) + 1
    rows = []
    for row in lines[start:]:
        if "  " not in row:
            break
        rows.append([cell for cell in row.split("  ") if cell.strip()])
    return rows


def last_perplexity(run_dir, target):
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").open()]
    key = f"eval/{target}/perplexity"
    return next(row[key] for row in reversed(rows) if key in row)


# ------------------------------------------------------------------ arguments


def test_the_options_offer_the_methods_and_sizes_that_there_are(line):
    message = line("search", "p", "--target", "a", "--method=guess")
    assert all(name.replace(" ", "-") in message for name in method_names.METHODS)
    message = line("pool", "p", "--data", "d", "--size=huge")
    assert all(name in message for name in sizes.SIZES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rank"], "give a POOL, or --experts"),
        (["rank", "p", "--experts", "a=b"], "give a POOL, or --experts"),
        (["rank", "p", "--seed-model", "s"], "leave out --seed-model"),
        (["rank", "--experts", "a=b", "a=c"], "an expert's name is given twice"),
        (["rank", "nowhere"], "nowhere is not a pool: it has no recipe.json"),
        (["report", "nowhere"], "nowhere is not a pool"),
        (["search", "p"], "arguments are required: --target"),
        (["search", "p", "--target", "a", "--pareto"], "--pareto needs two or more"),
        (["search", "p", "--target", "a", "a=2"], "a target is given twice"),
        (["pool", "p"], "one of the arguments --data --add is required"),
        (["pool", "p", "--add", "a"], "'a' is not NAME=PATH"),
        (["pool", "p", "--data", "d", "--units=a,,b"], "'a,,b' is not like A,B"),
        (["pool", "p", "--add", "a=b", "--size=small"], "--size cannot be given with"),
        (["pool", "nowhere", "--add", "a=b"], "nowhere is not a pool"),
        (["pool", "p", "--data", "nowhere"], "no data at nowhere"),
        (["pool", "p", "--data", "d", "--unit-steps=0"], "unit steps 0, unit rate 0.0"),
        (["pool", "p", "--data", "d", "--seed-model", "no"], "model no does not exist"),
        (
            ["pool", "p", "--data", "d", "--seed-model", "no", "--vocab-size=9"],
            "--vocab-size cannot be given with --seed-model",
        ),
    ],
)
def test_a_misused_action_is_one_line(line, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in line(*argv)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ pool


def test_a_pool_has_an_expert_for_every_partition(pool):
    units = ablation.pool_folder.read(pool).units
    assert list(units) == ["code", "cook", "law"]
    assert {unit.tokens_trained for unit in units.values()} == {3 * 32 * 8}
    assert {unit.steps for unit in units.values()} == {3}


def test_the_same_command_finds_the_pool_finished(said, pool, text, no_training):
    before = contents(pool / "runs")
    shown = said("pool", pool, "--data", text / "text", *MADE)
    assert "3 experts" in shown
    assert contents(pool / "runs") == before


@pytest.mark.parametrize(
    ("flag", "difference"),
    [
        ("--unit-steps=4", "unit_steps: 3 -> 4"),
        ("--units=law,code", "units: [] -> ['law', 'code']"),
        ("--parts=2", "base.data.parts: 1 -> 2"),
        ("--seed-domains=law", "seed_domains: [] -> ['law']"),
    ],
)
def test_another_pool_in_the_same_folder_is_refused(line, pool, text, flag, difference):
    message = line("pool", pool, "--data", text / "text", *MADE, flag)
    assert "was made with other settings" in message
    assert difference in message


@pytest.mark.slow
def test_a_pool_that_was_killed_is_finished(said, text, tmp_path, monkeypatch, capsys):
    pool, add, argv = tmp_path / "pool", ablation.pool_folder.add, ["--units=law,cook"]
    argv = ["pool", pool, "--data", text / "text", *MADE, *argv]

    def killed(folder, unit):
        if unit.name == "cook":
            raise KeyboardInterrupt
        add(folder, unit)

    monkeypatch.setattr(ablation.pool_folder, "add", killed)
    assert run(*argv) == 130
    assert ablation.pool_folder.open(pool).names == (
        "law",
    )  # without the unfinished one
    before = contents(pool / "runs")
    monkeypatch.setattr(ablation.pool_folder, "add", add)
    said(*argv)
    assert contents(pool / "runs") == before
    assert ablation.pool_folder.open(pool).names == ("law", "cook")


def test_unknown_partitions_are_named_and_spoil_nothing(line, said, text, tmp_path):
    pool = tmp_path / "pool"
    argv = ["pool", pool, "--data", text / "text", *MADE]
    assert "has no partition web; there are code, cook, law" in line(
        *argv, "--units=web"
    )
    assert not (pool / "recipe.json").exists()


def test_adding_trains_one_expert_and_changes_nothing_else(
    said, copied, text, monkeypatch
):
    fits, fit = [], train.fit
    monkeypatch.setattr(
        train, "fit", lambda *a, **k: fits.append(k["name"]) or fit(*a, **k)
    )
    before = contents(copied)
    argv = ["pool", copied, "--add", f"sea={text / 'more' / 'sea'}"]
    assert "4 experts" in said(*argv)
    after = contents(copied)
    assert fits == ["expert sea"]
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"pool.json"}
    new = after.keys() - before.keys()
    assert {name[: name.index("sea")] for name in new} == {"data/", "runs/expert-"}
    assert ablation.pool_folder.open(copied).names == ("code", "cook", "law", "sea")
    held_out = json.loads(after["data/sea.held_out.json"])
    assert held_out["documents"] >= 1
    said(*argv)  # again: it is there
    assert fits == ["expert sea"]


def test_adding_that_was_killed_is_finished(said, copied, text, monkeypatch):
    def killed(folder, unit):
        raise KeyboardInterrupt

    argv = ["pool", copied, "--add", f"sea={text / 'more' / 'sea'}"]
    with monkeypatch.context() as patch:
        patch.setattr(ablation.pool_folder, "add", killed)
        assert run(*argv) == 130
    assert ablation.pool_folder.open(copied).names == ("code", "cook", "law")
    before = contents(copied / "runs")
    said(*argv)
    assert contents(copied / "runs") == before
    assert ablation.pool_folder.open(copied).names == ("code", "cook", "law", "sea")


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("law={text}/more/sea", "has other text under the name law; choose another"),
        ("../x={text}/more/sea", "'../x' is not a name of a partition"),
        ("a+b={text}/more/sea", "'a+b' is not a name of a partition"),
        ("x=nowhere", "nowhere does not exist"),
        ("x={text}/more/sea/0.txt", "has 1 documents; at least two are needed"),
        ("x={text}/little", "fewer than one row of 32"),
        ("x=nowhere.npy", "nowhere.npy does not exist"),
    ],
)
def test_what_cannot_be_added_is_one_line(line, pool, text, addition, message):
    (text / "little").mkdir(exist_ok=True)
    for number in range(2):
        (text / "little" / f"{number}.txt").write_text(f"any person {number}")
    before = contents(pool)
    assert message in line("pool", pool, "--add", addition.format(text=text))
    assert contents(pool) == before


# ------------------------------------------------------------------ other sources


@pytest.fixture(scope="module")
def token_folder(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens") / "prepared"
    argv = ["data", "prepare", str(text / "text"), str(out), "--vocab-size=332"]
    assert cli.run([*argv, "--held-out=0.2"]) == 0
    return out


@pytest.mark.slow
def test_token_files_make_a_pool_without_their_text(
    said, line, text, token_folder, tmp_path
):
    source, pool = tmp_path / "source", tmp_path / "pool"
    shutil.copytree(token_folder, source)
    argv = ["pool", pool, "--data", source, *MADE]
    assert "leave out --vocab-size" in line(*argv, "--vocab-size=400")
    assert "are not cut in parts" in line(*argv, "--parts=2")
    said(*argv, "--units=law,code")
    shutil.rmtree(source)
    said(*argv, "--units=law,code")  # it is finished: the source is not asked for
    said("rank", pool, "--target", "cook", "--proxy=ensemble")
    added = said("pool", pool, "--add", f"food={token_folder / 'cook.npy'}")
    assert "3 experts" in added
    assert (pool / "data" / "food.held_out.npy").exists()


def test_token_files_of_another_tokenizer_are_refused(line, pool, token_folder):
    message = line("pool", pool, "--add", f"x={token_folder / 'cook.npy'}")
    assert "was encoded with another tokenizer than the pool's" in message


def test_token_files_stand_alone(line, text, token_folder, tmp_path):
    data = f"{token_folder},{text / 'more'}"
    message = line("pool", tmp_path / "pool", "--data", data, *MADE)
    assert "holds token files; give it alone" in message


@pytest.mark.slow
def test_a_run_of_the_users_is_the_seed_model(said, line, pool, text, tmp_path):
    own, seed = tmp_path / "own", pool / "runs" / "seed"
    argv = ["pool", own, "--data", text / "text", "--seed-model", seed, "--units=law"]
    said(*argv, "--unit-steps=2")
    ours, theirs = ablation.pool_folder.read(own), ablation.pool_folder.read(pool)
    assert ours.seed_fingerprint == theirs.seed_fingerprint
    assert ours.branch.learning_rate == pytest.approx(1e-2 / 3)
    assert ours.units["law"].steps == 2
    message = line(*argv, "--unit-steps=3")
    assert "unit_steps: 2 -> 3" in message
    published = tmp_path / "published"
    assert cli.run(["convert", str(seed), str(published)]) == 0
    argv = ["pool", tmp_path / "x", "--data", text / "text", "--seed-model", published]
    assert "does not say how it was trained" in line(*argv)


# ------------------------------------------------------------------ rank


@pytest.mark.slow
def test_the_ranking_in_json_is_the_one_that_is_printed(said, pool, tmp_path):
    out = tmp_path / "ranking.json"
    shown = said("rank", pool, "--json", out)
    found = json.loads(out.read_text())
    assert list(found["ranking"]) == ["code", "cook", "law"]
    for target, rows in found["ranking"].items():
        assert len(rows) == 7
        predicted = [row["predicted_perplexity"] for row in rows]
        assert predicted == sorted(predicted)
        printed = table(shown, f"{target}: 7 mixtures, best predicted first")
        for row, cells in zip(rows, printed, strict=True):
            assert cells[0] == "+".join(sorted(row["mixture"]))
            numbers = [row["predicted_perplexity"], row["ensemble_perplexity"]]
            numbers.append(row["mean_of_members_perplexity"])
            texts = [cells[1], cells[-2], cells[-1]]
            assert [t.strip() for t in texts] == [f"{n:,.2f}" for n in numbers]
            if len(row["mixture"]) == 1:
                own = last_perplexity(pool / "runs" / f"expert-{cells[0]}", target)
                assert numbers == pytest.approx([own] * 3, rel=1e-5)
        best = found["best_single"][target]
        singles = [row for row in rows if len(row["mixture"]) == 1]
        assert [best["expert"]] == list(singles[0]["mixture"])
        assert f"the seed model: {found['seed_perplexity'][target]:,.2f}" in shown
        own = last_perplexity(pool / "runs" / "seed", target)
        assert found["seed_perplexity"][target] == pytest.approx(own, rel=1e-5)


def test_a_second_ranking_runs_no_model(said, pool, monkeypatch):
    first = said("rank", pool)
    forbid_models(monkeypatch, "expert_logps", "document_losses", "model_losses")
    assert said("rank", pool) == first
    by_ensemble = said("rank", pool, "--proxy=ensemble", "--target", "law")
    assert "by the ensemble" in by_ensemble
    said("search", pool, "--target", "law", "--method=convex")


def test_the_ensemble_merges_nothing(said, copied, monkeypatch):
    shutil.rmtree(copied / "cache", ignore_errors=True)
    forbid_models(monkeypatch, "document_losses")
    rows = table(said("rank", copied, "--proxy=ensemble", "--target=law"), "law: 7")
    assert all(row[1].strip() == row[-2].strip() for row in rows)


@pytest.mark.slow
def test_after_an_addition_only_the_new_expert_is_run(said, copied, text, monkeypatch):
    said("rank", copied, "--target=law", "--proxy=ensemble")
    said("pool", copied, "--add", f"sea={text / 'more' / 'sea'}")
    asked, expert_logps = [], ablation.expert_logps

    def recorded(pool, *args, **kwargs):
        asked.append(pool.names)
        return expert_logps(pool, *args, **kwargs)

    monkeypatch.setattr(ablation, "expert_logps", recorded)
    shown = said("rank", copied, "--target=law", "--proxy=ensemble")
    assert "law: 15 mixtures" in shown
    assert asked == [("sea",)]


def test_size_weighting_and_text_targets(said, pool, text, tmp_path):
    out = tmp_path / "out.json"
    target = text / "more" / "sea" / "3.txt"
    argv = ["rank", pool, "--target", target, "--max-size=2", "--json", out]
    shown = said(*argv, "--weighting=tokens", "--top=1")
    rows = json.loads(out.read_text())["ranking"]["3"]
    assert {len(row["mixture"]) for row in rows} == {1, 2}
    assert len(table(shown, "3: 6 mixtures")) == 1
    units = ablation.pool_folder.read(pool).units
    for mixture in (row["mixture"] for row in rows):
        total = sum(units[name].partition_tokens for name in mixture)
        for name, weight in mixture.items():
            share = units[name].partition_tokens / total
            assert weight == pytest.approx(share, rel=1e-6)


@pytest.mark.slow
def test_a_mesh_changes_no_prediction(said, copied):
    def rows():
        shutil.rmtree(copied / "cache", ignore_errors=True)
        return table(said("rank", copied, "--target=law", *mesh), "law: 7")

    mesh = []
    one = rows()
    mesh = ["--mesh=fsdp=4,data=2"]
    for ours, theirs in zip(rows(), one, strict=True):
        assert ours[0] == theirs[0]
        assert float(ours[1]) == pytest.approx(float(theirs[1]), abs=0.02)


@pytest.mark.slow
def test_runs_and_published_folders_are_ranked_without_a_pool(
    said, line, pool, text, tmp_path
):
    published, out = tmp_path / "code", tmp_path / "out.json"
    assert cli.run(["convert", str(pool / "runs/expert-code"), str(published)]) == 0
    experts = ["--experts", f"law={pool / 'runs/expert-law'}", f"code={published}"]
    seed = ["--seed-model", pool / "runs" / "seed"]
    sizes = ["--length=32", "--max-batches=2", "--json", out]
    shown = said("rank", *experts, *seed, "--target", "law", *sizes)
    rows = json.loads(out.read_text())["ranking"]["law"]
    assert {tuple(sorted(r["mixture"])) for r in rows} == {
        ("law",), ("code",), ("code", "law"),
    }  # fmt: skip
    own = next(row for row in rows if list(row["mixture"]) == ["law"])
    expected = last_perplexity(pool / "runs" / "expert-law", "law")
    assert own["predicted_perplexity"] == pytest.approx(expected, rel=1e-5)
    assert "the seed model: " in shown
    target = text / "more" / "sea" / "3.txt"
    assert "3: 3 mixtures" in said("rank", *experts, "--target", target)
    message = line("rank", *experts, "--target", "sonnets")
    assert "target 'sonnets' is neither a held-out set of the experts" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "web"], "is neither a held-out set of the experts (code, cook,"),
        (["--max-size=0"], "--max-size 0; use 1 or more"),
        (["--max-batches=0"], "--max-batches 0; use 1 or more"),
        (["--length=1"], "length 1"),
        (["--mesh=fsdp=3"], "mesh fsdp=3 does not fit 8 devices"),
    ],
)
def test_mistakes_in_a_ranking_are_one_line(line, pool, flags, message):
    assert message in line("rank", pool, *flags)


def test_an_expert_that_was_trained_over_is_named(line, copied):
    shutil.rmtree(copied / "runs" / "expert-law")
    shutil.copytree(copied / "runs" / "seed", copied / "runs" / "expert-law")
    message = line("rank", copied)
    assert "unit law in runs/expert-law has changed since it was recorded" in message


# ------------------------------------------------------------------ search


@pytest.mark.slow
def test_every_method_chooses_and_json_agrees(said, pool, tmp_path):
    out = tmp_path / "found.json"
    shown = said(
        "search", pool, "--target", "law=3", "code", "--pareto", "--json", out
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert found["targets"] == {"law": 3.0, "code": 1.0}
    assert set(found["found"]) == set(method_names.METHODS)
    for method, row in found["found"].items():
        [printed] = [
            each for each in shown.splitlines() if each.startswith(method + "  ")
        ]
        for target in ("law", "code"):
            assert f"{row['predicted_perplexity'][target]:,.2f}" in printed
        for name, weight in row["mixture"].items():
            assert f"{name} {weight:.0%}" in printed
        logs = {t: math.log(p) for t, p in row["predicted_perplexity"].items()}
        mean = (3 * logs["law"] + logs["code"]) / 4
        assert row["predicted_loss"] == pytest.approx(mean, abs=1e-5)
    convex, subset = (found["found"][m] for m in ("convex", "enumerate ensemble"))
    assert 0 <= convex["gap"] < 1e-4
    assert convex["predicted_loss"] <= subset["predicted_loss"] + convex["gap"]
    front = [row["predicted_perplexity"] for row in found["front"]]
    assert [row["law"] for row in front] == sorted(row["law"] for row in front)
    codes = [row["code"] for row in front]
    assert codes == sorted(codes, reverse=True)
    assert f"{len(front)} mixtures that none beats" in shown


@pytest.mark.slow
def test_limits_are_kept_by_every_method(said, pool, tmp_path):
    out = tmp_path / "found.json"
    units = ablation.pool_folder.read(pool).units
    tokens = {name: unit.partition_tokens for name, unit in units.items()}
    cap = tokens["law"] + tokens["code"]
    argv = ["search", pool, "--target=law", "--must=code", "--forbid=cook"]
    said(*argv, f"--cap={cap}", "--max-size=2", "--json", out)
    found = json.loads(out.read_text())["found"]
    for method, row in found.items():
        assert "cook" not in row["mixture"]
        assert len(row["mixture"]) <= 2
        assert method == "best single" or "code" in row["mixture"]
        spent = sum(tokens[name] for name in row["mixture"])
        assert spent <= cap


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--must=code", "--forbid=code"], "code: both required and forbidden"),
        (["--must=web"], "no expert web; the pool has code, cook, law"),
        (["--cap=3"], "no mixture costs at most 3; the cheapest allowed one costs"),
        (["--cap=3", "--method=convex"], "no weights keep the cap"),
        (["--forbid=code,cook,law"], "every expert is forbidden"),
        (["--method=annealing"], "invalid choice: 'annealing'"),
    ],
)
def test_infeasible_searches_are_one_line(line, pool, flags, message):
    assert message in line("search", pool, "--target=law", *flags)


# ------------------------------------------------------------------ report


@pytest.mark.slow
def test_a_report_trains_nothing_unless_asked(said, copied, monkeypatch):
    runs = contents(copied / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", None)
        said("report", copied)
    assert contents(copied / "runs") == runs
    page = (copied / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    assert page.count("data:image/png;base64,") == 2
    found = json.loads((copied / "report.json").read_text())
    assert {len(rows) for rows in found["ranking"].values()} == {7}
    assert found["correlation"]["law"]["n"] == 0

    shown = said("report", copied, "--trained=2", "--searched=law", "--budget=member")
    assert "over 2 trained mixtures" in shown
    found = json.loads((copied / "report.json").read_text())
    assert found["correlation"]["law"]["n"] == 2
    assert "What each search chose" in (copied / "report.html").read_text()

    runs = contents(copied / "runs")
    monkeypatch.setattr(train, "fit", None)
    elsewhere = copied.rename(copied.with_name("elsewhere"))
    said("report", elsewhere)  # what was trained is used again, wherever it is
    assert contents(elsewhere / "runs") == runs
    again = json.loads((elsewhere / "report.json").read_text())
    assert again["correlation"] == found["correlation"]


def test_reports_that_cannot_be_are_one_line(line, pool):
    assert "give --trained N" in line("report", pool, "--searched=law")
    message = line("report", pool, "--trained=1", "--searched=web")
    assert "no target web; there are code, cook, law" in message
