"""How jaxlab came here: as a clone or as a package; what it ships, how to add to it.

A clone has `configs/` beside `jaxlab/`; an installed wheel has it inside. Extras of a
clone are added by its path, which works in any environment; those of a wheel by the
packages that they stand for, since the index's `jaxlab` may be somebody else's.
"""

import importlib.metadata
import pathlib
import re

_PACKAGE = pathlib.Path(__file__).parents[1]


def clone() -> pathlib.Path | None:
    """The folder of the clone that runs, None for an installed package."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None


def configs() -> dict[str, pathlib.Path]:
    """Name -> file of the configs that come with jaxlab.

    >>> "olmo" in configs()
    True
    """
    folder = (clone() or _PACKAGE) / "configs"
    files = sorted(folder.glob("*.py"))
    return {file.stem: file for file in files if file.stem != "__init__"}


def how_to_add(extra: str) -> str:
    """The command that installs an extra of pyproject.toml."""
    root = clone()
    if root is not None:
        where = "." if root == pathlib.Path.cwd() else root
        return f"pip install -e '{where}[{extra}]'"
    lines = importlib.metadata.requires("jaxlab") or []
    wanted = [
        re.sub(r"\s", "", line.partition(";")[0])
        for line in lines
        if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", line)
    ]
    return "pip install " + " ".join(f"'{requirement}'" for requirement in wanted)
