"""Step time and memory of every trust region relative to Adam's, in one run.

    python tools/bench_optim.py                    10.5M parameters, 7 rounds
    python tools/bench_optim.py --quick            a small model, 3 rounds
    python tools/bench_optim.py --methods asam tram_theta --rounds 15

One decoder in f32 on random tokens; AdamW with clipping; every method of
`systems/trust_regions.py` is the very step of `jaxlab train`, its guards and metrics
included. Rounds run one step of each method, starting elsewhere every time, so that a
noisy neighbour hits each; a ratio to Adam is the median of the rounds' ratios, with its
range. Wall seconds are what a user waits; CPU seconds (of all threads) depend less on
neighbours, and "least" (the least CPU seconds by Adam's least) depends least on them.

What the passes predict: a backward pass costs two forward passes, so that Adam is 3,
and F forward and B backward passes are (F + 2 B) / 3. Beyond that a method pays for its
climb and its divergence; below it, Adam's own update is paid only once.

Memory: "state" is the bytes of the TrainState beyond Adam's, in copies of the
parameters, exact; "temp" is what the compiled step says it allocates for itself. The
bench fails if anything is traced or compiled after the first step, or if a state is not
Adam's, the copies it should have, and a few numbers.
"""

import argparse
import json
import os
import statistics
import time

import jax
import numpy as np

from jaxlab import models, objectives, optim
from jaxlab.core import mesh, process, state, step, types
from jaxlab.systems import trust_methods, trust_regions

PASSES = {  # forward, backward
    "plain": (1, 1), "sam": (2, 2), "asam": (2, 2), "fsam": (2, 2),
    "tram_theta": (3, 2), "tram_theta0": (3, 2), "tram_ema": (3, 2), "tram_x": (3, 2),
    "tram_fisher": (3, 3), "trpo": (2, 1), "mesa": (2, 1), "r3f": (2, 2), "r4f": (2, 2),
}  # fmt: skip
ANCHORED = ("tram_theta", "tram_theta0", "tram_ema", "trpo", "mesa")
TARGETS = {  # most that a step may cost
    "asam": 2.05, "tram_theta": 2.4, "tram_theta0": 2.4, "tram_ema": 2.4, "tram_x": 2.4,
}  # fmt: skip
SIZES = {
    "embed": 256, "layers": 6, "heads": 4, "mlp": 1024, "vocab": 8192, "batch": 8,
    "length": 256, "rounds": 7,
}  # fmt: skip
QUICK = {"embed": 64, "layers": 2, "mlp": 256, "vocab": 1024, "rounds": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--methods", nargs="+", choices=trust_methods.methods()[1:])
    parser.add_argument("--quick", action="store_true", help="a small model, 3 rounds")
    parser.add_argument("--json", help="also write the result here")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    process.start()
    names = ("plain", *(arguments.methods or trust_methods.methods()[1:]))
    summary = measure(names, arguments)
    show(summary, arguments)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(summary, file, indent=2)


def measure(names: tuple[str, ...], arguments: argparse.Namespace) -> dict:
    devices = mesh.make_mesh({"data": 1}, jax.devices()[:1])
    compiled = []  # traced, lowered or compiled, for whatever reason
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "compile" in event else None
    )
    with mesh.use(devices):
        contenders = {}
        for name in names:
            contenders[name] = Contender(name, arguments, devices)
            print(f"{name} compiled in {contenders[name].seconds:.1f} s", flush=True)
        assert compiled, "the listener heard no compilation; its events were renamed"
        compiled.clear()
        rows = {name: [] for name in names}
        for i in range(arguments.rounds):
            for name in (*names[i % len(names) :], *names[: i % len(names)]):
                rows[name].append(contenders[name].timed())
            words = "  ".join(f"{n} {r[-1]['wall']:.2f}" for n, r in rows.items())
            print(f"round {i + 1}/{arguments.rounds}: seconds {words}", flush=True)
    assert not compiled, f"compiled again after the first step: {compiled}"
    return summarise(rows, contenders)


class Contender:
    """One method with its own state, stepped when asked to."""

    def __init__(self, method: str, arguments: argparse.Namespace, devices: mesh.Mesh):
        started = time.perf_counter()
        run = experiment(method, arguments)
        target, _ = state.abstract(run, devices)
        self.state = state.initial(run, target)
        self.step = step.make_step(run, target)
        self.batch = mesh.global_batch(run.batches, 0, devices)
        self.bytes = {"state": held(self.state), "params": held(self.state.params)}
        lowered = self.step.lower(self.state, self.batch, run.frozen)
        memory = lowered.compile().memory_analysis()
        self.bytes["temp"] = memory.temp_size_in_bytes
        self.timed()
        self.seconds = time.perf_counter() - started

    def timed(self) -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        self.state, metrics = self.step(self.state, self.batch, None)
        jax.block_until_ready((self.state, metrics))
        found = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
        }
        assert np.isfinite(metrics["loss"])
        assert not metrics["skipped"]
        return found


def experiment(method: str, arguments: argparse.Namespace) -> types.Experiment:
    sizes = {k: getattr(arguments, k) for k in SIZES if k not in ("batch", "rounds")}
    config = models.TransformerConfig(**sizes, scan=False)
    model = models.Decoder(config)
    shape = (arguments.batch, arguments.length)
    tokens = np.random.default_rng(0).integers(0, arguments.vocab, shape, np.int32)
    predictor = objectives.language_model(model.apply)
    plain = types.Experiment(
        model=model,
        objective=objectives.task_loss(predictor),
        tx=optim.build(optim.OptimConfig(3e-4, "constant"), 1000)[0],
        batches=lambda step: {"tokens": tokens},
        steps=1000,
        example=(tokens[:1, :8],),
    )
    return trust_regions.with_trust(plain, predictor, trust_methods.TrustConfig(method))


def held(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def summarise(rows: dict, contenders: dict) -> dict:
    plain, result = contenders["plain"].bytes, {}
    for name, steps in rows.items():
        found = contenders[name].bytes
        copies, rest = divmod(found["state"] - plain["state"], plain["params"])
        assert copies == (name in ANCHORED), f"{name} keeps {copies} copies"
        assert rest <= 16, f"{name} keeps {rest} bytes beside {copies} copies"
        forward, backward = PASSES[name]
        result[name] = {
            "forward": forward,
            "backward": backward,
            "predicted": (forward + 2 * backward) / 3,
            "state_copies": copies,
            "state_bytes_beside": rest,
            "temp_bytes": found["temp"],
            "temp_ratio": found["temp"] / plain["temp"],
        }
        for kind in ("wall", "cpu"):
            seconds, adam = ([row[kind] for row in x] for x in (steps, rows["plain"]))
            ratios = sorted(a / b for a, b in zip(seconds, adam, strict=True))
            result[name][kind] = {
                "seconds": statistics.median(seconds),
                "ratio": statistics.median(ratios),
                "least": min(seconds) / min(adam),
                "min": ratios[0],
                "max": ratios[-1],
            }
    return {"parameter_bytes": plain["params"], "methods": result}


def show(summary: dict, arguments: argparse.Namespace) -> None:
    seconds = summary["methods"]["plain"]["wall"]["seconds"]
    print(
        f"\n{summary['parameter_bytes'] / 4e6:.1f}M parameters, {arguments.batch} x "
        f"{arguments.length} tokens, vocabulary {arguments.vocab}, {arguments.rounds} "
        f"rounds, {os.cpu_count()} CPUs; Adam's step takes {seconds:.3f} s"
    )
    line = "{:<12}{:>7}{:>6}  {:<17}{:<17}{:>5}{:>9}{:>8}{:>6}  {}".format
    head = ("method", "passes", "says", "wall", "CPU", "least", "state", "temp MB")
    print(line(*head, "ratio", "target"))
    for name, row in summary["methods"].items():
        wall, cpu = row["wall"], row["cpu"]
        most = TARGETS.get(name)
        words = ""
        if most is not None:
            met = ["met" if x["ratio"] <= most else "missed" for x in (wall, cpu)]
            words = f"{most:.2f}: wall {met[0]}, CPU {met[1]}"
        print(
            line(
                name,
                f"{row['forward']} + {row['backward']}",
                f"{row['predicted']:.2f}",
                *(
                    f"{x['ratio']:.2f} ({x['min']:.2f}-{x['max']:.2f})"
                    for x in (wall, cpu)
                ),
                f"{cpu['least']:.2f}",
                f"+{row['state_copies']} +{row['state_bytes_beside']} B",
                f"{row['temp_bytes'] / 1e6:.0f}",
                f"{row['temp_ratio']:.2f}",
                words,
            )
        )
    print("Nothing was traced or compiled after the first step.")


if __name__ == "__main__":
    main()
