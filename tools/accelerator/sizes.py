"""Sizes of the models that jaxlab and its peers are timed with; no jax, no torch."""

from typing import NamedTuple


class Step(NamedTuple):
    """A decoder of OLMo's kind and its batch."""

    name: str
    layers: int
    embed: int
    heads: int
    mlp: int
    vocab: int
    batch: int
    length: int

    def __str__(self) -> str:
        return f"step of {self.name}, {self.batch} x {self.length} tokens"

    def flops_per_token(self) -> float:
        """6 per weight of a matmul, and causal attention; forward and backward."""
        layer = 4 * self.embed**2 + 3 * self.embed * self.mlp
        matmul = self.layers * layer + self.embed * self.vocab
        return 6 * matmul + 6 * self.layers * self.embed * self.length


class Decoding(NamedTuple):
    """Greedy continuations of random prompts."""

    model: Step
    batch: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.batch} rows of {self.model.name}, {self.new} new tokens"


def named_steps(is_accelerator: bool) -> dict[str, Step]:
    """What is timed, by the words that ours and the peers' rows have."""
    return {str(step): step for step in steps(is_accelerator)}


def steps(is_accelerator: bool) -> tuple[Step, ...]:
    if not is_accelerator:
        return (
            Step("1M parameters", 2, 128, 4, 512, 2048, 4, 128),
            Step("7M parameters", 4, 256, 4, 1024, 8192, 4, 256),
        )
    return (
        Step("300M parameters", 12, 1024, 8, 4096, 50304, 16, 1024),
        Step("1.3B parameters", 16, 2048, 16, 8192, 50304, 8, 2048),
        Step("1.3B parameters, long rows", 16, 2048, 16, 8192, 50304, 2, 8192),
    )


def decoding(is_accelerator: bool) -> Decoding:
    model = steps(is_accelerator)[0 if is_accelerator else 1]
    return Decoding(model, 8, 128, 128 if is_accelerator else 32)
