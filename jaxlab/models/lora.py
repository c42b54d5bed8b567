"""Low-rank adapters: y = x W + s (drop(x) A) B, where only A and B are trained.

    s = alpha / r                   Hu et al. 2021, arXiv:2106.09685
    s = alpha / sqrt(r)             with rsLoRA, Kalajdzievski 2023, arXiv:2312.03732
    A ~ uniform(-1/sqrt(inputs), 1/sqrt(inputs)), B = 0     so it begins as the base

W + s A B is never formed: its gradient would cost what full fine-tuning costs. The base
is read and not updated; it has neither a gradient nor an optimizer state.

The tree of an adapter is the base's, with {"a": [layers, inputs, r], "b": [layers, r,
outputs]} where a matrix of `targets` has its kernel. Whoever trains one calls
`Adapted`, whose parameters are {"base": collections of the base, "lora": the tree} and,
where activations are dropped, "key"; without "lora" it is the base.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlab.core import errors, mesh, ranges, tree, types, value_types
from jaxlab.models import nf4

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
KEPT_IN = ("compute", "float32", "nf4")
_ROOMS = {name: "attn" if name in "qkvo" else "mlp" for name in MATRICES}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What an adapter is.

    Attributes:
        rank: r, of every matrix.
        alpha: scales what the adapter adds.
        dropout: share of the activations before A that a training step drops.
        targets: which matrices of a block have one, of MATRICES.
        rank_stabilized: divide by sqrt(r) and not by r.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = MATRICES
    rank_stabilized: bool = False

    def __post_init__(self):
        """Refuses what cannot be computed."""
        object.__setattr__(self, "targets", tuple(self.targets))
        value_types.check_fields(self, {"rank": value_types.SIZE})
        ranges.check("adapter.", vars(self), _RANGES)
        if not self.targets or set(self.targets) - set(MATRICES):
            raise errors.ArgumentError(
                f"adapter.targets {self.targets}; use some of {', '.join(MATRICES)}"
            )

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "LoraConfig | None":
        """Of the section `adapter` of a run's config; None where its rank is 0."""
        if not section or not section["rank"]:
            return None
        fields = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: section[name] for name in fields})

    @property
    def scale(self) -> float:
        """s, by which (x A) B is multiplied."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


_RANGES = {"alpha": ranges.ABOVE_0, "dropout": ranges.SHARE}


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A module with adapters, called as the module is.

    >>> from jaxlab import models
    >>> sizes = dict(vocab=96, embed=32, layers=2, heads=2, mlp=64)
    >>> decoder = models.Decoder(models.TransformerConfig(**sizes))
    >>> model = Adapted(decoder, LoraConfig(rank=4))
    >>> tokens = jnp.zeros((1, 8), jnp.int32)
    >>> lora = nn.unbox(model.init(jax.random.key(0), tokens)["params"])
    >>> lora["blocks"]["mlp"]["up"]["b"].shape
    (2, 4, 64)
    >>> base = nn.unbox(decoder.init(jax.random.key(0), tokens))
    >>> model.apply({"params": {"base": base, "lora": lora}}, tokens).shape
    (1, 8, 96)
    """

    module: nn.Module
    lora: LoraConfig

    @property
    def config(self) -> Any:
        """Of the module."""
        return self.module.config

    def init(self, key: jax.Array, *example: Any) -> dict[str, Any]:
        """{"params": the adapter's tree, with logical axes}; the base is not made."""
        boxed = jax.eval_shape(self.module.init, key, *example)["params"]
        made: dict[str, Any] = {}
        for i, name in enumerate(self.lora.targets):
            kernel = boxed["blocks"][_ROOMS[name]][name]["kernel"]
            room = made.setdefault("blocks", {}).setdefault(_ROOMS[name], {})
            room[name] = _pair(self.lora, jax.random.fold_in(key, i), kernel)
        return {"params": made}

    def apply(self, variables: dict[str, Any], *args: Any, **options: Any) -> Any:
        """As `module.apply`, of {"params": {"base": ..., "lora": ...}}."""
        params = variables["params"]
        if "lora" not in params:
            return self.module.apply(params["base"], *args, **options)
        lora, rngs = self._with_scale(params), {}
        if "key" in params:
            rngs = {"rngs": {"dropout": params["key"]}}
        return self.module.apply(
            {**params["base"], "lora": lora}, *args, **options, **rngs
        )

    def flops_per_token(self, length: int) -> float:
        """The config's, without the gradients of the base's matrices: a third of them.

        The adapter's own are left out; they are r (inputs + outputs) of inputs outputs.
        """
        whole, c = self.config.flops_per_token(length), self.config
        attend = 12 * c.layers * c.heads * c.head_dim * length
        return attend + (whole - attend) * 2 / 3

    def _with_scale(self, params):
        """The tree, where B has the scale and, where `key` says so, the dropout."""
        rate = self.lora.dropout if "key" in params else 0.0

        def multiply(pair):
            more = {"rate": jnp.full(len(pair["b"]), rate)} if rate else {}
            return {"a": pair["a"], "b": pair["b"] * self.lora.scale, **more}

        return jax.tree.map(multiply, params["lora"], is_leaf=is_pair)


def is_pair(node: Any) -> bool:
    """Whether a node of an adapter's tree is a pair of matrices."""
    return isinstance(node, dict) and set(node) == {"a", "b"}


def add(y: jax.Array, x: jax.Array, kernel: nn.Module) -> jax.Array:
    """y + (drop(x) A) B with the pair of a bound `blocks.Kernel`; y where it has none.

    Args:
        y: [T, outputs], x times the kernel.
        x: [T, inputs].
        kernel: whose scope has the pair in the collection "lora".
    """
    if not kernel.has_variable("lora", "a"):
        return y
    a, b = (kernel.get_variable("lora", name).astype(x.dtype) for name in ("a", "b"))
    if kernel.has_variable("lora", "rate"):
        rate = kernel.get_variable("lora", "rate")
        keep = jax.random.bernoulli(kernel.make_rng("dropout"), 1 - rate, x.shape)
        x = jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)
    inputs, outputs = kernel.axes
    low = jnp.dot(x, mesh.gather_fsdp(a, inputs, "features"))
    return y + jnp.dot(low, mesh.gather_fsdp(b, "features", outputs))


def freeze(
    module: nn.Module,
    params: types.Params,
    kept_in: str,
    on: jax.sharding.Mesh | None = None,
) -> dict[str, Any]:
    """The collections of a base that no update reaches.

    Args:
        module: of the base.
        params: its parameters, f32.
        kept_in: the matrices of its blocks are kept in the dtype that they are
            "compute"d in, which changes no number; in "float32"; or in "nf4".
        on: the mesh where they lie.

    Raises:
        ArgumentError: an unknown `kept_in`, or matrices that nf4 does not pack.
    """
    if kept_in not in KEPT_IN:
        raise errors.ArgumentError(
            f"adapter.base {kept_in!r}; use one of {', '.join(KEPT_IN)}"
        )
    packed: dict[str, Any] = {}

    def keep(path, node):
        if not isinstance(node, dict):
            return node
        if path[:1] != ("blocks",) or "kernel" not in node:
            return {name: keep((*path, name), value) for name, value in node.items()}
        kernel = node["kernel"]
        if kept_in == "nf4":
            room = packed
            for name in path:
                room = room.setdefault(name, {})
            room["kernel"] = _pack(kernel, shardings and shardings[path])
            return {}
        wanted = module.config.dtype if kept_in == "compute" else "float32"
        return {**node, "kernel": kernel.astype(wanted)}

    shardings = (
        None if on is None or kept_in != "nf4" else _packed_shardings(module, on)
    )
    kept = keep((), params)
    return {"params": kept, "nf4": packed} if packed else {"params": kept}


def abstract_base(
    module: nn.Module, kept_in: str, on: jax.sharding.Mesh
) -> dict[str, Any]:
    """Shapes and shardings of what `freeze` returns, without computing anything."""
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    boxed = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
    shapes = jax.eval_shape(lambda p: freeze(module, p, kept_in), mesh.unbox(boxed))
    of_params = tree.flatten(mesh.param_shardings(boxed, on))
    of_packed = _packed_shardings(module, on) if kept_in == "nf4" else {}
    places = {f"params/{path}": sharding for path, sharding in of_params.items()}
    places |= {
        f"nf4/{'/'.join(path)}/kernel/{name}": sharding
        for path, parts in of_packed.items()
        for name, sharding in parts.items()
    }

    def place(path, leaf):
        sharding = places[tree.path_name(path)]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def round_to_nf4(params: types.Params) -> types.Params:
    """Parameters whose blocks' matrices have the values that NF4 keeps of them."""

    def turn(node):
        if not isinstance(node, dict):
            return node
        if "kernel" in node:
            return {**node, "kernel": _unpack(_pack(node["kernel"], None))}
        return {name: turn(value) for name, value in node.items()}

    return {**params, "blocks": turn(params["blocks"])}


def _pack(kernel, shardings):
    pack = _pack_layers
    if shardings is not None:
        pack = jax.jit(_pack_layers, out_shardings=shardings)
    return pack(kernel)


@jax.jit
def _pack_layers(kernel):
    return jax.lax.map(nf4.pack, kernel)  # one by one: the codes take memory


@jax.jit
def _unpack(packed):
    return jax.lax.map(nf4.unpack, packed)


def _packed_shardings(module, on):
    """Path -> shardings of what `_pack` makes of the kernel there."""
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    boxed = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
    found = {}
    for room, matrices in boxed["blocks"].items():
        for name, node in matrices.items():
            if isinstance(node, dict) and "kernel" in node:
                box = node["kernel"]
                layers, inputs, outputs = box.names
                shapes = jax.eval_shape(_pack_layers, box.value)
                names = {
                    "codes": (layers, outputs, inputs),
                    "absmax": (layers, outputs, "features"),
                    "scale": (layers, "features"),
                    "offset": (layers,),
                }
                boxes = {
                    key: nn.LogicallyPartitioned(shape, names[key])
                    for key, shape in shapes.items()
                }
                found["blocks", room, name] = mesh.param_shardings(boxes, on)
    return found


def merge(params: types.Params, lora: types.Params, config: LoraConfig) -> types.Params:
    """The base with s A B added to its matrices: a model without adapters.

    Args:
        params: of the base.
        lora: the adapter's tree.
        config: the adapter's.
    """

    def join(base, pair):
        if not isinstance(base, dict):
            return base
        if is_pair(pair):
            return {**base, "kernel": _merge(base["kernel"], pair, config.scale)}
        return {
            name: join(value, pair[name]) if name in pair else value
            for name, value in base.items()
        }

    return join(params, lora)


@jax.jit
def _merge(kernel, pair, scale):
    product = jnp.matmul(pair["a"], pair["b"], precision="highest")
    return (kernel + scale * product).astype(kernel.dtype)


def _pair(config, key, kernel):
    """A and B beside a boxed kernel [layers, inputs, outputs]."""
    layers, inputs, outputs = kernel.value.shape
    of_layers, of_inputs, of_outputs = kernel.names
    bound = inputs**-0.5

    def draw(key, shape):
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    a = mesh.logical(draw, of_layers, of_inputs, "features")
    b = mesh.logical(
        lambda _, shape: jnp.zeros(shape), of_layers, "features", of_outputs
    )
    return {
        "a": a(key, (layers, inputs, config.rank)),
        "b": b(key, (layers, config.rank, outputs)),
    }
