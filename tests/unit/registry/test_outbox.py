"""The outbox for MLflow: messages commit with their change, and each is sent by one process at a time."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import select, text

from registry import (
    Registry,
    claim_message,
    current_process_id,
    delete_sent,
    list_pending,
    registry_identity,
    reschedule,
    upgrade,
)
from registry.operations.outbox import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS, SEND_LEASE
from registry.records import OutboxTopic
from registry.schema.base import database_now
from registry.schema.connections import create_engine_for, migration_transaction
from registry.schema.migrate import configuration
from registry.schema.tables import OutboxRow
from tests.helpers.databases import registry_url
from tests.helpers.fresh_processes import fresh_processes
from tests.helpers.registries import accuracy, begin, empty_the_outbox, learn, learn_in, make_registry, take_and_die

pytestmark = pytest.mark.usefixtures("database")

ME, OTHER = current_process_id(), "elsewhere:1:1"
DELTA = (
    "INSERT INTO deltas (id, task_id, backbone_id, version, method, settings, budget, digest, bytes, parameters, "
    "share, seed, labels, versions, status, warm_start, seconds, mlflow_run, created_at) VALUES ({}, 1, 1, {}, 'lora', "
    "'{{}}', '{{}}', 'd', 1, 1, 0.1, 0, '[]', '{{}}', '{}', 'scratch', 1.0, {}, CURRENT_TIMESTAMP)"
)
OLDER = (
    "INSERT INTO backbones VALUES (1, 'f00d', 'tiny', 'bert', 8, 100, 'mean', CURRENT_TIMESTAMP)",
    "INSERT INTO tasks VALUES (1, 'sst2', 'classification', 'accuracy', '[]', '{}', '{}', '{}', CURRENT_TIMESTAMP)",
    "INSERT INTO streams VALUES (1, 'core', 1, '{}', 'd', 'run', CURRENT_TIMESTAMP)",
    DELTA.format(1, 1, "champion", "'run'"),
    DELTA.format(2, 2, "candidate", "NULL"),
)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def messages(registry: Registry) -> list[tuple[str, str]]:
    return [(pending.message, pending.subject) for pending in list_pending(registry)]


def tell(registry: Registry, *subjects: str, message: OutboxTopic = "delta") -> None:
    with registry.unit_of_work() as unit:
        for subject in subjects:
            unit.enqueue_message(message, subject)


def pass_time(registry: Registry, seconds: float) -> None:
    """Move the times of all messages back by so many seconds."""
    with registry.unit_of_work() as unit:
        for row in unit.session.scalars(select(OutboxRow)):
            row.due_at -= timedelta(seconds=seconds)


def test_every_change_enqueues_a_message(registry: Registry) -> None:
    begin(registry, "sst2")
    with registry.unit_of_work() as unit:
        learn_in(unit, registry, "sst2")
        unit.mark_learned("core", 0, delta="sst2@1")
    assert messages(registry) == [("stream", "core"), ("delta", "sst2@1"), ("champion", "sst2"), ("stream", "core")]
    with registry.unit_of_work() as unit:
        unit.add_scores("sst2@1", [accuracy(0.4, mode="routed", stream="core"), accuracy(0.4)])
    assert messages(registry)[4:] == [("stream", "core")]
    learn(registry, "sst2", score=0.1)
    assert messages(registry)[5:] == [("delta", "sst2@2")], "a candidate does not change who serves"


def test_a_rollback_enqueues_no_message(registry: Registry) -> None:
    with contextlib.suppress(ZeroDivisionError), registry.unit_of_work() as unit:
        learn_in(unit, registry, "sst2")
        raise ZeroDivisionError
    assert messages(registry) == []


def test_a_message_belongs_to_one_sender_until_settled(registry: Registry) -> None:
    tell(registry, "a@1", "b@1")
    first, second = claim_message(registry, ME), claim_message(registry, OTHER)
    assert first is not None
    assert second is not None
    assert (first.subject, second.subject) == ("a@1", "b@1")
    assert claim_message(registry, ME) is None
    with registry.unit_of_work() as unit:
        assert delete_sent(unit, first)
        assert not delete_sent(unit, first)
    assert messages(registry) == [("delta", "b@1")]


def test_messages_on_one_subject_are_sent_in_order(registry: Registry) -> None:
    tell(registry, "sst2", "sst2", message="purged")
    first = claim_message(registry, ME)
    assert first is not None
    assert claim_message(registry, OTHER) is None, "the second waits for the first"
    reschedule(registry, first, error="away")
    assert claim_message(registry, OTHER) is None
    pass_time(registry, MAX_RETRY_SECONDS)
    again = claim_message(registry, OTHER)
    assert again is not None
    assert again.id == first.id


def test_one_query_lists_all_pending_messages(registry: Registry) -> None:
    tell(registry, "core", "other", "core", message="stream")
    first = claim_message(registry, ME)
    assert first is not None
    tell(
        registry, "core", message="stream"
    )  # enqueued while the first is being sent, perhaps after its content was read
    assert messages(registry) == [("stream", "core"), ("stream", "other"), ("stream", "core")]
    with registry.unit_of_work() as unit:
        delete_sent(unit, first)
    assert messages(registry) == [("stream", "other"), ("stream", "core")]


def test_a_message_that_failed_waits_longer_each_time(registry: Registry) -> None:
    tell(registry, "a@1")
    waits = []
    for attempt in range(1, 13):
        pending = claim_message(registry, ME, after=0)
        assert pending is not None
        assert pending.attempts == attempt
        reschedule(registry, pending, error=f"away {attempt}")
        assert claim_message(registry, ME) is None, "not due yet"
        (remaining,) = list_pending(registry)
        assert remaining.error == f"away {attempt}"
        with registry.read_session() as session:
            waits.append((remaining.due_at - database_now(session)).total_seconds())
    assert waits[0] == pytest.approx(MIN_RETRY_SECONDS, abs=1.1)
    assert waits[3] == pytest.approx(8 * MIN_RETRY_SECONDS, abs=1.1)
    assert waits[-1] == pytest.approx(MAX_RETRY_SECONDS, abs=1.1)


def test_claiming_all_returns_each_message_once(registry: Registry) -> None:
    tell(registry, "a@1", "b@1")
    last, claimed = 0, []
    while pending := claim_message(registry, ME, after=last):
        reschedule(registry, pending, error="away")
        last = pending.id
        claimed.append(pending.subject)
    assert claimed == ["a@1", "b@1"]


def test_a_sender_that_died_here_is_succeeded_at_once(tmp_path: Path, registry: Registry) -> None:
    tell(registry, "a@1")
    child = fresh_processes().Process(target=take_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert claim_message(registry, ME) is not None


@pytest.mark.parametrize("silent", [ME, OTHER], ids=["here", "elsewhere"])
def test_a_silent_sender_is_succeeded_and_loses_its_message(registry: Registry, silent: str) -> None:
    tell(registry, "a@1")
    lost = claim_message(registry, silent)
    assert lost is not None
    assert claim_message(registry, ME) is None
    pass_time(registry, SEND_LEASE.total_seconds() + 1)
    message = claim_message(registry, ME)
    assert message is not None
    reschedule(registry, lost, error="too late")
    assert list_pending(registry)[0].error is None
    with registry.unit_of_work() as unit:
        assert not delete_sent(unit, lost)
        assert delete_sent(unit, message)


def test_several_senders_share_the_messages(tmp_path: Path, registry: Registry) -> None:
    subjects = [f"task{number}@1" for number in range(40)]
    tell(registry, *subjects)
    processes = fresh_processes()
    start, taken = processes.Barrier(3), processes.Queue()
    children = [processes.Process(target=empty_the_outbox, args=(tmp_path, start, taken)) for _ in range(3)]
    for child in children:
        child.start()
    taken_by_each = [taken.get(timeout=90) for _ in children]
    for child in children:
        child.join()
    assert sorted(subject for batch in taken_by_each for subject in batch) == sorted(subjects)
    assert list_pending(registry) == ()


def test_a_registry_has_one_name_for_ever(tmp_path: Path, registry: Registry) -> None:
    name = registry_identity(registry)
    with make_registry(tmp_path) as again:
        assert registry_identity(again) == registry_identity(registry) == name


def test_pending_messages_of_an_older_release_are_sent(tmp_path: Path) -> None:
    engine = create_engine_for(registry_url(tmp_path))
    with migration_transaction(engine) as connection:
        command.upgrade(configuration(connection), "0002")
    with engine.begin() as connection:
        for statement in OLDER:
            connection.execute(text(statement))
    engine.dispose()
    upgrade(registry_url(tmp_path))
    with Registry.open(registry_url(tmp_path), str(tmp_path / "blobs")) as registry:
        assert messages(registry) == [("stream", "core"), ("delta", "sst2@2"), ("champion", "sst2")]
        assert claim_message(registry, ME) is not None, "at once"
