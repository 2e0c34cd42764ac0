"""Methods of reparametrised weights: outputs and gradients of PEFT, or of the paper's equation where PEFT has none."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual.backbones.backbone import Backbone
from continual.backbones.sites import table_place
from continual.deltas import METHODS, Delta, average_deltas, init_values, iterate_edits, regularization_loss
from continual.deltas.methods.ada_lora import AdaLoRA
from continual.deltas.methods.fourier_ft import FourierFT
from continual.deltas.methods.tiny_lora_forms import draw_cores
from continual.deltas.methods.truncated_svd import truncated_svd
from continual.deltas.methods.vera_forms import ScaledRandomProjections, shared_projection
from tests.helpers.parity import (
    Owner,
    assert_same,
    batch_of,
    module_names,
    through_delta,
    through_equation,
    through_parameters,
    through_weights,
    whole,
    with_weights,
    written_out,
)
from tests.helpers.tiny_tasks import perturbed_delta, tiny_backbone

peft: Any = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:Token type ids are not supported", "ignore:Invalid `oft_block_size`")

CPU = torch.device("cpu")
# Sites whose modules have no further parts, of 32 and 48 inputs or outputs.
SITES = {
    "bert": ("attn.q", "ffn.in", "ffn.out"),
    "gpt2": ("attn.out", "ffn.in", "ffn.out"),
    "llama": ("attn.q", "ffn.in", "ffn.out"),
}


def flat(parameter: Tensor) -> Owner:
    return parameter, lambda tensor: tensor.view(-1)


Modules = Mapping[str, Any]  # PEFT's modules by the prefix of the delta's values


def wrapped(backbone: Backbone, sites: tuple[str, ...], config: Callable[..., Any]) -> tuple[Any, Modules]:
    """Return PEFT's model of a configuration, and its modules by place and number of the edit."""
    names = {f"{p}/{n}": name for n, site in enumerate(sites) for p, name in module_names(backbone, site).items()}
    model = peft.get_peft_model(deepcopy(backbone.model), config(target_modules=list(names.values()))).eval()
    return model, {prefix: model.base_model.model.get_submodule(name) for prefix, name in names.items()}


def assert_pefts(backbone: Backbone, delta: Delta, model: Any, owners: Mapping[str, Owner]) -> None:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == sum(value.numel() for value in delta.values.values())

    def hidden() -> Tensor:
        states: Tensor = model(**batch_of(backbone)).last_hidden_state
        return states

    assert_same(through_delta(backbone, delta), through_parameters(backbone, hidden, owners, delta))


def owners_of(modules: Modules, values: Mapping[str, Callable[[Any], Any]]) -> dict[str, Owner]:
    """Return the parameters that hold the values of each place, by key; `values` take them from a module, by name."""
    owners = {f"{prefix}/{name}": take(module) for prefix, module in modules.items() for name, take in values.items()}
    return {key: owner if isinstance(owner, tuple) else whole(owner) for key, owner in owners.items()}


@pytest.fixture(params=SITES)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_ada_lora_equals_pefts(kind: str) -> None:
    backbone, sites = tiny_backbone(kind), SITES[kind]
    delta = perturbed_delta(backbone, "ada_lora", rank=4, alpha=6.0, sites=sites)
    model, modules = wrapped(
        backbone,
        sites,
        lambda **names: peft.AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=6, total_step=10, fan_in_fan_out=kind == "gpt2", **names
        ),
    )
    parameters = {
        "left": lambda module: module.lora_B["default"],
        "sizes": lambda module: flat(module.lora_E["default"]),
        "right": lambda module: module.lora_A["default"],
    }
    assert_pefts(backbone, delta, model, owners_of(modules, parameters))


def test_vera_equals_pefts(kind: str) -> None:
    """Compare at modules of 32 inputs: PEFT scales all by the most inputs, and VeRA each by its own."""
    backbone, sites = tiny_backbone(kind), SITES[kind][:2]
    delta = perturbed_delta(backbone, "vera", rank=6, sites=sites)
    model, modules = wrapped(
        backbone, sites, lambda **names: peft.VeraConfig(r=6, fan_in_fan_out=kind == "gpt2", **names)
    )
    widest = next(place for place in backbone.modules_at("ffn.in"))
    projections = ScaledRandomProjections(6, 0.1, 0).projections(widest.d_in, widest.d_out, CPU)
    for module in modules.values():
        for buffer, projection in zip((module.vera_A, module.vera_B), projections, strict=True):
            assert buffer["default"].shape == projection.shape
            assert projection.abs().max() <= buffer["default"].abs().max() * 1.1, "the same bound"
            buffer["default"] = projection
    parameters = {
        "d": lambda module: module.vera_lambda_d["default"],
        "b": lambda module: module.vera_lambda_b["default"],
    }
    assert_pefts(backbone, delta, model, owners_of(modules, parameters))


def test_all_places_share_veras_projections() -> None:
    small, large = (shared_projection(size, 5, "0/A", CPU) for size in (3, 8))
    assert torch.equal(small, large[:3])
    assert not torch.equal(shared_projection(3, 5, "1/A", CPU), small)


@pytest.mark.parametrize("rank", [3, 17])  # a product of factors, and one of matrices
@pytest.mark.parametrize("kind", ["bert", "llama"])  # PEFT has it for linear layers alone
def test_loha_equals_pefts(kind: str, rank: int) -> None:
    backbone, sites = tiny_backbone(kind), SITES[kind]
    delta = perturbed_delta(backbone, "loha", rank=rank, alpha=6.0, sites=sites)
    model, modules = wrapped(backbone, sites, lambda **names: peft.LoHaConfig(r=rank, alpha=6, **names))
    parameters = {
        "B1": lambda module: module.hada_w1_a["default"],
        "A1": lambda module: module.hada_w1_b["default"],
        "B2": lambda module: module.hada_w2_a["default"],
        "A2": lambda module: module.hada_w2_b["default"],
    }
    assert_pefts(backbone, delta, model, owners_of(modules, parameters))


LOKR = [
    {"rank": 2},
    {"rank": 6},  # a second factor of full rank
    {"rank": 1, "decompose_both": True},
    {"rank": 2, "factor": 2},
    {"rank": 2, "factor": 5},
    {"rank": 2, "factor": 16},
]
LOKR_NAMES = {"K1": "w1", "K1_B": "w1_a", "K1_A": "w1_b", "K2": "w2", "K2_B": "w2_a", "K2_A": "w2_b"}


@pytest.mark.parametrize("settings", LOKR, ids=str)
@pytest.mark.parametrize("kind", ["bert", "llama"])  # PEFT has it for linear layers alone
def test_lokr_equals_pefts(kind: str, settings: dict[str, Any]) -> None:
    backbone, sites = tiny_backbone(kind), SITES[kind]
    delta = perturbed_delta(backbone, "lokr", alpha=6.0, sites=sites, **settings)
    factor, both = settings.get("factor", -1), settings.get("decompose_both", False)
    model, modules = wrapped(
        backbone,
        sites,
        lambda **names: peft.LoKrConfig(
            r=settings["rank"], alpha=6, decompose_factor=factor, decompose_both=both, **names
        ),
    )
    owners: dict[str, Owner] = {}
    for key in delta.values:
        prefix, _, name = key.rpartition("/")
        owners[key] = whole(getattr(modules[prefix], f"lokr_{LOKR_NAMES[name]}")["default"])
    assert_pefts(backbone, delta, model, owners)


@pytest.mark.parametrize("block_size", [8, 20])  # 20 divides neither 32 nor 48
@pytest.mark.parametrize("kind", ["bert", "llama"])  # PEFT has it for linear layers alone
def test_oft_equals_pefts(kind: str, block_size: int) -> None:
    backbone, sites = tiny_backbone(kind), SITES[kind]
    delta = perturbed_delta(backbone, "oft", block_size=block_size, sites=sites)
    model, modules = wrapped(
        backbone,
        sites,
        lambda **names: peft.OFTConfig(r=0, oft_block_size=block_size, use_cayley_neumann=False, **names),
    )
    assert_pefts(backbone, delta, model, owners_of(modules, {"skew": lambda module: module.oft_R["default"].weight}))


def test_fourier_ft_equals_pefts(kind: str) -> None:
    backbone, sites = tiny_backbone(kind), SITES[kind]
    delta = perturbed_delta(backbone, "fourier_ft", frequencies=20, scale=30.0, sites=sites)
    model, modules = wrapped(
        backbone,
        sites,
        lambda **names: peft.FourierFTConfig(n_frequency=20, scaling=30.0, fan_in_fan_out=kind == "gpt2", **names),
    )
    parameters = {"spectrum": lambda module: module.fourierft_spectrum["default"]}
    assert_pefts(backbone, delta, model, owners_of(modules, parameters))


def test_a_fourier_spectrum_can_start_as_in_the_paper(bert: Backbone) -> None:
    method = FourierFT(initial_scale=1.0)
    assert method.identity == "none"
    drawn = torch.cat([*init_values(bert, method, seed=0).values()])
    assert drawn.std().item() == pytest.approx(1, rel=0.05)


def test_tiny_lora_equals_pefts(kind: str) -> None:
    backbone, sites = tiny_backbone(kind), SITES[kind][2:]
    delta = perturbed_delta(backbone, "tiny_lora", rank=3, dimension=7, sites=sites)
    model, modules = wrapped(
        backbone,
        sites,
        lambda **names: peft.TinyLoraConfig(r=3, u=7, weight_tying=1.0, fan_in_fan_out=kind == "gpt2", **names),
    )
    for place in backbone.modules_at(sites[0]):
        module = modules[f"{place.name}/0"]
        left, sizes, right = truncated_svd(place, 3, CPU)
        factors = {"tinylora_A": sizes.sqrt()[:, None] * right, "tinylora_B": left * sizes.sqrt()}
        for name, factor in factors.items():
            buffer = getattr(module, name)
            torch.testing.assert_close(factor.abs(), buffer["default"].abs(), rtol=1e-3, atol=1e-4)
            buffer["default"] = factor  # PEFT's vectors may have the other sign
        cores = draw_cores(7, 3, f"42/{place.name}", CPU)
        assert module.tinylora_P["default"].shape == cores.shape
        module.tinylora_P["default"] = cores
    (v,) = model.base_model.tinylora_v["default"].values()
    assert_pefts(backbone, delta, model, {"shared/0/v": whole(v)})


def skew_symmetric(entries: Tensor, size: int) -> Tensor:
    """Return Q [..., K, K] of its entries above the diagonal, row by row."""
    q = torch.zeros(*entries.shape[:-1], size, size)
    for number, (row, column) in enumerate((i, j) for i in range(size) for j in range(i + 1, size)):
        q[..., row, column], q[..., column, row] = entries[..., number], -entries[..., number]
    return q


@pytest.mark.parametrize("kind", ["bert", "llama"])  # PEFT has it for linear layers alone
def test_boft_of_one_factor_equals_pefts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare outputs: PEFT trains all entries of Q, of which the difference from the transpose counts.

    Without its CUDA extension it has one factor only.
    """
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", lambda: None)
    backbone, sites = tiny_backbone(kind), SITES[kind]
    delta = perturbed_delta(backbone, "boft", block_size=4, factors=1, sites=sites)
    model, modules = wrapped(
        backbone,
        sites,
        lambda **names: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, **names),
    )
    with torch.no_grad():
        for prefix, module in modules.items():
            module.boft_R["default"].copy_(skew_symmetric(delta.values[f"{prefix}/skew"], 4))
            module.boft_s["default"].copy_(delta.values[f"{prefix}/gain"][:, None])
        mask = batch_of(backbone)["attention_mask"].unsqueeze(-1)
        expected = model(**batch_of(backbone)).last_hidden_state * mask
    torch.testing.assert_close(through_delta(backbone, delta)[0], expected, rtol=1e-4, atol=2e-5)


def butterfly(size: int, block_size: int, factor: int) -> Tensor:
    """Return PEFT's permutation matrix P [D, D] of a factor, counted from 0, of more than one."""
    layer = peft.tuners.boft.layer.Linear
    order = layer.block_butterfly_perm(None, size, size // block_size >> factor, block_size // 2, 1)
    matrix: Tensor = layer.perm2mat(None, order)
    return matrix


def boft_weights(backbone: Backbone, values: Mapping[str, Tensor], *, factors: int, size: int) -> dict[str, Tensor]:
    """Compute g ⊙ (W Rᵀ), R the product of P_m diag(blocks) P_mᵀ, the last factor leftmost."""
    changed = {}
    for place, module in module_names(backbone, "ffn.in").items():
        weight, rotation = backbone.model.get_parameter(f"{module}.weight"), torch.eye(32)
        for factor in range(factors):
            q = skew_symmetric(values[f"{place}/0/skew"][factor], size)
            blocks = torch.block_diag(  # type: ignore[no-untyped-call]
                *((torch.eye(size) - q) @ torch.linalg.inv(torch.eye(size) + q))
            )
            p = butterfly(32, size, factor)
            rotation = p @ blocks @ p.T @ rotation
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(32), rtol=1e-4, atol=1e-4)
        changed[f"{module}.weight"] = values[f"{place}/0/gain"][:, None] * (weight @ rotation.T)
    return changed


def test_boft_equals_its_equation(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "boft", block_size=4, factors=3, sites=("ffn.in",))
    expected = through_weights(bert, delta, lambda values: boft_weights(bert, values, factors=3, size=4))
    assert_same(through_delta(bert, delta), expected)


def singular_vectors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U_R [E, R], the singular values [R] and V_Rᵀ [R, D]; of a right vector the largest entry is positive."""
    left, sizes, right = (part.float() for part in torch.linalg.svd(weight.double(), full_matrices=False))
    signs = torch.stack([row[row.abs().argmax()].sign() for row in right])
    return (left * signs)[:, :rank], sizes[:rank], (right * signs[:, None])[:rank]


def lora_xs_weights(backbone: Backbone, values: Mapping[str, Tensor], sites: tuple[str, ...]) -> dict[str, Tensor]:
    """Compute W + s U C Σ Vᵀ."""
    changed = {}
    for number, site in enumerate(sites):
        for place, module in module_names(backbone, site).items():
            weight = backbone.model.get_parameter(f"{module}.weight")
            left, sizes, right = singular_vectors(weight, 24)
            core = values[f"{place}/{number}/core"]
            changed[f"{module}.weight"] = weight + 6 / 24 * left @ core @ torch.diag(sizes) @ right
    return changed


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_lora_xs_equals_its_equation(kind: str) -> None:
    backbone, sites = tiny_backbone(kind), SITES[kind]
    delta = perturbed_delta(backbone, "lora_xs", rank=24, alpha=6.0, sites=sites)
    expected = through_weights(backbone, delta, lambda values: lora_xs_weights(backbone, values, sites))
    assert_same(through_delta(backbone, delta), expected)


@pytest.mark.parametrize("shape", [(200, 120), (120, 200)])
def test_the_largest_singular_values_are_those_of_the_whole_decomposition(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(shape[1], shape[0], bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.randn(shape, generator=generator) * 0.97 ** torch.arange(shape[1]))
    actual = truncated_svd(table_place("table", module, num_layers=1), 8, CPU)
    for part, expected in zip(actual, singular_vectors(module.weight.detach(), 8), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-4)


def intervene(values: Mapping[str, Tensor], prefix: str, states: Tensor) -> Tensor:
    """Compute h + Rᵀ (W h + b − R h), with W = V + R and R from Gram and Schmidt's process."""
    rows: list[Tensor] = []
    for direction in values[f"{prefix}/directions"]:
        rest = direction - sum((row * (row @ direction) for row in rows), torch.zeros_like(direction))
        rows.append(rest / rest.norm())
    r = torch.stack(rows)
    w = values[f"{prefix}/difference"] + r
    return states + (states @ w.T + values[f"{prefix}/bias"] - states @ r.T) @ r


def test_reft_equals_its_equation_behind_a_norm(bertlike: Backbone) -> None:
    delta = perturbed_delta(bertlike, "reft", rank=3)

    def expected(values: dict[str, Tensor]) -> Tensor:
        def norm(place: str, states: Tensor) -> Tensor:
            return intervene(values, f"{place}/1", states) if place.endswith("norm.ffn") else states

        return written_out(bertlike, norm=norm)

    assert_same(through_delta(bertlike, delta), through_equation(bertlike, delta, expected))


@pytest.mark.parametrize(("kind", "layers"), [("gpt2", "h"), ("llama", "layers")])
def test_reft_equals_its_equation_in_the_stream(kind: str, layers: str) -> None:
    backbone = tiny_backbone(kind)
    delta = perturbed_delta(backbone, "reft", rank=3, layers=(1,))
    assert {key.split("/")[0] for key in delta.values} == {"layer.1.ffn"}

    def expected(values: dict[str, Tensor]) -> Tensor:
        def intervened(module: nn.Module, args: object, output: Any) -> Any:
            states = intervene(values, "layer.1.ffn/0", output if isinstance(output, Tensor) else output[0])
            return states if isinstance(output, Tensor) else (states, *output[1:])

        with getattr(backbone.model, layers)[1].register_forward_hook(intervened):
            return with_weights(backbone, {})

    assert_same(through_delta(backbone, delta), through_equation(backbone, delta, expected))


def test_ada_loras_penalty_is_the_distance_from_orthogonal_vectors(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "ada_lora", rank=2, penalty=0.3, sites=("attn.q",))
    expected = 0.0
    for place in ("layer.0.attn.q", "layer.1.attn.q"):
        left, right = (delta.values[f"{place}/0/{name}"].double() for name in ("left", "right"))
        for vectors in (left.T, right):
            expected += 0.3 * sum((float(vectors[i] @ vectors[j]) - (i == j)) ** 2 for i in range(2) for j in range(2))
    actual = regularization_loss(bert, delta)
    assert actual is not None
    assert actual.item() == pytest.approx(expected, rel=1e-4)


LINEAR: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("lora_xs", {"rank": 5, "alpha": 2.0}, {"rank": 3, "alpha": 3.0}, {"rank": 5, "alpha": 9.0}),
    ("fourier_ft", {"frequencies": 9, "scale": 2.0}, {"frequencies": 4, "scale": 6.0}, {"frequencies": 9}),
]


@pytest.mark.parametrize(("method", "settings", "first", "second"), LINEAR, ids=lambda value: str(value)[:10])
def test_linear_changes_of_other_sizes_and_scales_are_averaged_exactly(
    bert: Backbone, method: str, settings: dict[str, Any], first: dict[str, Any], second: dict[str, Any]
) -> None:
    deltas = [perturbed_delta(bert, method, **first), perturbed_delta(bert, method, seed=1, **second)]
    average = average_deltas(bert, METHODS[method].model_validate(settings), deltas, [0.3, 0.7])
    assert average is not None
    expected = [weight_changes(bert, delta) for delta in deltas]
    for key, change in weight_changes(bert, average).items():
        torch.testing.assert_close(change, 0.3 * expected[0][key] + 0.7 * expected[1][key], rtol=1e-4, atol=1e-5)


def weight_changes(backbone: Backbone, delta: Delta) -> dict[str, Tensor]:
    """Return the scaled change [E, D] of every place's weight."""
    changes = {}
    for place, prefix, edit in iterate_edits(backbone, delta.settings):
        values = {key.rpartition("/")[2]: value for key, value in delta.values.items() if key.startswith(prefix)}
        change = edit.form.as_affine_map(values, place).weight  # type: ignore[attr-defined]
        changes[prefix] = edit.compose.scale * change  # type: ignore[attr-defined]
    return changes


def test_ada_loras_are_averaged_as_changes(bert: Backbone) -> None:
    (form,) = (edit.form for edit in AdaLoRA(rank=4).edits())
    deltas = [perturbed_delta(bert, "ada_lora", rank=2, seed=seed) for seed in (0, 1)]
    values = [{n: delta.values[f"layer.0.attn.q/0/{n}"] for n in ("left", "sizes", "right")} for delta in deltas]

    def change(values: Mapping[str, Tensor]) -> Tensor:
        return values["left"] @ torch.diag(values["sizes"]) @ values["right"]

    average = form.weighted_average(values, [0.3, 0.7])  # type: ignore[attr-defined]
    torch.testing.assert_close(change(average), 0.3 * change(values[0]) + 0.7 * change(values[1]))
    torch.testing.assert_close(average["left"].T @ average["left"], torch.eye(4), rtol=1e-4, atol=1e-5)
