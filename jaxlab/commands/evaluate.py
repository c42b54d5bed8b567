"""`jaxlab evaluate`: perplexity of a model by domain, or what it says of answers."""

import argparse
import tempfile

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.core import errors

SUMMARY = "Perplexity of a model on held-out text, or its choice among answers"
DETAILS = """\
With --rewards: how often the right answer gets the higher number, by subset. MODEL is a
reward model; a policy, of which log p - log q counts, q its reference; or a judge's
verdicts, a .jsonl of {"id", "verdict": "chosen", "rejected" or "tie"}. For example:

  jaxlab evaluate runs/reward --rewards=rewardbench.jsonl
  jaxlab evaluate runs/dpo --rewards=pairs.jsonl --reference=none"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the text, and how it is cut into batches."""
    arguments_lib.add_model(parser)
    parser.add_argument(
        "--data",
        metavar="DIR|FILE|embedded",
        help="text (one subfolder or NAME.jsonl per domain), one file, or a folder of "
        "`jaxlab data prepare`; default: the run's own held-out text",
    )
    parser.add_argument(
        "--length", type=int, help="tokens per row; default: the model's"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="ROWS")
    parser.add_argument("--max-batches", type=int, help="per domain; default: all")
    parser.add_argument(
        "--rewards",
        metavar="FILE",
        help="pairs of answers to choose from (chosen, rejected, subset); also "
        "RewardBench's files",
    )
    parser.add_argument(
        "--reference",
        default="",
        metavar="PATH|none",
        help="of a policy; default: what its run was tuned from",
    )
    arguments_lib.add_json(parser)
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Prints a table; writes the same as JSON where asked to."""
    if args.rewards:
        return _run_rewards(args)
    if args.reference:
        raise errors.UserError("--reference is for --rewards; leave it out")
    return _run_perplexity(args)


def _run_perplexity(args: argparse.Namespace) -> None:
    from jaxlab import load
    from jaxlab.commands import devices
    from jaxlab.core import mesh as mesh_lib
    from jaxlab.core import progress, ranges, report
    from jaxlab.data import evaluation_text
    from jaxlab.data.batches import loader
    from jaxlab.evals import perplexity

    if args.max_batches is not None and args.max_batches < 1:
        raise errors.UserError(f"--max-batches {args.max_batches}; use 1 or more")
    with devices.using(args.mesh) as mesh, tempfile.TemporaryDirectory() as folder:
        loaded = load.decoder(
            args.model,
            step=args.step,
            tokenizer=args.tokenizer,
            mesh=mesh,
            average=args.average,
        )
        if args.data:
            files = evaluation_text.open_text(args.data, loaded.tokenizer, folder)
        else:
            files = load.held_out(args.model)
        if not files:
            raise errors.UserError(f"{args.model} has no held-out text; give --data")
        most = loaded.config.length
        length = most if args.length is None else args.length
        ranges.check_length("--length", length, most)
        rows = mesh_lib.padded_rows(args.batch_size, mesh)
        with progress.announce("evaluating", progress.remark):
            results = {
                name: perplexity.evaluate(
                    loaded.model.apply,
                    loaded.params,
                    loader.eval_batches(file, length, rows, args.max_batches),
                )
                for name, file in files.items()
            }
    output.say_step(args.model, loaded.step)
    output.table(
        ["domain", "loss", "perplexity", "bits/byte", "tokens"],
        [[name, *_cells(result)] for name, result in results.items()],
    )
    if args.json:
        row = {"model": args.model, "step": loaded.step, "data": args.data}
        row["length"] = length
        report.write_json(args.json, {**row, "domains": results})


def _cells(result: dict[str, float]) -> list[str]:
    bits = result.get("bits_per_byte")
    return [
        f"{result['loss']:.4f}",
        f"{result['perplexity']:,.2f}",
        "-" if bits is None else f"{bits:.4f}",
        f"{int(result['tokens']):,}",
    ]


def _run_rewards(args: argparse.Namespace) -> None:
    import pathlib

    from jaxlab.commands import devices
    from jaxlab.core import mesh as mesh_lib
    from jaxlab.core import report
    from jaxlab.data.examples import comparisons
    from jaxlab.evals import rewards
    from jaxlab.systems.tulu import judging

    for flag in ("data", "max_batches", "average", "tokenizer"):
        if getattr(args, flag):
            name = f"--{flag.replace('_', '-')}"
            raise errors.UserError(f"{name} is not for --rewards; leave it out")
    compared = comparisons.read(args.rewards)
    if pathlib.Path(args.model).suffix == ".jsonl":
        scores = comparisons.read_verdicts(args.model, compared)
    else:
        with devices.using(args.mesh) as mesh:
            scores = judging.judge(
                args.model,
                compared,
                step=args.step,
                reference=args.reference,
                length=args.length,
                batch_size=mesh_lib.padded_rows(args.batch_size, mesh),
                mesh=mesh,
            )
    shares = judging.summarise(compared, scores)
    output.table(
        ["subset", "accuracy", "low", "high", "rows"],
        [
            [
                name,
                *(f"{x:.4f}" for x in (one.value, one.low, one.high)),
                f"{one.count:,}",
            ]
            for name, one in shares.items()
        ],
    )
    more: dict = {}
    if rewards.is_rewardbench(shares):
        values = {name: one.value for name, one in shares.items()}
        more["rewardbench"] = rewards.rewardbench(values)
    if (tied := judging.ties(compared, scores)) is not None:
        more["ties"] = tied._asdict()
    for title, parts in more.items():
        output.table([title, "score"], [[k, f"{v:.4f}"] for k, v in parts.items()])
    if args.json:
        row = {"model": args.model, "rewards": args.rewards}
        subsets = {name: one._asdict() for name, one in shares.items()}
        report.write_json(args.json, {**row, "subsets": subsets, **more})
