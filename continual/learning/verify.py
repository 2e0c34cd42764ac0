"""What is wrong with what was learned: blobs that are not what their rows say, backbones and answers that changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from continual.backbones.backbone import Backbone, load_backbone
from continual.deltas import METHODS, Delta, load_delta
from continual.features.signature import Signature
from continual.learning.fixed_inputs import TOLERANCE, probe_difference
from continual.learning.record import deserialize_outputs
from continual.routing import RoutingStatistics
from registry import BackboneRecord, Registry, StoredDelta, find_damage, warnings
from tasks.errors import ContinualError


@dataclass(frozen=True)
class VerificationReport:
    """problems: damage, a sentence for each · notes: what is worth knowing and no damage."""

    problems: list[str]
    notes: list[str]


def verify_home(
    registry: Registry, *, quick: bool = False, backbone: str | None = None, device: str = "auto"
) -> VerificationReport:
    """Check rows, blobs, backbones, and what every champion says of fixed inputs.

    quick: leave out what needs a backbone · backbone: another name or folder of one of those that are registered.
    """
    loaded, problems = ({}, []) if quick else load_registered_backbones(registry, backbone=backbone, device=device)
    looking = _Looking(loaded)
    problems = [*find_damage(registry, looking.at), *problems]
    return VerificationReport(problems, [*warnings(registry), *looking.notes()])


def load_registered_backbones(
    registry: Registry, *, backbone: str | None, device: str
) -> tuple[dict[str, Backbone], list[str]]:
    """The registered backbones by fingerprint, and what is wrong with those that are others now or cannot be had."""
    registered = registry.backbones()
    names = ([backbone] if backbone else []) + [record.name for record in registered]
    loaded: dict[str, Backbone] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if all(record.fingerprint in loaded for record in registered if record.name == name) and name != backbone:
            continue  # the one that was given is it
        try:
            found = load_backbone(name, device=device)
            loaded[found.fingerprint] = found
            failed[name] = f"{name!r} is {found.fingerprint[:12]} now"
        except ContinualError as error:
            failed[name] = str(error)
    return loaded, [_lost(record, failed) for record in registered if record.fingerprint not in loaded]


def _lost(record: BackboneRecord, failed: Mapping[str, str]) -> str:
    return (
        f"backbone {record.name} ({record.fingerprint[:12]}) is not what was registered, or not there: "
        f"{failed[record.name]}. Say where it is (--backbone), or leave backbones out (--quick)."
    )


@final
@dataclass
class _Looking:
    """Looks at one delta after the other, and counts what its answers are."""

    backbones: Mapping[str, Backbone]
    differences: list[float] = field(default_factory=list)
    unproved: int = 0

    def at(self, stored: StoredDelta, blobs: Mapping[str, bytes]) -> Iterator[str]:
        try:
            delta = load_delta(blobs["values"]) if "values" in blobs else None
            if "predictions" in blobs:
                deserialize_outputs(blobs["predictions"])
            if "signature" in blobs:
                Signature.from_bytes(blobs["signature"])
            if "routing" in blobs:
                RoutingStatistics.from_bytes(blobs["routing"])
            if delta:
                yield from blob_mismatches(stored, delta, size=len(blobs["values"]))
                if stored.status == "champion" and stored.backbone in self.backbones:
                    yield from self._answers(self.backbones[stored.backbone], delta, blobs.get("replay"))
        except ContinualError as error:
            yield str(error)

    def _answers(self, backbone: Backbone, delta: Delta, before: bytes | None) -> Iterator[str]:
        if before is None:
            self.unproved += 1
            return
        difference = probe_difference(backbone, delta, before)
        self.differences.append(difference)
        if difference > TOLERANCE:
            yield (
                f"it answers fixed inputs otherwise than when it was registered, by {difference:.1e} of the largest "
                f"number (rounding is below {TOLERANCE:.0e}): the backbone, the delta or a library changed"
            )

    def notes(self) -> Iterator[str]:
        near = [difference for difference in self.differences if 0 < difference <= TOLERANCE]
        if near:
            yield (
                f"{len(near)} of {len(self.differences)} champions answer fixed inputs as when they were registered "
                f"within rounding ({max(near):.1e} at most), not to the bit: another machine, or other libraries"
            )
        if self.unproved:
            yield f"{self.unproved} champions were registered by a release that kept no answers to fixed inputs"


def blob_mismatches(stored: StoredDelta, delta: Delta, *, size: int) -> Iterator[str]:
    """What the blob of a delta, of so many bytes, is otherwise than its row says."""
    said: dict[str, tuple[Any, Any]] = {
        "method": (delta.method, stored.method),
        "settings": (delta.settings, _settings(stored)),
        "backbone": (delta.backbone, stored.backbone),
        "parameters": (delta.parameter_count, stored.parameters),
        "bytes": (size, stored.bytes),
    }
    if delta.head and not delta.kind:
        said["labels"] = (delta.head.labels, stored.labels)
    for what, (found, expected) in said.items():
        if found != expected:
            yield f"its {what} are {found!r} in the blob and {expected!r} in the row"


def _settings(stored: StoredDelta) -> Any:
    """The settings as this release has them: what an older one left out by its default."""
    try:
        return METHODS[stored.method].model_validate(stored.settings)
    except (KeyError, ValueError):
        return stored.settings
