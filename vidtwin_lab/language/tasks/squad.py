"""SQuAD v1.1 and v2.0: files, the official measures, and answers out of n-best spans.

Source: Rajpurkar et al. (arXiv 1606.05250, 1806.03822); the measures are those that the official
scripts evaluate-v1.1 and evaluate-v2.0 define, their differences included.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vidtwin import file_digest
from vidtwin_lab.language.hub import load_rows

logger = logging.getLogger(__name__)

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answer(NamedTuple):
    """A text and the place of its first character in the context."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a context; no answers if it has none there (v2.0), or in a test file."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[Answer, ...]

    @property
    def lost(self) -> bool:
        """Whether none of its answers stands in the context where it should."""
        return bool(self.answers) and not any(self.found(answer) for answer in self.answers)

    def found(self, answer: Answer) -> bool:
        """Whether an answer stands where it should."""
        return self.context[answer.start : answer.start + len(answer.text)] == answer.text


class SquadFile(NamedTuple):
    """Questions, whether some may have no answer (v2.0), and where they come from."""

    questions: list[Question]
    version2: bool
    source: str
    digest: str


def squad_file(path: str) -> Path:
    """A file of questions, which must be there."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"the SQuAD file {path} does not exist")
    return file


def read_squad(path: str) -> SquadFile:
    """The questions of a file in SQuAD's JSON.

    Raises:
        ValueError: if it is not in this format: says the line, or the place in the JSON.
    """
    file = squad_file(path)
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from error
    questions, impossible = [], False
    for article, where in _listed(content, "data", path):
        for paragraph, at in _listed(article, "paragraphs", where):
            title, context = str(article.get("title", "")), _text(paragraph, "context", at)
            for qa, place in _listed(paragraph, "qas", at):
                questions.append(_question(qa, place, title, context))
                impossible |= "is_impossible" in qa
    if not questions:
        raise ValueError(f"{path} has no question")
    return SquadFile(questions, impossible, path, file_digest(file))


def read_hub_squad(name: str, split: str) -> SquadFile:
    """The questions of a data set of `datasets`, such as rajpurkar/squad, in its columns."""
    rows, digest = load_rows(name, None, split)
    questions = []
    for number, row in enumerate(rows):
        try:
            answers = row["answers"]
            pairs = zip(answers["text"], answers["answer_start"], strict=True)
            questions.append(
                Question(
                    str(row["id"]),
                    str(row.get("title", "")),
                    row["context"],
                    row["question"],
                    tuple(Answer(text, int(start)) for text, start in pairs),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} {split}, row {number}: expected id, context, question and answers with "
                f"text and answer_start ({error})"
            ) from error
    version2 = any(not question.answers for question in questions)
    return SquadFile(questions, version2, f"{name} {split}", digest)


def read_article_split(path: str) -> tuple[set[str], set[str]]:
    """The titles to train on and to test on, from a JSON with the lists "train" and "test".

    Raises:
        ValueError: if the file is not such, or a title is in both.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        train, test = set(content["train"]), set(content["test"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be JSON with the lists of titles `train` and `test`: {error!r}"
        ) from error
    if train & test:
        raise ValueError(f"{path} has {sorted(train & test)[0]!r} both in `train` and in `test`")
    return train, test


def normalized(answer: str) -> str:
    """An answer in lower case without punctuation, articles and needless spaces."""
    bare = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(predicted: str, wanted: str) -> float:
    """1 if both are the same after normalization, else 0."""
    return float(normalized(predicted) == normalized(wanted))


def token_f1(predicted: str, wanted: str, version2: bool) -> float:
    """F1 of the words that both have in common.

    Args:
        version2: two answers without any word are then the same, 1; in v1.1 that is 0.
    """
    first, second = normalized(predicted).split(), normalized(wanted).split()
    if version2 and not (first and second):
        return float(first == second)
    common = sum((Counter(first) & Counter(second)).values())
    return 2 * common / (len(first) + len(second)) if common else 0.0


def question_scores(question: Question, predicted: str, version2: bool) -> tuple[float, float]:
    """(exact match, F1) of a prediction against the best of the answers.

    In v2.0 answers of no word at all do not count, and no answer left stands for "".
    """
    wanted = [answer.text for answer in question.answers]
    if version2:
        wanted = [text for text in wanted if normalized(text)] or [""]
    if not wanted:
        raise ValueError(f"question {question.id} has no answer; is it a test file?")
    return (
        max(exact_match(predicted, text) for text in wanted),
        max(token_f1(predicted, text, version2) for text in wanted),
    )


def evaluate_v1(questions: Sequence[Question], predictions: Mapping[str, str]) -> dict[str, float]:
    """Exact match and F1 in [0, 1]; a question without a prediction counts as wrong."""
    scores, missing = [(0.0, 0.0)], []
    for question in questions:
        if question.id in predictions:
            scores.append(question_scores(question, predictions[question.id], version2=False))
        else:
            missing.append(question.id)
    if missing:
        logger.warning("%d questions have no prediction, such as %s", len(missing), missing[0])
    exact, f1 = (sum(values) / len(questions) for values in zip(*scores, strict=True))
    return {"exact": exact, "f1": f1}


def evaluate_v2(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float],
    threshold: float = 0.0,
) -> dict[str, float]:
    """Exact match and F1 in [0, 1] with no answer where the odds of none are above a threshold.

    Args:
        predictions: the best answer to every question, as if it had one.
        null_odds: how much likelier it is that it has none.
        threshold: of the odds, known beforehand.
    Returns:
        dict: also over the questions with and without answer alone ("has_answer_", "no_answer_"),
        and the best that any threshold gives here ("best_"), which is found on these very answers.
    """
    plain = {
        question.id: question_scores(question, predictions[question.id], version2=True)
        for question in questions
    }
    answerable = {question.id: bool(question.answers) for question in questions}
    scored = {
        name: (float(not answerable[name]),) * 2 if null_odds[name] > threshold else scores
        for name, scores in plain.items()
    }
    found: dict[str, float] = {}
    kinds = {"": (True, False), "has_answer_": (True,), "no_answer_": (False,)}
    for prefix, kind in kinds.items():
        if chosen := [pair for name, pair in scored.items() if answerable[name] in kind]:
            for measure, values in zip(("exact", "f1"), zip(*chosen, strict=True), strict=True):
                found[prefix + measure] = sum(values) / len(chosen)
    for place, measure in enumerate(("exact", "f1")):
        scores = {name: pair[place] for name, pair in plain.items()}
        best, at = best_threshold(scores, predictions, null_odds, answerable)
        found[f"best_{measure}"], found[f"best_{measure}_threshold"] = best, at
    return found


def best_threshold(
    scores: Mapping[str, float],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float],
    answerable: Mapping[str, bool],
) -> tuple[float, float]:
    """(mean score, threshold of the null odds) where the mean is highest, as evaluate-v2.0 does.

    Questions are answered in the order of their odds; from none on, each one answered gains its
    score if it has an answer, and loses 1 if it has none and the prediction is not empty. Where
    answering none is best, the official script gives 0 as the threshold, and so does this.
    """
    value = float(sum(not answerable[name] for name in scores))
    best, threshold = value, 0.0
    for name in sorted(scores, key=lambda name: null_odds[name]):
        if answerable[name]:
            value += scores[name]
        elif predictions[name]:
            value -= 1.0
        if value > best:
            best, threshold = value, null_odds[name]
    return best / len(scores), threshold


@dataclasses.dataclass(frozen=True)
class WindowSpans:
    """What a text encoder says about one window of a question's context.

    null: the score of no answer; spans: (score, first, behind) in characters of the context, the
    best first.
    """

    question: int
    null: float
    spans: tuple[tuple[float, int, int], ...]


def best_answers(
    questions: Sequence[Question], windows: Iterable[WindowSpans], n_best: int
) -> tuple[dict[str, list[tuple[str, float]]], dict[str, float]]:
    """The n best answers (text, score) to each question over all its windows, and its null odds.

    The null odds are the lowest null score of any window less the score of the best answer.
    """
    spans: dict[int, list[tuple[float, int, int]]] = {}
    null: dict[int, float] = {}
    for window in windows:
        spans.setdefault(window.question, []).extend(window.spans)
        null[window.question] = min(window.null, null.get(window.question, float("inf")))
    answers: dict[str, list[tuple[str, float]]] = {}
    odds: dict[str, float] = {}
    for number, question in enumerate(questions):
        texts: dict[str, float] = {}
        # By place where scores are equal, so that the order of the windows does not matter.
        for score, first, behind in sorted(spans.get(number, []), key=lambda s: (-s[0], s[1:])):
            text = question.context[first:behind].strip()
            if text:
                texts.setdefault(text, score)
        best = list(texts.items())[:n_best] or [("", -1e9)]
        answers[question.id] = best
        odds[question.id] = null.get(number, 0.0) - best[0][1]
    return answers, odds


def _question(qa: Any, where: str, title: str, context: str) -> Question:
    identifier, text = _text(qa, "id", where), _text(qa, "question", where)
    if not text.strip():
        raise ValueError(f"{where}: `question` is empty, expected a text")
    answers = []
    for answer, at in _listed(qa, "answers", where) if "answers" in qa else ():
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if not isinstance(start, int):
            raise ValueError(f"{at}: `answer_start` must be a whole number, got {start!r}")
        answers.append(Answer(_text(answer, "text", at), start))
    if qa.get("is_impossible"):
        answers = []
    return Question(identifier, title, context, text, tuple(answers))


def _listed(holder: Any, key: str, where: str) -> list[tuple[Any, str]]:
    """(element, where it stands) of a list in the JSON."""
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, list):
        found = ", ".join(holder) if isinstance(holder, dict) else type(holder).__name__
        raise ValueError(f"{where}: expected a list `{key}`, got {found[:80]}; is it SQuAD?")
    start = f"{where}, " if key == "data" else f"{where}."
    return [(element, f"{start}{key}[{number}]") for number, element in enumerate(value)]


def _text(holder: Any, key: str, where: str) -> str:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{where}: `{key}` must be a text, got {type(value).__name__}")
    return value
