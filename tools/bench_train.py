"""Training speed on this CPU against transformers + torch, in pairs within one run.

    python tools/bench_train.py                     both cores
    python tools/bench_train.py --threads 1         one pinned core, CPU seconds
    python tools/bench_train.py --malloc default    jaxlab without its malloc setting
    python tools/bench_train.py --malloc both       torch with it as well

One process a contender, both alive all the time; steps alternate A B A B, so that a
noisy neighbour hits both. The step is forward, backward, clipping and AdamW in f32 of
a 25M-parameter OLMo (8 layers, 384 wide, 6 heads, MLP 1536, vocabulary 8192) on 8 x 512
tokens. jaxlab's is the very step of `jaxlab train`, guards and metrics included; torch
is eager with SDPA, the fastest of the peers tried. Each process measures its own matmul
peak (3072^3) before and after. FLOPs: 6 N_matmul + 12 N H C L per token (full
attention). Needs the [oracles] extra.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from jaxlab.core import host_memory

BATCH, LENGTH, VOCAB = 8, 512, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument(
        "--malloc",
        choices=("ours", "default", "both"),
        default="ours",
        help="who keeps freed memory (core/host_memory.py): jaxlab only, nobody, both",
    )
    parser.add_argument("--json", help="also write the result here")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return serve(WORKERS[arguments.worker], arguments.threads)
    contenders = {
        name: Contender(name, arguments.threads, arguments.malloc) for name in WORKERS
    }
    for contender in contenders.values():
        contender.ask("start")
    before = {name: c.ask("peak") for name, c in contenders.items()}
    rows = {name: [] for name in contenders}
    for pair in range(arguments.pairs):
        for name, contender in contenders.items():
            rows[name].append(contender.ask("step"))
        pace = {n: BATCH * LENGTH / r[-1]["wall"] for n, r in rows.items()}
        words = "  ".join(f"{name} {value:,.0f}" for name, value in pace.items())
        print(f"pair {pair + 1}/{arguments.pairs}: tokens/s {words}", flush=True)
    after = {name: c.ask("peak") for name, c in contenders.items()}
    summary = summarise(rows, before, after, contenders)
    show(summary, arguments.threads)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(summary, file, indent=2)
    return None


class Contender:
    """A worker process that runs one thing at a time when asked to."""

    def __init__(self, name: str, threads: int, malloc: str):
        keeps = malloc == "both" or (malloc == "ours" and name == "jaxlab")
        environment = os.environ | {
            "JAXLAB_KEEP_MEMORY": "1" if keeps else "0",
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # an idle torch must not spin on our cores
            "JAX_PLATFORMS": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, __file__, "--worker", name, "--threads"]
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        self.process = subprocess.Popen(
            [*command, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.first = {}

    def ask(self, what: str) -> dict:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker died; its error is above")
        answer = json.loads(line)
        if what == "start":
            self.first = answer
        return answer


def serve(build, threads: int) -> None:
    host_memory.keep_freed_memory()  # first of all, as the command line does
    step = peak = None
    for line in sys.stdin:
        what = line.strip()
        started = time.perf_counter()
        if what == "start":
            step, peak = build(threads)
            losses = [step() for _ in range(2)]
            answer = {"seconds": time.perf_counter() - started, "losses": losses}
        elif what == "peak":
            answer = {"flops": max(timed_peak(peak) for _ in range(3))}
        else:
            cpu, faults = time.process_time(), page_faults()
            loss = step()
            answer = {
                "faults": page_faults() - faults,
                "wall": time.perf_counter() - started,
                "cpu": time.process_time() - cpu,
                "loss": loss,
            }
        print(json.dumps(answer), flush=True)


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def timed_peak(matmul) -> float:
    size, started = 3072, time.perf_counter()
    matmul(size)
    return 2 * size**3 / (time.perf_counter() - started)


def jaxlab_worker(threads: int):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxlab import models, objectives, optim
    from jaxlab.core import mesh, process, state, step, types

    process.start()
    config = models.TransformerConfig(
        vocab=VOCAB, embed=384, layers=8, heads=6, mlp=1536, norm="layernorm",
        length=LENGTH, scan=False,
    )  # fmt: skip
    model = models.Decoder(config)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH), np.int32)
    tx, _ = optim.build(optim.OptimConfig(3e-4, "constant"), 1000)
    experiment = types.Experiment(
        model=model,
        objective=objectives.next_token(model.apply),
        tx=tx,
        batches=lambda step: {"tokens": tokens},
        steps=1000,
        example=(tokens[:1, :8],),
    )
    devices = mesh.make_mesh({"data": 1}, jax.devices()[:1])
    with mesh.use(devices):
        target, _ = state.abstract(experiment, devices)
        current = state.initial(experiment, target)
        train_step = step.make_step(experiment)

    def one() -> float:
        nonlocal current
        with mesh.use(devices):
            batch = mesh.global_batch(experiment.batches, 0, devices)
            current, metrics = train_step(current, batch, None)
        return float(metrics["loss"])

    multiply = jax.jit(lambda x: x @ x)
    x = jnp.ones((3072, 3072))
    multiply(x).block_until_ready()
    return one, lambda size: multiply(x).block_until_ready()


def torch_worker(threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    config = transformers.OlmoConfig(
        vocab_size=VOCAB, hidden_size=384, intermediate_size=1536,
        num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=6,
        max_position_embeddings=LENGTH, tie_word_embeddings=False, use_cache=False,
        pad_token_id=1, eos_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.OlmoForCausalLM(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH))

    def one() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    x = torch.ones(3072, 3072)
    return one, lambda size: x @ x


WORKERS = {"jaxlab": jaxlab_worker, "torch": torch_worker}


def summarise(rows, before, after, contenders) -> dict:
    tokens = BATCH * LENGTH
    matmul = 8 * (4 * 384 * 384 + 3 * 384 * 1536) + 384 * VOCAB
    flops = tokens * (6 * matmul + 12 * 8 * 384 * LENGTH)
    result = {"gflop_a_step": flops / 1e9, "contenders": {}}
    for name, steps in rows.items():
        wall = statistics.median(row["wall"] for row in steps)
        cpu = statistics.median(row["cpu"] for row in steps)
        peak = max(before[name]["flops"], after[name]["flops"])
        result["contenders"][name] = {
            "tokens_per_second": tokens / wall,
            "tokens_per_cpu_second": tokens / cpu,
            "best_tokens_per_second": tokens / min(row["wall"] for row in steps),
            "gflop_per_second": flops / wall / 1e9,
            "matmul_peak_gflop_per_second": peak / 1e9,
            "percent_of_peak": 100 * flops / wall / peak,
            "start_seconds": contenders[name].first["seconds"],
            "page_faults_a_step": statistics.median(row["faults"] for row in steps),
            "last_loss": steps[-1]["loss"],
        }
    pairs = list(zip(rows["jaxlab"], rows["torch"], strict=True))
    for kind in ("wall", "cpu"):
        ratios = sorted(peer[kind] / ours[kind] for ours, peer in pairs)
        result[f"{kind}_ratio"] = {
            "median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1],
        }  # fmt: skip
    return result


def show(summary: dict, threads: int) -> None:
    print(f"\n{threads} threads, {summary['gflop_a_step']:.0f} GFLOP per step; medians")
    for name, row in summary["contenders"].items():
        print(
            f"{name:>7}: {row['tokens_per_second']:7,.0f} tokens/s  "
            f"{row['tokens_per_cpu_second']:7,.0f} tokens/CPU-s  "
            f"{row['gflop_per_second']:5.0f} GFLOP/s = {row['percent_of_peak']:.0f} "
            f"% of matmul peak ({row['matmul_peak_gflop_per_second']:.0f}); start and "
            f"two steps {row['start_seconds']:.1f} s; "
            f"{row['page_faults_a_step']:,.0f} page faults per step"
        )
    for kind, words in (("wall", "tokens/s"), ("cpu", "tokens/CPU-s")):
        ratio = summary[f"{kind}_ratio"]
        print(
            f"jaxlab / torch in {words}: median {ratio['median']:.2f} of pairs, "
            f"{ratio['min']:.2f} to {ratio['max']:.2f}"
        )


if __name__ == "__main__":
    main()
