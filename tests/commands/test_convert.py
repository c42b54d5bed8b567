"""`jaxlab convert`."""

import json

import numpy as np

from jaxlab import load, models
from tests.support import verb_runs


def test_a_run_is_converted_with_its_tokenizer(workdir, published):
    ours, theirs = load.decoder(workdir), load.decoder(published)
    assert theirs.tokenizer.fingerprint == ours.tokenizer.fingerprint
    for a, b in zip(
        verb_runs.leaves(ours.params), verb_runs.leaves(theirs.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_folder_is_converted_to_another_dtype(said, published, tmp_path):
    out = tmp_path / "half"
    assert "bfloat16" in said("convert", published, out, "--dtype", "bfloat16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    _, params = models.hf.load(out)
    _, whole = models.hf.load(published)
    for a, b in zip(verb_runs.leaves(params), verb_runs.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b.astype("bfloat16").astype("float32"))


def test_a_run_keeps_what_its_published_start_says_of_generating(expert, published):
    said, kept = load.generation(published), load.generation(expert)
    assert said
    assert kept == said
