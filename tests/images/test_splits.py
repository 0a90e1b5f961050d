"""Carving of missing splits: by class, by content, the same every time."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pipeline.base.errors import ConfigError
from pipeline.base.items import NONE, TEST, TRAIN, VAL
from pipeline.images import assign_splits, needs_carving


def digests_of(words) -> np.ndarray:
    return np.stack([np.frombuffer(hashlib.sha256(str(w).encode()).digest(), np.uint8) for w in words])


def plan_of(listing, words, val=0.15, test=0.15, seed=0):
    return assign_splits(listing, digests_of(words), val_fraction=val, test_fraction=test, seed=seed)


def random_source(listing_of, rng, *, sharing: bool):
    """A source of a few classes with copies inside classes and, when ``sharing``, across them."""
    rows, words = [], []
    for c in range(int(rng.integers(2, 6))):
        for _ in range(int(rng.integers(1, 40))):
            own = f"{c}:{rng.integers(0, 25)}"
            words.append(f"shared:{rng.integers(0, 5)}" if sharing and rng.random() < 0.2 else own)
            rows.append((f"class{c}", NONE))
    return listing_of(rows), words


@pytest.mark.parametrize("sharing", [False, True])
def test_copies_of_an_image_never_fall_on_two_sides(listing_of, sharing):
    """Leakage."""
    rng = np.random.default_rng(1)
    for seed in range(60):
        listing, words = random_source(listing_of, rng, sharing=sharing)
        side: dict[str, int] = {}
        for word, split in zip(words, plan_of(listing, words, 0.3, 0.3, seed).splits, strict=True):
            assert side.setdefault(word, split) == split


@pytest.mark.parametrize("sharing", [False, True])
def test_every_class_of_three_distinct_images_or_more_is_in_every_split_and_smaller_ones_in_train(listing_of, sharing):
    rng = np.random.default_rng(2)
    for seed in range(60):
        listing, words = random_source(listing_of, rng, sharing=sharing)
        splits = plan_of(listing, words, seed=seed).splits
        for c in range(len(listing.classes)):
            mine = listing.labels == c
            n = len({w for w, m in zip(words, mine, strict=True) if m})
            assert TRAIN in splits[mine]
            if n >= 3:
                assert set(splits[mine].tolist()) == {TRAIN, VAL, TEST}
            elif not sharing:
                assert set(splits[mine].tolist()) == {TRAIN}


def test_each_class_gives_the_rounded_share_of_its_distinct_images(listing_of):
    listing = listing_of([("a", NONE)] * 100 + [("b", NONE)] * 50 + [("b", NONE)] * 50)
    words = [f"a{i}" for i in range(100)] + [f"b{i}" for i in range(50)] * 2  # each b is there twice
    splits = plan_of(listing, words, 0.15, 0.1).splits
    assert [int((splits[:100] == s).sum()) for s in (TRAIN, VAL, TEST)] == [75, 15, 10]
    assert [int((splits[100:150] == s).sum()) for s in (TRAIN, VAL, TEST)] == [37, 8, 5]  # 7.5 rounds up
    assert np.array_equal(splits[100:150], splits[150:])


def test_the_draw_is_the_order_of_sha256_of_seed_and_digest(listing_of):
    """An independent computation of the rule in the docstring."""
    words = [f"a{i}" for i in range(20)] + [f"b{i}" for i in range(20)]
    listing = listing_of([(w[0], NONE) for w in words])
    splits = plan_of(listing, words, 0.2, 0.1, seed=7).splits
    for c in "ab":
        mine = [i for i, w in enumerate(words) if w[0] == c]
        mine.sort(key=lambda i: hashlib.sha256(b"7:" + hashlib.sha256(words[i].encode()).digest()).hexdigest())
        assert [int(splits[i]) for i in mine] == [VAL] * 4 + [TEST] * 2 + [TRAIN] * 14


def test_the_draw_does_not_depend_on_names_or_order(listing_of):
    """A renamed or reordered source keeps its splits."""
    rng = np.random.default_rng(3)
    listing, words = random_source(listing_of, rng, sharing=True)
    once = dict(zip(words, plan_of(listing, words).splits.tolist(), strict=True))
    order = rng.permutation(len(words))
    moved = listing_of([(listing.classes[listing.labels[i]], NONE) for i in order])
    shuffled = [words[i] for i in order]
    assert dict(zip(shuffled, plan_of(moved, shuffled).splits.tolist(), strict=True)) == once


def test_another_seed_gives_another_draw_and_the_same_seed_the_same(listing_of):
    words = [f"{c}{i}" for c in "ab" for i in range(50)]
    listing = listing_of([(w[0], NONE) for w in words])
    first, again, other = (plan_of(listing, words, seed=s).splits for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_missing_test_is_carved_from_train_only(listing_of):
    rows = [(c, s) for c in "ab" for s in [TRAIN] * 40 + [VAL] * 10]
    listing = listing_of(rows)
    plan = plan_of(listing, range(100))
    assert needs_carving(listing)
    assert plan.carved
    assert np.array_equal(plan.splits == VAL, listing.splits == VAL)
    assert int((plan.splits == TEST).sum()) == 12
    assert plan.notes == ("no test split in the source: 12 of 80 train images set aside as test (15 %, seed 0)",)


def test_a_source_with_all_splits_is_left_as_it_is_and_needs_no_digests(listing_of):
    listing = listing_of([(c, s) for c in "ab" for s in (TRAIN, TRAIN, TRAIN, TRAIN, VAL, TEST)])
    plan = assign_splits(listing, None, val_fraction=0.5, test_fraction=0.1, seed=0)
    assert not needs_carving(listing)
    assert (plan.carved, plan.notes) == (False, ())
    assert np.array_equal(plan.splits, listing.splits)


def test_train_images_whose_copy_is_in_an_explicit_split_stay_in_train(listing_of):
    """Moving them would hide the leak that the audit must report."""
    listing = listing_of([(c, s) for c in "ab" for s in [TRAIN] * 12 + [VAL] * 10])
    words = [f"{c}{i}" for c in "ab" for i in [*range(12), *range(10)]]  # val repeats train's first ten
    splits = plan_of(listing, words, test=0.4).splits
    for start in (0, 22):
        assert (splits[start : start + 10] == TRAIN).all()


def test_unlabelled_images_are_never_moved(listing_of):
    listing = listing_of([("a", NONE)] * 10 + [("b", NONE)] * 10 + [(None, NONE)] * 10)
    assert (plan_of(listing, range(30)).splits[20:] == NONE).all()
    flat = listing_of([(None, NONE)] * 5)
    assert not needs_carving(flat)
    assert (assign_splits(flat, None, val_fraction=0.1, test_fraction=0.1, seed=0).splits == NONE).all()


def test_files_without_a_digest_stay_in_train(listing_of):
    listing = listing_of([(c, NONE) for c in "ab" for _ in range(10)])
    digests = digests_of(range(20))
    digests[5:10] = 0
    splits = assign_splits(listing, digests, val_fraction=0.3, test_fraction=0.3, seed=0).splits
    assert (splits[5:10] == TRAIN).all()
    assert VAL in splits[:5]


def test_a_zero_fraction_carves_nothing(listing_of):
    listing = listing_of([(c, NONE) for c in "ab" for _ in range(10)])
    plan = plan_of(listing, range(20), val=0, test=0)
    assert not plan.carved
    assert (plan.splits == TRAIN).all()
    only_val = plan_of(listing, range(20), val=0.2, test=0).splits
    assert set(only_val.tolist()) == {TRAIN, VAL}


def test_large_fractions_leave_one_image_of_each_class_in_train(listing_of):
    listing = listing_of([(c, NONE) for c in "ab" for _ in range(3)])
    splits = plan_of(listing, range(6), val=0.9, test=0.09).splits
    assert sorted(splits[:3].tolist()) == sorted(splits[3:].tolist()) == [TRAIN, VAL, TEST]


def test_notes_of_an_unsplit_source_say_counts_shares_seed_and_small_classes(listing_of):
    listing = listing_of([("a", NONE)] * 20 + [("b", NONE)] * 20 + [("tiny", NONE)] * 2)
    plan = plan_of(listing, range(42), 0.15, 0.1, seed=3)
    assert plan.notes == (
        "no splits in the source: 42 images divided by content into 32 train, 6 val, 4 test "
        "(15 % val, 10 % test, seed 3)",
        "classes with fewer than 3 distinct images stay in train whole: 1 ('tiny')",
    )


@pytest.mark.parametrize(
    ("val", "test", "words"),
    [
        (-0.1, 0.1, "val_fraction is -0.1"),
        (0.1, 1.0, "test_fraction is 1.0"),
        (float("nan"), 0.1, "val_fraction is nan"),
        (0.5, 0.5, "add up to 0.5 + 0.5"),
    ],
)
def test_illegal_fractions_are_refused(listing_of, val, test, words):
    with pytest.raises(ConfigError) as caught:
        plan_of(listing_of([("a", NONE), ("b", NONE)]), range(2), val, test)
    assert words in str(caught.value)
