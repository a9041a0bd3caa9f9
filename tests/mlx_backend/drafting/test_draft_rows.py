"""What the draft model holds, as the engine knows it; what it costs, and what is taken from earlier text instead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.interface import MOST_DRAFT_TOKENS
from mlx_backend.core.sequence import TokenSequence, build_groups
from mlx_backend.core.step import Draft, DraftRequest
from mlx_backend.drafting.draft_costs import DraftCosts
from mlx_backend.drafting.draft_model import DraftModelDrafter
from mlx_backend.drafting.draft_rows import DraftRows
from mlx_backend.drafting.drafter import PROMISED
from mlx_backend.drafting.payoff import Account, Candidate, Payoff
from tests.engine_client import request

CONTEXT = 200


class Held:
    """A draft model's cache of one row: the tokens in it, wrong ones among them."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def draft(self, wanted: DraftRequest, drafts: tuple[int, ...]) -> Draft | None:
        if wanted.start > len(self.tokens):
            self.tokens = []
            return None
        assert len(self.tokens) - wanted.start <= MOST_DRAFT_TOKENS, "it never goes back further"
        self.tokens[wanted.start :] = [*wanted.token_ids, *drafts[:-1]]
        return Draft(wanted.id, drafts)


@given(
    st.integers(1, 120),
    st.lists(st.tuples(st.sampled_from(["draft", "plain", "prefill", "lose"]), st.integers(1, 15), st.integers(0, 15))),
)
def test_it_is_asked_for_what_follows_what_it_holds(num_prompt: int, actions: list[tuple[str, int, int]]) -> None:
    (group,) = build_groups([request(range(1000, 1000 + num_prompt), 400)])
    (sequence,) = group.sequences
    sequence.output_ids.append(0)
    rows, held = DraftRows(CONTEXT), Held()
    for action, num, num_accepted in actions:
        right, total = range(len(sequence.output_ids), 600), num_prompt + len(sequence.output_ids)
        if action == "lose":
            held.tokens = []
        elif action == "plain":
            sequence.output_ids += right[:num]
        elif action == "prefill" and rows.num_missing(sequence):
            assert not rows.is_ready(sequence, 1, 0)
            wanted = rows.to_prefill(sequence, num)
            assert 1 <= len(wanted.token_ids) <= num and wanted.stop < total and not wanted.num_drafts
            given = held.draft(wanted, ())
            rows.answer([wanted], () if given is None else (given,))
            assert given is not None or _known(rows, sequence) == 0
        elif action == "draft" and rows.is_ready(sequence, num, 0):
            assert total + num <= CONTEXT and not rows.num_missing(sequence)
            wanted = rows.to_draft(sequence, num)
            assert 1 <= len(wanted.token_ids) <= MOST_DRAFT_TOKENS + 1 and wanted.stop == total
            taken = min(num, num_accepted)
            drafts = (*right[:taken], *[9999] * (num - taken))
            given = held.draft(wanted, drafts)
            found = rows.answer([wanted], () if given is None else (given,))
            if given is not None:
                assert found == {sequence.id: drafts}
                rows.accept(sequence.id, taken, num)
                sequence.output_ids += right[: taken + 1]
        known = _known(rows, sequence)
        if held.tokens:
            assert held.tokens[:known] == [*sequence.request.prompt_ids, *sequence.output_ids][:known]
    rows.forget(sequence.id)
    assert _known(rows, sequence) == 0


def _known(rows: DraftRows, sequence: TokenSequence) -> int:
    return rows.to_draft(sequence, 1).start


def test_none_is_asked_where_there_is_no_draft_model() -> None:
    (group,) = build_groups([request((1, 2), 40)])
    (sequence,) = group.sequences
    assert not DraftRows(0).is_ready(sequence, 1, 0)
    assert DraftRows(0).num_missing(sequence) == 0


def test_long_repetitions_and_predictions_come_before_the_draft_model() -> None:
    text = tuple(range(50, 80))
    drafter = DraftModelDrafter((*text, 1, 2, 3))
    assert drafter.guess(4).num_promised == 4
    drafter.extend(text[:3])
    assert (drafter.guess(2).token_ids, drafter.guess(2).num_promised) == (text[3:5], 2)  # where it cannot be asked
    drafter.extend(text[3:12])
    assert (drafter.guess(2).token_ids, drafter.guess(2).num_promised) == (text[12:14], 0)
    predicted = DraftModelDrafter((1, 2), (7, 8, 9))
    assert (predicted.guess(2).is_predicted, predicted.guess(2).num_promised) == (True, 0)
    assert DraftModelDrafter((1, 2)).guess(-1).num_promised == 0


# ---- what it costs ----


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8), st.floats(1e-4, 1.0)), min_size=1))
def test_steps_cost_what_was_measured(measured: list[tuple[int, int, float]]) -> None:
    costs = DraftCosts()
    assert costs.steps_s(1, 2, 0.1) == 2 * costs.steps_s(1, 1, 0.1) > 0
    for num_rows, num_steps, step_s in measured:
        costs.observe_steps(num_rows, num_steps, num_steps * step_s)
    every = [step_s for _, _, step_s in measured]
    for num_rows in range(1, 9):
        assert min(every) * 0.999 <= costs.steps_s(num_rows, 1, 0.1) <= max(every) * 1.001
    assert costs.steps_s(1, 0, 0.1) == 0


@given(st.floats(1e-6, 1e-2), st.floats(1e-3, 1.0), st.integers(1, 512))
def test_so_much_is_taken_up_as_fits_into_a_pause(token_s: float, stall_s: float, most: int) -> None:
    costs = DraftCosts()
    assert 1 <= costs.tokens_for(stall_s, most) <= most
    costs.observe_chunk(100, 100 * token_s)
    found = costs.tokens_for(stall_s, most)
    assert 1 <= found <= most
    assert found <= 16 or costs.chunk_s(found, 0.1) <= stall_s * 1.001


def measured(step_share: float) -> Payoff:
    """Plain steps take 100 ms, verifying hardly more; a step of the draft model takes a share of a plain one."""
    payoff = Payoff(8, max_slowdown=1.0)
    for _ in range(3):
        payoff.observe_plain(1, 0.1)
        for num_tokens in range(2, 10):
            payoff.observe_drafted(1, num_tokens, 0.1 + 0.001 * num_tokens)
        payoff.costs.observe_steps(1, 1, step_share * 0.1)
    return payoff


def test_the_time_of_drafting_decides_how_much_is_drafted() -> None:
    account = Account(balance_s=10.0)
    nums = [
        measured(share).choose([Candidate(account, 8, PROMISED)], num_unknown=1)[0] for share in (0.01, 0.3, 0.7, 2.0)
    ]
    assert nums == sorted(nums, reverse=True)
    assert nums[0] >= 4
    assert nums[-1] == 0
    guesses = measured(2.0).choose([Candidate(account, 8, 3)])
    assert guesses[0] > 0, "what is not the draft model's costs nothing"


def test_a_row_is_taken_up_where_it_should_win_more_than_that() -> None:
    cheap, dear = measured(0.05), measured(2.0)
    assert cheap.invests(Account(), 1.0, 200, 1)
    assert not cheap.invests(Account(), 1.0, 4, 1), "too few tokens are left"
    assert not cheap.invests(Account(), 30.0, 200, 1)
    assert not dear.invests(Account(), 1e-6, 200, 1)
    assert not Payoff(8, 0.01).invests(Account(), 0.0, 200, 1), "nothing was measured yet"
    refused = Account()
    for _ in range(30):
        cheap.observe_draft(refused, PROMISED, 0, 4)
    assert not cheap.invests(refused, 1.0, 200, 1)
