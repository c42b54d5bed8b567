"""`jaxlab configs`: what can be trained, and every key with its meaning."""

import argparse

SUMMARY = "List the configs that come with jaxlab, or explain every key of one"
DETAILS = """\
NAME[:VARIANT] is one of the list, or a file of yours. Every key is a flag of
`jaxlab train`: --config.optim.learning_rate=3e-4. For example:

  jaxlab configs
  jaxlab configs olmo:1b"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds NAME."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME[:VARIANT]", help="whose keys are explained"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the list, or the keys of one config."""
    if args.name is None:
        _print_list()
    else:
        _print_keys(args.name)
    return 0


def _print_list() -> None:
    import ast

    from jaxlab.core import config, installation

    for name, file in installation.configs().items():
        title = ast.get_docstring(ast.parse(file.read_text("utf-8"))).splitlines()[0]
        print(f"{name}: {title}\n    {' '.join(config.variants(file))}")


def _print_keys(name: str) -> None:
    import pathlib

    import jaxlab
    from jaxlab.core import config, config_comments

    loaded = config.load(name)
    file = config.find(name.partition(":")[0])
    systems = pathlib.Path(jaxlab.__file__).parent / "systems"
    files = [file, *sorted(systems.glob("*/config.py"))]
    files += [systems / "sections.py", systems / "trust_methods.py"]
    variants = config.variants(file)
    print(f"{file}; variants: {' '.join(variants) or 'see the file'}\n")
    for key, line in config_comments.read(loaded, files).items():
        value = loaded
        for part in key.split("."):
            value = value[part]
        is_section = hasattr(value, "items")
        kind = "dict" if is_section else type(value).__name__
        flag = f"--config.{key}={'{}' if is_section else _shell(value)}"
        print(f"{flag:<46} {kind:<6} {line}".rstrip())


def _shell(value) -> str:
    """A value as a flag takes it."""
    import shlex

    if isinstance(value, tuple):
        return f'"{value!r}"'
    return shlex.quote(str(value))
