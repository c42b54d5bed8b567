"""`jaxlab evaluate`: loss, perplexity and bits per byte of a model, by domain."""

import argparse
import tempfile

from jaxlab.commands import arguments as arguments_lib
from jaxlab.commands import output
from jaxlab.core import errors

SUMMARY = "Perplexity of a model on held-out text, by domain"
DETAILS = ""


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
    arguments_lib.add_json(parser)
    arguments_lib.add_mesh(parser)


def run(args: argparse.Namespace) -> None:
    """Prints a table; writes the same as JSON where asked to."""
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
