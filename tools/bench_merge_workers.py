"""The processes that `tools/bench_merge.py` measures; each serves lines of JSON.

    python tools/bench_merge_workers.py jaxlab|mergekit|torch

Only the standard library is imported at the top: peers have an environment of their
own.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import sys
import threading
import time

MODELS = ("base", "ft1", "ft2", "ft3")
SHARES = [0.4, 0.3, 0.2, 0.1]
WEIGHTS = [0.5, 0.3, 0.2]
DENSITY = 0.5


def serve(actions) -> None:
    """Answers each line of stdin with the seconds of what it asks for."""
    if actions is None:  # the peer is not installed: no answer, and the end
        return
    before = anonymous()  # with all that is imported
    for line in sys.stdin:
        question = json.loads(line)
        action = actions(question)
        peak, stop = [0], threading.Event()
        watcher = threading.Thread(target=watch, args=(peak, stop), daemon=True)
        watcher.start()
        started = time.perf_counter()
        extra = action() or {}
        answer = {"seconds": time.perf_counter() - started, **extra}
        stop.set()
        watcher.join()
        if question["what"].startswith(("disk", "floor")):
            answer["peak"] = max(peak[0] - before, 0)
        print(json.dumps(answer), flush=True)


def anonymous() -> int:
    with open("/proc/self/status") as status:
        return int(re.search(r"RssAnon:\s+(\d+)", status.read())[1]) * 1024


def watch(peak, stop) -> None:
    while not stop.wait(0.005):
        peak[0] = max(peak[0], anonymous())


def jaxlab_worker():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxlab import merge
    from jaxlab.core import host_memory, safetensors

    host_memory.keep_freed_memory()
    kept: dict = {}

    def models(question):
        key = question["dtype"]
        if key not in kept:
            kept.clear()
            root = pathlib.Path(question["folder"]) / key
            kept[key] = [
                jax.block_until_ready(
                    jax.tree.map(jnp.array, safetensors.read_folder(root / model))
                )
                for model in MODELS
            ]
        return kept[key]

    @jax.jit
    def naive(trees):
        def mean(*leaves):
            total = sum(
                w * x.astype(jnp.float32) for w, x in zip(SHARES, leaves, strict=True)
            )
            return total.astype(leaves[0].dtype)

        return jax.tree.map(mean, *trees)

    def eager(trees):
        return jax.tree.map(
            lambda *xs: sum(w * x for w, x in zip(SHARES, xs, strict=True)), *trees
        )

    @jax.jit
    def task_arithmetic(trees):
        base, *tuned = trees
        vectors = [merge.task_vector(tree, base) for tree in tuned]
        return merge.apply_task_vectors(base, vectors, WEIGHTS)

    formulas = {
        "average": lambda trees: merge.average(trees, SHARES),
        "naive_jit": naive,
        "eager": eager,
        "task_arithmetic": task_arithmetic,
        "ties": lambda trees: merge.ties(trees[0], trees[1:], WEIGHTS, DENSITY),
    }

    def numpy_limit(question, is_copy):
        leaves = jax.tree.leaves(models(question)[0])
        total = sum(leaf.size for leaf in leaves) * leaves[0].dtype.itemsize // 4
        a, b = np.ones(total, np.float32), np.ones(total, np.float32)
        out = np.zeros(total, np.float32)

        def limit():
            np.copyto(out, a) if is_copy else np.add(a, b, out=out)
            return {"bytes": (2 if is_copy else 3) * out.nbytes}

        limit()
        return lambda: timed(limit)

    def timed(function):
        started = time.perf_counter()
        extra = function()
        return {**extra, "seconds": time.perf_counter() - started}

    def actions(question):
        what = question["what"]
        if what in ("add", "copy"):
            return numpy_limit(question, what == "copy")
        if what in formulas:
            trees = models(question)

            def in_memory():
                jax.block_until_ready(formulas[what](trees))

            return in_memory
        root = pathlib.Path(question["folder"])
        paths = [root / question["dtype"] / model for model in MODELS]
        out = root / "merged"
        shutil.rmtree(out, ignore_errors=True)
        if what == "floor":
            return lambda: floor(paths, out)
        options = {"weights": SHARES}
        if what == "disk_ties":
            options = {"weights": WEIGHTS, "density": DENSITY, "base": paths.pop(0)}
        if what.endswith("no_digest"):
            options["digest"] = None
        method = what.split("_")[1]

        def on_disk():
            merge.merge_files(paths, out, method, **options)

        return on_disk

    return actions


def floor(paths, out) -> None:
    """Reads the same bytes and writes as many as a merge does, through one buffer."""
    buffer = bytearray(4 << 20)
    view = memoryview(buffer)
    out.mkdir()
    for path in paths:
        with open(path / "model.safetensors", "rb", buffering=0) as file:
            while file.readinto(view):
                pass
    left = (paths[0] / "model.safetensors").stat().st_size
    with open(out / "floor", "wb", buffering=0) as file:
        while left:
            left -= file.write(view[:left])


def mergekit_worker():
    try:
        import mergekit.merge
        import torch
        import yaml
        from mergekit.config import MergeConfiguration
        from mergekit.merge_methods.api import merge_state_dicts
        from mergekit.options import MergeOptions
        from safetensors.torch import load_file
    except ImportError:
        return None
    load = loader(load_file)
    torch.set_num_threads(os.cpu_count())

    def actions(question):
        what = question["what"]
        paths = [f"{question['folder']}/{question['dtype']}/{m}" for m in MODELS]
        if what == "disk_linear":
            rows = [
                {"model": path, "parameters": {"weight": share}}
                for path, share in zip(paths, SHARES, strict=True)
            ]
            raw = yaml.safe_dump({"merge_method": "linear", "models": rows})
            config = MergeConfiguration.model_validate(yaml.safe_load(raw))
            out = f"{question['folder']}/merged"
            shutil.rmtree(out, ignore_errors=True)
            options = MergeOptions(copy_tokenizer=False, quiet=True)
            return lambda: mergekit.merge.run_merge(config, out, options=options)
        models = load(tuple(paths))
        method = "linear" if what == "average" else what
        parameters: dict = {"weight": SHARES if what == "average" else WEIGHTS}
        parameters |= {"density": [DENSITY] * 3} if what == "ties" else {}
        base = None if what == "average" else 0

        def merge():
            with torch.no_grad():
                merge_state_dicts(models, method, parameters=parameters, base=base)

        return merge

    return actions


def torch_worker():
    try:
        import torch
        from safetensors.torch import load_file
    except ImportError:
        return None
    load = loader(load_file)
    torch.set_num_threads(os.cpu_count())

    def actions(question):
        paths = [f"{question['folder']}/{question['dtype']}/{m}" for m in MODELS]
        models = load(tuple(paths))

        def average():
            for name, first in models[0].items():
                total = torch.zeros_like(first, dtype=torch.float32)
                for share, model in zip(SHARES, models, strict=True):
                    total.add_(model[name], alpha=share)
                total.to(first.dtype)

        return average

    return actions


def loader(load_file):
    @functools.lru_cache(maxsize=1)
    def load(paths):
        models = [load_file(f"{path}/model.safetensors") for path in paths]
        return [{name: value.clone() for name, value in m.items()} for m in models]

    return load


WORKERS = {"jaxlab": jaxlab_worker, "mergekit": mergekit_worker, "torch": torch_worker}


if __name__ == "__main__":
    serve(WORKERS[sys.argv[1]]())
