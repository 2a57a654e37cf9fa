"""What thinned passes keep of weights: within a bound, what comes again, and never mixed by threads."""

import pytest
import torch

from mcdrop.shortcuts import kept_passes
from mcdrop.shortcuts.kept_passes import KeptPasses


def made_by(kept: KeptPasses, key: str, groups: int = 1, numbers: int = 10) -> int:
    """How many groups of a span, each of so many numbers, are not found."""
    span, found = kept.ask(key), 0
    for number in range(groups):
        if number not in span.taken:
            found += 1
            kept.keep(span, [torch.tensor([0])] * groups, number, (torch.zeros(1, numbers),))
    assert kept.held == sum(4 * numbers * len(each.taken) for each in kept.spans.values()) <= kept.bound
    return found


def test_kept_weights_stay_within_their_bound():
    kept = KeptPasses(3 * 40)
    assert [made_by(kept, "a", 5) for _ in range(4)] == [5, 5, 2, 2]  # kept when they come again; three fit, and stay
    assert made_by(kept, "b") == 1
    assert [*kept.spans] == ["a"]  # a span that came once
    assert [made_by(kept, "b") for _ in range(2)] == [1, 0]  # comes again, and nobody has asked for the other since
    assert [*kept.spans] == ["b"]


def test_what_is_asked_for_as_often_stays():
    """Two spans in turn, of which one fits: it is always found, instead of neither."""
    kept = KeptPasses(2 * 40)
    assert [(made_by(kept, "a", 2), made_by(kept, "b", 2)) for _ in range(4)] == [(2, 2), (2, 2), (0, 2), (0, 2)]
    assert made_by(kept, "b", 2) == 2  # and now twice in a row
    assert made_by(kept, "b", 2) == 0


def test_two_threads_that_make_the_same_keep_one():
    kept = KeptPasses(1000)
    kept.ask("a")
    first, second = kept.ask("a"), kept.ask("a")
    for span in (first, second):
        kept.keep(span, [torch.tensor([0])], 0, (torch.zeros(1, 10),))
    assert kept.held == 40
    assert kept.ask("a").taken.keys() == {0}


def test_threads_that_make_other_groups_do_not_mix_them():
    kept, groups = KeptPasses(1000), ([[0, 1], [2]], [[0], [1, 2]])
    kept.ask("a")
    for number, span in enumerate([kept.ask("a"), kept.ask("a")]):
        made = (torch.zeros(len(groups[number][number]), 1),)
        kept.keep(span, [torch.tensor(places) for places in groups[number]], number, made)
    found = kept.ask("a")
    assert [places.tolist() for places in found.groups] == groups[0]
    assert found.taken.keys() == {0}


def test_a_span_that_is_kept_is_never_as_new(monkeypatch: pytest.MonkeyPatch):
    """However many others were asked for since: what is kept of it has to be compared with what is to be put out."""
    monkeypatch.setattr(kept_passes, "_ASKED", 1)
    kept = KeptPasses(80)
    assert [made_by(kept, "a", 2) for _ in range(2)] == [2, 2]
    kept.ask("b")
    assert kept.ask("a").before == 2


def test_what_is_larger_than_the_bound_puts_nothing_out():
    kept = KeptPasses(100)
    for key, numbers in (("a", 10), ("a", 10), ("b", 50), ("b", 50)):
        kept.keep(kept.ask(key), [torch.tensor([0])], 0, (torch.zeros(1, numbers),))
    assert [*kept.spans] == ["a"]


def test_nothing_is_kept_where_nothing_is_taken():
    kept = KeptPasses(1000)
    for _ in range(3):
        kept.keep(kept.ask("a"), [torch.tensor([0])], 0, ())
    assert not kept.spans
