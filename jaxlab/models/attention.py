"""Causal, windowed, segment-aware attention.

    attention(q, k, v)_i = sum_j softmax_j(q_i . k_j / sqrt(C) + mask_ij) v_j

Key j is visible to query i iff j <= i (when causal), i - j < window (when the layer
has one; the window counts the query itself), and both are in the same segment.

Implementations, chosen by `TransformerConfig.attention`:
    xla     everywhere; queries in blocks, so that a causal block never touches the
            keys after it: half the FLOPs, and scores that fit a cache.
    cudnn   flash attention on GPU through `jax.nn.dot_product_attention`.
    splash  the Pallas kernel on TPU, under `jax.shard_map`.
Where the mesh has context shards, all but cudnn compute their own part of every row.
Shapes that a kernel does not take (the single short row of `init`, f32 on GPU) run as
`xla`, with a warning when rows are long enough to matter.

Deviation: in bf16 the softmax runs in f32 and its weights are cast to bf16.
"""

import functools
import logging

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib

IMPLEMENTATIONS = ("xla", "cudnn", "splash")
_BLOCK = 128  # queries a block: the smallest at which XLA:CPU matmuls stay efficient
_LANES = 128  # of a TPU: what splash tiles rows by
_MAX_BLOCKS = 8  # keeps the unrolled program small at long lengths

_log = logging.getLogger(__name__)


def default_implementation(platform: str) -> str:
    """The fastest implementation: gpu -> cudnn, tpu -> splash, others -> xla."""
    return {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform, "xla")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    implementation: str,
    is_causal: bool = True,
    window: jax.Array | None = None,
    windows: tuple[int, ...] = (),
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Self-attention of whole rows.

    Args:
        q: [B, L, H, C].
        k, v: [B, L, K, C], K a divisor of H.
        implementation: one of IMPLEMENTATIONS.
        is_causal: False lets every query see every key.
        window: i32[], this layer's window (traced: layers are scanned), or None.
        windows: the distinct window sizes of the model, for kernels with static masks.
        segment_ids: i32[B, L]; only equal ids see each other. None = one segment.

    Returns:
        [B, L, H, C] in q's dtype.
    """
    if implementation not in IMPLEMENTATIONS:
        raise errors.ArgumentError(
            f"attention {implementation!r}; use one of {IMPLEMENTATIONS}"
        )
    mesh, contexts = jax.sharding.get_abstract_mesh(), _contexts(q)
    if implementation == "cudnn" and _can_run("cudnn", _cudnn_refusal(q, contexts)):
        return _cudnn(q, k, v, is_causal, window, segment_ids)
    if implementation == "splash" and _can_run("splash", _splash_refusal(q, contexts)):
        part = functools.partial(_splash, is_causal=is_causal, windows=windows)
        is_whole = mesh.empty
    else:
        part = functools.partial(_attend_in_blocks, is_causal=is_causal)
        is_whole = contexts == 1  # rows and heads are the partitioner's
    if is_whole:
        return part(q, k, v, window, segment_ids)
    return _on_shards(part, contexts, q, k, v, window, segment_ids)


def attend_cache(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array
) -> jax.Array:
    """Attention of new queries q: [B, L, H, C] to cached k, v: [B, S, K, C].

    visible: bool[B, L, S], which cache slots each query sees.
    """
    return _softmax_attention(q, k, v, visible)


def _can_run(name, refusal):
    """True when the kernel takes the shapes; says so when that costs speed."""
    if refusal is not None and refusal[1] >= _BLOCK:
        _log.warning("%s attention runs as xla: %s", name, refusal[0])
    return refusal is None


def _contexts(q):
    """Into how many parts the mesh cuts the rows of q."""
    mesh = jax.sharding.get_abstract_mesh()
    contexts = mesh.shape.get("context", 1)
    if contexts == 1 or q.shape[0] % mesh_lib.batch_shards(mesh):
        return 1
    return 1 if q.shape[1] % contexts else contexts


def _splash_refusal(q, contexts):
    """Why the TPU kernel does not take q, with the rows' length; None = it does."""
    B, L = q.shape[:2]
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh_lib.batch_shards(mesh)
    if L % (_LANES * contexts):
        return f"rows of {L} tokens; use a multiple of {_LANES * contexts}", L
    if B % shards:
        return f"{B} rows on {shards} data shards; use a multiple", L
    return None


def _cudnn_refusal(q, contexts):
    """Why the GPU kernel does not take q, with the rows' length; None = it does."""
    _, L, _, C = q.shape
    if contexts > 1:
        return "its rows are cut by context shards", L
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"activations are {q.dtype}; use bfloat16", L
    if C % 8 or C > 128:
        return f"head_dim {C}; use a multiple of 8 up to 128", L
    if L % 2:
        return f"rows of {L} tokens; use an even number", L
    return None


def _on_shards(part, contexts, q, k, v, window, segment_ids):
    """`part` on every device: of its rows, of its heads, and of its part of a row.

    Keys of the whole row are gathered (they are few where heads share them) and not
    passed around a ring. A part sees keys up to its own end, so that of a causal mask
    the last context shard has twice the average of the work.
    """
    mesh, axes = jax.sharding.get_abstract_mesh(), dict(mesh_lib.RULES)
    heads, length = q.shape[2], q.shape[1] // contexts
    tensor = axes["heads"] if heads % mesh.shape["tensor"] == 0 else None
    if tensor and k.shape[2] % mesh.shape["tensor"]:
        # Fewer kv heads than tensor shards: each query head gets its own copy.
        k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))

    def local(q, k, v, window, segment_ids):
        if contexts == 1:
            return part(q, k, v, window, segment_ids)
        rows = (k, v, segment_ids)
        k, v, segment_ids = jax.tree.map(
            lambda x: jax.lax.all_gather(x, "context", axis=1, tiled=True), rows
        )
        # A program for each part: masks are static.
        parts = [functools.partial(part, first=i * length) for i in range(contexts)]
        index = jax.lax.axis_index("context")
        return jax.lax.switch(index, parts, q, k, v, window, segment_ids)

    along = "context" if contexts > 1 else None
    spec = P(axes["batch"], along, tensor, None)
    ids = None if segment_ids is None else P(axes["batch"], along)
    size = None if window is None else P()
    return jax.shard_map(
        local, in_specs=(spec, spec, spec, size, ids), out_specs=spec, check_vma=False
    )(q, k, v, window, segment_ids)


def _attend_in_blocks(q, k, v, window, segment_ids, is_causal, first=0):
    """Of queries that stand `first` positions after the first key."""
    length, end = k.shape[1], first + q.shape[1]
    block = max(_BLOCK, -(-length // _MAX_BLOCKS))
    if not is_causal:
        block = q.shape[1]
    outputs = []
    for start in range(first, end, block):
        stop = min(start + block, end)
        keys = stop if is_causal else length
        mask = _visible(start, stop, keys, is_causal, window, segment_ids)
        part = q[:, start - first : stop - first]
        outputs.append(_softmax_attention(part, k[:, :keys], v[:, :keys], mask))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _visible(start, stop, keys, is_causal, window, segment_ids):
    """bool[B or 1, stop - start, keys]: which keys each query of a block sees."""
    query = jnp.arange(start, stop)[:, None]
    key = jnp.arange(keys)[None, :]
    mask = jnp.ones((stop - start, keys), bool)
    if is_causal:
        mask &= key <= query
    if window is not None:
        mask &= query - key < window
        if not is_causal:
            mask &= key - query < window
    mask = mask[None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, start:stop, None] == segment_ids[:, None, :keys])
    return mask


def _softmax_attention(q, k, v, mask):
    B, L, H, C = q.shape
    K = k.shape[2]
    # Heads that share keys get an axis of their own, g. Without sharing it would cost
    # XLA:CPU a transpose of the scores: 7 % of a training step.
    scores_of, values_of = "blhc,bshc->bhls", "bhls,bshc->blhc"
    q, mask = q * C**-0.5, mask[:, None]
    if K != H:
        scores_of, values_of = "blkgc,bskc->bkgls", "bkgls,bskc->blkgc"
        q, mask = q.reshape(B, L, K, H // K, C), mask[:, None]
    scores = jnp.einsum(scores_of, q, k, preferred_element_type=jnp.float32)
    # Finite, not -inf: a query that sees nothing (padding) must not become NaN.
    scores = jnp.where(mask, scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum(values_of, weights, v).reshape(B, L, H, C)


def _cudnn(q, k, v, is_causal, window, segment_ids):
    mask = None
    if window is not None or segment_ids is not None:
        L = q.shape[1]
        mask = _visible(0, L, L, False, None, segment_ids)[:, None]
        if window is not None:
            mask = mask & _visible(0, L, L, False, window, None)[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=is_causal, implementation="cudnn"
    )


def _splash(q, k, v, window, segment_ids, is_causal, windows, first=0):
    """The TPU kernel needs static masks, one instance per device, [H, L, C]."""

    def static(size, q, k, v, segment_ids):
        size = size if size is not None and size < k.shape[1] else None
        return _splash_static(q, k, v, is_causal, size, segment_ids, first)

    if window is None:
        return static(None, q, k, v, segment_ids)
    # Layers are scanned: a layer's window is a traced one of a few static numbers.
    branches = [functools.partial(static, size) for size in windows]
    chosen = jnp.argmax(jnp.asarray(windows) == window)
    return jax.lax.switch(chosen, branches, q, k, v, segment_ids)


def _splash_static(q, k, v, is_causal, window, segment_ids, first):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    B, L, H, C = q.shape
    K = k.shape[2]
    if is_causal:  # no query sees what is after the last one
        k, v = k[:, : first + L], v[:, : first + L]
    shape = (L, k.shape[1])
    if window is not None:
        reach = (window - 1, 0 if is_causal else window - 1)
        mask = masks.LocalMask(shape, window_size=reach, offset=first)
    elif is_causal:
        mask = masks.CausalMask(shape, offset=first)
    else:
        mask = masks.FullMask(shape)
    block = next(size for size in (512, 256, _LANES) if L % size == 0)
    blocks = kernel.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * C**-0.5, k, v))
    ids = None
    if segment_ids is not None:
        ids = kernel.SegmentIds(
            segment_ids[:, first : first + L], segment_ids[:, : shape[1]]
        )
    if K == H:
        attend = kernel.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * H), block_sizes=blocks
        )
    else:  # the queries of one key head at a time: keys are not repeated
        one = kernel.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * (H // K)), block_sizes=blocks
        )
        attend = jax.vmap(one, in_axes=(0, 0, 0, None))
        q = q.reshape(B, K, H // K, L, C)
    out = jax.vmap(attend)(q, k, v, ids)
    return jnp.swapaxes(out.reshape(B, H, L, C), 1, 2)
