"""Pairs, span boundaries, replaced tokens and distillation: laws, gradients, files."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from diffusion.prefix_attention import MARK
from diffusion.text_encoder import TextEncoder
from vidtwin_lab.language.config import (
    OBJECTIVES_OF,
    TOKENIZER_OF,
    ContrastiveConfig,
    CorpusConfig,
    DistillationConfig,
    LanguageModelConfig,
    ObjectiveConfig,
    ReplacedTokensConfig,
    TokenizerConfig,
)
from vidtwin_lab.language.corpus import DocumentCorpus
from vidtwin_lab.language.models import LanguageModelFiles, build_language_model, load_teacher
from vidtwin_lab.language.objectives import OBJECTIVES, build_objective
from vidtwin_lab.language.objectives.base import (
    IGNORED,
    Choice,
    Distance,
    Objective,
    inputs_for,
)
from vidtwin_lab.language.objectives.distillation import build_student, soft_cross_entropy
from vidtwin_lab.language.objectives.masked_tokens import (
    MOST_TARGETS,
    SpanBoundaryHead,
    span_targets,
)
from vidtwin_lab.language.objectives.replaced_tokens import fill_gaps, sample_tokens
from vidtwin_lab.language.samples import PackedCorpus, PairedCorpus, Samples, TokenizedCorpus
from vidtwin_lab.language.tokenizers import train_tokenizer
from vidtwin_lab.language.training import build_samples, measure_language_model, token_means

WORDS = ["red", "blue", "green", "star", "ring", "moves", "turns", "left", "right", "up", "a"]
TINY: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32,
        "max_positions": 40}  # fmt: skip
# Name -> (family, keys of the objective, keys of the model).
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "nsp": ("bert", {"pairs": "nsp"}, {}),
    "sop": ("albert", {"pairs": "sop", "masking": "word"}, {"embedding_size": 8}),
    "sbo": ("bert", {"masking": "span", "span_boundary": True}, {}),
    "sbo_roberta": ("roberta", {"masking": "span", "span_boundary": True}, {}),
    "rtd": ("electra", {"rtd": {"generator_size": 0.5}}, {}),
    "rtd_factorised": ("electra", {"rtd": {"generator_size": 0.5}}, {"embedding_size": 8}),
    "distillation": ("distilbert", {"distillation": {"teacher": "given"}}, {"num_layers": 1}),
    "electra_mlm": ("electra", {"name": "mlm"}, {}),
    "prefix": ("gpt2", {"name": "prefix_lm"}, {}),
}


class Documents(DocumentCorpus):
    """Random documents."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.documents = [
            [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(6)] for _ in range(8)
        ]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    texts = [" ".join(document) for document in Documents().documents]
    sizes = {"wordpiece": 60, "byte_bpe": 300}
    return {
        kind: train_tokenizer(texts, kind, TokenizerConfig(vocabulary_size=size), 40)
        for kind, size in sizes.items()
    }


def objective_config(**keys: Any) -> ObjectiveConfig:
    """An ObjectiveConfig from nested keys, as in YAML."""
    own = {
        "rtd": ReplacedTokensConfig,
        "distillation": DistillationConfig,
        "contrastive": ContrastiveConfig,
    }
    return ObjectiveConfig(
        **{name: own[name](**value) if name in own else value for name, value in keys.items()}
    )


class Parts:
    """Model, objective and samples of one kind."""

    def __init__(self, kind: str, tokenizers: dict[str, Any], **changes: Any) -> None:
        torch.manual_seed(0)
        family, keys, sizes = KINDS[kind]
        self.config = objective_config(**(keys | changes))
        self.sizes = LanguageModelConfig(family=family, dropout=0.0, **(TINY | sizes))
        self.tokenizer = tokenizers[TOKENIZER_OF[self.sizes.family]]
        self.teacher: Any = None
        if kind == "distillation":
            bert = LanguageModelConfig(family="bert", dropout=0.0, **TINY)
            self.teacher = build_language_model(bert, ObjectiveConfig(), self.tokenizer)
        self.objective: Any = build_objective(self.config, family, self.tokenizer, self.teacher)
        self.model = self.build()
        common = (Documents(), self.tokenizer, 40, 0, self.config.words)
        self.samples: Samples = (
            PackedCorpus(*common) if self.config.pairs == "none"
            else PairedCorpus(*common, self.config.pairs)
        )  # fmt: skip

    def build(self, init_from: Any = None, **changes: Any) -> Any:
        sizes = LanguageModelConfig(family=self.sizes.family, **(TINY | changes)) if changes \
            else self.sizes  # fmt: skip
        folder = None if init_from is None else str(init_from)
        return build_language_model(sizes, self.config, self.tokenizer, folder, self.teacher)

    def hidden(self, count: int, epoch: int = 0) -> list[dict[str, Any]]:
        return self.objective.hide_all([self.samples[epoch, i] for i in range(count)])

    def batch(self, count: int = 6, epoch: int = 0) -> dict[str, torch.Tensor]:
        return self.objective.batch(self.hidden(count, epoch))

    def loss(self, samples: list[dict[str, Any]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        counts = {name: torch.tensor(float(n))
                  for name, n in self.objective.counts(samples).items()}  # fmt: skip
        terms = self.objective.terms(self.model, self.objective.batch(samples))
        return self.objective.loss(terms, counts)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_every_parameter_has_a_gradient(self, kind, tokenizers):
        parts = Parts(kind, tokenizers)
        loss, _ = parts.loss(parts.hidden(6))
        loss.backward()
        for name, parameter in parts.model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or "position" in name or "places" in name, name

    def test_counts_are_those_of_the_terms(self, kind, tokenizers):
        parts = Parts(kind, tokenizers)
        samples = parts.hidden(6)
        terms = parts.objective.terms(parts.model, parts.objective.batch(samples))
        counts = parts.objective.counts(samples)
        assert list(terms) == list(counts) == list(parts.objective.weights)
        for name, term in terms.items():
            rows = term.rows()
            assert sum(row["count"] for row in rows) == counts[name] > 0, name
            total = sum(row["loss"] for row in rows)
            assert term.total().item() == pytest.approx(total, rel=1e-4), name

    def test_loss_is_the_weighted_mean_of_any_cut_of_the_batch(self, kind, tokenizers):
        parts = Parts(kind, tokenizers)
        samples = parts.hidden(6)
        loss, means = parts.loss(samples)
        expected = sum(parts.objective.weights[n] * float(v) for n, v in means.items())
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        counts = parts.objective.counts(samples)
        sums = dict.fromkeys(counts, 0.0)
        for part in (samples[:1], samples[1:]):
            terms = parts.objective.terms(parts.model, parts.objective.batch(part))
            for name, term in terms.items():
                sums[name] += term.total().item()
        for name, total in sums.items():
            assert total / counts[name] == pytest.approx(float(means[name]), rel=1e-3), name

    def test_learns(self, kind, tokenizers):
        parts = Parts(kind, tokenizers, mask_probability=0.3)
        optimizer = torch.optim.Adam(parts.model.parameters(), 1e-2)
        losses = []
        for epoch in range(16):
            loss, _ = parts.loss(parts.hidden(3, epoch % 2))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])

    def test_measures_do_not_depend_on_the_batch(self, kind, tokenizers):
        parts = Parts(kind, tokenizers)
        rows = [
            measure_language_model(parts.model, parts.objective, parts.samples, batches)
            for batches in ([[0], [1], [2], [3], [4]], [[0, 1, 2], [3, 4]])
        ]  # fmt: skip
        means = [token_means(row) for row in rows]
        assert means[0] == pytest.approx(means[1], rel=1e-3)
        assert token_means(rows[0][::-1]) == means[0]
        for name, term in list(parts.objective.weights.items())[1:]:
            assert f"{name}_loss" in means[0] and term >= 0

    def test_saved_goes_on_and_reads(self, kind, tokenizers, tmp_path):
        """The folder holds all that training goes on from, and is a text encoder's."""
        parts = Parts(kind, tokenizers)
        with torch.no_grad():
            for parameter in parts.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        LanguageModelFiles(parts.model, parts.tokenizer).save_pretrained(tmp_path)
        samples = parts.hidden(4)
        expected, _ = parts.loss(samples)
        parts.model = parts.build(init_from=tmp_path)
        parts.model.eval()
        torch.testing.assert_close(parts.loss(samples)[0], expected)
        encoder = TextEncoder.from_pretrained(tmp_path, local_files_only=True)
        assert encoder("red star").hidden_states.shape[2] == 16
        assert not encoder.causal


class TestPairs:
    def test_the_head_reads_the_first_token(self, tokenizers):
        parts = Parts("nsp", tokenizers)
        terms = parts.objective.terms(parts.model, parts.batch())
        assert list(terms) == ["mlm", "nsp"]
        assert terms["nsp"].logits.shape == (6, 1, 2)
        labels = [parts.samples[0, i]["pair_label"] for i in range(6)]
        assert terms["nsp"].labels[:, 0].tolist() == labels

    def test_segments_are_read(self, tokenizers):
        for kind in ("nsp", "sop"):
            parts = Parts(kind, tokenizers)
            batch = parts.batch()
            assert batch["token_type_ids"].any()
            other = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
            a, b = (parts.objective.terms(parts.model, each)["mlm"].logits
                    for each in (batch, other))  # fmt: skip
            assert not torch.allclose(a, b)

    def test_albert_shares_its_layers_and_factorises(self, tokenizers):
        parts = Parts("sop", tokenizers)
        names = [name for name, _ in parts.model.named_parameters()]
        assert not any("layer_groups.1" in name or "layers.1" in name for name in names)
        assert parts.model.albert.embeddings.word_embeddings.weight.shape == (60, 8)
        deeper = parts.build(num_layers=5, embedding_size=8)
        count = [sum(p.numel() for p in model.parameters()) for model in (parts.model, deeper)]
        assert count[0] == count[1]


class TestSpanBoundary:
    def test_targets(self):
        labels = list(range(100, 140))
        assert span_targets([(3, 5), (9, 9)], labels) == [
            (2, 6, 0, 103), (2, 6, 1, 104), (2, 6, 2, 105), (8, 10, 0, 109),
        ]  # fmt: skip
        assert len(span_targets([(1, 35)], labels)) == MOST_TARGETS

    def test_targets_are_the_hidden_tokens_and_their_ends_are_seen(self, tokenizers):
        parts = Parts("sbo", tokenizers)
        for index, sample in enumerate(parts.hidden(len(parts.samples))):
            truth = parts.samples[0, index]["input_ids"]
            targets = span_targets(sample["spans"], sample["labels"])
            assert len(targets) == sum(label != IGNORED for label in sample["labels"])
            for left, right, number, token in targets:
                assert truth[left + 1 + number] == token
                for end in (left, right):
                    assert sample["labels"][end] == IGNORED
                    assert sample["input_ids"][end] == truth[end]

    def test_reads_the_two_ends_alone(self):
        torch.manual_seed(0)
        head = SpanBoundaryHead(8, 11)
        states = torch.randn(2, 9, 8, requires_grad=True)
        spans = torch.tensor([[[1, 5, 0, 3], [1, 5, 2, 4]], [[2, 4, 0, 9], [6, 8, 0, 1]]])
        logits = head(states, spans, torch.randn(11, 8))
        assert logits.shape == (2, 2, 11)
        for row, target in ((0, 0), (0, 1), (1, 0), (1, 1)):
            (gradient,) = torch.autograd.grad(
                logits[row, target].square().sum(), states, retain_graph=True
            )
            read = {tuple(place) for place in gradient.abs().sum(-1).nonzero().tolist()}
            left, right = spans[row, target, :2].tolist()
            assert read == {(row, left), (row, right)}
        assert not torch.allclose(logits[0, 0], logits[0, 1])  # the number in the span tells
        turned = head(states, spans[..., [1, 0, 2, 3]], torch.randn(11, 8))
        assert not torch.allclose(turned, logits)

    def test_a_whole_span_is_masked_replaced_or_kept(self, tokenizers):
        parts = Parts("sbo", tokenizers)
        kinds = {"mask": 0, "same": 0, "random": 0}
        for epoch in range(60):
            for index, sample in enumerate(parts.hidden(len(parts.samples), epoch)):
                truth = parts.samples[epoch, index]["input_ids"]
                for first, last in sample["spans"]:
                    part = slice(first, last + 1)
                    masked = {t == parts.objective.mask for t in sample["input_ids"][part]}
                    assert len(masked) == 1
                    same = sample["input_ids"][part] == truth[part]
                    kinds["mask" if True in masked else "same" if same else "random"] += 1
        total = sum(kinds.values())
        assert kinds["mask"] / total == pytest.approx(0.8, abs=0.04)
        assert kinds["random"] / total == pytest.approx(0.1, abs=0.03)

    def test_a_folder_without_the_head(self, tokenizers, tmp_path):
        parts = Parts("sbo", tokenizers)
        parts.model.encoder.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"no span-boundary head; set model\.new_heads=true"):
            parts.build(init_from=tmp_path)
        whole = parts.build(init_from=tmp_path, new_heads=True)
        for name, value in parts.model.encoder.state_dict().items():
            assert torch.equal(whole.encoder.state_dict()[name], value), name


class TestReplacedTokens:
    def test_replaced_are_exactly_those_that_differ(self, tokenizers):
        parts = Parts("rtd", tokenizers)
        original, gaps, replaced = 0, 0, 0
        for epoch in range(10):
            samples = parts.hidden(6, epoch)
            batch = parts.objective.batch(samples)
            # Of few tokens, some of which are right by chance.
            logits = torch.full((*batch["labels"].shape, 60), -20.0)
            logits[..., batch["labels"].unique()[1:]] = 0.0
            tokens, label = fill_gaps(logits, batch["labels"], batch["draws"], batch["input_ids"])
            for row, sample in enumerate(samples):
                truth = parts.samples[epoch, row]["input_ids"]
                length = len(truth)
                differs = [a != b for a, b in zip(tokens[row, :length].tolist(), truth)]
                assert label[row, :length].tolist() == differs
                assert not label[row, length:].any()
                hidden = [value != IGNORED for value in sample["labels"]]
                assert not any(d and not h for d, h in zip(differs, hidden))
                gaps += sum(hidden)
                replaced += sum(differs)
                original += sum(h and not d for d, h in zip(differs, hidden))
        assert original > 0 and replaced > 0 and original + replaced == gaps

    def test_samples_follow_the_predictions(self):
        torch.manual_seed(0)
        logits = torch.randn(5).expand(20000, 5)
        draws = (torch.arange(20000) + 0.5) / 20000
        shares = torch.bincount(sample_tokens(logits, draws), minlength=5) / 20000
        torch.testing.assert_close(shares, logits[0].softmax(-1), atol=2e-4, rtol=0)
        certain = torch.tensor([[0.0, 90.0, 0.0]] * 3)
        ends = torch.tensor([2**-24, 0.5, 1 - 2**-24])
        assert sample_tokens(certain, ends).tolist() == [1, 1, 1]

    def test_asks_about_every_token_that_is_not_padding(self, tokenizers):
        parts = Parts("rtd", tokenizers)
        batch = parts.batch(len(parts.samples))
        term = parts.objective.terms(parts.model, batch)["rtd"]
        assert ((term.labels != IGNORED) == (batch["attention_mask"] == 1)).all()
        score = term.logits[..., 1]
        expected = nn.functional.binary_cross_entropy_with_logits(
            score, term.labels.clamp_min(0).float(), reduction="none"
        )[batch["attention_mask"] == 1].sum()
        torch.testing.assert_close(term.total(), expected)

    def test_the_generator_learns_nothing_from_the_discriminator(self, tokenizers):
        parts = Parts("rtd", tokenizers)
        term = parts.objective.terms(parts.model, parts.batch())["rtd"]
        term.total().backward()
        shared = {id(p) for p in parts.model.discriminator.parameters()}
        own = [p for p in parts.model.generator.parameters() if id(p) not in shared]
        assert own and all(parameter.grad is None for parameter in own)

    @pytest.mark.parametrize("kind", ["rtd", "rtd_factorised"])
    def test_embeddings_are_one_and_the_generator_is_smaller(self, kind, tokenizers, tmp_path):
        parts = Parts(kind, tokenizers)
        for model in (parts.model, copy.deepcopy(parts.model)):
            generator, discriminator = model.generator, model.discriminator
            assert generator.electra.embeddings is discriminator.electra.embeddings
            words = discriminator.electra.embeddings.word_embeddings.weight
            assert generator.generator_lm_head.weight is words
        assert generator.config.hidden_size == 8 == discriminator.config.hidden_size // 2
        assert generator.config.num_attention_heads == 1
        assert generator.config.num_hidden_layers == discriminator.config.num_hidden_layers
        parts.model.save_pretrained(tmp_path)
        loaded = parts.build(init_from=tmp_path)
        assert loaded.generator.generator_lm_head.weight is loaded.get_parameter(
            "discriminator.electra.embeddings.word_embeddings.weight"
        )

    def test_a_folder_without_a_generator(self, tokenizers, tmp_path):
        parts = Parts("rtd", tokenizers)
        parts.model.discriminator.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"no generator .*set model\.new_heads=true"):
            parts.build(init_from=tmp_path)
        parts.build(init_from=tmp_path, new_heads=True)


class TestParaphrases:
    """Pairs of texts that say the same: here the words of one in another order."""

    @staticmethod
    def parts(tokenizers: dict[str, Any], family: str = "bert", **keys: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        objective = objective_config(name="contrastive", mask_probability=0.1, **keys)
        sizes = LanguageModelConfig(family=family, dropout=0.0, **TINY)
        tokenizer = tokenizers[TOKENIZER_OF[sizes.family]]
        model = build_language_model(sizes, objective, tokenizer)
        return model, build_objective(objective, family, tokenizer)

    @staticmethod
    def hidden(objective: Any, tokenizer: Any, count: int) -> list[dict[str, Any]]:
        class Corpus:
            def __len__(self) -> int:
                return count

            def texts(self, index: int, epoch: int) -> tuple[str, ...]:
                rng = np.random.default_rng([index, epoch])
                words = rng.choice(WORDS, 4, replace=False)
                return " ".join(words), " ".join(rng.permutation(words))

        samples = TokenizedCorpus(Corpus(), tokenizer, 40, seed=0)
        return [objective.hide(samples[0, index]) for index in range(count)]

    @pytest.mark.parametrize("family", ["bert", "roberta", "albert", "distilbert"])
    def test_each_text_is_read_alone_and_every_parameter_learns(self, family, tokenizers):
        model, objective = self.parts(tokenizers, family)
        tokenizer = tokenizers["byte_bpe" if family == "roberta" else "wordpiece"]
        samples = self.hidden(objective, tokenizer, 5)
        batch = objective.batch(samples)
        lengths = batch["attention_mask"].sum(1).tolist()
        for row, sample in enumerate([*samples, *samples]):
            second = row >= len(samples)
            first_length = sample["token_type_ids"].index(1)
            own = (
                sample["input_ids"][first_length:] if second else sample["input_ids"][:first_length]
            )
            expected = [sample["input_ids"][0], *own] if second else own
            assert batch["input_ids"][row, : lengths[row]].tolist() == expected
        terms = objective.terms(model, batch)
        counts = {k: torch.tensor(float(v)) for k, v in objective.counts(samples).items()}
        for name, term in terms.items():
            assert int((term.labels != IGNORED).sum()) == counts[name]
        loss, _ = objective.loss(terms, counts)
        loss.backward()
        unused = [name for name, value in model.named_parameters() if value.grad is None]
        assert not unused

    def test_loss_is_that_of_simcse(self, tokenizers):
        model, objective = self.parts(tokenizers, contrastive={"temperature": 0.2})
        samples = self.hidden(objective, tokenizers["wordpiece"], 4)
        texts = []
        for which in (0, 1):
            for sample in samples:
                kinds = np.array(sample["token_type_ids"])
                row = np.array(sample["input_ids"])[kinds == which]
                row = [sample["input_ids"][0], *row] if which else row
                with torch.no_grad():
                    states = model.bert(torch.tensor(np.array(row))[None]).last_hidden_state[0]
                mean = states.double().mean(0).numpy()
                texts.append(mean / np.linalg.norm(mean))
        cosines = np.array(texts[:4]) @ np.array(texts[4:]).T / 0.2
        expected = 0.0
        for table in (cosines, cosines.T):
            for i, row in enumerate(table):
                expected += np.log(np.exp(row).sum()) - row[i]
        with torch.no_grad():
            term = objective.terms(model, objective.batch(samples))["contrastive"]
        assert float(term.total()) == pytest.approx(expected, rel=1e-5)

    def test_learns_to_find_the_other_text(self, tokenizers):
        model, objective = self.parts(tokenizers)
        samples = self.hidden(objective, tokenizers["wordpiece"], 24)
        counts = {k: torch.tensor(float(v)) for k, v in objective.counts(samples).items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        batch = objective.batch(samples)
        for _ in range(60):
            terms = objective.terms(model, batch)
            loss, _ = objective.loss(terms, counts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float(terms["contrastive"].right()) / float(counts["contrastive"]) > 0.9

    def test_a_corpus_without_pairs(self, tokenizers):
        config = SimpleNamespace(
            seed=0,
            overfit=None,
            corpus=CorpusConfig(),
            model=LanguageModelConfig(**TINY),
            objective=ObjectiveConfig(name="contrastive"),
        )
        with pytest.raises(ValueError, match=r"needs two texts.*shapes\.pair_fraction=1"):
            build_samples(config, object(), tokenizers["wordpiece"])


class TestPrefixLM:
    def test_all_after_a_prefix_is_predicted_and_nothing_before(self, tokenizers):
        parts = Parts("prefix", tokenizers)
        shares = []
        for epoch in range(20):
            for index, sample in enumerate(parts.hidden(6, epoch)):
                row, prefix = parts.samples[epoch, index]["input_ids"], sample["prefix"]
                assert sample["input_ids"] == row  # nothing is masked
                assert 1 <= prefix < len(row)
                assert sample["labels"] == [IGNORED] * prefix + row[prefix:]
                shares.append((prefix - 1) / (len(row) - 2))
        assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
        assert min(shares) < 0.1 and max(shares) > 0.9

    def test_the_prefix_follows_from_the_samples_own_seed(self, tokenizers):
        parts = Parts("prefix", tokenizers)
        together = [sample["prefix"] for sample in parts.hidden(6)]
        alone = [parts.objective.hide(parts.samples[0, i])["prefix"] for i in (5, 4, 3, 2, 1, 0)]
        assert together == alone[::-1]
        assert together != [sample["prefix"] for sample in parts.hidden(6, epoch=1)]

    def test_reads_both_ways_in_the_prefix_and_one_way_after_it(self, tokenizers):
        parts = Parts("prefix", tokenizers)
        with torch.no_grad():
            for parameter in parts.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        parts.model.eval()
        row = parts.samples[0, 0]["input_ids"][:12]
        sample = {**parts.samples[0, 0], "input_ids": row, "token_type_ids": [0] * 12}
        # Beside a longer one, so that there is padding.
        other = {**sample, "input_ids": row * 2, "token_type_ids": [0] * 24, "prefix": 3,
                 "labels": [IGNORED] * 24}  # fmt: skip

        def logits(place: int | None) -> torch.Tensor:
            changed = list(row)
            if place is not None:
                changed[place] = row[place] % 50 + 1
            own = {**sample, "input_ids": changed, "prefix": 6, "labels": [IGNORED] * 12}
            batch = parts.objective.batch([own, other])
            with torch.no_grad():
                return parts.model(**inputs_for(parts.model, batch)).logits[0, :12]

        plain = logits(None)
        for place in range(12):
            differs = (logits(place) - plain).abs().amax(1) > 1e-5
            if place < 6:
                assert differs.all(), place  # every token reads all of the prefix
            else:
                assert differs.tolist() == [later >= place for later in range(12)]

    def test_bfloat16_has_gradients(self, tokenizers):
        parts = Parts("prefix", tokenizers)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = parts.loss(parts.hidden(6))
        loss.backward()
        expected, _ = parts.loss(parts.hidden(6))
        assert loss.item() == pytest.approx(expected.item(), rel=2e-2)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parts.model.parameters())

    def test_transformers_loads_the_folder(self, tokenizers, tmp_path):
        parts = Parts("prefix", tokenizers)
        parts.model.save_pretrained(tmp_path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert type(loaded) is type(parts.model)
        batch = parts.batch()
        a, b = (m.eval()(**inputs_for(m, batch)).logits for m in (parts.model, loaded))
        assert torch.equal(a, b)

    def test_trained_on_by_the_next_token_it_is_causal_again(self, tokenizers, tmp_path):
        parts = Parts("prefix", tokenizers)
        LanguageModelFiles(parts.model, parts.tokenizer).save_pretrained(tmp_path / "prefix")
        assert not TextEncoder.from_pretrained(tmp_path / "prefix").causal
        sizes, source = LanguageModelConfig(family="gpt2", **TINY), str(tmp_path / "prefix")
        model = build_language_model(sizes, ObjectiveConfig(), parts.tokenizer, source)
        LanguageModelFiles(model, parts.tokenizer).save_pretrained(tmp_path / "clm")
        assert TextEncoder.from_pretrained(tmp_path / "clm").causal
        fresh = build_language_model(sizes, ObjectiveConfig(), parts.tokenizer)
        assert MARK not in fresh.config.to_dict()  # its files are as they always were


class TestDistillation:
    def test_nothing_to_learn_from_equal_predictions(self):
        logits = torch.randn(2, 5, 7)
        for temperature in (1.0, 2.0):
            same = soft_cross_entropy(logits + 3.0, logits, temperature)  # a shift is no change
            assert same.abs().max() < 1e-5
            other = soft_cross_entropy(torch.randn(2, 5, 7), logits, temperature)
            assert (other > 1e-3).all()
        expected = nn.functional.kl_div(
            torch.zeros(7).log_softmax(-1), (logits[0, 0] / 2).log_softmax(-1),
            log_target=True, reduction="sum",
        ) * 4  # fmt: skip
        zeros = torch.zeros(2, 5, 7)
        torch.testing.assert_close(soft_cross_entropy(zeros, logits, 2.0)[0, 0], expected)

    @pytest.mark.parametrize("family", ["distilbert", "bert"])
    def test_a_student_of_all_layers_is_its_teacher(self, family, tokenizers):
        parts = Parts("distillation", tokenizers)
        teacher = parts.teacher
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        teacher.tie_weights()
        sizes = LanguageModelConfig(family=family, **TINY)
        parts.model = build_language_model(sizes, parts.config, parts.tokenizer, None, teacher)
        parts.model.eval()
        terms = parts.objective.terms(parts.model, parts.batch())
        for name in ("soft", "cosine"):
            assert isinstance(terms[name], Distance)
            assert terms[name].values[terms[name].mask].abs().max() < 1e-4, name
        assert isinstance(terms["mlm"], Choice)

    @pytest.mark.parametrize(("depth", "taken"), [(1, [0]), (2, [0, 2]), (4, [0, 1, 2, 3])])
    def test_begins_with_every_other_layer(self, tokenizers, depth, taken):
        bert = LanguageModelConfig(family="bert", **{**TINY, "num_layers": 4})
        teacher = build_language_model(bert, ObjectiveConfig(), tokenizers["wordpiece"])
        student = build_student(teacher, type(teacher), depth)
        assert len(student.bert.encoder.layer) == depth
        for place, layer in enumerate(taken):
            expected = teacher.bert.encoder.layer[layer].state_dict()
            for name, value in student.bert.encoder.layer[place].state_dict().items():
                assert torch.equal(value, expected[name])
        with pytest.raises(ValueError, match=r"has 4 layers; set model\.num_layers=2"):
            build_student(teacher, type(teacher), 5)

    def test_the_teacher_is_frozen(self, tokenizers):
        parts = Parts("distillation", tokenizers)
        before = copy.deepcopy(parts.teacher.state_dict())
        loss, _ = parts.loss(parts.hidden(4))
        loss.backward()
        assert not parts.teacher.training
        assert all(p.grad is None for p in parts.teacher.parameters())
        assert all(torch.equal(v, before[k]) for k, v in parts.teacher.state_dict().items())

    def test_teachers_that_cant_teach(self, tokenizers, tmp_path):
        wordpiece = tokenizers["wordpiece"]
        sizes = LanguageModelConfig(family="distilbert", **TINY)
        bert = LanguageModelConfig(family="bert", **TINY)
        build_language_model(bert, ObjectiveConfig(), wordpiece).save_pretrained(tmp_path)
        assert load_teacher(sizes, str(tmp_path), wordpiece).config.model_type == "bert"
        with pytest.raises(ValueError, match="no language model in"):
            load_teacher(sizes, str(tmp_path / "nowhere"), wordpiece)
        with pytest.raises(ValueError, match="embeds 60 tokens and its tokenizer has 300"):
            load_teacher(sizes, str(tmp_path), tokenizers["byte_bpe"])


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("bert", {"name": "rdt"}, r"`name` must be one of null, mlm.*got 'rdt'"),
        ("bert", {"name": "rtd"}, "model.family=bert can be trained by mlm or distillation"),
        (
            "gpt2",
            {"name": "mlm"},
            "gpt2 can be trained by clm or prefix_lm, got .*mlm",
        ),
        ("gpt2", {"masking": "word"}, "clm masks no tokens; remove objective.masking=word"),
        ("gpt2", {"name": "prefix_lm", "masking": "span"}, "prefix_lm masks no tokens; remove"),
        ("bert", {"name": "prefix_lm"}, "model.family=bert can be trained by .*, got .*prefix_lm"),
        ("roberta", {"pairs": "nsp"}, "objective.pairs=nsp is for mlm with .*bert or albert"),
        ("bert", {"pairs": "npp"}, r"`pairs` must be one of none, nsp, sop"),
        ("bert", {"span_boundary": True}, r"set objective\.masking=span, got token"),
        ("albert", {"span_boundary": True, "masking": "span"}, "objective.span_boundary is for"),
        ("bert", {"name": "distillation"}, "objective.distillation.teacher=FOLDER is for"),
        (
            "electra",
            {"distillation": {"teacher": "x"}},
            "teacher=FOLDER .* got rtd",
        ),
        ("bert", {"masking": "words"}, "`masking` must be one of token, word, span"),
        ("bert", {"span_probability": 1.0}, "span_probability"),
        ("bert", {"rtd": {"generator_size": 0.0}}, "generator_size"),
        ("bert", {"distillation": {"temperature": 0.0}}, "temperature"),
        ("bert", {"distillation": {"soft_weight": -1.0}}, "soft_weight"),
    ],
)
def test_what_does_not_go_together(family, options, message):
    with pytest.raises(ValueError, match=message):
        objective_config(**options).named(family)


class ShuffledTokens(Objective):
    """Puts the tokens of a sample back in order: a toy that is no part of the package."""

    name = "shuffled"

    def hide(self, sample: dict[str, Any]) -> dict[str, Any]:
        order = np.random.default_rng(sample["mask_seed"]).permutation(len(sample["input_ids"]))
        shuffled = [sample["input_ids"][place] for place in order]
        return {**sample, "input_ids": shuffled, "labels": sample["input_ids"]}

    def terms(
        self, model: nn.Module, batch: dict[str, torch.Tensor]
    ) -> dict[str, Choice | Distance]:
        logits = model(**inputs_for(model, batch)).logits
        return {self.name: Choice(logits, batch["labels"])}


def test_an_objective_from_outside_is_trained_by_its_name(tokenizers, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, ShuffledTokens.name, ShuffledTokens)
    monkeypatch.setitem(OBJECTIVES_OF, "bert", (*OBJECTIVES_OF["bert"], ShuffledTokens.name))
    monkeypatch.setitem(KINDS, "shuffled", ("bert", {"name": "shuffled"}, {}))
    parts = Parts("shuffled", tokenizers)
    assert isinstance(parts.objective, ShuffledTokens)
    optimizer = torch.optim.AdamW(parts.model.parameters(), lr=1e-2)
    samples = parts.hidden(6)
    losses = []
    for _ in range(8):
        loss, means = parts.loss(samples)
        assert means.keys() == {"shuffled"}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match=r"trained by clm or prefix_lm, got .*shuffled"):
        ObjectiveConfig(name="shuffled").named("gpt2")
