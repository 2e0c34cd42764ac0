"""Second implementations of methods on every family: PEFT, or the paper's equation in hooks on the model's modules.

Compared are the hidden states at the texts' own tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel
from transformers.masking_utils import eager_mask

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.errors import ExchangeError
from continual.exchange import to_peft
from continual.exchange.files import ExportOrigin, write_adapter
from tests.helpers.parity import batch_of, module_names
from tests.helpers.tiny_tasks import save_backbone

Values = Mapping[str, Tensor]
Hooks = Callable[[Backbone, Delta], Iterator[None]]
States = Callable[[Backbone, Delta, Path], Tensor | None]


@dataclass(frozen=True)
class Reference:
    """A second implementation of a method.

    Attributes:
        method: Name of the method.
        against: Where the second implementation is from.
        states: Computes the hidden states [B, T, D], given an empty folder; None where it has none for the family.
        settings: Settings of the method.
    """

    method: str
    against: str
    states: States
    settings: Mapping[str, Any] = field(default_factory=dict)


@torch.no_grad()
def largest_difference(backbone: Backbone, delta: Delta, expected: Tensor) -> float:
    """Return the largest difference of a delta's states from the expected ones, as a share of the largest state."""
    batch = batch_of(backbone)
    with attached(backbone, delta):
        actual = backbone.hidden_states(batch)
    mask = batch["attention_mask"].bool()
    return float((actual - expected)[mask].abs().max() / expected[mask].abs().max())


@torch.no_grad()
def through_peft(backbone: Backbone, delta: Delta, folder: Path) -> Tensor | None:
    """Load the exported adapter by PEFT; return its states, or None where PEFT has no such adapter for the family."""
    import peft

    try:
        origin = ExportOrigin(backbone=backbone.fingerprint, delta="mood@1", digest=delta.digest)
        write_adapter(folder, to_peft(backbone, delta), origin)
    except ExchangeError:
        return None
    plain_folder = save_backbone(backbone, folder / "plain")
    model: Any = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(plain_folder), folder).eval()
    plain, batch = model.get_base_model(), batch_of(backbone)
    reader = plain.encoder if plain.config.is_encoder_decoder else model  # the decoder has nothing to read
    batch.pop("token_type_ids", None)  # all zero
    states: Tensor = reader(**batch).last_hidden_state
    return states[:, -batch["attention_mask"].shape[1] :]


OUT = {"sites": ("attn.out", "ffn.out")}  # modules of one projection in every family
PeftConfig = Callable[..., Any]


def through_peft_layers(config: PeftConfig, parameters: Mapping[str, str]) -> States:
    """Copy the values into PEFT's layers; return their model's states, or None where PEFT has none for a module.

    Args:
        config: Makes PEFT's configuration, given the package and the names of the modules.
        parameters: Attributes of a PEFT layer with its parameters, by the names of a delta's values.
    """

    @torch.no_grad()
    def states(backbone: Backbone, delta: Delta, folder: Path) -> Tensor | None:
        import peft

        modules = {
            f"{p}/{n}": name for n, site in enumerate(OUT["sites"]) for p, name in module_names(backbone, site).items()
        }
        try:
            adapter = config(peft, list(modules.values()))
            model: Any = peft.get_peft_model(deepcopy(backbone.model), adapter).eval()
        except (TypeError, ValueError) as error:  # of GPT-2's Conv1D
            if "not supported" in str(error):
                return None
            raise
        for key, value in delta.values.items():
            prefix, _, name = key.rpartition("/")
            holder = getattr(model.base_model.model.get_submodule(modules[prefix]), parameters[name])["default"]
            parameter = getattr(holder, "weight", holder)  # OFT keeps a module
            parameter.copy_(value.view_as(parameter))
        plain = model.get_base_model()
        output: Tensor = (plain.encoder if backbone.family.decoder else model)(**batch_of(backbone)).last_hidden_state
        return output

    return states


def hooked(hooks: Hooks) -> States:
    """Compute the states with hooks on the plain model."""

    @torch.no_grad()
    def states(backbone: Backbone, delta: Delta, folder: Path) -> Tensor:
        with contextmanager(hooks)(backbone, delta):
            return backbone.hidden_states(batch_of(backbone))

    return states


def _bottleneck(values: Values, prefix: str, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    down, bias, up, up_bias = (values[f"{prefix}/{name}"] for name in ("down", "down_bias", "up", "up_bias"))
    return activation(x @ down.T + bias) @ up.T + up_bias


def _outputs(backbone: Backbone, site: str, change: Callable[[str, Tensor, Tensor], Tensor], undo: ExitStack) -> None:
    """Change the outputs of the modules at a site, given the place's name, the input and the output."""
    for place in backbone.modules_at(site):
        columns = place.columns or slice(None)

        def hook(
            module: nn.Module, args: Any, output: Tensor, name: str = place.name, columns: slice = columns
        ) -> Tensor:
            changed = output.clone()
            changed[..., columns] = change(name, args[0], output[..., columns])
            return changed

        undo.enter_context(place.output_module.register_forward_hook(hook))


def lora(backbone: Backbone, delta: Delta) -> Iterator[None]:
    """Hu et al. (2022): W + s B A at every projection."""
    values = delta.values
    with ExitStack() as undo:
        _outputs(
            backbone,
            "projections",
            lambda name, x, y: y + 1.5 * x @ (values[f"{name}/0/B"] @ values[f"{name}/0/A"]).T,
            undo,
        )
        yield


def bitfit(backbone: Backbone, delta: Delta) -> Iterator[None]:
    """Ben Zaken et al. (2022): other biases, and new ones where a family has none."""
    with ExitStack() as undo:
        for number, site in enumerate(("projections", "norms")):
            _outputs(backbone, site, lambda name, x, y, n=number: y + delta.values[f"{name}/{n}/vector"], undo)  # type: ignore[misc]
        yield


def layer_norm(backbone: Backbone, delta: Delta, *, first: int = 0) -> Iterator[None]:
    """Zhao et al. (2024): another gain and bias of every norm."""
    with ExitStack() as undo:
        _outputs(
            backbone,
            "norms",
            lambda name, x, y: delta.values[f"{name}/{first}/vector"] * y + delta.values[f"{name}/{first + 1}/vector"],
            undo,
        )
        yield


def houlsby(backbone: Backbone, delta: Delta) -> Iterator[None]:
    """Houlsby et al. (2019), figure 2: h + A(h) after both blocks, and other norms."""
    with ExitStack() as undo:
        for number, site in enumerate(("attn.out", "ffn.out")):
            _outputs(
                backbone,
                site,
                lambda name, x, y, n=number: y + _bottleneck(delta.values, f"{name}/{n}", y, F.gelu),  # type: ignore[misc]
                undo,
            )
        undo.enter_context(contextmanager(layer_norm)(backbone, delta, first=2))
        yield


@dataclass(frozen=True)
class FeedForward:
    """A family's modules around the feed-forward of a layer, by their paths.

    Attributes:
        residual: The module that takes the residual stream r in front of the feed-forward.
        norm: In post-norm families the module that takes r + y and returns the residual stream behind.
        stream: In pre-norm families the module that returns the residual stream r + y behind.
    """

    residual: str
    norm: str = ""
    stream: str = ""


_BERT = FeedForward("encoder.layer.{}.intermediate.dense", norm="encoder.layer.{}.output.LayerNorm")
_LLAMA = FeedForward("layers.{}.post_attention_layernorm", stream="layers.{}")
_T5 = FeedForward("encoder.block.{}.layer.1.layer_norm", stream="encoder.block.{}.layer.1")
_BART = FeedForward("encoder.layers.{}.fc1", norm="encoder.layers.{}.final_layer_norm")
_GEMMA = FeedForward("layers.{}.pre_feedforward_layernorm", stream="layers.{}")
FEED_FORWARDS = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "distilbert": FeedForward("transformer.layer.{}.ffn.lin1", norm="transformer.layer.{}.output_layer_norm"),
    "modernbert": FeedForward("layers.{}.mlp_norm", stream="layers.{}"),
    "gpt2": FeedForward("h.{}.ln_2", stream="h.{}"),
    "opt": FeedForward("decoder.layers.{}.final_layer_norm", stream="decoder.layers.{}"),
    "opt-narrow": FeedForward("decoder.layers.{}.fc1", norm="decoder.layers.{}.final_layer_norm"),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "t5": _T5,
    "t5-gated": _T5,
    "mt5": _T5,
    "bart": _BART,
    "marian": _BART,
    "pegasus": FeedForward("encoder.layers.{}.final_layer_norm", stream="encoder.layers.{}"),
    "mistral": _LLAMA,
    "smollm3": _LLAMA,
    "phi3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "llama4": _LLAMA,
    "qwen3_5": _LLAMA,
    "gpt_neox": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "olmo2": FeedForward("layers.{}.mlp", stream="layers.{}"),
    "mpnet": _BERT,
    "deberta-v2": _BERT,
}

Added = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer's number and the residual stream before and behind its feed-forward, the term that a method adds."""


@contextmanager
def adding_to_feed_forward(backbone: Backbone, added: Added) -> Iterator[None]:
    """Add a term to the sum of the residual stream and every feed-forward's output inside the block."""
    paths, model = FEED_FORWARDS[backbone.name.removeprefix("tiny-")], backbone.model
    with ExitStack() as undo:
        for layer in [place.layer or 0 for place in backbone.modules_at("ffn")]:
            before: list[Tensor] = []

            def enter(module: nn.Module, args: tuple[Tensor, ...], before: list[Tensor] = before) -> None:
                before[:] = [args[0]]

            def change_sum(
                module: nn.Module, args: tuple[Tensor, ...], layer: int = layer, before: list[Tensor] = before
            ) -> tuple[Tensor]:
                return (args[0] + added(layer, before[0].view(args[0].shape), module.forward(args[0])),)

            def change_stream(
                module: nn.Module, args: Any, output: Any, layer: int = layer, before: list[Tensor] = before
            ) -> Any:
                total = output[0] if isinstance(output, tuple) else output
                changed = total + added(layer, before[0].view(total.shape), total)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            residual, norm, stream = (
                model.get_submodule(path.format(layer)) for path in (paths.residual, paths.norm, paths.stream)
            )
            undo.enter_context(residual.register_forward_pre_hook(enter))
            if paths.norm:
                undo.enter_context(norm.register_forward_pre_hook(change_sum))
            else:
                undo.enter_context(stream.register_forward_hook(change_stream))
        yield


def pfeiffer(backbone: Backbone, delta: Delta) -> Iterator[None]:
    """Pfeiffer et al. (2021); `original_ln_before` in the library adapters: A(N(r + y))."""

    def added(layer: int, before: Tensor, behind: Tensor) -> Tensor:
        return _bottleneck(delta.values, f"layer.{layer}.ffn/0", behind, F.relu)

    with adding_to_feed_forward(backbone, added):
        yield


def parallel(backbone: Backbone, delta: Delta, *, number: int = 0) -> Iterator[None]:
    """He et al. (2022), table 1 and their code: 4 A(r) with the residual stream r, not its norm."""

    def added(layer: int, before: Tensor, behind: Tensor) -> Tensor:
        return 4 * _bottleneck(delta.values, f"layer.{layer}.ffn/{number}", before, F.relu)

    with adding_to_feed_forward(backbone, added):
        yield


def prefix(backbone: Backbone, delta: Delta) -> Iterator[None]:
    """Li and Liang (2021): keys and values before the text's, in a written-out attention; positions are the text's."""
    vectors = {
        id(place.output_module): (delta.values[f"{place.name}/0/key"], delta.values[f"{place.name}/0/value"])
        for place in backbone.modules_at("attn.kv")
    }
    with written_out_attention(backbone, vectors):
        yield


def mam(backbone: Backbone, delta: Delta) -> Iterator[None]:
    """He et al. (2022), section 4.6: a prefix and a scaled parallel adapter."""
    with contextmanager(prefix)(backbone, delta), contextmanager(parallel)(backbone, delta, number=1):
        yield


@contextmanager
def written_out_attention(backbone: Backbone, prefixes: Mapping[int, Sequence[Tensor]]) -> Iterator[None]:
    """Compute attentions explicitly inside the block: a prefix's scores stand unmasked beside the text's.

    Args:
        backbone: The backbone.
        prefixes: Keys and values [P, E], by `id` of the attention.
    """

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        group = query.shape[1] // key.shape[1]
        k, v = (
            torch.unflatten(rows, 1, (-1, key.shape[3])).permute(1, 0, 2).repeat_interleave(group, 0)  # [H, P, d]
            for rows in prefixes[id(module)]
        )
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scale = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
        cap = kwargs.get("softcap")
        scores, front = (
            scale * part if cap is None else cap * torch.tanh(scale * part / cap)
            for part in (torch.einsum("bhqd,bhkd->bhqk", query, key), torch.einsum("bhqd,hpd->bhqp", query, k))
        )
        scores = scores + kwargs.get("position_bias", 0.0) + (0.0 if mask is None else mask)
        shares = torch.cat((scores, front), -1).softmax(-1)
        text, rest = torch.split(shares, [scores.shape[-1], front.shape[-1]], -1)
        return (text @ value + rest @ v).transpose(1, 2), None

    AttentionInterface.register("written_out", attend)
    AttentionMaskInterface.register("written_out", lambda **kwargs: eager_mask(**{**kwargs, **_NO_SKIP}))
    modules: list[Any] = [place.output_module for place in backbone.modules_at("attn.kv")]
    configs = {id(module.config): module.config for module in modules}
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = "written_out"
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


_NO_SKIP = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}

PEFT, EQUATION = "PEFT", "equation"


def _peft_layers(
    method: str, config: PeftConfig, parameters: Mapping[str, str], settings: Mapping[str, Any]
) -> Reference:
    return Reference(method, PEFT, through_peft_layers(config, parameters), {**settings, **OUT})


REFERENCES = (
    Reference("lora", PEFT, through_peft, {"rank": 4, "alpha": 6.0}),
    Reference("lora", EQUATION, hooked(lora), {"rank": 4, "alpha": 6.0}),
    Reference("dora", PEFT, through_peft, {"rank": 4, "alpha": 6.0}),
    Reference("ia3", PEFT, through_peft),
    Reference("prompt", PEFT, through_peft, {"length": 3}),
    Reference("prefix", PEFT, through_peft, {"length": 3, "shift_positions": True}),
    Reference("prefix", EQUATION, hooked(prefix), {"length": 3}),
    _peft_layers(
        "ada_lora",
        lambda peft, names: peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=10, target_modules=names),
        {"left": "lora_B", "sizes": "lora_E", "right": "lora_A"},
        {"rank": 4, "alpha": 6.0},
    ),
    _peft_layers(
        "loha",
        lambda peft, names: peft.LoHaConfig(r=3, alpha=6, target_modules=names),
        {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"},
        {"rank": 3, "alpha": 6.0},
    ),
    _peft_layers(
        "lokr",
        lambda peft, names: peft.LoKrConfig(r=2, alpha=6, target_modules=names),
        {"K1": "lokr_w1", "K2": "lokr_w2", "K2_B": "lokr_w2_a", "K2_A": "lokr_w2_b"},
        {"rank": 2, "alpha": 6.0},
    ),
    _peft_layers(
        "oft",
        lambda peft, names: peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=names),
        {"skew": "oft_R"},
        {"block_size": 8},
    ),
    _peft_layers(
        "fourier_ft",
        lambda peft, names: peft.FourierFTConfig(n_frequency=20, scaling=30.0, target_modules=names),
        {"spectrum": "fourierft_spectrum"},
        {"frequencies": 20, "scale": 30.0},
    ),
    Reference("bitfit", EQUATION, hooked(bitfit)),
    Reference("layer_norm", EQUATION, hooked(layer_norm)),
    Reference("adapter", EQUATION, hooked(houlsby), {"size": 5}),
    Reference("adapter_pfeiffer", EQUATION, hooked(pfeiffer), {"size": 5}),
    Reference("parallel_adapter", EQUATION, hooked(parallel), {"size": 5}),
    Reference("mam", EQUATION, hooked(mam), {"length": 3, "size": 5}),
)
