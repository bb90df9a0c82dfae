"""The tree finds the longest prefix that is held, now or soon, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

from appliance.runtime.prefix import NO_MATCH, PrefixTree

Text = tuple[int, ...]


def everything(tree: PrefixTree) -> Callable[[int], int]:
    return lambda seq_id: len(tree.tokens(seq_id))


def test_the_longest_prefix_is_found_whoever_holds_it() -> None:
    tree = PrefixTree()
    tree.add(1, "k", [1, 2, 3, 4])
    tree.add(2, "k", [1, 2, 9])
    tree.add(3, "other", [1, 2, 3, 4, 5])
    found = tree.find(["k"], [1, 2, 3, 7], everything(tree))
    assert (found.seq_id, found.tokens) == (1, 3)
    assert tree.find(["k"], [1, 2, 9, 9], everything(tree)).seq_id == 2
    assert tree.find(["k"], [5], everything(tree)) == NO_MATCH
    assert tree.find(["k", "other"], [1, 2, 3, 4, 5, 6], everything(tree)).tokens == 5


def test_what_is_only_promised_is_told_apart_from_what_is_there() -> None:
    tree = PrefixTree()
    tree.add(1, "k", [1, 2, 3, 4, 5, 6])
    tree.add(2, "k", [1, 2, 3])
    evaluated = {1: 2, 2: 3}
    found = tree.find(["k"], [1, 2, 3, 4, 5, 9], evaluated.__getitem__)
    assert (found.seq_id, found.tokens) == (2, 3)
    assert (found.promiser, found.promised) == (1, 5)


def test_a_sequence_covers_those_whose_whole_text_it_begins_with() -> None:
    tree = PrefixTree()
    tree.add(1, "k", [1, 2])
    tree.add(2, "k", [1, 2, 3])
    tree.add(3, "k", [1, 2, 3, 4])
    tree.add(4, "k", [1, 5])
    assert sorted(tree.covered(3)) == [1, 2]
    assert tree.covered(1) == []
    assert tree.holders("k", [1, 2, 3]) == {2, 3}
    assert tree.holders("k", [1, 6]) == frozenset()


def test_cuts_are_undone_when_nobody_parts_there_any_more() -> None:
    tree = PrefixTree()
    tree.add(1, "k", range(100))
    for other in range(2, 60):
        tree.add(other, "k", [*range(other), 777])
    for other in range(2, 60):
        tree.remove(other)
    root = tree._roots["k"]  # noqa: SLF001 - how many nodes there are is the rule
    assert [len(child.piece) for child in root.children.values()] == [100]
    tree.remove(1)
    assert not tree._roots  # noqa: SLF001


def longest(texts: dict[int, Text], text: Text) -> int:
    best = 0
    for held in texts.values():
        same = 0
        while same < min(len(held), len(text)) and held[same] == text[same]:
            same += 1
        best = max(best, same)
    return best


def test_random_texts_are_matched_as_a_plain_search_does() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        tree, texts = PrefixTree(), dict[int, Text]()
        for _ in range(80):
            if texts and rng.random() < 0.4:
                gone = rng.choice(sorted(texts))
                tree.remove(gone)
                del texts[gone]
            else:
                seq_id = rng.randrange(1000)
                if seq_id in texts:
                    continue
                texts[seq_id] = tuple(rng.randrange(2) for _ in range(rng.randrange(1, 12)))
                tree.add(seq_id, "k", texts[seq_id])
            asked = tuple(rng.randrange(2) for _ in range(8))
            found = tree.find(["k"], asked, everything(tree))
            assert found.tokens == found.promised == longest(texts, asked), f"seed {seed}"
            if found.tokens:
                assert texts[found.seq_id][: found.tokens] == asked[: found.tokens]
        assert len(tree) == len(texts)
