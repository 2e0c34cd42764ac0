"""Where the tasks of a stream are learned: `local`, in this process, or `ray`, by the workers of a Ray cluster.

Every engine uses the same parts: `claiming` learns what is free, `measuring` measures what is learned, and the registry
says which task is whose. An engine says only which process does what.
"""

from dataclasses import fields
from typing import Any

from continual.engines.engine import Engine
from continual.engines.local import LOCAL_ENGINE, LocalEngine
from continual.errors import EngineError

__all__ = ["LOCAL_ENGINE", "Engine", "LocalEngine", "engine_of"]


def engine_of(name: str, **options: Any) -> Engine:
    """The engine of this name; `ray` takes the options of `continual.engines.ray.Ray`, None for its own choice.

    Raises EngineError for a name that is not known, an option that the engine lacks, and a package that is missing.
    """
    given = {option: value for option, value in options.items() if value is not None}
    if name == "local":
        if given:
            raise EngineError(f"engine 'local' has no option {', '.join(given)}; leave it out, or give --engine ray")
        return LOCAL_ENGINE
    if name != "ray":
        raise EngineError(f"engine {name!r} is not known; allowed: local, ray")
    try:
        from continual.engines.ray import RayEngine
    except ImportError as error:
        raise EngineError(
            f"engine 'ray' needs the extra `ray`; install it: pip install 'continual[ray]' ({error})"
        ) from error
    known = [option.name for option in fields(RayEngine)]
    if strange := given.keys() - known:
        raise EngineError(f"engine 'ray' has no option {', '.join(sorted(strange))}; allowed: {', '.join(known)}")
    return RayEngine(**given)
