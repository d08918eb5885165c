"""Measures of GLUE and SQuAD against independent formulas, and on their own edge cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vidtwin_lab.language.tasks.metrics import (
    METRICS,
    f1,
    matthews,
    mean_ranks,
    over_seeds,
    pearson,
    spearman,
)
from vidtwin_lab.language.tasks.squad import (
    Answer,
    Question,
    WindowSpans,
    best_answers,
    best_threshold,
    evaluate_v1,
    evaluate_v2,
    exact_match,
    normalized,
    question_scores,
    token_f1,
)

RNG = np.random.default_rng(0)


def question(name: str, *answers: str, context: str = "the red cat sat") -> Question:
    return Question(name, "title", context, "which?", tuple(Answer(text, 0) for text in answers))


class TestGlueMeasures:
    def test_matthews_of_two_classes_is_that_of_the_four_counts(self):
        for _ in range(20):
            told, wanted = RNG.integers(0, 2, (2, 50))
            counts = [int(np.sum((told == a) & (wanted == b)))
                      for a, b in itertools.product((1, 0), (1, 0))]  # fmt: skip
            tp, fp, fn, tn = counts
            bottom = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
            assert matthews(told, wanted) == pytest.approx((tp * tn - fp * fn) / bottom)

    @pytest.mark.parametrize("constant", [0, 1])
    def test_matthews_of_constant_predictions_is_zero(self, constant):
        wanted = RNG.integers(0, 2, 40)
        assert matthews(np.full(40, constant), wanted) == 0.0
        assert matthews(wanted, np.full(40, constant)) == 0.0

    def test_matthews_does_not_care_how_three_classes_are_called(self):
        told, wanted = RNG.integers(0, 3, (2, 60))
        renamed = np.array([2, 0, 1])
        assert matthews(renamed[told], renamed[wanted]) == pytest.approx(matthews(told, wanted))
        assert matthews(wanted, wanted) == pytest.approx(1.0)

    def test_f1_is_the_harmonic_mean_of_precision_and_recall(self):
        told, wanted = RNG.integers(0, 2, (2, 50))
        both = np.sum(told & wanted)
        precision, recall = both / told.sum(), both / wanted.sum()
        assert f1(told, wanted) == pytest.approx(2 / (1 / precision + 1 / recall))
        assert f1(np.zeros(5, int), np.zeros(5, int)) == 0.0

    def test_ranks_of_ties_are_their_mean(self):
        assert mean_ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]

    def test_correlations_are_scipys_with_ties(self):
        told, wanted = RNG.integers(0, 6, (2, 80)) / 2
        assert pearson(told, wanted) == pytest.approx(stats.pearsonr(told, wanted).statistic)
        assert spearman(told, wanted) == pytest.approx(stats.spearmanr(told, wanted).statistic)

    def test_spearman_knows_order_alone(self):
        told, wanted = RNG.normal(size=(2, 30))
        assert spearman(np.exp(told), wanted) == pytest.approx(spearman(told, wanted))
        assert spearman(wanted**3, wanted) == pytest.approx(1.0)

    @pytest.mark.parametrize("metric", ["pearson", "spearman"])
    def test_constant_scores_correlate_with_nothing(self, metric):
        # A mean of 0.1s is not 0.1 to the last bit.
        assert METRICS[metric]([0.1] * 7, range(7)) == 0.0

    @pytest.mark.parametrize("metric", METRICS)
    def test_unequal_or_empty_lists_are_refused(self, metric):
        for lists in (([1, 0], [1]), ([], [])):
            with pytest.raises(ValueError, match="equal length"):
                METRICS[metric](*lists)

    def test_median_and_spread_over_seeds(self):
        found = over_seeds([{"a": 3.0}, {"a": 1.0}, {"a": 2.0}])
        assert found == {"a": {"median": 2.0, "low": 1.0, "high": 3.0, "values": [3.0, 1.0, 2.0]}}


class TestSquadMeasures:
    @pytest.mark.parametrize(
        ("raw", "plain"),
        [
            ("The  Cat!", "cat"),
            ("a cat, an animal", "cat animal"),
            ("theatre", "theatre"),  # an article within a word stays
            ("U.S.A.", "usa"),
            ("the-cat", "thecat"),  # punctuation goes first, so this is no article
            ("an", ""),
            ("10,000 €", "10000 €"),  # of punctuation ASCII alone
        ],
    )
    def test_normalization(self, raw, plain):
        assert normalized(raw) == plain

    def test_exact_match_and_f1(self):
        assert exact_match("The cat.", "cat") == 1.0
        assert token_f1("the red cat", "red dog", version2=False) == pytest.approx(0.5)
        # A word counts as often as both have it.
        assert token_f1("cat cat", "cat", version2=False) == pytest.approx(2 / 3)

    def test_answers_without_a_word(self):
        # v1.1 has no rule for them and finds nothing in common; v2.0 calls them equal.
        assert exact_match("the", "a") == 1.0
        assert token_f1("the", "a", version2=False) == 0.0
        assert token_f1("the", "a", version2=True) == 1.0
        assert token_f1("", "cat", version2=True) == 0.0

    def test_the_best_of_several_answers_counts_for_each_measure(self):
        asked = question("1", "red", "the red cat sat down")
        assert question_scores(asked, "red cat sat", version2=False) == (0.0, pytest.approx(6 / 7))

    def test_v2_passes_over_answers_without_a_word(self):
        assert question_scores(question("1", "the", "cat"), "the", version2=True) == (0.0, 0.0)
        assert question_scores(question("1", "the"), "", version2=True) == (1.0, 1.0)

    def test_v1_counts_a_missing_prediction_as_wrong(self, caplog):
        asked = [question("1", "cat"), question("2", "dog")]
        assert evaluate_v1(asked, {"1": "a cat"}) == {"exact": 0.5, "f1": 0.5}
        assert "1 questions have no prediction" in caplog.text

    def test_v1_refuses_a_question_without_answers(self):
        with pytest.raises(ValueError, match="test file"):
            evaluate_v1([question("1")], {"1": "cat"})

    def test_v2_tells_both_kinds_apart(self):
        asked = [question("1", "cat"), question("2"), question("3", "dog"), question("4")]
        best = {"1": "cat", "2": "cat", "3": "dog", "4": "dog"}
        odds = {"1": -5.0, "2": 3.0, "3": 1.0, "4": -1.0}
        found = evaluate_v2(asked, best, odds)
        assert found["exact"] == 0.5
        assert found["has_answer_exact"] == 0.5  # the third is held for unanswerable
        assert found["no_answer_exact"] == 0.5
        # Answering the first alone, or all but the second: three of four either way.
        assert found["best_exact"] == 0.75
        assert found["best_exact_threshold"] == -5.0

    def test_best_threshold_is_that_of_a_search_over_all(self):
        for _ in range(20):
            names = [str(i) for i in range(12)]
            answerable = {name: bool(RNG.integers(2)) for name in names}
            predicted = {name: "cat" if RNG.random() < 0.8 else "" for name in names}
            scores = {name: float(RNG.random()) if answerable[name]
                      else float(not predicted[name]) for name in names}  # fmt: skip
            odds = {name: float(RNG.normal()) for name in names}

            def mean(threshold, scores=scores, odds=odds, answerable=answerable, names=names):
                return np.mean([scores[name] if odds[name] <= threshold
                                else float(not answerable[name]) for name in names])  # fmt: skip

            best, threshold = best_threshold(scores, predicted, odds, answerable)
            assert best == pytest.approx(max(map(mean, [-math.inf, *odds.values()])))
            if threshold:
                assert mean(threshold) == pytest.approx(best)


class TestAnswers:
    ASKED = (question("q", "cat", context="the red cat sat"),)

    def test_the_best_span_of_all_windows_wins(self):
        windows = [WindowSpans(0, 1.0, ((2.0, 0, 3),)), WindowSpans(0, -1.0, ((5.0, 8, 11),))]
        answers, odds = best_answers(self.ASKED, windows, 20)
        assert [text for text, _ in answers["q"]] == ["cat", "the"]
        assert odds["q"] == -6.0  # the lowest null score of any window
        assert best_answers(self.ASKED, windows[::-1], 20) == (answers, odds)

    def test_equal_texts_count_once_and_spaces_not_at_all(self):
        windows = [WindowSpans(0, 0.0, ((3.0, 7, 11), (2.0, 8, 11), (1.0, 3, 4), (0.5, 0, 3)))]
        answers, _ = best_answers(self.ASKED, windows, 1)
        assert answers["q"] == [("cat", 3.0)]

    def test_no_span_is_no_answer(self):
        answers, odds = best_answers(self.ASKED, [WindowSpans(0, 0.0, ())], 20)
        assert answers["q"][0][0] == ""
        assert odds["q"] > 1e6
