"""Which tokens are hidden: shares, whole words, spans and their lengths."""

from __future__ import annotations

import numpy as np
import pytest

from vidtwin_lab.language.masking import choose_spans, choose_tokens, choose_words, span_lengths

PLAIN = np.arange(100, 200)
LENGTHS = span_lengths(0.2, 10)


def words_of(sizes: list[int], ends: tuple[int, ...] = ()) -> np.ndarray:
    """(L,) numbers of words of these sizes, special tokens at both ends and after words `ends`."""
    row = [-1]
    for word, size in enumerate(sizes):
        row += [word] * size
        if word in ends:
            row.append(-1)
    return np.array([*row, -1])


def draws(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng([7, i]) for i in range(count)]


def random_words(rng: np.random.Generator, count: int) -> np.ndarray:
    sizes = rng.integers(1, 4, count).tolist()
    return words_of(sizes, ends=(count // 2,))


def test_tokens_have_their_share_and_one_at_least():
    special = np.array([1, *[0] * 60, 1])
    shares = [len(choose_tokens(special, 0.15, PLAIN, rng).places) / 60 for rng in draws(1500)]
    assert np.mean(shares) == pytest.approx(0.15, abs=0.005)
    for rng in draws(50):
        assert len(choose_tokens(np.array([1, 0, 0, 1]), 0.01, PLAIN, rng).places) >= 1
    assert len(choose_tokens(np.array([1, 1]), 0.5, PLAIN, draws(1)[0]).places) == 0


class TestWords:
    def test_whole_or_not_at_all(self):
        for rng in draws(200):
            words = random_words(rng, 40)
            places = choose_words(words, 0.15, PLAIN, rng).places
            assert (words[places] >= 0).all()
            for word in set(words[places].tolist()):
                assert (words[places] == word).sum() == (words == word).sum()

    def test_share_of_the_tokens(self):
        shares = []
        for rng in draws(400):
            words = random_words(rng, 60)
            hidden = choose_words(words, 0.15, PLAIN, rng)
            shares.append(len(hidden.places) / (words >= 0).sum())
            assert (np.diff(hidden.places) > 0).all()
        assert np.mean(shares) == pytest.approx(0.15, abs=0.01)
        assert max(shares) < 0.18

    def test_every_word_may_be_hidden(self):
        words = words_of([1, 3, 1, 2, 1, 3, 1, 1])
        taken = [set(words[choose_words(words, 0.3, PLAIN, rng).places]) for rng in draws(300)]
        counts = [sum(word in each for each in taken) for word in range(8)]
        assert min(counts) > 20

    def test_one_at_least(self):
        words = words_of([5, 6])
        sizes = [len(choose_words(words, 0.05, PLAIN, rng).places) for rng in draws(30)]
        assert set(sizes) == {5, 6}
        assert len(choose_words(words_of([]), 0.5, PLAIN, draws(1)[0]).places) == 0


class TestSpans:
    def test_lengths_are_geometric_and_cut_off(self):
        assert (LENGTHS[1:] / LENGTHS[:-1]).tolist() == pytest.approx([0.8] * 9)
        assert LENGTHS.sum() == pytest.approx(1)
        # Published: 3.8 words on average.
        assert (LENGTHS * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.01)

    def test_their_lengths_are_drawn_so(self):
        """Of long texts, whose last span is cut by the share and whose others are whole."""
        words = words_of([1] * 2000)
        counts = np.zeros(11)
        for rng in draws(25):
            spans = choose_spans(words, 0.15, PLAIN, rng, LENGTHS).spans
            for first, last in spans:
                counts[last - first + 1] += 1
        share = counts[1:] / counts.sum()
        total = counts.sum()
        error = np.sqrt(LENGTHS * (1 - LENGTHS) / total)
        assert (np.abs(share - LENGTHS) < 4.5 * error + 0.008).all(), share

    def test_whole_words_inside_of_a_text_with_a_word_between(self):
        for rng in draws(300):
            words = random_words(rng, 50)
            hidden = choose_spans(words, 0.15, PLAIN, rng, LENGTHS)
            assert hidden.spans == sorted(hidden.spans) and hidden.spans
            covered = np.concatenate([np.arange(a, b + 1) for a, b in hidden.spans])
            assert covered.tolist() == hidden.places.tolist()
            taken = set(words[hidden.places].tolist())
            for first, last in hidden.spans:
                assert (words[first : last + 1] >= 0).all()  # no special token inside
                assert words[first] != words[first - 1] and words[last] != words[last + 1]
                # Both tokens beside a span are seen: the span-boundary objective reads them.
                assert words[first - 1] not in taken and words[last + 1] not in taken

    def test_share_of_the_tokens(self):
        shares = []
        for rng in draws(400):
            words = random_words(rng, 60)
            shares.append(len(choose_spans(words, 0.15, PLAIN, rng, LENGTHS).places))
            shares[-1] /= (words >= 0).sum()
        assert np.mean(shares) == pytest.approx(0.15, abs=0.012)
        assert max(shares) < 0.2

    def test_one_kind_for_a_span(self):
        hidden = choose_spans(words_of([1] * 300), 0.15, PLAIN, draws(1)[0], LENGTHS)
        by_place = dict(zip(hidden.places.tolist(), hidden.kinds.tolist(), strict=True))
        kinds = [{by_place[p] for p in range(a, b + 1)} for a, b in hidden.spans]
        assert all(len(kind) == 1 for kind in kinds)
        assert len(set.union(*kinds)) == len(kinds)
        assert set(hidden.randoms) <= set(PLAIN.tolist())

    @pytest.mark.parametrize("sizes", [[], [1], [2], [30], [1, 1], [9, 9]])
    def test_short_texts(self, sizes):
        for rng in draws(20):
            places = choose_spans(words_of(sizes), 0.15, PLAIN, rng, LENGTHS).places
            assert (len(places) > 0) == bool(sizes)
