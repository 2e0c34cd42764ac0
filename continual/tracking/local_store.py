"""MLflow's SQLite store under the home: made completely or not at all, and replaced where it is broken.

MLflow makes its tables by many migrations, and cannot use a file in which they were interrupted. So they run in a draft
beside the store, which gets its name when it is complete.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, NullPool, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from continual.settings import Locations
from registry import Registry, file_damage, has_sent_runs, resend_all, sqlite_file, sqlite_url

EXPERIMENT = "continual"
# Columns of MLflow's tables that hold the address of artifacts.
ARTIFACT_COLUMNS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("experiments", "artifact_location"),
)
MAX_DRAFT_AGE = 3600.0  # seconds; a draft that is older was left by a process that was killed

log = logging.getLogger(__name__)


def local_store(locations: Locations) -> Path | None:
    """Return the file of MLflow's store under the home; None where MLflow is elsewhere."""
    file = sqlite_file(locations.mlflow)
    return file if file == locations.home / "mlflow.db" else None


def ensure_local_store(registry: Registry, locations: Locations) -> None:
    """Make MLflow's store under the home where it is missing or broken; do nothing where MLflow is elsewhere."""
    repair_local_store(registry, locations)
    file = local_store(locations)
    if file and not file.exists():
        _make(file)


def repair_local_store(registry: Registry, locations: Locations) -> None:
    """Set a broken store aside, and enqueue everything again that a broken or missing one showed.

    Of several processes that find it broken one renames it, in an exclusive unit of work.
    """
    file = local_store(locations)
    if file is None or (file.exists() and _defect(file) is None):
        return
    with registry.read_session() as session:
        if not file.exists() and not has_sent_runs(session):
            return
    with registry.unit_of_work(exclusive=True) as unit:
        if file.exists() and (defect := _defect(file)):
            aside = file.with_name(f"{file.name}.{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:4]}.broken")
            _rename(file, aside)
            log.warning("%s; it is now %s, and MLflow gets everything again in a new one", defect, aside.name)
        if not file.exists():
            resend_all(unit)


def relocate_artifacts(locations: Locations) -> None:
    """Let the store of a copied or moved home refer to the artifacts beside it; do nothing where MLflow is elsewhere.

    MLflow stores absolute addresses. Without this, a copy would write to and delete from the home that it was copied
    from.
    """
    file = local_store(locations)
    if locations.artifacts is None or file is None or not file.exists():
        return
    engine = create_engine(sqlite_url(file), poolclass=NullPool)
    with engine.begin() as connection:
        query = text("SELECT artifact_location FROM experiments WHERE name = :name")
        former = connection.execute(query, {"name": EXPERIMENT}).scalar()
        if former is None or former == locations.artifacts:
            return
        values = {"new": locations.artifacts, "old": former, "length": len(former)}
        for table, column in ARTIFACT_COLUMNS:
            connection.execute(
                text(
                    f"UPDATE {table} SET {column} = :new || substr({column}, :length + 1) "
                    f"WHERE substr({column}, 1, :length) = :old"
                ),
                values,
            )


def _defect(file: Path) -> str | None:
    """Return what makes MLflow's store unusable for good; None where it is usable, or was made by another MLflow."""
    if damage := file_damage(sqlite_url(file)):
        return damage[0]
    engine = create_engine(sqlite_url(file), poolclass=NullPool)
    try:
        if _holds_runs(engine):  # made by an earlier MLflow perhaps, and then this one says how to upgrade it
            return None
        from mlflow.store.db import utils

        complete = utils._all_tables_exist(engine)
        complete = complete and utils._get_schema_version(engine) == utils._get_latest_schema_revision()
        return None if complete else f"the making of {file} was interrupted"
    except SQLAlchemyError:  # such as a locked file
        return None


def _holds_runs(engine: Engine) -> bool:
    with engine.connect() as connection:
        if "experiments" not in inspect(connection).get_table_names():
            return False
        query = text("SELECT 1 FROM experiments WHERE name = :name")
        return connection.execute(query, {"name": EXPERIMENT}).first() is not None


def _rename(file: Path, aside: Path) -> None:
    """Rename a SQLite file with its journals, and let this process open the new file of the old name."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as ModelStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as RunStore

    for suffix in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            file.with_name(file.name + suffix).rename(aside.with_name(aside.name + suffix))
    file.rename(aside)
    for store in (RunStore, ModelStore):  # MLflow keeps its engines, with connections to the renamed file
        if engine := store._engine_map.get(sqlite_url(file)):
            engine.dispose()


def _make(file: Path) -> None:
    from mlflow.store.db import utils

    file.parent.mkdir(parents=True, exist_ok=True)
    _delete_old_drafts(file)
    draft = file.with_name(f".{file.name}.{uuid4().hex}.draft")
    try:
        utils._initialize_tables(create_engine(sqlite_url(draft), poolclass=NullPool))
        _publish(draft, file)
    finally:
        for part in draft.parent.glob(f"{draft.name}*"):
            part.unlink()


def _publish(draft: Path, file: Path) -> None:
    """Give a complete draft its name, unless another process was first and perhaps has runs in its file already."""
    try:
        os.link(draft, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not file.exists():
            draft.rename(file)


def _delete_old_drafts(file: Path) -> None:
    for draft in file.parent.glob(f".{file.name}.*.draft*"):
        with suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > MAX_DRAFT_AGE:
                draft.unlink()
