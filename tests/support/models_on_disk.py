"""Models of a few tensors in Hugging Face folders, for tests of merged files."""

import json

import ml_dtypes
import numpy as np

from jaxlab.core import safetensors

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {
    "model.embed_tokens.weight": (40, 12),
    "model.layers.0.mlp.weight": (12, 30),
    "model.layers.1.mlp.weight": (12, 30),
    "model.layers.0.conv.weight": (6, 5, 4),
    "model.norm.weight": (12,),
    "model.scale": (),
    "model.empty": (0, 3),
}
CONFIG = {"model_type": "llama", "hidden_size": 12, "torch_dtype": "float32"}


def tensors(seed, dtype=np.float32, spread=0.1):
    """A model near a common base; seed 0 is the base."""
    draw, own = np.random.default_rng(1), np.random.default_rng([1, seed])
    model = {}
    for name, shape in SHAPES.items():
        base = draw.standard_normal(shape)
        moved = own.standard_normal(shape) * spread * (seed > 0)
        model[name] = np.asarray(base + moved, np.float32).astype(dtype)
    return model | {"model.position_ids": np.arange(12)[None]}


def save(folder, values, shard_bytes=10**9, config=CONFIG):
    folder.mkdir(parents=True)
    specs = {name: (value.shape, value.dtype) for name, value in values.items()}
    safetensors.write_folder(folder, specs, values.get, shard_bytes=shard_bytes)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def floats(values):
    return {k: v for k, v in values.items() if v.dtype != np.int64}


def assert_close(found, expected, rounding=2**-22):
    """Within one rounding of the largest number of each tensor."""
    assert found.keys() == {*expected}
    for name, value in expected.items():
        a, b = (np.asarray(x, np.float64) for x in (found[name], value))
        assert a.shape == b.shape, name
        limit = rounding * max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=name)
