"""Express a delta as LoRA with one rank and one scale, the form that serving engines load.

A LoRA delta stays as it is. Any other whose change lies in the weights becomes the best approximation of rank R of the
change ΔW of each module, by its singular value decomposition (Eckart and Young 1936). Changes of a norm's gain in front
of projections are moved into them: W (g ⊙ x) = (W diag g) x.

Shapes: W [E, D] the weight of a projection, or of a table of V vectors [V, D]; R rank.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.deltas.methods.lora import LoRA
from continual.deltas.peft_format import MODULE_PREFIX, PeftAdapter
from continual.deltas.values import check_compatible
from continual.errors import ExchangeError
from continual.exchange.merging import merge_into_model
from continual.exchange.peft import BackboneModuleLayout, language_model_prefix

DEFAULT_RANK = 64  # largest rank of an approximation where none is chosen
ROUNDING = 2.0**-22  # of a weight in float32: singular values below it are differences of rounding
EXACT_SIZE = 2048  # smaller dimension up to which the decomposition is computed in full
_READERS = {"attn": ("attn.q", "attn.k", "attn.v"), "ffn": ("ffn.in", "ffn.gate")}  # of a block's input


@dataclass(frozen=True)
class LowRankAdapter:
    """A delta as LoRA for the language model of its backbone.

    Attributes:
        adapter: A [R, D] and B [E, R] of every changed module, by PEFT's names, and PEFT's settings of LoRA.
        rank: R.
        weight_error: ‖ΔW − B A‖ / ‖ΔW‖ over all modules, Frobenius norms; None for a LoRA delta, which is unchanged.
        head: The delta's head, as it acts on the states under the adapter.
    """

    adapter: PeftAdapter
    rank: int
    weight_error: float | None
    head: Head | None


def to_low_rank(backbone: Backbone, delta: Delta, *, rank: int | None = None) -> LowRankAdapter:
    """Convert a delta of a causal language model to LoRA.

    Args:
        backbone: The backbone, as the delta's kind needs it.
        delta: The delta.
        rank: Largest R. By default a LoRA delta keeps its own, and others have what their change needs, at most
            `DEFAULT_RANK`.

    Raises:
        DeltaError: The delta is another backbone's.
        ExchangeError: The delta changes more than projections, tables and the gains of norms before projections.
    """
    check_compatible(backbone, delta)
    if isinstance(delta.settings, LoRA):
        layout = BackboneModuleLayout(backbone, language_model_prefix(backbone))
        adapter = _with_one_rank(delta.settings.to_peft(layout, delta.values), delta.settings.scale)
        if rank is None or adapter.config["r"] <= rank:
            return LowRankAdapter(adapter, adapter.config["r"], None, delta.head)
    return _WeightChanges.of(backbone, delta).approximate(rank or DEFAULT_RANK)


def apply_low_rank(backbone: Backbone, low_rank: LowRankAdapter) -> Backbone:
    """Return a copy of the backbone with W + s B A in its weights, and the pooling of the adapter's head."""
    model = deepcopy(backbone.language_model)
    tensors, scale = low_rank.adapter.tensors, low_rank.adapter.config["lora_alpha"] / low_rank.rank
    changes = {}
    for name in (name for name in tensors if ".lora_A." in name or name.endswith(".lora_embedding_A")):
        a, b = tensors[name], tensors[name.replace("_A", "_B")]
        changes[name.removeprefix(MODULE_PREFIX).partition(".lora_")[0]] = scale * (
            (b @ a).T if "lora_embedding" in name else b @ a
        )
    for name, change in changes.items():
        module = model.get_submodule(name)
        placed = (change.T if isinstance(module, Conv1D) else change).to(module.weight.device)
        weight = (module.weight.float() + placed).to(module.weight.dtype)
        module.weight = nn.Parameter(weight, requires_grad=False)  # a tied table has another change than its twin
    pooling = low_rank.head.pooling if low_rank.head else backbone.pooling
    return replace(backbone, model=model.base_model, language_model=model, pooling=pooling)


def _with_one_rank(adapter: PeftAdapter, scale: float) -> PeftAdapter:
    """Pad all pairs with zeros to the largest rank: engines ignore or refuse patterns of ranks and scales."""
    rank = max(len(tensor) for name, tensor in adapter.tensors.items() if ".lora_A." in name)
    tensors = {
        name: F.pad(tensor, (0, 0, 0, rank - len(tensor)) if ".lora_A." in name else (0, rank - tensor.shape[1]))
        for name, tensor in adapter.tensors.items()
    }
    transposed = bool(adapter.config["fan_in_fan_out"])
    return PeftAdapter(_config(adapter.config["target_modules"], rank, scale * rank, transposed=transposed), tensors)


def _config(modules: list[str], rank: int, alpha: float, *, transposed: bool) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": modules,
        "use_rslora": False,
        "use_dora": False,
    }


@dataclass(frozen=True)
class _WeightChanges:
    """The difference that a delta makes to the weights of its backbone's language model.

    Attributes:
        original: W [E, D] of every changed module by its name, or [V, D] of a table.
        new: The same weights under the delta.
        tables: Names of the modules that look rows up.
        transposed: Whether modules keep their weights as [D, E].
        head: The delta's head, with the gain of the last norm in it.
    """

    original: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    tables: frozenset[str]
    transposed: bool
    head: Head | None

    @classmethod
    @torch.no_grad()
    def of(cls, backbone: Backbone, delta: Delta) -> "_WeightChanges":
        model, merged = backbone.language_model, merge_into_model(backbone, delta)
        changed = {name for name, module in model.named_modules() if _differs(module, merged.get_submodule(name))}
        matrices = {name for name in changed if _has_matrix(model.get_submodule(name))}
        new = {name: _matrix(merged.get_submodule(name)) for name in matrices}
        gains, head = _norm_gains(backbone, merged, changed - matrices), delta.head
        for norm in gains:
            for reader in norm.readers:
                new[reader] = new.get(reader, _matrix(model.get_submodule(reader))) * norm.gain
            if norm.is_final and head:
                head = replace(head, weight=head.weight * norm.gain)
        biased = {name for name in matrices if _bias_differs(model.get_submodule(name), merged.get_submodule(name))}
        if others := biased | (changed - matrices - {norm.name for norm in gains}):
            raise _not_low_rank(delta, others)
        if head:  # the table that scores the next token has no part in its outputs
            new.pop(_name_of(model, model.get_output_embeddings()), None)
        new = new or {_first_projection(backbone): _matrix(model.get_submodule(_first_projection(backbone)))}
        modules = {name: model.get_submodule(name) for name in new}
        return cls(
            {name: _matrix(module) for name, module in modules.items()},
            new,
            frozenset(name for name, module in modules.items() if isinstance(module, nn.Embedding)),
            any(isinstance(module, Conv1D) for module in modules.values()),
            head,
        )

    def approximate(self, largest: int) -> LowRankAdapter:
        """Return the best approximation of rank R ≤ `largest`, one R for all modules."""
        parts = {name: _decompose(new - self.original[name], largest) for name, new in self.new.items()}
        rank = max(_needed_rank(sizes, self.original[name]) for name, (_, sizes, _) in parts.items())
        tensors: dict[str, Tensor] = {}
        lost = total = 0.0
        for name, (left_vectors, sizes, right_vectors) in parts.items():
            squares = float((self.new[name] - self.original[name]).double().square().sum())
            lost, total = lost + max(0.0, squares - float(sizes[:rank].square().sum())), total + squares
            roots = sizes[:rank].sqrt()
            b, a = left_vectors[:, :rank] * roots, right_vectors[:rank] * roots[:, None]
            tensors |= self._pair(name, *(_pad_rank(factor.float(), rank) for factor in (a, b.T)))
        config = _config(list(self.new), rank, rank, transposed=self.transposed)
        return LowRankAdapter(PeftAdapter(config, tensors), rank, math.sqrt(lost / total) if total else 0.0, self.head)

    def _pair(self, name: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """Return the factors [R, D] and [R, E] by PEFT's names; of a table, whose rows are looked up, exchanged."""
        if name in self.tables:
            pair = {"lora_embedding_A": b, "lora_embedding_B": a.T}
        else:
            pair = {"lora_A.weight": a, "lora_B.weight": b.T}
        return {f"{MODULE_PREFIX}{name}.{part}": factor.contiguous() for part, factor in pair.items()}


def _pad_rank(factor: Tensor, rank: int) -> Tensor:
    """Pad [R', N] with rows of zeros to [R, N]."""
    return F.pad(factor, (0, 0, 0, rank - len(factor)))


def _decompose(change: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest singular values [R] of ΔW [E, D] with their vectors [E, R] and [R, D], in float64."""
    if min(change.shape) <= EXACT_SIZE:
        left_vectors, sizes, right_vectors = torch.linalg.svd(change.double(), full_matrices=False)
    else:  # a random projection, by which a matrix of a large model takes a second
        left_vectors, sizes, vectors = torch.svd_lowrank(change.double(), q=min(rank + 16, *change.shape), niter=4)
        right_vectors = vectors.T
    return left_vectors[:, :rank], sizes[:rank], right_vectors[:rank]


def _needed_rank(sizes: Tensor, original: Tensor) -> int:
    """Return the number of singular values above the rounding of W, at least one."""
    rounding = ROUNDING * float(original.norm()) / math.sqrt(min(original.shape))
    return max(1, int((sizes > rounding).sum()))


@dataclass(frozen=True)
class _NormGain:
    """A changed norm whose output is that of the original one times a gain.

    Attributes:
        name: The norm's module.
        gain: The gain [D].
        readers: The modules that read its output.
        is_final: Whether it is behind the last layer.
    """

    name: str
    gain: Tensor
    readers: tuple[str, ...]
    is_final: bool = False


def _norm_gains(backbone: Backbone, merged: Any, changed: Collection[str]) -> list[_NormGain]:
    """Return the changed norms of which nothing but projections or the head read, with their gains."""
    model, gains = backbone.language_model, []
    names = {id(module): name for name, module in model.named_modules()}
    for norm, readers in _norms_and_readers(backbone):
        if (name := names[id(norm)]) in changed and (gain := _gain(norm, merged.get_submodule(name))) is not None:
            is_final = readers == (model.get_output_embeddings(),)
            gains.append(_NormGain(name, gain, tuple(names[id(reader)] for reader in readers), is_final))
    return gains


def _norms_and_readers(backbone: Backbone) -> Iterator[tuple[nn.Module, tuple[nn.Module, ...]]]:
    """Yield every norm before a block, and the last one, with the modules that read its output."""
    sites = backbone.family.stack.sites
    norms: dict[int, nn.Module] = {}
    readers: dict[int, dict[int, nn.Module]] = {}
    for block_site, reader_sites in _READERS.items():
        for block in backbone.modules_at(block_site):
            if block.pre_norm is None:
                continue
            norms[id(block.pre_norm)] = block.pre_norm
            for place in (p for site in reader_sites if site in sites for p in backbone.modules_at(site)):
                if place.layer == block.layer:
                    readers.setdefault(id(block.pre_norm), {})[id(place.input_module)] = place.input_module
    for key, norm in norms.items():
        yield norm, tuple(readers.get(key, {}).values())
    if "norm.final" in sites:
        for place in backbone.modules_at("norm.final"):
            yield place.output_module, (backbone.language_model.get_output_embeddings(),)


def _gain(old: nn.Module, new: nn.Module) -> Tensor | None:
    """Return g [D] with new(x) = g ⊙ old(x); None where there is none, as with another bias."""
    weight = old.get_parameter("weight")
    probes = torch.rand(2, len(weight), generator=torch.Generator().manual_seed(0)).add(0.5).to(weight)
    first, second = (new(probes) / old(probes)).float().cpu()
    return first if torch.allclose(first, second, rtol=1e-4) else None


def _differs(old: nn.Module, new: nn.Module) -> bool:
    """Return whether a parameter of the module itself, not of its children, differs."""
    pairs = zip(old.parameters(recurse=False), new.parameters(recurse=False), strict=True)
    return not all(torch.equal(first, second) for first, second in pairs)


def _bias_differs(old: nn.Module, new: nn.Module) -> bool:
    bias = getattr(old, "bias", None)
    return bias is not None and not torch.equal(bias, new.get_parameter("bias"))


def _has_matrix(module: nn.Module) -> bool:
    """Return whether LoRA can be put at a module: a linear layer, or a table without a factor of its own."""
    return isinstance(module, nn.Linear | Conv1D) or type(module) is nn.Embedding


def _matrix(module: nn.Module) -> Tensor:
    """Return the weight [E, D] of a linear layer, or [V, D] of a table, in float32 on the CPU."""
    weight = module.get_parameter("weight").detach().float().cpu()
    return weight.T if isinstance(module, Conv1D) else weight


def _name_of(model: Any, wanted: nn.Module) -> str:
    name: str = next(name for name, module in model.named_modules() if module is wanted)
    return name


def _first_projection(backbone: Backbone) -> str:
    return _name_of(backbone.language_model, backbone.modules_at("projections")[0].output_module)


def _not_low_rank(delta: Delta, modules: Collection[str]) -> ExchangeError:
    shown = ", ".join(sorted(modules)[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")
    return ExchangeError(
        f"LoRA cannot hold this {delta.method} delta: it changes more than the weights of projections and tables "
        f"({shown}). --format transformers writes a whole model with the change in its weights, which engines serve"
    )
