"""Speed and memory of merges on this CPU against mergekit and torch, in pairs.

    python tools/bench_merge.py --peer-python PEERS/bin/python
    python tools/bench_merge.py --quick                  a small model, few repeats

Peers may live in an environment of their own:

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 mergekit==0.1.5

Without --peer-python they run under this interpreter, if mergekit imports there; what
cannot be measured is printed as "not measured". The model is of Llama type (768 wide,
MLP 2048, vocabulary 32000; layers as --parameters asks), a base and three finetuned.

One process a contender, all alive; measurements alternate, so that a noisy neighbour
hits each. In memory: arrays are resident and the call was made once before. Disk to
disk: safetensors to safetensors, warm page cache, no fsync; the peak is that of
anonymous memory (RssAnon) over what the process held before. Commands: from the start
of the interpreter to its end. Ratios are medians of pairs, above 1 where jaxlab is
faster. GB/s count the bytes of all inputs and of the output.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import bench_merge_workers

EMBED, MLP, VOCAB = 768, 2048, 32000
IN_MEMORY = ("average", "task_arithmetic", "ties")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", default="134M", help="of a model, e.g. 134M")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="8M parameters, 2 repeats")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--folder", help="scratch; default: a temporary one")
    parser.add_argument("--json", help="also write the numbers here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.parameters, arguments.repeats = "8M", 2
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(arguments, pathlib.Path(folder))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")


def measure(arguments, folder) -> dict:
    count = make_models(folder, arguments.parameters)
    print(f"4 models of {count / 1e6:.1f}M parameters, {os.cpu_count()} CPUs")
    repeats, rows = arguments.repeats, {}
    for dtype in ("float32", "bfloat16"):
        size = count * (4 if dtype == "float32" else 2)
        print(f"\n{dtype}, in memory")
        contenders = start(arguments)
        for what in IN_MEMORY:
            asked = {"jaxlab": [what], "mergekit": [what]}
            if what == "average":
                asked["jaxlab"] += ["add", "copy", "naive_jit", "eager"]
                asked["torch"] = [what]
            found = pairs(
                contenders, asked, repeats, {"folder": str(folder), "dtype": dtype}
            )
            rows[f"{dtype}/memory/{what}"] = found
            show(found, ("jaxlab", what), 5 * size)
        stop(contenders)
        for what, peers in (("linear", True), ("ties", False)):
            print(f"\n{dtype}, disk to disk, {what}")
            contenders = start(arguments)  # what others held would hide the peaks
            asked = {"jaxlab": [f"disk_{what}"]}
            if peers:
                asked["jaxlab"] += ["disk_linear_no_digest", "floor"]
                asked["mergekit"] = ["disk_linear"]
            found = pairs(
                contenders, asked, repeats, {"folder": str(folder), "dtype": dtype}
            )
            rows[f"{dtype}/disk/{what}"] = found
            show(found, ("jaxlab", f"disk_{what}"), 5 * size)
            stop(contenders)
        print(f"\n{dtype}, whole commands, linear")
        found = commands(arguments, folder, dtype)
        rows[f"{dtype}/command"] = found
        show(found, ("jaxlab", "command"), 5 * size)
    return rows


def make_models(folder: pathlib.Path, wanted: str) -> int:
    """Writes the models in both dtypes; returns their number of parameters."""
    import ml_dtypes
    import numpy as np

    from jaxlab.core import safetensors

    number = float(wanted[:-1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[wanted[-1]]
    vocab = VOCAB if number > 6e7 else VOCAB // 32
    inner = 4 * EMBED * EMBED + 3 * EMBED * MLP
    layers = max(1, round((number - 2 * vocab * EMBED) / inner))
    shapes = {"model.embed_tokens.weight": (vocab, EMBED)}
    for i in range(layers):
        start = f"model.layers.{i}."
        shapes |= {f"{start}self_attn.{n}_proj.weight": (EMBED, EMBED) for n in "qkvo"}
        shapes |= {f"{start}mlp.{n}_proj.weight": (MLP, EMBED) for n in ("gate", "up")}
        shapes[f"{start}mlp.down_proj.weight"] = (EMBED, MLP)
        shapes[f"{start}input_layernorm.weight"] = (EMBED,)
        shapes[f"{start}post_attention_layernorm.weight"] = (EMBED,)
    shapes |= {"model.norm.weight": (EMBED,), "lm_head.weight": (vocab, EMBED)}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": EMBED, "intermediate_size": MLP, "num_hidden_layers": layers,
        "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": vocab,
        "tie_word_embeddings": False, "max_position_embeddings": 2048,
        "hidden_act": "silu", "rms_norm_eps": 1e-5,
    }  # fmt: skip
    for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
        for number, model in enumerate(bench_merge_workers.MODELS):
            target = folder / str(dtype) / model
            target.mkdir(parents=True)

            def fetch(name, number=number, dtype=dtype):
                seed = list(shapes).index(name)
                value = np.random.default_rng(seed).standard_normal(
                    shapes[name], np.float32
                )
                if number:
                    own = np.random.default_rng([seed, number])
                    value += 0.1 * own.standard_normal(shapes[name], np.float32)
                return (0.02 * value).astype(dtype)

            specs = {name: (shape, dtype) for name, shape in shapes.items()}
            safetensors.write(target / safetensors.WEIGHTS, specs, fetch)
            text = json.dumps(config | {"torch_dtype": str(dtype)})
            (target / "config.json").write_text(text)
    return sum(int(np.prod(shape)) for shape in shapes.values())


def start(arguments) -> dict:
    python = {"jaxlab": sys.executable}
    return {
        name: Contender(name, python.get(name, arguments.peer_python))
        for name in ("jaxlab", "mergekit", "torch")
    }


def stop(contenders) -> None:
    for contender in contenders.values():
        contender.process.stdin.close()
        contender.process.wait()


class Contender:
    """A worker process that does one thing at a time when asked to."""

    def __init__(self, name: str, python: str):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.process = subprocess.Popen(
            [python, bench_merge_workers.__file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, question: dict) -> dict | None:
        """None where it cannot be measured: the worker lacks what it needs."""
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else None


def pairs(contenders, asked, repeats, question) -> dict:
    """Contender and thing -> its measurements, one a round; None for none."""
    found = {f"{name} {what}": [] for name, things in asked.items() for what in things}
    for turn in range(-1, repeats):  # the first round warms up
        for name, things in asked.items():
            for what in things:
                if (name, what) == ("mergekit", "ties") and turn != 0:
                    continue  # it sorts for minutes: once, and cold
                answer = contenders[name].ask({**question, "what": what})
                if turn >= 0 or answer is None:
                    found[f"{name} {what}"].append(answer)
    return {
        name: None if None in answers else answers for name, answers in found.items()
    }


def commands(arguments, folder, dtype) -> dict:
    """Whole commands of both, alternating."""
    paths = [str(folder / dtype / model) for model in bench_merge_workers.MODELS]
    recipe = folder / "recipe.yaml"
    lines = [f"  - {{model: {path}, parameters: {{weight: 0.25}}}}" for path in paths]
    recipe.write_text("\n".join(["merge_method: linear", "models:", *lines]) + "\n")
    out = str(folder / "merged")
    start = "import sys; from jaxlab import cli; sys.exit(cli.run())"
    peer = pathlib.Path(arguments.peer_python).parent / "mergekit-yaml"
    argv = {
        "jaxlab command": [sys.executable, "-c", start, "merge", recipe, "-o", out],
        "mergekit command": [str(peer), str(recipe), out],
    }
    root = str(pathlib.Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    found: dict = {name: [] for name in argv}
    for _ in range(arguments.repeats):
        for name, command in argv.items():
            shutil.rmtree(out, ignore_errors=True)
            if found[name] is None or not shutil.which(str(command[0])):
                found[name] = None
                continue
            started = time.perf_counter()
            done = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, env=environment
            )
            seconds = time.perf_counter() - started
            if done.returncode:
                print(f"  {name} failed: {done.stderr.strip()[-300:]}")
                found[name] = None
            else:
                found[name].append({"seconds": seconds})
    return found


def show(found: dict, ours: tuple[str, str], size: int) -> None:
    """Prints one row for each: seconds, GB/s, how many times ours it took, peak."""
    own = found[" ".join(ours)]
    for name, answers in found.items():
        if not answers:
            print(f"  {name:<32} not measured")
            continue
        seconds = statistics.median(answer["seconds"] for answer in answers)
        words = f"  {name:<32} {seconds:8.3f} s"
        size_of = answers[0].get("bytes", size)
        words += f" {size_of / seconds / 1e9:6.1f} GB/s"
        if own and answers is not own:
            ratios = sorted(
                a["seconds"] / b["seconds"] for a, b in zip(answers, own, strict=False)
            )
            words += (
                f"  x{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            )
        if "peak" in answers[0]:
            peak = max(answer["peak"] for answer in answers)
            words += f"  peak {peak / 1e6:.0f} MB"
        print(words, flush=True)


if __name__ == "__main__":
    main()
