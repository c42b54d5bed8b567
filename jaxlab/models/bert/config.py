"""What distinguishes one published encoder from another: `BertConfig`.

bert          BERT, MiniLM, E5, BGE, ...: positions count from 0, two token types
roberta       positions count from pad_id + 1, as fairseq has it
xlm-roberta   the same under another name
"""

import dataclasses
from typing import Any, ClassVar

import jax

from jaxlab.core import errors, value_types
from jaxlab.models import attention

FAMILIES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
HEADS = ("none", "pooler", "score")
POOLINGS = ("mean", "cls", "none")
SIMILARITIES = ("dot", "cosine", "euclidean", "manhattan")

_CHOICES = {
    "family": tuple(FAMILIES),
    "head": HEADS,
    "pooling": POOLINGS,
    "similarity": SIMILARITIES,
    "dtype": ("float32", "bfloat16", "float16"),
    "attention": ("auto", *attention.IMPLEMENTATIONS),
    "remat": ("none", "full", "dots"),
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """What distinguishes one encoder from another. Sizes use the house's legend.

    Attributes:
        vocab: rows of the word embedding.
        length: longest row that there are positions for.
        token_types: rows of the token-type embedding.
        family: one of FAMILIES; decides positions, and names in published files.
        head: what the parameters hold beyond the encoder: "none", BERT's "pooler"
            (tanh layer on the first token), or "score" (pooler and linear labels).
        labels: names of what `BertScorer` scores; one is a cross-encoder.
        pooling: "mean" of the real tokens, "cls" (the first token), "none".
        normalize: vectors are divided by their L2 norm.
        row_length: where sentence-transformers cuts texts; None = `length`.
        query_prefix, document_prefix: put before texts that ask, and that are found.
        lower_case: texts are lower-cased before they are tokenized.
        similarity: by which vectors are to be compared; see `for_search`.
        truncate: vectors keep their first so many numbers; None keeps all.
        norm_epsilon: added to the variance in LayerNorm.
        pad_id: RoBERTa counts positions over the tokens that are not this one.
        initializer_std: of every matrix, a normal cut at 2 std.
        dtype: of activations and of matmul operands; parameters stay f32.
        attention: "auto", or one of `attention.IMPLEMENTATIONS`.
        remat: what the backward pass recomputes: "none", "full" (all), "dots" (all but
            matmul outputs).
        scan: layers as a `lax.scan` (fast to compile) or unrolled.
        FREE: fields that change no number, but in rounding: how it is computed.
        OF_TEXTS: fields that say how texts become vectors that can be compared. Runs
            and indices write down those alone that are not the default.
    """

    FREE: ClassVar[tuple[str, ...]] = ("dtype", "attention", "remat", "scan")
    OF_TEXTS: ClassVar[tuple[str, ...]] = (
        "query_prefix", "document_prefix", "lower_case", "similarity", "truncate",
    )  # fmt: skip

    vocab: int
    embed: int
    layers: int
    heads: int
    mlp: int
    length: int = 512
    token_types: int = 2
    family: str = "bert"
    head: str = "none"
    labels: tuple[str, ...] = ("LABEL_0",)
    pooling: str = "mean"
    normalize: bool = False
    row_length: int | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    lower_case: bool = False
    similarity: str = "dot"
    truncate: int | None = None
    norm_epsilon: float = 1e-12
    pad_id: int = 0
    initializer_std: float = 0.02
    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"
    scan: bool = True

    def __post_init__(self):
        """Refuses what does not fit together."""
        sizes = ("vocab", "embed", "heads", "mlp", "length")
        kinds = dict.fromkeys(sizes, value_types.SIZE)
        value_types.check_fields(self, kinds | {"layers": value_types.LAYERS})
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "row_length", self.row_length or self.length)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise errors.ArgumentError(
                    f"{name} {getattr(self, name)!r}; use one of {choices}"
                )
        if self.embed % self.heads:
            raise errors.ArgumentError(
                f"embed {self.embed} is not a multiple of {self.heads} heads"
            )
        if self.row_length > self.length:
            raise errors.ArgumentError(
                f"row_length {self.row_length} is beyond the {self.length} positions"
            )
        if not self.labels:
            raise errors.ArgumentError("labels is empty; a cross-encoder has one")

    @property
    def for_search(self) -> "BertConfig":
        """The config of vectors whose inner products are the similarity.

        Raises:
            ArgumentError: a similarity that inner products do not give.
        """
        if self.similarity not in ("dot", "cosine"):
            raise errors.ArgumentError(
                f"vectors of this encoder are compared by their {self.similarity} "
                "distance; a search here is by inner product or cosine"
            )
        normalize = self.normalize or self.similarity == "cosine"
        return dataclasses.replace(self, normalize=normalize)

    @property
    def of_texts(self) -> dict[str, Any]:
        """The fields of OF_TEXTS that are not the default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in self.OF_TEXTS}
        return {name: x for name, x in values.items() if x != defaults[name]}

    def query(self, text: str) -> str:
        """A query as the tokenizer shall read it."""
        return self._set_case(self.query_prefix + text)

    def document(self, text: str) -> str:
        """A document as the tokenizer shall read it."""
        return self._set_case(self.document_prefix + text)

    def _set_case(self, text: str) -> str:
        return text.lower() if self.lower_case else text

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token gets."""
        return 0 if self.family == "bert" else self.pad_id + 1

    @property
    def implementation(self) -> str:
        """Of attention, with "auto" settled for this platform."""
        if self.attention != "auto":
            return self.attention
        return attention.default_implementation(jax.default_backend())
