"""Verify a registry: blobs, backbones' fingerprints, champions' outputs for fixed inputs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import METHODS, Delta, load_delta
from continual.deltas.delta import upgrade_settings
from continual.features.signature import Signature
from continual.learning.probes import ProbeDifference, probe_difference, probe_dtype
from continual.learning.record import deserialize_outputs
from continual.routing import RoutingStatistics
from registry import BackboneRecord, DatabaseDamaged, Registry, StoredDelta, file_damage, find_damage, warnings
from tasks.errors import ContinualError


@dataclass(frozen=True)
class VerificationReport:
    """The result of a verification.

    Attributes:
        problems: One sentence per damage.
        notes: Remarks that are no damage.
    """

    problems: list[str]
    notes: list[str]


def verify_home(
    registry: Registry, *, quick: bool = False, backbone: str | None = None, device: str = "auto"
) -> VerificationReport:
    """Check rows, blobs, backbones, and every champion's outputs for fixed inputs.

    Args:
        registry: The registry.
        quick: Whether to leave out what needs a backbone.
        backbone: Another name or folder of a registered backbone.
        device: The device of the backbones.
    """
    if damage := file_damage(registry.url):  # what else is found follows from it
        return VerificationReport(damage, [])
    try:
        loaded, problems = ({}, []) if quick else load_registered_backbones(registry, backbone=backbone, device=device)
        check = _BlobChecker(loaded)
        problems = [*find_damage(registry, check.check_delta), *problems]
        return VerificationReport(problems, [*warnings(registry), *check.notes()])
    except DatabaseDamaged as error:
        return VerificationReport([str(error)], [])


def load_registered_backbones(
    registry: Registry, *, backbone: str | None, device: str
) -> tuple[dict[str, Backbone], list[str]]:
    """Load the registered backbones; return them by fingerprint, and the problems of the others."""
    registered = registry.backbones()
    names = ([backbone] if backbone else []) + [record.name for record in registered]
    loaded: dict[str, Backbone] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if all(record.fingerprint in loaded for record in registered if record.name == name) and name != backbone:
            continue  # it is the one that was given
        try:
            candidate = load_backbone(name, device=device, dtype="float32")
            loaded[candidate.fingerprint] = candidate
            failed[name] = f"{name!r} is {candidate.fingerprint[:12]} now"
        except ContinualError as error:
            failed[name] = str(error)
    return loaded, [_missing_backbone(record, failed) for record in registered if record.fingerprint not in loaded]


def _missing_backbone(record: BackboneRecord, failed: Mapping[str, str]) -> str:
    return (
        f"backbone {record.name} ({record.fingerprint[:12]}) is not what was registered, or not there: "
        f"{failed[record.name]}. Say where it is (--backbone), or leave backbones out (--quick)."
    )


@final
@dataclass
class _BlobChecker:
    """Checks the blobs of deltas, and collects the differences of outputs from the stored ones."""

    backbones: Mapping[str, Backbone]
    differences: list[ProbeDifference] = field(default_factory=list)
    unproved: int = 0
    low_precision: dict[str, Backbone] = field(default_factory=dict)

    def check_delta(self, stored: StoredDelta, blobs: Mapping[str, bytes]) -> Iterator[str]:
        try:
            delta = load_delta(blobs["values"]) if "values" in blobs else None
            if "predictions" in blobs:
                deserialize_outputs(blobs["predictions"])
            if "signature" in blobs and not Signature.from_bytes(blobs["signature"]).is_finite:
                yield "its signature holds numbers that are not finite: no input is routed to it; learn it again"
            if "routing" in blobs and not RoutingStatistics.from_bytes(blobs["routing"]).is_finite:
                yield "its routing statistics hold numbers that are not finite: nothing is routed to it; learn it again"
            if delta:
                yield from blob_mismatches(stored, delta, size=len(blobs["values"]))
                if stored.status == "champion" and stored.backbone in self.backbones:
                    yield from self._check_outputs(self.backbones[stored.backbone], delta, blobs.get("replay"))
        except ContinualError as error:
            yield str(error)

    def _check_outputs(self, backbone: Backbone, delta: Delta, before: bytes | None) -> Iterator[str]:
        if before is None:
            self.unproved += 1
            return
        difference = probe_difference(self._in_dtype(backbone, probe_dtype(before)), delta, before)
        self.differences.append(difference)
        if not difference.is_rounding:
            yield (
                f"it answers fixed inputs otherwise than when it was registered, by {difference.value:.1e} of the "
                f"largest number (rounding is below {difference.tolerance:.0e}): the backbone, the delta or a library "
                "changed"
            )

    def _in_dtype(self, backbone: Backbone, dtype: str) -> Backbone:
        """Return the backbone, loaded once more where it is needed in bfloat16."""
        if dtype == "float32":
            return backbone
        if backbone.fingerprint not in self.low_precision:
            self.low_precision[backbone.fingerprint] = load_backbone(
                backbone.name, device=str(backbone.device), dtype=dtype
            )
        return self.low_precision[backbone.fingerprint]

    def notes(self) -> Iterator[str]:
        rounding = [difference.value for difference in self.differences if difference.is_rounding and difference.value]
        if rounding:
            yield (
                f"{len(rounding)} of {len(self.differences)} champions answer fixed inputs as when they were registered"
                f" within rounding ({max(rounding):.1e} at most), not to the bit: another machine, or other libraries"
            )
        if self.unproved:
            yield f"{self.unproved} champions were registered by a release that kept no answers to fixed inputs"


def blob_mismatches(stored: StoredDelta, delta: Delta, *, size: int) -> Iterator[str]:
    """Yield one message per field in which a delta's blob, of `size` bytes, differs from its row."""
    fields: dict[str, tuple[Any, Any]] = {
        "method": (delta.method, stored.method),
        "settings": (delta.settings, _settings(stored, delta)),
        "backbone": (delta.backbone, stored.backbone),
        "parameters": (delta.parameter_count, stored.parameters),
        "bytes": (size, stored.bytes),
    }
    if delta.head and not delta.kind:
        fields["labels"] = (delta.head.labels, stored.labels)
    for name, (actual, expected) in fields.items():
        if actual != expected:
            yield f"its {name} are {actual!r} in the blob and {expected!r} in the row"


def _settings(stored: StoredDelta, delta: Delta) -> Any:
    """The row's settings with this release's defaults, or with an older one's where those are the blob's."""
    try:
        method = METHODS[stored.method]
        upgraded = method.model_validate(upgrade_settings(method, stored.settings, delta.values))
        return upgraded if upgraded == delta.settings else method.model_validate(stored.settings)
    except (KeyError, ValueError):
        return stored.settings
