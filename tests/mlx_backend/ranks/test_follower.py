"""A follower: it makes the calls that it is sent, and it ends whatever becomes of rank 0. With the mock runner."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_backend.api.errors import ModelLoadError, SequenceFailed
from mlx_backend.api.interface import EngineConfig, RanksConfig, SamplingParams
from mlx_backend.core.membership import Membership
from mlx_backend.core.step import Chunk, NewRow, Span, StepPlan
from mlx_backend.ranks import follower, messages, peer
from mlx_backend.ranks.addresses import free_addresses, parse
from mlx_backend.ranks.channel import KEY_BYTES, Channel, ChannelError, accept, connect
from mlx_backend.ranks.follower import FAILED, LEADER_LOST, REFUSED, Follower
from mlx_backend.ranks.holdings import Held
from mlx_backend.ranks.patience import Patience
from mlx_backend.ranks.peer import Peer
from mlx_backend.runners.mock import MockRunner

WAIT_S = 60.0
KEY = bytes(KEY_BYTES)
CONFIG = EngineConfig(model_path="mock", backend="mock", ranks=RanksConfig(count=2))
CHUNK = Chunk(prompt=1, start=0, token_ids=(1, 2, 3), num_prompt_tokens=3)
ROW = NewRow(id=2, prompt=1, ordinal=0, prompt_ids=(1, 2, 3, 4), max_num_tokens=9, sampling=SamplingParams(), key=0)


class Noting(MockRunner):
    """The mock; what it is called for is noted."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.calls: queue.Queue[Any] = queue.Queue()

    def start(self, plan: StepPlan, read_masks: Any) -> None:
        self.calls.put(plan)
        super().start(plan, read_masks)

    def collect(self) -> Any:
        self.calls.put("collect")
        return super().collect()

    def prefill(self, chunk: Chunk) -> Any:
        self.calls.put(chunk)
        return super().prefill(chunk)

    def idle(self) -> None:
        self.calls.put("idle")
        super().idle()


class Group:
    """A follower on a thread, and rank 0's end of the channel."""

    def __init__(self, runner: Noting | None = None, patience: Patience | None = None) -> None:
        self.runner = runner or Noting(CONFIG)
        self.memberships: list[Membership] = []
        self.codes: queue.Queue[int] = queue.Queue()
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._follow, args=(theirs, patience), daemon=True).start()
        self.channel = accept(ours, KEY)

    def _follow(self, sock: socket.socket, patience: Patience | None) -> None:
        def build(config: EngineConfig, membership: Membership) -> Noting:
            assert config == CONFIG
            self.memberships.append(membership)
            return self.runner

        channel = connect(sock, KEY)
        self.follower = Follower(channel, 1, build, patience, self.codes.put)
        code = self.follower.run()
        channel.close()
        self.codes.put(code)

    def say(self, call: str, **given: Any) -> None:
        self.channel.send(messages.write({"call": call, **given}))

    def hear(self, kind: str) -> dict[str, Any]:
        end = time.monotonic() + WAIT_S
        while (message := messages.read(self.channel.receive()))["say"] != kind:
            assert message["say"] in ("beat", "echo") and time.monotonic() < end, message
        return message

    def load(self) -> None:
        assert self.hear("hello")["rank"] == 1
        addresses = free_addresses(2)
        self.membership = Membership(1, addresses, "tensor")
        fields = messages.membership_fields(self.membership)
        self.say("begin", config=messages.config_fields(CONFIG), membership=fields, model="mock", files={})
        self.hear("ready")
        with socket.create_server(parse(addresses[0])):
            for call, said in (("reach", "reached"), ("clear", "cleared")):
                self.say(call)
                self.hear(said)
        self.say("load")

    def code(self) -> int:
        return self.codes.get(timeout=WAIT_S)


@pytest.fixture
def group() -> Iterator[Group]:
    found = Group()
    found.load()
    assert found.hear("loaded")["facts"]["compared"]["is_batched"] == "True"
    yield found
    found.channel.close()


def test_calls_are_made_in_their_order(group: Group) -> None:
    plan = StepPlan(new_rows=(ROW,), decodes=(2,), dropped=(1,))
    for name, given in (
        ("prefill", {"chunk": CHUNK}),
        ("start", {"plan": plan, "collects": False}),
        ("collect", {}),
        ("idle", {}),
    ):
        group.say(name, **given)
    group.say("close")
    assert group.code() == 0
    assert [group.runner.calls.get_nowait() for _ in range(4)] == [CHUNK, plan, "collect", "idle"]
    assert group.memberships == [group.membership]


def test_blocks_are_kept_under_the_numbers_of_rank_0(group: Group) -> None:
    group.say("prefill", chunk=CHUNK)
    group.say("take", source=1, spans=(Span(0, 2),), ids=(1,))
    group.say("free", block=1)
    group.say("close")
    assert group.code() == 0


def test_a_block_of_another_number_ends_the_group(group: Group) -> None:
    group.say("prefill", chunk=CHUNK)
    group.say("take", source=1, spans=(Span(0, 2),), ids=(7,))
    assert "numbers" in group.hear("failed")["why"]
    assert group.code() == FAILED


@pytest.mark.parametrize("call", ["load_weights", "__init__", "kv_bytes"])
def test_no_other_call_is_made(group: Group, call: str) -> None:
    group.say(call)
    assert "unknown call" in group.hear("failed")["why"]
    assert group.code() == FAILED


def test_a_computation_that_fails_is_told_and_ends_it(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(chunk: Chunk) -> None:
        raise SequenceFailed("a prefill failed: broken")

    monkeypatch.setattr(group.runner, "prefill", failing)
    group.say("prefill", chunk=CHUNK)
    assert "broken" in group.hear("failed")["why"]
    assert group.code() == FAILED


def test_loading_that_fails_is_told_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(report: Any) -> None:
        raise ModelLoadError("no such folder")

    runner = Noting(CONFIG)
    monkeypatch.setattr(runner, "load", failing)
    group = Group(runner)
    group.load()
    assert group.hear("failed")["why"] == "no such folder"
    assert group.code() == FAILED
    group.channel.close()


def test_a_rank_that_is_asked_to_end_says_so_in_the_middle_of_a_computation(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, never = threading.Event(), threading.Event()

    def waiting() -> None:
        waits.set()
        never.wait(WAIT_S)

    monkeypatch.setattr(group.runner, "idle", waiting)
    group.say("idle")
    assert waits.wait(WAIT_S)
    group.follower.leave("was asked to end (SIGTERM)")
    assert group.hear("leaves")["why"] == "was asked to end (SIGTERM)"
    assert group.code() == 0
    never.set()


def test_a_rank_that_is_refused_says_so_by_its_exit_code() -> None:
    group = Group()
    assert group.hear("hello")["rank"] == 1
    group.say("refused", why="another version")
    assert group.code() == REFUSED
    group.channel.close()


def test_the_end_of_rank_0_ends_it_in_the_middle_of_a_computation(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, never = threading.Event(), threading.Event()

    def waiting() -> None:
        waits.set()
        never.wait(WAIT_S)

    monkeypatch.setattr(group.runner, "idle", waiting)
    group.say("idle")
    assert waits.wait(WAIT_S)
    group.channel.close()
    assert group.code() == LEADER_LOST
    never.set()


def test_a_message_is_answered_at_once_and_what_is_held_is_counted_in_the_order_of_the_calls(group: Group) -> None:
    group.say("beat", at=12.5)
    assert group.hear("echo")["at"] == 12.5
    group.say("count", number=1)
    group.say("prefill", chunk=CHUNK)
    group.say("count", number=2)
    group.say("start", plan=StepPlan(dropped=(1,)), collects=False)
    group.say("count", number=3)
    found = [group.hear("counted") for _ in range(3)]
    assert [said["number"] for said in found] == [1, 2, 3]
    assert [said["held"]["kv"] > 0 for said in found] == [False, True, False]
    assert all(set(said["held"]) == {"kv", "active", "peak"} for said in found)
    group.say("close")
    assert group.code() == 0


def test_the_step_before_is_collected_with_the_next_start(group: Group) -> None:
    group.say("prefill", chunk=CHUNK)
    group.say("start", plan=StepPlan(new_rows=(ROW,), decodes=(2,)), collects=False)
    group.say("start", plan=StepPlan(decodes=(2,)), collects=True)
    group.say("close")
    assert group.code() == 0
    assert [type(group.runner.calls.get_nowait()) for _ in range(4)] == [Chunk, StepPlan, StepPlan, str]


def test_a_frame_that_is_not_rank_0s_ends_it(group: Group) -> None:
    group.channel._socket.sendall(bytes(100))
    assert group.code() == LEADER_LOST


def test_the_silence_of_rank_0_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "BEAT_S", 0.01)
    group = Group(patience=Patience(silence_s=0.0))
    assert group.code() == LEADER_LOST
    group.channel.close()


# --- a rank as rank 0 sees it


class Watched:
    """A Peer, and the other end of its channel."""

    def __init__(self, patience: Patience | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.losses: queue.Queue[str] = queue.Queue()
        found: list[Channel] = []
        connecting = threading.Thread(target=lambda: found.append(connect(theirs, KEY)))
        connecting.start()
        channel = accept(ours, KEY)
        connecting.join()
        self.far = found[0]
        self.counts: queue.Queue[tuple[int, int, Held]] = queue.Queue()
        self.peer = Peer(1, channel, self.losses.put, patience or Patience(), lambda *count: self.counts.put(count))

    def loss(self) -> str:
        return self.losses.get(timeout=WAIT_S)

    def close(self) -> None:
        self.peer.close()
        self.far.close()


def test_a_rank_that_closes_its_connection_is_lost_once() -> None:
    watched = Watched()
    watched.far.close()
    assert "rank 1 is lost" in watched.loss()
    with pytest.raises(ChannelError):
        for _ in range(100):
            watched.peer.send(b"{}")
    assert watched.losses.empty()
    watched.close()


@pytest.mark.parametrize("kind", ["failed", "leaves"])
def test_a_rank_that_ends_says_why(kind: str) -> None:
    watched = Watched()
    watched.far.send(messages.write({"say": kind, "why": "no memory"}))
    assert watched.loss() == f"rank 1 {kind}: no memory"
    watched.close()


def test_a_rank_that_was_asked_to_leave_is_not_lost() -> None:
    watched = Watched()
    watched.peer.closing()
    watched.far.close()
    watched.peer.close()
    with pytest.raises(queue.Empty):
        watched.losses.get(timeout=0.1)


def test_calls_without_progress_are_a_loss_and_idleness_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "BEAT_S", 0.01)
    idle, stalled = (Watched(Patience(silence_s=WAIT_S, busy_silence_s=WAIT_S, stall_s=0.05)) for _ in range(2))
    stalled.peer.send(messages.write({"call": "collect"}), counts=True)
    assert "no progress" in stalled.loss()
    assert not idle.peer.is_busy
    assert idle.losses.empty()
    for each in (idle, stalled):
        each.close()


def test_a_rank_is_busy_until_it_says_what_it_has_done() -> None:
    watched = Watched()
    watched.peer.send(messages.write({"call": "collect"}), counts=True)
    assert watched.peer.is_busy
    watched.far.send(messages.write({"say": "beat", "done": 1}))
    end = time.monotonic() + WAIT_S
    while watched.peer.is_busy and time.monotonic() < end:
        time.sleep(0.001)
    assert not watched.peer.is_busy
    assert watched.peer.said["beat"] == {"say": "beat", "done": 1}
    watched.close()


def test_a_rank_is_shown_with_what_it_said_and_how_long_a_message_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "BEAT_S", 0.01)
    watched = Watched()
    assert watched.peer.stats(Held()).round_trip_s is None
    beat = messages.read(watched.far.receive())
    watched.far.send(messages.write({"say": "echo", "at": beat["at"]}))
    held = Held(kv=3, active=5, peak=7)
    watched.far.send(messages.write({"say": "counted", "number": 4, "held": held._asdict()}))
    assert watched.counts.get(timeout=WAIT_S) == (1, 4, held)
    stats = watched.peer.stats(held)
    assert (stats.rank, stats.kv_bytes, stats.active_bytes, stats.peak_bytes) == (1, 3, 5, 7)
    assert stats.round_trip_s is not None and 0 <= stats.round_trip_s < WAIT_S
    watched.close()


@pytest.mark.parametrize(
    "said",
    [
        {"say": "echo"},
        {"say": "echo", "at": "now"},
        {"say": "echo", "at": None},
        {"say": "counted", "number": 1},
        {"say": "counted", "number": "x", "held": {"kv": 1, "active": 1, "peak": 1}},
        {"say": "counted", "number": 1, "held": {"kv": None, "active": 1, "peak": 1}},
    ],
)
def test_an_answer_that_is_none_is_a_loss(said: dict[str, Any]) -> None:
    watched = Watched()
    watched.far.send(messages.write(said))
    assert "rank 1 is lost" in watched.loss()
    watched.close()
