"""What tuning and answering cost, each against its bound, in pairs within one run.

    python tools/bench_post.py                 all
    python tools/bench_post.py lora decode     some
    python tools/bench_post.py --rounds 20

lora     a step of rank 16 on all matrices : a step of all parameters     bound 2/3
qlora    peak bytes of a step, base in NF4 : the same, all parameters     (remat full)
dpo      a step of pairs, reference kept : a step of SFT over as many rows
decode   a step of 8 rows : one product of 8 rows with every weight
reward   scores of 8 rows : the hidden states of 8 rows

A llama of SmolLM2's width (576, 9 heads of which 3 have keys, MLP 1536) with 6 layers
and 8,192 tokens, in f32, on rows of 256. Steps are those of `jaxlab train`: guards and
AdamW. Medians of CPU time of alternate calls: other work moves the clock more.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxlab import models, objectives, optim
from jaxlab.core import host_memory, step, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import state as state_lib
from jaxlab.models import lora

ROWS, LENGTH = 8, 256
SIZES = {
    "vocab": 8192, "embed": 576, "layers": 6, "heads": 9, "kv_heads": 3, "mlp": 1536,
    "length": 512,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=[[], *BENCHES], default=[])
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()
    with mesh_lib.use(mesh_lib.make_mesh({}, jax.devices()[:1])):
        for name in arguments.what or BENCHES:
            print(f"{name:8}{BENCHES[name](arguments.rounds)}", flush=True)


def bench_lora(rounds: int) -> str:
    whole, adapter = trainer(batch()), trainer(batch(), rank=16)
    return ratio(rounds, adapter, whole, "of a step of all parameters (bound 0.67)")


def bench_qlora(rounds: int) -> str:
    del rounds
    peaks = {}
    for rank in (0, 16):
        experiment, state, frozen = build(rank=rank, kept_in="nf4", remat="full")
        lowered = step.make_step(experiment).lower(state, batch(), frozen)
        used = lowered.compile().memory_analysis()
        peaks[rank] = used.temp_size_in_bytes + used.argument_size_in_bytes
    return (
        f"{peaks[16] / peaks[0]:.2f} of the bytes of all parameters: "
        f"{peaks[16] / 2**20:.0f} and {peaks[0] / 2**20:.0f} MiB"
    )


def bench_dpo(rounds: int) -> str:
    rows = {name: x.reshape(ROWS // 2, 2, LENGTH) for name, x in batch().items()}
    pairs = {**rows, "reference_logps": jnp.zeros((ROWS // 2, 2))}
    asked = functools.partial(objectives.preference, loss="sigmoid", beta=0.1)
    dpo, sft = trainer(pairs, objective=asked), trainer(batch())
    return ratio(rounds, dpo, sft, "of a step of SFT over the same rows")


def bench_decode(rounds: int) -> str:
    config = models.TransformerConfig(**SIZES)
    model, params = models.Decoder(config), parameters(models.Decoder(config))
    cache = models.empty_cache(config, ROWS, LENGTH)
    ones = jnp.ones((ROWS, 1), jnp.int32)

    @jax.jit
    def decode(params, cache):
        logits, cache = model.apply(
            {"params": params}, ones, cache, ones > 0, method="extend"
        )
        return logits, cache

    weights = [
        x.reshape(-1, *x.shape[-2:]) for x in jax.tree.leaves(params) if x.ndim > 1
    ]

    rows = {w.shape[1]: jnp.ones((ROWS, w.shape[1])) for w in weights}

    @jax.jit
    def multiply(weights, rows):
        products = (
            jnp.sum(jnp.dot(rows[w.shape[1]], matrix))
            for w in weights[1:]  # without the embedding's look-up
            for matrix in w
        )
        return sum(products)

    ours = functools.partial(decode, params, cache)
    bound = functools.partial(multiply, weights, rows)
    return ratio(rounds * 10, ours, bound, "of one product with every weight")


def bench_reward(rounds: int) -> str:
    config = models.TransformerConfig(**SIZES)
    scorer, decoder = models.Scorer(config), models.Decoder(config)
    tokens = batch()["tokens"]
    lengths = jnp.full(ROWS, LENGTH)
    made, other = parameters(scorer, lengths), parameters(decoder)
    score = jax.jit(lambda p: scorer.apply({"params": p}, tokens, lengths))
    hidden = jax.jit(lambda p: decoder.apply({"params": p}, tokens, method="hidden"))
    ours, bound = functools.partial(score, made), functools.partial(hidden, other)
    return ratio(rounds, ours, bound, "of the hidden states' forward pass")


BENCHES = {
    "lora": bench_lora,
    "qlora": bench_qlora,
    "dpo": bench_dpo,
    "decode": bench_decode,
    "reward": bench_reward,
}


def batch(rows: int = ROWS) -> types.Batch:
    tokens = np.random.default_rng(0).integers(8, SIZES["vocab"], (rows, LENGTH))
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "loss_mask": jnp.ones((rows, LENGTH), jnp.float32),
    }


def parameters(model, *more) -> types.Params:
    tokens = jnp.zeros((ROWS, 8), jnp.int32)
    return mesh_lib.unbox(
        jax.jit(model.init)(jax.random.key(0), tokens, *more)["params"]
    )


def build(*, rank=0, kept_in="compute", objective=objectives.next_token, remat="none"):
    """(experiment, first state, frozen) of a step."""
    config = models.TransformerConfig(**SIZES, remat=remat)
    model, frozen = models.Decoder(config), None
    asked = ml_collections.ConfigDict({"learning_rate": 1e-4, "warmup_steps": 1})
    settings = optim.OptimConfig(**asked.to_dict(), weight_decay=0.0, no_decay=())
    tx, _ = optim.build(settings, 1000)
    loss = objective(model.apply)
    if rank:
        base = parameters(model)
        decoder, model = model, lora.Adapted(model, lora.LoraConfig(rank))
        frozen = {"base": lora.freeze(decoder, base, kept_in), "inner": None}
        loss = objectives.beside_base(objective(model.apply))
    experiment = types.Experiment(
        model=model,
        objective=loss,
        tx=tx,
        batches=None,
        steps=1000,
        example=(np.zeros((1, 8), np.int32),),
    )
    target, _ = state_lib.abstract(experiment, jax.sharding.get_mesh())
    return experiment, state_lib.initial(experiment, target), frozen


def trainer(rows: types.Batch, **settings):
    """A function that takes one training step."""
    experiment, state, frozen = build(**settings)
    compiled, states = step.make_step(experiment), [state]

    def advance():
        states[0], metrics = compiled(states[0], rows, frozen)
        return metrics["loss"]

    return advance


def ratio(rounds: int, ours, bound, words: str) -> str:
    """The median of our CPU time over the bound's, of alternate calls."""
    for function in (ours, bound, ours, bound):
        jax.block_until_ready(function())
    spent = {ours: [], bound: []}
    for _ in range(rounds):
        for function, seconds in spent.items():
            started = time.process_time()
            jax.block_until_ready(function())
            seconds.append(time.process_time() - started)
    a, b = (statistics.median(seconds) for seconds in spent.values())
    pairs = [x / y for x, y in zip(*spent.values(), strict=True)]
    return (
        f"{a / b:.2f} {words}: {a * 1e3:.1f} and {b * 1e3:.1f} ms of CPU; "
        f"pairs {min(pairs):.2f} to {max(pairs):.2f}"
    )


if __name__ == "__main__":
    main()
