"""What `train` says of mistakes: the user's are one line, ours keep their traceback."""

import numpy as np
import pytest

from jaxlab import systems, train
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib


def start(monkeypatch, tmp_path, error):
    """Starts a config whose system raises the error."""

    def system(*arguments):
        raise error

    monkeypatch.setattr(systems, "resolve", lambda target: system)
    train.main(["--config=configs/olmo.py:tiny", f"--workdir={tmp_path}"])


def test_a_setting_that_a_room_refuses_is_the_users(monkeypatch, tmp_path):
    with pytest.raises(errors.UserError, match="this config does not work: head_dim"):
        start(monkeypatch, tmp_path, errors.ArgumentError("head_dim 3 is odd"))


def test_a_defect_while_a_system_is_built_keeps_its_traceback(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="a defect of ours") as caught:
        start(monkeypatch, tmp_path, ValueError("a defect of ours"))
    assert not isinstance(caught.value, errors.UserError)


def batches(step, rows=slice(None)):
    return {"tokens": np.zeros((8, 4), np.int32)[rows]}


def test_several_hosts_ask_for_the_rows_at_the_start():
    with pytest.raises(errors.UserError, match=r"set batches\.rows"):
        mesh_lib.check_batches(batches)

    def counted(step, rows=slice(None)):
        return batches(step, rows)

    counted.rows = 8
    assert mesh_lib.check_batches(counted) == 8


def test_a_function_that_cannot_give_some_rows_is_one_line():
    def whole(step):
        return batches(step)

    def deaf(step, rows=slice(None)):
        return batches(step)

    whole.rows = deaf.rows = 8
    with pytest.raises(errors.UserError, match=r"several hosts need batches\(step, "):
        mesh_lib.check_batches(whole)
    with pytest.raises(errors.UserError, match="must return one row"):
        mesh_lib.check_batches(deaf)
