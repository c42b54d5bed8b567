"""Rows of a run, and its config when it is resumed."""

import io
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import errors, report, runs


def _rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


_LOSSES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=10, deadline=None)
@given(st.lists(_LOSSES, min_size=1, max_size=20))
def test_losses_are_written_and_read_bit_for_bit(tmp_path_factory, losses):
    folder = tmp_path_factory.mktemp("run")
    with report.Reporter(folder, len(losses), out=io.StringIO()) as rows:
        for step, loss in enumerate(losses, start=1):
            rows.train(step, {"loss": np.float32(loss)}, tokens=8)
    read = np.array([row["loss"] for row in _rows(folder)], np.float32)
    np.testing.assert_array_equal(read.view(np.uint32), _bits(losses))


def _bits(values):
    return np.array(values, np.float32).view(np.uint32)


def test_rows_after_the_resumed_step_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [f'{{"step": {step}, "loss": 0.1}}\n' for step in (1, 2, 3, 4)]
    path.write_text("".join(good) + '{"step": 5, "lo')
    with report.Reporter(tmp_path, 9, first=2, out=io.StringIO()) as rows:
        rows.train(3, {"loss": np.float32(0.5), "skipped": np.int32(0)}, tokens=8)
    assert path.read_text().startswith("".join(good[:2]))
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3]
    assert _rows(tmp_path)[-1]["skipped"] == 0


def test_a_line_of_somebodys_own_is_kept_by_a_run_that_resumes(tmp_path):
    file = tmp_path / "metrics.jsonl"
    own = ['{"note": "by hand\u2028"}', "[1, 2]", "7", '{"step": "2"}']
    lines = ['{"step": 1, "loss": 2.0}', *own, '{"step": 3, "loss": 1.0}', '{"st']
    file.write_text("\n".join(lines), "utf-8")
    assert [row["step"] for row in runs.rows(tmp_path)] == [1, 3]
    with report.Reporter(tmp_path, 4, first=2):
        pass
    assert file.read_text("utf-8") == "\n".join(lines[:5]) + "\n"


def test_values_that_json_does_not_have_are_null(tmp_path):
    with report.Reporter(tmp_path, 1, out=io.StringIO()) as rows:
        rows.train(1, {"loss": jnp.nan, "norm": jnp.inf}, tokens=8)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert _rows(tmp_path)[0]["loss"] is _rows(tmp_path)[0]["norm"] is None


def test_rows_go_to_stdout_with_their_speed_and_what_is_left():
    out = io.StringIO()
    with report.Reporter(None, 3, name="web", seconds=0.0, out=out) as rows:
        for step in (1, 2):
            rows.train(step, {"loss": 2.5}, tokens=8, flops_per_token=6.0)
        rows.evaluation(2, "books", {"perplexity": 12345.6})
    first, second, third = out.getvalue().splitlines()
    assert first.startswith("[web] first step, compilation included: ")
    assert second.startswith("[web] step 2/3 loss 2.5 tokens_per_second ")
    assert " mfu " in second
    assert " eta " in second
    assert third.startswith("[web] step 2/3 ")
    assert "perplexity 12,346" in third
    assert "books" in third


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_in_one_line_and_closing_does_not_hide_it(
    tmp_path, monkeypatch
):
    def run():
        with report.Reporter(tmp_path, 1, out=io.StringIO()) as rows:
            monkeypatch.setattr(rows, "_file", pathlib.Path("/dev/full").open("a"))  # noqa: SIM115
            rows.train(1, {"loss": 1.0}, tokens=8)

    with pytest.raises(errors.UserError, match=r"No space left on device.*free some"):
        run()


def test_another_config_is_refused_with_every_old_and_new_value(tmp_path):
    old = {"lr": 1e-3, "model": {"width": 8, "remat": "none"}, "mesh": {"data": 1}}
    report.write_json(tmp_path / "config.json", old)
    runs.check_config(tmp_path, old)
    new = {"lr": 2e-3, "model": {"width": 9, "remat": "full"}, "mesh": {"data": 8}}
    with pytest.raises(errors.UserError) as caught:
        runs.check_config(tmp_path, new, free=("mesh", "model.remat"))
    message = str(caught.value)
    assert "lr: 0.001 -> 0.002; model.width: 8 -> 9." in message
    assert "mesh" not in message
    assert "remat" not in message
    assert "\n" not in message


def test_a_free_prefix_is_a_whole_key(tmp_path):
    report.write_json(tmp_path / "config.json", {"mesh_size": 1})
    with pytest.raises(errors.UserError, match="mesh_size: 1 -> 2"):
        runs.check_config(tmp_path, {"mesh_size": 2}, free=("mesh",))


def test_added_and_removed_keys_are_differences(tmp_path):
    report.write_json(tmp_path / "config.json", {"a": 1})
    with pytest.raises(errors.UserError, match="a: 1 -> None; b: None -> 2"):
        runs.check_config(tmp_path, {"b": 2})


def test_tuples_and_numpy_numbers_equal_what_json_made_of_them(tmp_path):
    config = {"files": ("a", "b"), "rate": np.float64(0.5), "steps": np.int32(3)}
    report.write_json(tmp_path / "config.json", config)
    runs.check_config(tmp_path, config)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "config.json"
    report.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Circular"):
        report.write_json(path, _circular())
    assert json.loads(path.read_text()) == {"a": 1}


def _circular():
    value = {}
    value["self"] = value
    return value


def test_a_run_that_is_one_of_many_says_a_line(tmp_path):
    out = io.StringIO()
    brief = {"name": "web", "is_brief": True, "seconds": 0.0, "out": out}
    with report.Reporter(tmp_path, 3, **brief) as rows:
        rows.detail("a table")
        for step in (1, 2, 3):
            rows.train(step, {"loss": 2.5}, tokens=8)
        rows.evaluation(3, "books", {"perplexity": 12345.6})
    assert out.getvalue() == "[web] 3 steps, loss 2.5, took 0s\n"
    assert len(_rows(tmp_path)) == 4
