"""Losses of pairs against trl's own method, on answers that no file has."""

import collections
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import objectives

B, L = 6, 11
SETTINGS = [
    {"loss": "sigmoid", "beta": 0.3},
    {"loss": "sigmoid", "divergence": "forward_kl"},
    {"loss": "hinge", "divergence": "js"},
    {"loss": "exo_pair", "label_smoothing": 0.2},
    {"loss": "discopop", "temperature": 0.3, "divergence": "alpha"},
    {"loss": "aot", "label_smoothing": 0.3},
    {"loss": "aot_unpaired", "tail_weight": 0.25},
    {"loss": "sigmoid_norm", "beta": 2.0, "tail_weight": 0.75},
    {"loss": "ipo", "divergence": "alpha", "divergence_alpha": 2.0},
    {"loss": "0.8*sigmoid + 0.2*bco_pair + sft", "beta": 0.2},
    {"loss": "nca_pair + 0.5*apo_down + 0.1*sppo_hard + apo_zero"},
]


def draw(seed):
    """(policy and reference log-probabilities, labels), each [2 B, L], chosen first."""
    random = np.random.default_rng(seed)
    mask = np.zeros((2 * B, L), np.float32)
    for row in mask:
        first = random.integers(0, 6)
        row[first : first + random.integers(1, 6)] = 1
    policy, reference = -random.exponential(1.5, (2, 2 * B, L)) * mask
    return policy.astype(np.float32), reference.astype(np.float32), mask


def weigh(mask, tail):
    sizes = mask.sum(1)
    shared = np.minimum(sizes[:B], sizes[B:])[np.r_[:B, :B]]
    return mask * np.where(np.cumsum(mask, axis=1) > shared[:, None], tail, 1.0)


def theirs(trl, torch, policy, reference, mask, settings):
    """The loss and its gradient by trl."""
    settings = {"beta": 0.1, "label_smoothing": 0.0, **settings}
    terms = [term.strip().rpartition("*") for term in settings["loss"].split("+")]
    tail = settings.get("tail_weight", 1.0)
    kinds = {"js": "js_divergence", "alpha": "alpha_divergence", None: "reverse_kl"}
    divergence = settings.get("divergence")
    device = types.SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=True), accelerator=device,
        aux_loss_enabled=False, precompute_ref_logps=True, use_weighting=False,
        ld_alpha=None if tail == 1 else tail,
        f_divergence_type=kinds.get(divergence, divergence),
        f_alpha_divergence_coef=settings.get("divergence_alpha", 0.5),
        beta=settings["beta"], label_smoothing=settings["label_smoothing"],
        loss_types=[name for *_, name in terms],
        loss_weights=[float(weight or 1) for weight, *_ in terms],
        args=types.SimpleNamespace(discopop_tau=settings.get("temperature", 0.05)),
        _metrics={"train": collections.defaultdict(list)}, _total_train_tokens=0,
        _tp_size=1,
    )  # fmt: skip
    logps = torch.tensor(policy, requires_grad=True)
    fake = torch.zeros(2 * B, L)
    outputs = types.SimpleNamespace(
        log_probs=logps, entropy=fake, mean_logits=fake, is_top1=fake.bool()
    )
    sums = torch.tensor((reference * weigh(mask, tail)).sum(1)).float()
    whole = torch.tensor(np.pad(mask, ((0, 0), (1, 0)))).long()
    inputs = {
        "input_ids": torch.zeros_like(whole), "attention_mask": torch.ones_like(whole),
        "completion_mask": whole, "ref_chosen_logps": sums[:B],
        "ref_rejected_logps": sums[B:],
    }  # fmt: skip
    method = trl.DPOTrainer._compute_loss
    loss = method(trainer, lambda **_: outputs, inputs, return_outputs=False)
    loss.backward()
    return float(loss.detach()), logps.grad.numpy() * mask


@pytest.mark.oracle
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda x: x["loss"].split()[0])
def test_losses_are_those_of_trl(settings):
    torch, trl = pytest.importorskip("torch"), pytest.importorskip("trl")
    for seed in range(3):
        policy, reference, mask = draw(seed)
        loss, gradient = theirs(trl, torch, policy, reference, mask, settings)
        order = [*itertools.chain(*((i, i + B) for i in range(B)))]  # pairs together
        tail = settings.get("tail_weight", 1.0)
        labels = np.pad(mask, ((0, 0), (1, 0)))[order].reshape(B, 2, L + 1)
        known = (reference * weigh(mask, tail)).sum(1)[order].reshape(B, 2)
        batch = {
            "tokens": jnp.zeros((B, 2, L + 1), int),
            "loss_mask": jnp.asarray(labels),
            "reference_logps": jnp.asarray(known, jnp.float32),
        }

        def apply(variables, tokens, targets, method):
            return jnp.pad(variables["params"], ((0, 0), (0, 1))), None

        objective = objectives.preference(apply, **settings)

        def mean(logps, objective=objective, batch=batch):
            found = objective(logps, batch, key=None, frozen=None)
            return found.total / found.weight

        found, slope = jax.value_and_grad(mean)(jnp.asarray(policy[order]))
        assert float(found) == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(slope, gradient[order], rtol=2e-4, atol=1e-6)
