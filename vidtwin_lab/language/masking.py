"""Which tokens of a sample are masked.

Axes: L tokens of a sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Hidden(NamedTuple):
    """Which tokens of a sample are to be predicted.

    places: (N,) of them, rising; kinds: (N,) numbers in [0, 1) that decide what stands there,
    equal inside of a span; randoms: (N,) tokens in case one at random does; spans: (first, last)
    places of each span, for "span" alone.
    """

    places: np.ndarray
    kinds: np.ndarray
    randoms: np.ndarray
    spans: list[tuple[int, int]]


def choose_tokens(
    special: np.ndarray, share: float, plain: np.ndarray, rng: np.random.Generator
) -> Hidden:
    """Each token by a chance of its own, one at least.

    Args:
        special: (L,) 1 for tokens that are not hidden.
        share: of the other tokens.
        plain: tokens to draw from.
    Source: BERT (arXiv 1810.04805), Sec. 3.1.
    """
    candidates = np.flatnonzero(special == 0)
    draws, kinds = rng.random(len(candidates)), rng.random(len(candidates))
    randoms = plain[rng.integers(len(plain), size=len(candidates))]
    # The least draw is chosen in any case.
    chosen = draws < max(share, draws.min(initial=1.0) + 1e-12)
    return Hidden(candidates[chosen], kinds[chosen], randoms[chosen], [])


def choose_words(
    words: np.ndarray, share: float, plain: np.ndarray, rng: np.random.Generator
) -> Hidden:
    """Whole words in a random order as long as they fit into the share, one at least.

    Args:
        words: (L,) number of the word that each token is of, -1 for none.
    Source: whole-word masking of BERT's repository; what stands in a place is decided by token.
    """
    starts, ends = _word_bounds(words)
    budget = _budget(words, share)
    taken: list[int] = []
    used = 0
    for word in rng.permutation(len(starts)):
        length = int(ends[word] - starts[word])
        if used + length <= budget or not taken:
            taken.append(int(word))
            used += length
        if used >= budget:
            break
    stretches = [np.arange(starts[word], ends[word]) for word in sorted(taken)]
    return _with_draws(stretches, plain, rng)


def choose_spans(
    words: np.ndarray,
    share: float,
    plain: np.ndarray,
    rng: np.random.Generator,
    lengths: np.ndarray,
) -> Hidden:
    """Spans of whole words until the share is reached; between two of them a word stays.

    The length of a span in words is drawn first, then one of the places where it fits; the last
    span ends where the share does.

    Args:
        lengths: (n,) probability of 1, 2, ... n words; see `span_lengths`.
    Source: SpanBERT (arXiv 1907.10529), Sec. 3.1: what stands in a span is decided for all of it.
        Differs: there spans may touch; here the tokens at both ends of one are always seen.
    """
    starts, ends = _word_bounds(words)
    budget = _budget(words, share)
    # Words with no special token between them may be hidden together.
    joined = np.concatenate([starts[1:] == ends[:-1], [False]])
    free = np.ones(len(starts), bool)
    spans: list[tuple[int, int]] = []
    used = 0
    while used < budget and len(starts):
        size = 1 + int(rng.choice(len(lengths), p=lengths))
        while not len(firsts := _fitting(free, joined, size)) and size > 1:
            size -= 1
        if not len(firsts):
            break
        first = int(firsts[rng.integers(len(firsts))])
        while size > 1 and used + ends[first + size - 1] - starts[first] > budget:
            size -= 1
        last = first + size - 1
        if used and used + ends[last] - starts[first] > budget:
            break  # a long word alone would go far beyond
        spans.append((int(starts[first]), int(ends[last]) - 1))
        used += int(ends[last] - starts[first])
        free[max(0, first - 1) : last + 2] = False
    spans.sort()
    stretches = [np.arange(first, last + 1) for first, last in spans]
    return _with_draws(stretches, plain, rng, spans)


def span_lengths(probability: float, longest: int) -> np.ndarray:
    """(longest,) geometric probabilities of 1, 2, ... words, cut off there: 3.8 on average for
    probability 0.2 and 10 words.
    """
    weights = probability * (1 - probability) ** np.arange(longest)
    return weights / weights.sum()


def _word_bounds(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(words,) first place of each word, and the place after its last."""
    edges = np.diff(words, prepend=-1, append=-1) != 0
    starts = np.flatnonzero(edges[:-1] & (words >= 0))
    ends = np.flatnonzero(edges[1:] & (words >= 0)) + 1
    return starts, ends


def _budget(words: np.ndarray, share: float) -> int:
    return max(1, round(share * int((words >= 0).sum())))


def _fitting(free: np.ndarray, joined: np.ndarray, size: int) -> np.ndarray:
    """First words of the spans of `size` words that are free and stand together."""
    if size > len(free):
        return np.empty(0, np.int64)
    fits = free[: len(free) - size + 1].copy()
    for more in range(1, size):
        fits &= free[more : more + len(fits)] & joined[more - 1 : more - 1 + len(fits)]
    return np.flatnonzero(fits)


def _with_draws(
    stretches: list[np.ndarray],
    plain: np.ndarray,
    rng: np.random.Generator,
    spans: list[tuple[int, int]] | None = None,
) -> Hidden:
    """Draws what stands in the places of the stretches: the same kind in all of a span."""
    places = np.concatenate([np.empty(0, np.int64), *stretches])
    kinds = rng.random(len(places))
    if spans:
        kinds = kinds[np.repeat(np.arange(len(spans)), [len(each) for each in stretches])]
    return Hidden(places, kinds, plain[rng.integers(len(plain), size=len(places))], spans or [])
