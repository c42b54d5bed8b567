"""`jaxlab generate`: prompts and their continuations on stdout."""

import argparse
from collections.abc import Callable

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.core import errors

SUMMARY = "Continue prompts"
DETAILS = ""


_NEW_TOKENS = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the prompts, and how tokens are drawn."""
    arguments_lib.add_model(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt per line")
    parser.add_argument(
        "--chat", action="store_true", help="ask as a user does: of a tuned model"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N",
        help=f"default: {_NEW_TOKENS}, or what the model has room for",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="0 always takes the likeliest"
    )
    parser.add_argument("--top-k", type=int, help="draw from the K likeliest only")
    parser.add_argument(
        "--top-p", type=float, help="draw from the likeliest that sum to P only"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-n", type=int, default=1, help="continuations of each prompt")
    parser.add_argument("--batch-size", type=int, default=16, metavar="ROWS")
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Prints every prompt with its continuation, and a line of dashes between them."""
    import jax

    from jaxlab import load
    from jaxlab.commands import devices
    from jaxlab.core import mesh as mesh_lib

    prompts = [*_read_prompts(args.prompt), *_lines(args.prompts)]
    if not prompts:
        raise errors.UserError("give --prompt TEXT or --prompts FILE")
    if args.n < 1 or args.batch_size < 1:
        raise errors.UserError("-n and --batch-size must be 1 or more")
    with devices.using(args.mesh) as mesh:
        loaded = load.decoder(
            args.model,
            step=args.step,
            tokenizer=args.tokenizer,
            mesh=mesh,
            average=args.average,
        )
        tokenizer, ends = loaded.tokenizer, loaded.eos_ids
        if args.chat:
            chat = load.chat_of(args.model, tokenizer=args.tokenizer)
            rows = [chat.ask(prompt) for prompt in prompts]
            ends = (*ends, *sorted(chat.ends.difference(ends)))
        else:
            write = _text(args)
            rows = [write(tokenizer, prompt) for prompt in prompts]
        rows = [row for row in rows for _ in range(args.n)]
        if args.max_new_tokens is None:
            room = loaded.config.length - max(map(len, rows))
            args.max_new_tokens = max(1, min(_NEW_TOKENS, room))
        for start in range(0, len(rows), args.batch_size):
            batch = rows[start : start + args.batch_size]
            missing = mesh_lib.padded_rows(len(batch), mesh) - len(batch)
            filled = batch + batch[-1:] * missing
            key = jax.random.fold_in(jax.random.key(args.seed), start)
            new = _generate(args, loaded, filled, key, ends)
            if not start:
                output.say_step(args.model, loaded.step)
            for number, row in enumerate(batch):
                if start + number:
                    print("-" * 8)
                # Decoded together: a word may begin in the prompt and end after it.
                words = new[number]
                if words[-1:] and words[-1] in ends:
                    words = words[:-1]
                text = tokenizer.decode([*row, *words])
                print(errors.spell_out_controls(text), flush=True)


def _text(args) -> Callable[..., list[int]]:
    """Texts begin as they do in training: with bos, or after the end of another.

    A published folder may say that they begin with neither.
    """
    from jaxlab import load

    is_run = args.tokenizer is None and load.is_run(args.model)

    def write(tokenizer, prompt):
        ids = tokenizer.encode(prompt)
        if tokenizer.bos_id is None:
            return [tokenizer.eos_id, *ids]
        return (
            [tokenizer.bos_id, *ids] if is_run or tokenizer.adds_bos or not ids else ids
        )

    return write


def _generate(args, loaded, rows, key, ends) -> list[list[int]]:
    from jaxlab import generate

    return generate.generate(
        loaded.model,
        loaded.params,
        rows,
        max_new_tokens=args.max_new_tokens,
        key=key,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        eos_id=ends,
        pad_id=loaded.tokenizer.pad_id,
    )


def _read_prompts(texts: list[str]) -> list[str]:
    """The texts of --prompt, whose bytes may be of another encoding."""
    from jaxlab.data import lines

    return [lines.require_utf8(t, f"--prompt {n}") for n, t in enumerate(texts, 1)]


def _lines(path: str | None) -> list[str]:
    from jaxlab.data import lines

    return [] if path is None else [line for _, line in lines.read(path)]
