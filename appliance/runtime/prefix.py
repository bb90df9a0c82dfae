"""Find the longest prefix of a prompt that some sequence holds already.

What this room does: a radix tree of tokens, one for each cache key, over the sequences that hold
them: running ones with all of their prompt, evaluated or about to be, and parked ones with what
they hold.
What it knows: which tokens lie in which sequence, in order from position 0.
What it never does: know which cells those are (`ledger` does), or decide what is kept (`parked`).

A node stands for a piece of text after its parent's, and names the sequences that hold it to its
end: they hold every ancestor too. A piece is cut in two where two sequences part, so a sequence
that ends or parts inside a piece makes a node end there. The tree speaks of tokens, not of cells:
two sequences that computed the same text each for itself stand at the same node.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a prompt can take over, and from where.

    tokens: how many `seq_id` holds now. promised: how many some sequence will hold once it has
    evaluated its prompt, by `promiser`; never fewer than tokens.
    """

    seq_id: int
    tokens: int
    promiser: int
    promised: int


NO_MATCH = Match(seq_id=-1, tokens=0, promiser=-1, promised=0)


class _Node:
    __slots__ = ("children", "holders", "piece")

    def __init__(self, piece: Tokens, holders: set[int]) -> None:
        self.piece = piece
        self.holders = holders
        self.children: dict[int, _Node] = {}


class PrefixTree:
    """The prefixes of one context. Not thread-safe: the scheduler owns it."""

    def __init__(self) -> None:
        """Begin with no sequence."""
        self._roots: dict[Hashable, _Node] = {}
        self._held: dict[int, tuple[Hashable, Tokens]] = {}

    def __contains__(self, seq_id: int) -> bool:
        """Say whether this sequence is in the tree."""
        return seq_id in self._held

    def __len__(self) -> int:
        """Count the sequences in the tree."""
        return len(self._held)

    def tokens(self, seq_id: int) -> Tokens:
        """List the tokens a sequence was added with."""
        return self._held[seq_id][1]

    def add(self, seq_id: int, key: Hashable, tokens: Sequence[int]) -> None:
        """Add a sequence that holds, or will hold, these tokens from position 0."""
        assert seq_id not in self._held, f"sequence {seq_id} is in the tree already"
        text = tuple(tokens)
        self._held[seq_id] = (key, text)
        node = self._roots.setdefault(key, _Node((), set()))
        at = 0
        while at < len(text):
            child = node.children.get(text[at])
            if child is None:
                node.children[text[at]] = _Node(text[at:], {seq_id})
                return
            same = _same(child.piece, text, at)
            if same < len(child.piece):
                child = _cut(node, child, same)
            child.holders.add(seq_id)
            node = child
            at += same

    def remove(self, seq_id: int) -> None:
        """Take a sequence out; unknown ones are not an error."""
        key, text = self._held.pop(seq_id, (None, ()))
        root = self._roots.get(key)
        if root is None:
            return
        node, at = root, 0
        while at < len(text):
            child = node.children[text[at]]
            at += len(child.piece)
            child.holders.discard(seq_id)
            if not child.holders:
                del node.children[child.piece[0]]
                break
            node = child
        if not root.children:
            del self._roots[key]
        else:
            _join(root, text)

    def find(
        self, keys: Sequence[Hashable], tokens: Sequence[int], there: Callable[[int], int]
    ) -> Match:
        """Find who holds most of these tokens, now and soon, under any of the keys.

        `there` tells how many tokens of its text a sequence has evaluated.
        """
        best = NO_MATCH
        text = tuple(tokens)
        for key in keys:
            for length, holders in reversed(self._path(key, text)):
                for seq_id in holders:
                    now = min(length, there(seq_id))
                    # Of two that hold as much, a sequence: a saved state has a higher number.
                    if now > best.tokens or (0 < now == best.tokens and seq_id < best.seq_id):
                        best = Match(
                            seq_id=seq_id,
                            tokens=now,
                            promiser=best.promiser if best.promised > now else seq_id,
                            promised=max(best.promised, now),
                        )
                    if length > best.promised:
                        best = Match(
                            seq_id=best.seq_id,
                            tokens=best.tokens,
                            promiser=seq_id,
                            promised=length,
                        )
        return best

    def holders(self, key: Hashable, tokens: Sequence[int]) -> frozenset[int]:
        """Name the sequences that hold, or will hold, all of these tokens."""
        text = tuple(tokens)
        path = self._path(key, text)
        return frozenset(path[-1][1]) if path and path[-1][0] == len(text) else frozenset()

    def covered(self, seq_id: int) -> list[int]:
        """Name the other sequences whose whole text is the beginning of this one's."""
        key, text = self._held[seq_id]
        found: list[int] = []
        for length, holders in self._path(key, text):
            found += [
                other
                for other in holders
                if other != seq_id and other not in found and len(self.tokens(other)) <= length
            ]
        return found

    def _path(self, key: Hashable, text: Tokens) -> list[tuple[int, set[int]]]:
        """Follow a text; list how many of its tokens each node on the way holds, and for whom."""
        path: list[tuple[int, set[int]]] = []
        node = self._roots.get(key)
        at = 0
        while node is not None and at < len(text):
            child = node.children.get(text[at])
            if child is None:
                break
            same = _same(child.piece, text, at)
            at += same
            path.append((at, child.holders))
            node = child if same == len(child.piece) else None
        return path


def _cut(parent: _Node, child: _Node, size: int) -> _Node:
    """Cut a child's piece after `size` tokens; returns the new node of the first part."""
    head = _Node(child.piece[:size], set(child.holders))
    child.piece = child.piece[size:]
    head.children[child.piece[0]] = child
    parent.children[head.piece[0]] = head
    return head


def _join(root: _Node, text: Tokens) -> None:
    """Undo the cuts along a text that nobody needs any more: as many nodes as places to part."""
    node, at = root, 0
    while at < len(text) and (child := node.children.get(text[at])) is not None:
        while len(child.children) == 1:
            only = next(iter(child.children.values()))
            if only.holders != child.holders:
                break
            child.piece += only.piece
            child.children = only.children
        at += len(child.piece)
        node = child


def _same(piece: Tokens, text: Tokens, at: int) -> int:
    """Count the tokens that a piece and a text from `at` on have in common."""
    high = min(len(piece), len(text) - at)
    if piece[:high] == text[at : at + high]:
        return high
    low = 0  # the first `low` are the same, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if piece[low:middle] == text[at + low : at + middle]:
            low = middle
        else:
            high = middle
    return low
