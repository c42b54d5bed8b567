"""What a path is: a run, a Hugging Face folder, a GGUF file, an adapter of one."""

import hashlib
import pathlib
from typing import Any, NamedTuple

from jaxlab import models
from jaxlab.core import (
    checkpoint,
    errors,
    folders,
    gguf_file,
    json_text,
    links,
    runs,
    tokenizer_files,
    tree,
    types,
    value_types,
)
from jaxlab.core import paths as paths_lib
from jaxlab.data.tokenizers import gguf_vocabulary
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.models import gguf, lora, rope, sections
from jaxlab.models.hf import generation, peft

_SIZES = ("vocab", "embed", "layers", "heads", "mlp", "kv_heads", "clip_qkv", "window")


def find(path: str | pathlib.Path) -> "Run | Published | Packed | Adapted":
    """Which of them a path is.

    Raises:
        UserError: none.
    """
    is_remote = paths_lib.is_remote(path)
    if gguf_file.is_named(path) and not (is_remote or pathlib.Path(path).is_dir()):
        return Packed(path)
    if not is_remote and peft.is_adapter(path):
        return Adapted(path)
    run = runs.find(path)
    links.check(path)
    return Published(path) if run is None else Run(path, run)


class OfRun(NamedTuple):
    """What a run with adapters says of them.

    Attributes:
        base: the path of its base.
        sha256: of the base's parameters, `tree.digest`.
        lora: what its adapter is.
        kept_in: how it kept its base, `lora.KEPT_IN`.
    """

    base: str
    sha256: str
    lora: lora.LoraConfig
    kept_in: str


def kind(path: str | pathlib.Path) -> str:
    """What a model is, in words: the system of a run, or what holds it.

    Raises:
        UserError: it is no model.
    """
    source = find(path)
    return source.run.system if isinstance(source, Run) else _KINDS[type(source)]


def is_run(path: str | pathlib.Path) -> bool:
    """Whether a model is a run directory.

    Raises:
        UserError: it is no model.
    """
    return isinstance(find(path), Run)


def tokenizer_path(path: str | pathlib.Path) -> pathlib.Path:
    """Where a model's tokenizer is: a local folder or file; a copy of a bucket's."""
    return find(path).tokenizer_path()


class Run(NamedTuple):
    """A run directory, read as `decoder` and `bert` want it."""

    path: str | pathlib.Path
    run: runs.Run

    def tokenizer_path(self) -> pathlib.Path:
        path = self.run.tokenizer()
        if not paths_lib.is_remote(path):
            return path
        if not paths_lib.is_folder(path):
            raise errors.UserError(f"{path} is missing; restore it from a copy")
        copy = paths_lib.cache("tokenizers", *path.parts[2:])
        folders.copy_files(path, copy)
        return copy

    def read_tokenizer(self, given=None) -> tokenizer_lib.Tokenizer:
        own = tokenizer_lib.load(self.tokenizer_path())
        if given and tokenizer_lib.load(given).fingerprint != own.fingerprint:
            raise errors.UserError(
                f"{self.path} was trained with {self.run.tokenizer()}, not with "
                f"{given}; leave out --tokenizer"
            )
        return own

    def check_decoder(self) -> None:
        self._check_kind("a language model", "decoder")

    def check_transformer(self) -> None:
        """A language model, or a reward model: its `model` section says its sizes."""
        self._check_kind("a language model", "decoder", "reward")

    @property
    def is_reward(self) -> bool:
        """Whether it scores conversations."""
        return self.run.kind == "reward"

    def adapter(self) -> OfRun | None:
        """What it says of its adapter; None where it tunes all parameters."""
        with self._as_written():
            section = self.run.config.get("adapter")
            settings = section and lora.LoraConfig.from_section(section)
            if not settings:
                return None
            base = self.run.section("base", ("path", "sha256"))
        return OfRun(base["path"], base["sha256"], settings, section["base"])

    def read_adapter(self, step, mesh, average=False) -> tuple[int, types.Params]:
        """The step and the parameters of its newest good checkpoint."""
        return checkpoint.load_step(self.run.folder, step, mesh, average=average)

    def read_decoder(self, tokenizer, step, mesh, average=False):
        step, weights = self._read_step(step, mesh, average)
        # As it was made: `vocab` 0 was rounded up for the mesh of then.
        rows = weights["embed"]["embedding"].shape[0]
        return self.decoder_config(tokenizer, rows), weights, step

    def decoder_config(self, tokenizer, vocab: int | None) -> models.TransformerConfig:
        section = dict(self.run.section("model", _SIZES))
        section["vocab"] = section["vocab"] if vocab is None else vocab
        with self._as_written():
            self._check_like(section, models.TransformerConfig, "model.")
            for name in ("rope", "window_rope"):
                if section.get(name):
                    self._check_like(section[name], rope.Rope, f"model.{name}.")
            return sections.transformer_config(section, tokenizer)

    def read_bert(self, step, mesh):
        self._check_kind("an encoder", "encoder", "scorer")
        section = self.run.section("encoder", ("vocab", "embed"))
        with self._as_written():
            self._check_like(section, models.BertConfig, "encoder.")
            config = models.BertConfig(**section)
        return config, self.read_params(step, mesh)

    def read_generation(self) -> dict[str, Any]:
        """What the model that it started from says of generating."""
        file = self.run.folder / generation.FILE
        return json_text.read_object(file, "restore it from a copy") or {}

    def tuned_in(self) -> tuple[str, str] | None:
        """The style and the beginning of the conversations that it was tuned on."""
        data = self.run.config.get("data") or {}
        if "style" not in data:
            return None
        return data["style"], data.get("begin", "bos")

    def read_params(self, step, mesh, average=False) -> types.Params:
        return self._read_step(step, mesh, average)[1]

    def _read_step(self, step, mesh, average):
        """A step and its parameters; an adapter's in the weights of its base."""
        step, weights = self.read_adapter(step, mesh, average)
        if (of := self.adapter()) is None:
            return step, weights
        base = find(of.base).read_params(None, mesh)
        if tree.digest(base) != of.sha256:
            raise errors.UserError(
                f"{of.base} is not the model that {self.path} is an adapter of; "
                "restore that one"
            )
        if of.kept_in == "nf4":
            base = lora.round_to_nf4(base)
        return step, lora.merge(base, weights, of.lora)

    def _as_written(self):
        file = self.run.folder / runs.CONFIG
        return json_text.as_written(file, "restore it from a copy")

    def _check_like(self, section, kind, where) -> None:
        file = str(self.run.folder / runs.CONFIG)
        value_types.check_like(section, kind, where, file)

    def _check_kind(self, wanted: str, *kinds: str) -> None:
        if self.run.kind not in kinds or self.run.system == runs.FIT:
            raise errors.UserError(
                f"{self.path} is a run of {self.run.system}; this needs {wanted}"
            )


class Published(NamedTuple):
    """A Hugging Face folder, read as `decoder` and `bert` want it."""

    path: str | pathlib.Path

    def tokenizer_path(self) -> pathlib.Path:
        return pathlib.Path(self.path)

    def read_tokenizer(self, given=None) -> tokenizer_lib.Tokenizer:
        if not (given or has_tokenizer(self.tokenizer_path())):
            raise errors.UserError(
                f"{self.path} has no tokenizer; give one with --tokenizer"
            )
        return tokenizer_lib.load(given or self.path)

    def check_decoder(self) -> None:
        config = models.hf.read_config(self.path)
        if not isinstance(config, models.TransformerConfig):
            raise errors.UserError(
                f"{self.path} is an encoder; this needs a language model"
            )
        if self.is_reward:
            raise errors.UserError(
                f"{self.path} is a reward model; this needs a language model"
            )

    @property
    def is_reward(self) -> bool:
        """Whether it scores conversations."""
        config = models.hf.read_config(self.path)
        is_ours = isinstance(config, models.TransformerConfig)
        return is_ours and config.head == "score"

    def read_decoder(self, tokenizer, step, mesh, average=False):
        if average:
            raise errors.UserError(
                f"{self.path} is a Hugging Face folder, it has no --average"
            )
        rows = models.hf.read_config(self.path).vocab
        sections.check_vocab(tokenizer, rows)  # before the weights are read
        return *self._read(step, mesh), None

    def read_bert(self, step, mesh):
        config, weights = self._read(step, mesh)
        if not isinstance(config, models.BertConfig):
            raise errors.UserError(
                f"{self.path} is a language model; this needs an encoder"
            )
        return config, weights

    def read_generation(self) -> dict[str, Any]:
        return generation.read(self.path)

    def tuned_in(self) -> None:
        """Its chat template says that, if anything does."""

    def read_params(self, step, mesh) -> types.Params:
        return self._read(step, mesh)[1]

    def _read(self, step, mesh):
        if step is not None:
            raise errors.UserError(
                f"{self.path} is a Hugging Face folder, it has no --step"
            )
        return models.hf.load(self.path, mesh=mesh)


class Packed(NamedTuple):
    """A GGUF file, read as `decoder` wants it.

    Its tokenizer, in the files of a folder, is kept in the cache under the digest of
    what it was made of.
    """

    path: str | pathlib.Path

    def tokenizer_path(self) -> pathlib.Path:
        try:
            files = gguf_vocabulary.files(gguf.metadata(self.path))
        except errors.UserError as error:
            raise errors.UserError(f"{self.path}: {error}") from None
        digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        folder = paths_lib.cache("gguf", digest[:32])
        if not folder.is_dir():
            with folders.new_folder(folder) as part:
                for name, content in files.items():
                    (part / name).write_bytes(content)
        return folder

    def read_tokenizer(self, given=None) -> tokenizer_lib.Tokenizer:
        return tokenizer_lib.load(given or self.tokenizer_path())

    def check_decoder(self) -> None:
        gguf.read_config(self.path)

    @property
    def is_reward(self) -> bool:
        """None is known."""
        return False

    def read_decoder(self, tokenizer, step, mesh, average=False):
        if average or step is not None:
            asked = "--average" if average else "--step"
            raise errors.UserError(f"{self.path} is a GGUF file, it has no {asked}")
        sections.check_vocab(tokenizer, gguf.read_config(self.path).vocab)
        return *gguf.load(self.path, mesh=mesh), None

    def read_bert(self, step, mesh):
        raise errors.UserError(
            f"{self.path} is a language model; this needs an encoder"
        )

    def read_generation(self) -> dict[str, Any]:
        return gguf_vocabulary.generation(gguf.metadata(self.path))

    def tuned_in(self) -> None:
        """Its chat template says that, if anything does."""

    def read_params(self, step, mesh) -> types.Params:
        return gguf.load(self.path, mesh=mesh)[1]


class Adapted(NamedTuple):
    """A folder of peft, read as the base that it names with the adapter merged."""

    path: str | pathlib.Path

    def base(self) -> "Run | Published | Packed":
        """What its base is.

        Raises:
            UserError: it is not here.
        """
        base = peft.read(self.path).base
        try:
            found = find(base)
            found.check_decoder()
        except errors.UserError as error:
            raise errors.UserError(
                f"{pathlib.Path(self.path) / peft.CONFIG} names the base {base!r}, "
                f"which cannot be read ({error}); set base_model_name_or_path to the "
                "path of its folder"
            ) from None
        if isinstance(found, Adapted):
            raise errors.UserError(f"{self.path} is an adapter of an adapter, {base}")
        return found

    def tokenizer_path(self) -> pathlib.Path:
        own = pathlib.Path(self.path)
        return own if has_tokenizer(own) else self.base().tokenizer_path()

    def read_tokenizer(self, given=None) -> tokenizer_lib.Tokenizer:
        if given is None and has_tokenizer(pathlib.Path(self.path)):
            given = self.path
        return self.base().read_tokenizer(given)

    def check_decoder(self) -> None:
        self.base()

    @property
    def is_reward(self) -> bool:
        """It tunes a language model."""
        return False

    def read_decoder(self, tokenizer, step, mesh, average=False):
        config, params, step = self.base().read_decoder(tokenizer, step, mesh, average)
        return config, peft.merge(peft.read(self.path), config, params), step

    def read_bert(self, step, mesh):
        raise errors.UserError(
            f"{self.path} is an adapter of a language model; this needs an encoder"
        )

    def read_generation(self) -> dict[str, Any]:
        return generation.read(self.path) or self.base().read_generation()

    def tuned_in(self) -> tuple[str, str] | None:
        """What its base was, where it has no chat template of its own."""
        own = tokenizer_files.chat_templates(self.path)
        return None if own else self.base().tuned_in()

    def read_params(self, step, mesh) -> types.Params:
        return self.read_decoder(self.read_tokenizer(), step, mesh)[1]


def has_tokenizer(folder: pathlib.Path) -> bool:
    """Whether a folder has a tokenizer that can be read here."""
    return any((folder / name).is_file() for name in tokenizer_files.MODELS)


_KINDS = {
    Published: "a Hugging Face folder",
    Packed: "a GGUF file",
    Adapted: "an adapter of peft",
}
