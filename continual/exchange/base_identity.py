"""Decide whether an adapter was trained on a backbone, by content and by what is recorded, never by a folder's name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from continual.backbones.backbone import Backbone, load_backbone
from continual.backbones.hub import hub_name, resolve_source
from continual.backbones.quantization import plain_name
from continual.errors import BackboneError, ExchangeError
from continual.exchange.files import ExportOrigin

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
_NEXT_STEP = (
    "name the backbone that it was trained on (--backbone) or, if these are the same weights, make "
    "base_model_name_or_path null in adapter_config.json"
)


def require_base(backbone: Backbone, config: Mapping[str, Any], origin: ExportOrigin | None) -> str | None:
    """Compare the base of an adapter with the backbone.

    Compared are, until one decides: the fingerprint that an export of ours records; the weights of the recorded folder,
    if it is on this machine; the recorded hub id and commit. The shapes of the tensors are checked by the conversion.

    Args:
        backbone: The backbone.
        config: The content of `adapter_config.json`.
        origin: The origin of an export; None for an adapter of PEFT's.

    Returns:
        None where the bases are the same by what is recorded; otherwise a note that says what could not be proved.

    Raises:
        ExchangeError: They are certainly not the same.
    """
    base = config.get("base_model_name_or_path") or None
    if origin is not None:
        if origin.backbone != backbone.fingerprint:
            raise ExchangeError(
                f"the adapter was exported from backbone {origin.backbone[:12]} ({base}), and {backbone.name!r} is "
                f"{backbone.fingerprint[:12]}; name the backbone that it was trained on (--backbone)"
            )
        return None
    if base is None:
        return _unproved(backbone, "adapter_config.json records no base")
    if Path(base).is_dir():
        return _compare_folder(backbone, base)
    return _compare_ids(backbone, base, config.get("revision"))


def _compare_folder(backbone: Backbone, base: str) -> str | None:
    """Compare the backbone with the weights in a folder."""
    plain, bits = plain_name(backbone.name)
    source = Path(resolve_source(plain))
    if source.is_dir() and source.samefile(base):
        return None
    try:
        recorded_base = load_backbone(base, device="cpu", bits=bits)
    except BackboneError as error:
        return _unproved(backbone, f"the recorded base {base!r} cannot be read ({error})")
    if recorded_base.fingerprint == backbone.fingerprint:
        return None
    raise ExchangeError(
        f"the adapter was trained on {base!r}, whose configuration and weights ({recorded_base.fingerprint[:12]}) are "
        f"not those of backbone {backbone.name!r} ({backbone.fingerprint[:12]}); {_NEXT_STEP}"
    )


def _compare_ids(backbone: Backbone, base: str, revision: str | None) -> str | None:
    """Compare hub ids, and commits of one id; a folder of another machine proves nothing."""
    name = hub_name(backbone.name)
    if Path(name).is_dir() or not (HUB_ID.fullmatch(base) and HUB_ID.fullmatch(name)):
        return _unproved(backbone, f"the recorded base {base!r} is not at hand to compare with")
    if base == name:
        commit = getattr(backbone.model.config, "_commit_hash", None)
        if not (revision and commit and COMMIT.fullmatch(revision)) or revision == commit:
            return None
        return _unproved(
            backbone, f"the recorded revision of {base!r} is {revision[:12]}, and here it is {commit[:12]}"
        )
    if ("/" not in base or "/" not in name) and base.rpartition("/")[2] == name.rpartition("/")[2]:
        return _unproved(backbone, f"the recorded base {base!r} may be the older name of {name!r}, without its owner")
    raise ExchangeError(f"the adapter was trained on {base!r}, and the backbone is {name!r}; {_NEXT_STEP}")


def _unproved(backbone: Backbone, reason: str) -> str:
    return (
        f"it could not be proved that the adapter was trained on backbone {backbone.name!r}: {reason}. The shapes of "
        "its tensors fit; give the task's rows (--rows TASK.yaml), if you have not, and look at the score"
    )
