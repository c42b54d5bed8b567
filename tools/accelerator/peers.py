"""The same steps and decoding in torch and transformers: peers.py SECONDS PLATFORM.

OLMo of the same sizes. On a GPU bf16 autocast, SDPA with flash attention, torch.compile
and fused AdamW; on a CPU f32 and eager. A share is of torch's own matmul.
"""

import contextlib
import importlib.util
import sys
import time

import rows
import sizes
import torch


def main() -> None:
    clock, platform = rows.Clock(float(sys.argv[1]) - 2), sys.argv[2]
    has_gpu = torch.cuda.is_available()
    device = "cuda" if platform == "gpu" and has_gpu else "cpu"
    if platform not in ("cpu", "gpu") or (platform == "gpu" and not has_gpu):
        return rows.emit("peers", "torch", note=f"this torch has no {platform}")
    if importlib.util.find_spec("transformers") is None:
        return rows.emit("peers", "torch", note="no transformers, whose OLMo is timed")
    is_gpu = device == "cuda"
    peak = best_matmul(device)
    rows.emit("peers", "torch's matmul", peak / 1e12, "TFLOP/s", note=torch.__version__)
    how = "torch.compile, bf16" if is_gpu else "eager, f32"
    steps = sizes.named_steps(is_gpu)
    for name, size in clock.part(0.7).sizes("peers", steps):
        with told(name):
            pace = size.batch * size.length / seconds(make_step(size, device), device)
            share = pace * size.flops_per_token() / peak
            rows.emit("peers", name, pace, "tokens/s", share=share,
                      of="torch's matmul", note=how)  # fmt: skip
    size = sizes.decoding(is_gpu)
    with told(str(size)):
        pace = size.batch * size.new / seconds(make_decoding(size, device), device)
        rows.emit("peers", str(size), pace, "tokens/s", note="transformers' generate")
    return None


@contextlib.contextmanager
def told(what: str):
    """A peer that fails is a row without a number: it says nothing of jaxlab."""
    try:
        yield
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        rows.emit("peers", what, note=f"{type(error).__name__}: {first}")


def seconds(call, device, least=0.3) -> float:
    """Of one call: the best of three rounds."""

    def rounds(count):
        start = time.perf_counter()
        for _ in range(count):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    rounds(2)  # compiles, and recompiles
    count = max(1, min(int(least / rounds(1)), 100))
    return min(rounds(count) for _ in range(3))


def best_matmul(device) -> float:
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    found = []
    for size in (4096, 8192, 16384) if device == "cuda" else (1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
        found.append(2 * size**3 / seconds(lambda a=a, b=b: a @ b, device))
    return max(found)


def olmo(size: sizes.Step, device: str):
    import transformers

    config = transformers.OlmoConfig(
        vocab_size=size.vocab, hidden_size=size.embed, intermediate_size=size.mlp,
        num_hidden_layers=size.layers, num_attention_heads=size.heads,
        num_key_value_heads=size.heads, max_position_embeddings=max(size.length, 512),
        tie_word_embeddings=False, pad_token_id=1, eos_token_id=None,
        attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.OlmoForCausalLM(config).to(device)


def make_step(size: sizes.Step, device: str):
    is_gpu = device == "cuda"
    model = olmo(size, device).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=is_gpu
    )
    tokens = torch.randint(0, size.vocab, (size.batch, size.length), device=device)
    run = torch.compile(model) if is_gpu else model

    def step():
        optimizer.zero_grad()
        precision = contextlib.nullcontext()
        if is_gpu:
            precision = torch.autocast("cuda", torch.bfloat16)
        with precision:
            loss = run(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def make_decoding(size: sizes.Decoding, device: str):
    model = olmo(size.model, device).eval()
    if device == "cuda":
        model = model.to(torch.bfloat16)
    shape = (size.batch, size.prompt)
    prompts = torch.randint(0, size.model.vocab, shape, device=device)
    settings = {
        "attention_mask": torch.ones_like(prompts),
        "do_sample": False,
        "max_new_tokens": size.new,
    }

    @torch.inference_mode()
    def decode():
        model.generate(prompts, **settings)

    return decode


if __name__ == "__main__":
    main()
