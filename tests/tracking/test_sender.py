"""The helper process that sends a journal: its messages to the run, without MLflow and without waiting."""

import os
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genflow.tracking import sender
from genflow.tracking.journal_replay import SendResult
from genflow.tracking.mlflow_client import Requests
from genflow.tracking.sender import ALIVE, Mailbox


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Mailbox]]:
    """The run's end of a connection, and the mailbox of a helper that reports every millisecond."""
    run, helper = Pipe()
    with run, helper:
        yield run, Mailbox(helper, report_s=0.001)


def test_one_thread_reads_the_connection(pair: tuple[Connection, Mailbox]) -> None:
    """All messages are read by one thread, arrive in order, and end with `exit` when the run has ended."""
    run, mailbox = pair
    readers = set()
    receive = mailbox._connection.recv
    mailbox._connection.recv = lambda: (readers.add(threading.get_ident()), receive())[1]  # type: ignore[method-assign]
    for message in (("begin", "a"), ("begin", "b")):
        run.send(message)
    assert [mailbox.next(10), mailbox.next(10)] == [("begin", "a"), ("begin", "b")]
    assert mailbox.next(0) == ("replay", None)
    run.close()
    assert mailbox.next(10) == ("exit", None)
    assert len(readers) == 1
    assert threading.get_ident() not in readers


def test_a_helper_that_works_says_so_until_the_result(pair: tuple[Connection, Mailbox]) -> None:
    """The run hears of the helper's work only while it waits for the result, which is the last message."""
    run, mailbox = pair
    assert not run.poll(0.02)
    run.send(("finish", 20.0))
    assert [run.recv() for _ in range(3)] == [ALIVE] * 3
    mailbox.answer(SendResult(7, True))
    heard = [run.recv()]
    while heard[-1] == ALIVE:
        heard.append(run.recv())
    assert heard[-1] == SendResult(7, True)
    assert not run.poll(0.02)


def test_only_work_and_answers_are_progress(pair: tuple[Connection, Mailbox]) -> None:
    """Importing MLflow and packing a model are progress, and each answer is once; a silent server is none."""
    mailbox = pair[1]
    assert mailbox.is_progress(), "no request is under way"
    mailbox.requests.waiting = True
    assert not mailbox.is_progress()
    mailbox.requests.answered += 1
    assert [mailbox.is_progress(), mailbox.is_progress()] == [True, False]


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_waits_for_a_silent_server_once(monkeypatch: pytest.MonkeyPatch, finished: bool, tmp_path: Path) -> None:
    """If the run ends during a failing replay, the helper does not send again; if it ends later, it tries once."""
    run, helper = Pipe()
    answers, replays = [], []
    mailbox = SimpleNamespace(
        requests=Requests(), finishing=False, answer=answers.append,
        next=iter([("begin", "a"), ("replay", None), ("finish", 20.0), ("exit", None)]).__next__,
    )  # fmt: skip
    mailbox.next = lambda wait, messages=mailbox.next: messages()

    def replay(*_: Any, deadline_s: float, **__: Any) -> SendResult:
        replays.append(deadline_s)
        mailbox.finishing = finished
        return SendResult(problem="MLflow is down")

    monkeypatch.setattr(sender, "Mailbox", lambda connection: mailbox)
    monkeypatch.setattr(sender.os, "nice", lambda _: 0)
    monkeypatch.setattr(sender.signal, "signal", lambda *_: None)
    for name in ("replay_all", "replay_when_free"):
        monkeypatch.setattr(sender, name, replay)
    with run, helper:
        sender._serve(str(os.dup(helper.fileno())), str(tmp_path), "5")
    assert replays == ([60.0] if finished else [60.0, 20.0])
    assert [(result.complete, result.problem) for result in answers] == [(False, "MLflow is down")]
