"""A run of the kit with steps that are made up: what is on file when, and how a run goes on after it was cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.acceptance.journal import Journal, read_past, write_result
from server.acceptance.kit import Machine, OtherRun, journal_file, ratios, run_kit
from server.acceptance.processes import StepFailed
from server.acceptance.steps import STEPS, KitOptions, Step

QUICK = KitOptions(model="m")


class Panicked(BaseException):
    """The machine has stopped: nothing after it is done."""


@dataclass
class Fake:
    """A machine whose steps do what is said of them."""

    out: Path
    has_metal: bool = True
    behave: dict[str, Callable[[Callable[[str], None]], Any]] = field(default_factory=dict)
    boot: str = "1"
    done: list[str] = field(default_factory=list)
    panics: list[str] = field(default_factory=list)

    def run(self, step: Step, options: KitOptions, progress: Callable[[str], None]) -> dict[str, Any]:
        assert read_past(journal_file(self.out)).open_step == step.name  # on the disk before it begins
        self.done.append(step.name)
        if step.name in self.behave:
            return dict(self.behave[step.name](progress) or {})
        return {"figures": {"has_metal": self.has_metal}} if step.name == "device" else {"checks": [{"is_kept": True}]}

    def kit(self, options: KitOptions = QUICK, **more: Any) -> dict[str, str]:
        machine = Machine(
            facts=lambda: {"cores": 2}, boot=lambda: self.boot, panics=lambda: [*self.panics], run=self.run
        )
        document = run_kit(options, self.out, machine, **more)
        assert json.loads(self.out.read_text()) == document
        return {step["name"]: step["status"] for step in document["steps"]}


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path / "result.json")


def fail(progress: Callable[[str], None]) -> Any:
    raise StepFailed("was ended by signal 11")


def panic(progress: Callable[[str], None]) -> Any:
    progress("half of it")
    raise Panicked


def test_all_steps_in_order(fake: Fake) -> None:
    statuses = fake.kit()
    assert list(statuses) == [step.name for step in STEPS if not step.is_opt_in]
    assert set(statuses.values()) == {"passed"}
    assert json.loads(fake.out.read_text())["steps"][0]["figures"] == {"cores": 2}


def test_without_metal_steps_are_skipped_and_it_is_said(fake: Fake) -> None:
    fake.has_metal = False
    statuses = fake.kit()
    assert statuses["wired_decode"] == "skipped"
    assert "wired_decode" not in fake.done
    skipped = [step for step in json.loads(fake.out.read_text())["steps"] if step["status"] == "skipped"]
    assert {step["detail"] for step in skipped} == {"needs Metal"}


def test_a_step_that_fails_stops_nothing(fake: Fake) -> None:
    fake.behave = {"load": fail, "batch": lambda progress: {"checks": [{"is_kept": False}]}}
    statuses = fake.kit()
    assert (statuses["load"], statuses["batch"], statuses["serve"]) == ("failed", "failed", "passed")
    (load,) = [step for step in json.loads(fake.out.read_text())["steps"] if step["name"] == "load"]
    assert load["detail"] == "was ended by signal 11"


@pytest.mark.parametrize(("boot", "detail"), [("2", "the machine has restarted"), ("1", "the run was ended")])
def test_after_a_panic_the_run_goes_on_behind_the_step_that_was_open(fake: Fake, boot: str, detail: str) -> None:
    fake.behave["wired_decode"] = panic
    with pytest.raises(Panicked):
        fake.kit()
    before = json.loads(fake.out.read_text())["steps"]
    assert [step["name"] for step in before][-1] == "serve"  # what was measured is kept
    with journal_file(fake.out).open("ab") as file:
        file.write(b'{"event": "prog')  # the last line was cut off
    fake.boot, fake.done = boot, []
    statuses = fake.kit()
    assert fake.done == ["out_of_memory"]
    assert statuses["wired_decode"] == "interrupted"
    (open_step,) = [s for s in json.loads(fake.out.read_text())["steps"] if s["status"] == "interrupted"]
    assert open_step["detail"].startswith(detail)
    assert open_step["detail"].endswith("last heard of: half of it")
    fake.behave, fake.done = {}, []
    assert fake.kit(KitOptions(model="m", only=("wired_decode",)))["wired_decode"] == "passed"
    assert fake.done == ["wired_decode"]


def test_a_step_that_the_user_has_stopped_is_done_again(fake: Fake) -> None:
    def stop(progress: Callable[[str], None]) -> Any:
        raise KeyboardInterrupt

    fake.behave["decode"] = stop
    with pytest.raises(KeyboardInterrupt):
        fake.kit()
    fake.behave, fake.done = {}, []
    assert set(fake.kit().values()) == {"passed"}
    assert fake.done[0] == "decode"


def test_a_finished_run_begins_anew_and_one_of_named_steps_keeps_the_others(fake: Fake) -> None:
    fake.kit()
    fake.done = []
    assert len(fake.kit(KitOptions(model="m", only=("load",)))) == len(STEPS) - 1
    assert fake.done == ["load"]
    fake.kit()
    assert fake.done[1:3] == ["device", "parity"]


def test_a_run_with_other_options_is_not_mixed_in(fake: Fake) -> None:
    fake.behave["decode"] = panic
    with pytest.raises(Panicked):
        fake.kit()
    other = KitOptions(model="another")
    with pytest.raises(OtherRun, match="--fresh"):
        fake.kit(other)
    fake.behave, fake.done = {}, []
    assert set(fake.kit(other, is_fresh=True).values()) == {"passed"}
    assert fake.done[0] == "device"


@pytest.mark.parametrize("text", ["", "weights", "[]", '{"model_type": "llama"}'])
def test_a_file_of_something_else_is_left_alone(fake: Fake, text: str) -> None:
    fake.out.write_text(text)
    with pytest.raises(OtherRun, match="no result of this command"):
        fake.kit(is_fresh=True)
    assert (fake.out.read_text(), fake.done) == (text, [])
    fake.out = Path("/dev/null")
    with pytest.raises(OtherRun):
        fake.kit()


def test_one_run_at_a_time_writes_a_file(fake: Fake) -> None:
    journal = Journal(journal_file(fake.out), is_fresh=True)
    with pytest.raises(BlockingIOError):
        fake.kit(is_fresh=True)
    journal.close()
    assert set(fake.kit().values()) == {"passed"}


def test_new_panics_are_named(fake: Fake) -> None:
    fake.panics = ["old"]
    fake.behave["serve"] = lambda progress: fake.panics.append("new")
    fake.kit()
    assert json.loads(fake.out.read_text())["new_panics"] == ["new"]


def test_ratios_of_what_is_to_be_compared() -> None:
    rows = [{"context": 1024, "idle_s": 2.0, "tok_s": 10.0}]
    wired = [{"context": 1024, "idle_s": 2.0, "tok_s": 30.0}]
    assert ratios({"decode": {"figures": {"rows": rows}}, "wired_decode": {"figures": {"rows": wired}}}) == {
        "wired, 1024 tokens after 2 s": 3.0
    }
    buffers = {"buffers_default": {"figures": {"tok_s": 2.0}}, "buffers_large": {"figures": {"tok_s": 3.0}}}
    assert ratios(buffers) == {"large_buffers": 1.5}
    assert ratios({"buffers_large": {"status": "failed"}}) == {}


@pytest.mark.parametrize("text", [b"", b"\x00\x00\n{", b'[1]\n"x"\n', b'{"event": "later"}\n'])
def test_a_journal_that_cannot_be_read_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "j").write_bytes(text)
    past = read_past(tmp_path / "j")
    assert (past.identity, past.results, past.open_step) == (None, {}, None)
    assert read_past(tmp_path / "none") == past


def test_every_line_is_synchronized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(
        "server.acceptance.journal.synchronize", lambda handle: sizes.append((tmp_path / "j").stat().st_size)
    )
    journal = Journal(tmp_path / "j", is_fresh=True)
    for _ in range(2):
        journal.write("begin", step="x", boot="1")
    journal.close()
    assert len(sizes) == 2 and 0 < sizes[0] < sizes[1]


def test_a_result_is_written_in_one_piece(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    write_result(out, {"a": 1})
    with pytest.raises(TypeError):
        write_result(out, {"a": object()})
    assert json.loads(out.read_text()) == {"a": 1}
