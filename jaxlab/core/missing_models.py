"""What to say of a path that is no model: what it is, and how to get a model there.

A name of the Hugging Face Hub (nothing is downloaded here), a file, a folder one level
too high, an adapter, weights in another format, a misspelt run.
"""

import difflib
import os
import pathlib
import re

from jaxlab.core import errors, paths

_HUB = re.compile(
    r"(?:hf://|(?:https?://)?huggingface\.co/)?([\w.-]+(?:/[\w.-]+)?)(?:[@:].*|/(?:tree|blob|resolve)/.*)?"
)
_OTHERS = {
    ".safetensors": "a file of weights; give the folder that it is in",
    ".gguf": "a GGUF file; `jaxlab convert FILE OUT` makes a folder of it",
    ".bin": "a file of PyTorch, which is not read; give a folder of safetensors",
    ".pt": "a file of PyTorch, which is not read; give a folder of safetensors",
    ".pth": "a file of PyTorch, which is not read; give a folder of safetensors",
    ".zip": "packed; unpack it and give the folder",
    ".gz": "packed; unpack it and give the folder",
    ".tar": "packed; unpack it and give the folder",
}


def explain(path: str | os.PathLike, *, step: str = "") -> errors.UserError:
    """The error of a path that was to be a model, to be raised.

    Args:
        path: as the user gave it.
        step: more that could be given instead, such as "an Orbax checkpoint".
    """
    wanted = ", ".join(["a run directory", *([step] if step else [])])
    wanted = f"give {wanted} or a Hugging Face folder"
    local = pathlib.Path(path)
    if is_address(path):
        return errors.UserError(f"{path} is not a folder{_download(str(path))}")
    if paths.is_remote(path):
        return errors.UserError(f"model {path} does not exist; {wanted}")
    if local.is_file():
        what = _OTHERS.get(local.suffix.lower(), f"a file and not a model; {wanted}")
        return errors.UserError(f"{path} is {what}")
    if local.is_dir():
        return errors.UserError(f"{path} {_of_folder(local)}; {_fix(local, wanted)}")
    hint = _nearest(local) or _download(str(path))
    return errors.UserError(f"model {path} does not exist; {wanted}{hint}")


def explain_data(path: str | os.PathLike) -> errors.UserError:
    """The error of text that is not there, to be raised."""
    if re.match(r"\w+:/", str(path)):
        return errors.UserError(
            f"{path} is an address; download it, and give the folder or file here"
        )
    hint = _nearest(pathlib.Path(path))
    return errors.UserError(f"no data at {path}; give a folder or a file{hint}")


def explain_tokenizer(path: str | os.PathLike) -> errors.UserError:
    """The error of a tokenizer that is not there, to be raised."""
    wanted = "give a folder, tokenizer.json or .model"
    hint = _nearest(pathlib.Path(path)) or _download(str(path))
    return errors.UserError(f"tokenizer {path} does not exist; {wanted}{hint}")


def is_address(path: str | os.PathLike) -> bool:
    """Whether a path is an address of the Hub, or another of the web."""
    return str(path).startswith(("hf://", "http://", "https://", "huggingface.co/"))


def _of_folder(folder) -> str:
    if (folder / "adapter_config.json").is_file():
        return "is an adapter and not a model"
    if (folder / "snapshots").is_dir():
        return "is the Hub's cache of a model"
    return "has no config.json"


def _fix(folder, wanted) -> str:
    if (folder / "adapter_config.json").is_file():
        return "merge it into its base model first, e.g. with peft's merge_and_unload"
    inner = [f.parent for f in sorted(folder.glob("*/config.json"))]
    inner = inner or [f.parent for f in sorted(folder.glob("snapshots/*/config.json"))]
    if inner:
        return f"did you mean {inner[0]}?"
    names = {file.suffix for file in folder.iterdir() if file.is_file()}
    if ".gguf" in names:
        return "give the .gguf file itself, not its folder"
    if ".pth" in names:
        return "files of Meta's own format are not read; download the -hf version"
    return wanted


def _nearest(path) -> str:
    """A folder beside the one that is not there, of nearly the same name."""
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _download(path) -> str:
    """How to get a model that has a name on the Hub, if the path may be one."""
    name = _HUB.fullmatch(path)
    parent = pathlib.Path(path).parent
    if name is None or path.startswith((".", "/", "~")):
        return ""
    if parent != pathlib.Path() and parent.exists():
        return ""
    folder = name[1].split("/")[-1]
    full = name[1] if "/" in name[1] else f"OWNER/{name[1]}"
    return (
        f". Names on the Hugging Face Hub are not downloaded: `hf download {full} "
        f"--local-dir {folder}`, then give {folder}"
    )
