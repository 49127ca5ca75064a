"""The rule that bounds how many architectures may be skipped."""

import json
import logging

import pytest

from ghn_jax.training.skipping import SkipRule, TooManySkippedError


def pairs(step, count=4):
    return [(10 * step + offset, 77) for offset in range(count)]


def test_counts_and_logs_index_and_seed(caplog):
    rule = SkipRule(max_skipped_share=0.5, window=10)
    with caplog.at_level(logging.WARNING):
        assert rule.record(1, pairs(1), [True, False, True, False]) == 2
        assert rule.record(2, pairs(2), [True] * 4) == 0
    assert rule.num_skipped == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"step 1: the loss of the architecture with index {index}, seed 77 is not finite;"
        " it is skipped"
        for index in (11, 13)
    ]


def test_stops_beyond_the_share_of_a_full_window():
    # 10 steps of 4 are 40 architectures, so 4 may be skipped and the fifth is one too many.
    rule = SkipRule(max_skipped_share=0.1, window=10)
    rule.record(0, pairs(0), [False] * 4)
    for step in range(1, 4):
        rule.record(step, pairs(step), [True] * 4)
    with pytest.raises(TooManySkippedError) as caught:
        rule.record(4, pairs(4), [True, True, False, True])
    message = str(caught.value)
    assert message.startswith(
        "5 of the 20 architectures of the last 5 steps had a non-finite loss, more than"
        " max_skipped_share = 0.1 of a window of 10 steps allows (step 0: index 0, seed 77;"
    )
    assert "step 4: index 42, seed 77). Lower the learning rate" in message


def test_old_steps_leave_the_window():
    rule = SkipRule(max_skipped_share=0.25, window=4)
    for step in range(40):
        # One of four in every step is a quarter of any window: allowed for ever.
        rule.record(step, pairs(step), [step % 2 == 0, True, True, step % 2 == 1])
    assert rule.num_skipped == 40


def test_share_zero_stops_at_the_first():
    rule = SkipRule(max_skipped_share=0.0, window=100)
    rule.record(0, pairs(0), [True] * 4)
    with pytest.raises(TooManySkippedError, match="^1 of the 8 architectures of the last 2 steps"):
        rule.record(1, pairs(1), [True, True, True, False])


def test_long_lists_are_cut():
    rule = SkipRule(max_skipped_share=0.5, window=1)
    with pytest.raises(
        TooManySkippedError, match=r"allows \(the last 20 of them: step 0: "
    ) as caught:
        rule.record(0, pairs(0, count=30), [False] * 30)
    assert str(caught.value).count("index") == 20


def test_state_goes_through_json():
    rule = SkipRule(max_skipped_share=0.1, window=10)
    rule.record(0, pairs(0), [False] * 4)
    resumed = SkipRule(max_skipped_share=0.1, window=10)
    resumed.restore(json.loads(json.dumps(rule.state())))
    assert resumed.num_skipped == 4
    assert resumed.state() == rule.state()
    with pytest.raises(TooManySkippedError, match="step 0: index 0, seed 77"):
        resumed.record(1, pairs(1), [False, True, True, True])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="^finite has 3 values, expected 4, one per architecture$"):
        SkipRule(0.1, 10).record(0, pairs(0), [True] * 3)


@pytest.mark.parametrize(
    "state",
    [
        {"num_skipped": -1, "recent": []},
        {"num_skipped": "3", "recent": []},
        {"num_skipped": 0, "recent": [["4", []]]},
        {"num_skipped": 0, "recent": [[4, [[1, 2, None]]]]},
        {"num_skipped": 0, "recent": [[4, [[1, 2]]]]},
    ],
)
def test_counts_of_another_kind_are_refused(state):
    with pytest.raises(ValueError, match="expected"):
        SkipRule(0.5, window=3).restore(state)
