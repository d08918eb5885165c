"""TextEncoder on tiny random models of every family, with tokenizers that are made here."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from diffusion.cached_text_encoder import CachedTextEncoder
from diffusion.prefix_attention import MARK
from diffusion.text_encoder import TextEncoder
from vidtwin_lab.language.config import TokenizerConfig
from vidtwin_lab.language.tokenizers import train_tokenizer

SHORT, LONG = "a red circle", "a blue star moves up and down while a red ring stays still"
TEXTS = ["a red circle moves left", LONG, "one ring, turning", ""]
POSITIONS = 80
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def wordpiece() -> Any:
    return train_tokenizer(TEXTS * 3, "wordpiece", TokenizerConfig(vocabulary_size=120), POSITIONS)


def byte_bpe() -> Any:
    return train_tokenizer(TEXTS * 3, "byte_bpe", TokenizerConfig(vocabulary_size=300), POSITIONS)


def plain_byte_bpe() -> Any:
    """GPT-2's own: no special token is added."""
    trained = byte_bpe()
    vocabulary = {**trained.get_vocab(), "<|endoftext|>": len(trained)}
    return GPT2Tokenizer(vocab=vocabulary, merges=[], model_max_length=POSITIONS)


def with_template(template: str, **special: str) -> Any:
    """Words, and special tokens around them as T5 and CLIP have them."""
    words = sorted({word for text in TEXTS for word in text.replace(",", " ,").split()})
    names = list(dict.fromkeys([*special.values(), "<unk>"]))
    vocabulary = {token: number for number, token in enumerate([*names, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, vocabulary[name]) for name in names]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", model_max_length=POSITIONS, **special
    )


def bert() -> tuple[Any, Any]:
    tokenizer = wordpiece()
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **SIZES)
    return BertModel(config), tokenizer


def roberta() -> tuple[Any, Any]:
    tokenizer = byte_bpe()
    # Positions start after that of the padding token, 1.
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS + 2,
        type_vocab_size=1,
        pad_token_id=1,
        **SIZES,
    )
    return RobertaModel(config), tokenizer


def distilbert() -> tuple[Any, Any]:
    tokenizer = wordpiece()
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        dim=16,
        n_layers=3,
        n_heads=2,
        hidden_dim=24,
    )
    return DistilBertModel(config), tokenizer


def albert() -> tuple[Any, Any]:
    tokenizer = wordpiece()
    config = AlbertConfig(
        vocab_size=len(tokenizer), embedding_size=8, max_position_embeddings=POSITIONS, **SIZES
    )
    return AlbertModel(config), tokenizer


def electra() -> tuple[Any, Any]:
    tokenizer = wordpiece()
    config = ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=8, max_position_embeddings=POSITIONS, **SIZES
    )
    return ElectraModel(config), tokenizer


def gpt2() -> tuple[Any, Any]:
    tokenizer = plain_byte_bpe()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=16, n_layer=3, n_head=2
    )
    return GPT2Model(config), tokenizer


def t5() -> tuple[Any, Any]:
    tokenizer = with_template("$A </s>", pad_token="<pad>", eos_token="</s>")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2
    )
    return T5EncoderModel(config), tokenizer


def clip() -> tuple[Any, Any]:
    # CLIP pads with the token that ends a text.
    tokenizer = with_template("<s> $A </s>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SIZES,
    )
    return CLIPTextModel(config), tokenizer


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    build.__name__: build for build in (bert, roberta, distilbert, albert, electra, gpt2, t5, clip)
}
ONE_WAY = {"gpt2", "clip"}


def build(family: str, **options: Any) -> TextEncoder:
    """An encoder whose weights are large enough for tokens to matter to each other."""
    torch.manual_seed(0)
    model, tokenizer = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return TextEncoder(model, tokenizer, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request) -> TextEncoder:
    return build(request.param)


@pytest.fixture(scope="module")
def bert_encoder() -> TextEncoder:
    return build("bert")


def family_of(encoder: TextEncoder) -> str:
    return encoder.model.config.model_type.removesuffix("_text_model")


class TestEveryFamily:
    def test_shapes_and_mask(self, encoder):
        encoding = encoder([SHORT, LONG, ""])
        assert encoding.hidden_states.shape == (*encoding.attention_mask.shape, 16)
        assert encoder.hidden_size == 16
        assert encoding.hidden_states.dtype == torch.float32
        assert encoding.attention_mask.dtype == torch.bool
        lengths = encoding.attention_mask.sum(1)
        assert encoding.attention_mask.shape[1] == lengths.max()  # L is that of the longest
        assert (encoding.attention_mask[:, :1]).all()
        # Padding stands on the right.
        assert (encoding.attention_mask.long().diff(dim=1) <= 0).all()
        assert (encoding.hidden_states[~encoding.attention_mask] == 0).all()
        assert encoding.truncated == [None] * 3

    def test_reads_in_its_direction(self, encoder):
        """Token i of a causal text encoder must not change when token i + 1 does, others' must."""
        one_way = family_of(encoder) in ONE_WAY
        rows, _ = encoder.tokenize(["a red circle moves left", "a red circle moves up"])
        first, second = rows
        i = next(i for i, pair in enumerate(zip(first, second)) if pair[0] != pair[1])
        assert i >= 3
        a = encoder("a red circle moves left").hidden_states[0, :i]
        b = encoder("a red circle moves up").hidden_states[0, :i]
        if one_way:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        else:
            assert ((a - b).abs().amax(dim=1) > 1e-3).all()  # every token before it
        assert encoder.causal == one_way

    def test_order_of_words_matters(self, encoder):
        a, b = (encoder(text).hidden_states[0] for text in ("red circle left", "left circle red"))
        n = min(len(a), len(b))
        assert (a[:n] - b[:n]).abs().max() > 1e-2

    def test_padding_changes_nothing(self, encoder):
        alone = encoder(SHORT)
        length = alone.attention_mask.shape[1]
        for padded in (encoder([LONG, SHORT]), encoder([SHORT, SHORT], pad_to_max=True)):
            assert padded.attention_mask[1].sum() == length < padded.attention_mask.shape[1]
            torch.testing.assert_close(
                padded.hidden_states[1, :length], alone.hidden_states[0], rtol=1e-4, atol=1e-5
            )
        assert padded.attention_mask.shape[1] == encoder.max_length == POSITIONS

    def test_what_padding_is_made_of_changes_nothing(self, encoder):
        tokenizer = copy.deepcopy(encoder.tokenizer)
        tokenizer.pad_token = "red" if family_of(encoder) in ("t5", "clip") else "a"
        other = TextEncoder(encoder.model, tokenizer)
        expected, came = encoder([SHORT, LONG]), other([SHORT, LONG])
        torch.testing.assert_close(came.hidden_states, expected.hidden_states)

    def test_agrees_with_the_model_itself(self, encoder):
        """Without padding there is nothing to get wrong: transformers' own call."""
        rows, _ = encoder.tokenize([LONG])
        expected = encoder.model(input_ids=torch.tensor(rows)).last_hidden_state
        came = encoder(LONG).hidden_states
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)

    def test_a_long_prompt_is_cut_and_says_so(self, encoder, caplog):
        prompt = " ".join(["a red circle moves left and"] * 40) + " never read"
        with caplog.at_level(logging.WARNING):
            encoding = encoder([prompt, SHORT])
        assert encoding.attention_mask.sum(1)[0] == encoder.max_length
        rest, none = encoding.truncated
        assert none is None
        assert rest is not None and prompt.endswith(rest) and rest.endswith("never read")
        assert repr(rest) in caplog.text
        # What is left is read as if it had been the prompt, special tokens at both ends.
        kept = encoder(prompt.removesuffix(rest))
        torch.testing.assert_close(encoding.hidden_states[:1], kept.hidden_states)

    def test_empty_prompt_is_read(self, encoder):
        encoding = encoder("")
        count = int(encoding.attention_mask.sum())
        assert count == max(1, encoder.tokenizer.num_special_tokens_to_add())
        assert encoding.hidden_states.abs().sum() > 0

    def test_saved_and_loaded_reads_alike(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        loaded = TextEncoder.from_pretrained(tmp_path, local_files_only=True)
        assert type(loaded.model) is type(encoder.model)
        assert loaded.max_length == encoder.max_length
        assert torch.equal(loaded([SHORT, LONG]).hidden_states, encoder([SHORT, LONG])[0])
        assert loaded.digest() == encoder.digest()

    def test_hidden_layers(self, encoder):
        rows, _ = encoder.tokenize([LONG])
        output = encoder.model(input_ids=torch.tensor(rows), output_hidden_states=True)
        states = output.hidden_states
        for layer in (-2, -4, 0, 2):
            chosen = TextEncoder(encoder.model, encoder.tokenizer, layer=layer)
            torch.testing.assert_close(
                chosen(LONG).hidden_states, states[layer], rtol=1e-4, atol=1e-5
            )
        last = TextEncoder(encoder.model, encoder.tokenizer, layer=3)
        assert torch.equal(last(LONG).hidden_states, encoder(LONG).hidden_states)

    def test_is_frozen(self, encoder):
        assert not encoder.model.training
        assert not any(p.requires_grad for p in encoder.model.parameters())
        assert not encoder(SHORT).hidden_states.requires_grad


class TestBidirectional:
    """Causal models that are read with bidirectional attention."""

    @pytest.mark.parametrize("family", sorted(ONE_WAY))
    def test_every_token_reads_all_tokens_of_its_prompt(self, family):
        encoder = TextEncoder(*FAMILIES[family](), bidirectional=True)
        assert not encoder.causal
        with torch.no_grad():
            for parameter in encoder.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        a, b = (encoder(f"a red circle moves {way}").hidden_states[0] for way in ("left", "up"))
        assert ((a[:3] - b[:3]).abs().amax(dim=1) > 1e-3).all()
        alone = encoder(SHORT)
        length = alone.attention_mask.shape[1]
        padded = encoder([LONG, SHORT]).hidden_states[1, :length]
        torch.testing.assert_close(padded, alone.hidden_states[0], rtol=1e-4, atol=1e-5)

    def test_agrees_with_the_mask_written_out(self):
        encoder = build("gpt2", bidirectional=True)
        rows, _ = encoder.tokenize([LONG])
        open_mask = torch.zeros(1, 1, len(rows[0]), len(rows[0]))
        own = encoder.model(input_ids=torch.tensor(rows), attention_mask=open_mask)
        assert torch.equal(encoder(LONG).hidden_states, own.last_hidden_state)

    @pytest.mark.parametrize("kind", ["sdpa", "eager"])
    def test_every_kind_of_attention(self, kind):
        encoder, other = (build("gpt2", bidirectional=True) for _ in range(2))
        other.model.set_attn_implementation(kind)
        a, b = (each([SHORT, LONG]).hidden_states for each in (encoder, other))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_the_folder_says_so(self, tmp_path):
        causal = build("gpt2")
        before = causal([SHORT, LONG]).hidden_states
        digest = causal.digest()
        causal.save_pretrained(tmp_path / "causal")
        assert MARK not in json.loads((tmp_path / "causal" / "config.json").read_text())
        opened = TextEncoder.from_pretrained(tmp_path / "causal", bidirectional=True)
        assert not opened.causal
        assert opened.digest() != digest
        opened.save_pretrained(tmp_path / "open")
        loaded = TextEncoder.from_pretrained(tmp_path / "open")
        assert not loaded.causal
        assert loaded.digest() == opened.digest()
        assert torch.equal(loaded(LONG).hidden_states, opened(LONG).hidden_states)
        again = TextEncoder.from_pretrained(tmp_path / "causal")
        assert again.causal
        assert torch.equal(again([SHORT, LONG]).hidden_states, before)

    def test_half_precision(self):
        encoder = build("gpt2", bidirectional=True)
        expected = encoder([SHORT, LONG]).hidden_states
        came = encoder.to(torch.bfloat16)([SHORT, LONG]).hidden_states
        torch.testing.assert_close(came, expected, rtol=0.1, atol=0.1)

    def test_a_bidirectional_model_stays_as_it_is(self):
        plain, asked = build("bert"), build("bert", bidirectional=True)
        assert MARK not in asked.model.config.to_dict()
        assert plain.digest() == asked.digest()

    def test_a_model_that_can_not(self):
        class Deaf(GPT2Model):
            """Takes no mask of four axes."""

            def forward(self, input_ids, attention_mask=None, use_cache=None, return_dict=None):
                return super().forward(input_ids, use_cache=False, return_dict=True)

        model, tokenizer = gpt2()
        deaf = Deaf(model.config)
        deaf.load_state_dict(model.state_dict())
        with pytest.raises(ValueError, match=r"family 'gpt2' can't be .* leave bidirectional=True"):
            TextEncoder(deaf, tokenizer, bidirectional=True)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_reads_a_language_models_folder(family, tmp_path):
    encoder = build(family)
    torch.manual_seed(1)
    kind = {"bert": BertForMaskedLM, "gpt2": GPT2LMHeadModel}[family]
    whole = kind(encoder.model.config)
    whole.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = TextEncoder.from_pretrained(tmp_path)
    rows, _ = loaded.tokenize([SHORT])
    expected = whole.eval().base_model(input_ids=torch.tensor(rows)).last_hidden_state
    torch.testing.assert_close(loaded(SHORT).hidden_states, expected)
    assert torch.equal(
        TextEncoder(whole, encoder.tokenizer)(SHORT).hidden_states, loaded(SHORT).hidden_states
    )
    # BERT's pooler isn't in the file: the same all the same, and whole once it is saved.
    assert loaded.digest() == TextEncoder.from_pretrained(tmp_path).digest()
    loaded.save_pretrained(tmp_path / "again")
    again = TextEncoder.from_pretrained(tmp_path / "again")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_reads_a_pipelines_folder(tmp_path):
    encoder = build("bert")
    encoder.model.save_pretrained(tmp_path / "text_encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert TextEncoder.from_pretrained(tmp_path).digest() == encoder.digest()


def test_digest_tells_weights_and_vocabulary():
    first, second = build("bert"), build("bert")
    assert first.digest() == second.digest()
    with torch.no_grad():
        next(second.model.parameters())[3, 3] += 1e-3
    assert first.digest() != second.digest()
    other = train_tokenizer(
        ["a red circle"] * 3, "wordpiece", TokenizerConfig(vocabulary_size=60), POSITIONS
    )
    assert TextEncoder(first.model, other).digest() != first.digest()


def test_words_that_no_caption_had_are_named(caplog, tmp_path):
    """Also where letters or pieces of them are tokens, as "blu" is of "blue"."""
    captions = ["a red circle that is moving left", "a blue square", "the bluish dot"] * 3
    config = TokenizerConfig(vocabulary_size=300, keep_words=True)
    train_tokenizer(captions, "wordpiece", config, POSITIONS).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert "blu" in tokenizer.get_vocab()
    model = build("bert").model
    model.resize_token_embeddings(len(tokenizer))
    encoder = TextEncoder(model, tokenizer)
    with caplog.at_level(logging.WARNING):
        encoder(["A red circle, that is blue.", "the square"])
        assert not caplog.text
        encoder(["a squar that is blu", "ein roter Kreis", "a café"])
    first, second, third = (record.getMessage() for record in caplog.records)
    assert (
        "read by guess: squar (square?), blu (blue?); the words it can read: a, blue, bluish,"
        in first
    )
    assert second.endswith("read by guess: ein, roter, kreis")
    assert third.endswith("read by guess: cafe")
    with pytest.raises(ValueError, match="keep_words=true is for kind=wordpiece, got byte_bpe"):
        train_tokenizer(captions, "byte_bpe", config, POSITIONS)
    many = [" ".join(f"word{number}" for number in range(6000))]
    with pytest.raises(ValueError, match="6000 different words"):
        train_tokenizer(many, "wordpiece", config, POSITIONS)


def test_unknown_words_are_told(bert_encoder, caplog):
    with caplog.at_level(logging.WARNING):
        bert_encoder("a red circle")
        assert not caplog.text
        bert_encoder("a красный circle")
    assert "1 of" in caplog.text and "unknown to the text encoder" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        states = bert_encoder("красный круг движется").hidden_states
    assert re.search(r"(\d+) of \1 tokens of the prompt .* are unknown", caplog.text)
    assert states.isfinite().all()


def test_max_length_can_be_lowered():
    encoder = build("bert", max_length=5)
    encoding = encoder(LONG, pad_to_max=True)
    assert encoding.hidden_states.shape[1] == 5
    assert encoding.truncated[0] is not None


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layer": 4}, r"`layer` must be in \[-4, 3\].*got 4"),
            ({"layer": -5}, r"`layer` must be in"),
            ({"max_length": 81}, "at most the model's 80 positions, got 81"),
            ({"max_length": 2}, "more than the 2 special tokens"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            build("bert", **options)

    @pytest.mark.parametrize("prompts", [[], [SHORT, None], [3], [b"red"]])
    def test_prompts(self, bert_encoder, prompts):
        for text_encoder in (bert_encoder, CachedTextEncoder(bert_encoder)):
            with pytest.raises(ValueError, match="prompt"):
                text_encoder(prompts)

    def test_tokenizer_of_another_model(self, bert_encoder):
        with pytest.raises(ValueError, match=r"has 30\d tokens and the model embeds"):
            TextEncoder(bert_encoder.model, plain_byte_bpe())

    def test_tokenizer_of_a_smaller_model(self, bert_encoder, caplog):
        small = train_tokenizer(
            ["a red circle"] * 3, "wordpiece", TokenizerConfig(vocabulary_size=60), POSITIONS
        )
        with caplog.at_level(logging.WARNING):
            TextEncoder(bert_encoder.model, bert_encoder.tokenizer)
            assert not caplog.text
            TextEncoder(bert_encoder.model, small)
        assert re.search(r"has \d+ tokens and the model embeds \d+: do they belong", caplog.text)

    def test_a_model_that_also_decodes(self):
        encoder = build("t5")
        whole = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, num_layers=1))
        with pytest.raises(ValueError, match="give its encoder alone"):
            TextEncoder(whole, encoder.tokenizer)

    def test_folders(self, bert_encoder, tmp_path):
        with pytest.raises(ValueError, match=r"no text encoder in .*nowhere"):
            TextEncoder.from_pretrained(tmp_path / "nowhere", local_files_only=True)
        bert_encoder.model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"no tokenizer in|special tokens alone"):
            TextEncoder.from_pretrained(tmp_path, local_files_only=True)

    def test_weights_that_are_missing(self, bert_encoder, tmp_path):
        bert_encoder.save_pretrained(tmp_path)
        weights = bert_encoder.model.state_dict()
        del weights["encoder.layer.1.output.dense.weight"]
        bert_encoder.model.save_pretrained(tmp_path, state_dict=weights)
        with pytest.raises(ValueError, match=r"lack 1 of .* encoder.layer.1.output.dense.weight"):
            TextEncoder.from_pretrained(tmp_path, local_files_only=True)


class TestCache:
    @pytest.fixture
    def counted(self, monkeypatch) -> tuple[TextEncoder, list[int]]:
        """An encoder, and the sizes of the batches that it has read."""
        encoder, sizes = build("bert"), []
        original = encoder.encode

        def encode(prompts, *arguments):
            sizes.append(len(prompts))
            return original(prompts, *arguments)

        monkeypatch.setattr(encoder, "encode", encode)
        return encoder, sizes

    def test_equals_the_encoder(self, encoder):
        prompts = [SHORT, LONG, "", SHORT]
        for _ in range(2):
            expected, came = encoder(prompts), CachedTextEncoder(encoder)(prompts)
            torch.testing.assert_close(came.hidden_states, expected[0], rtol=1e-4, atol=1e-5)
            assert torch.equal(came.attention_mask, expected.attention_mask)
            assert came.truncated == expected.truncated

    def test_reads_once(self, counted):
        encoder, sizes = counted
        cached = CachedTextEncoder(encoder)
        cached.embed_all([SHORT, LONG, SHORT], batch_size=2)
        assert sizes == [2]
        cached([SHORT, LONG])
        assert sizes == [2] and len(cached) == 2
        cached([SHORT, "new"])
        assert sizes == [2, 1]

    def test_does_not_depend_on_what_was_asked_before(self, encoder):
        """Bit for bit: a resumed training, whose memory is empty, goes on the same."""
        one, other = CachedTextEncoder(encoder), CachedTextEncoder(encoder)
        one([LONG, SHORT])
        other(["something else", SHORT])
        assert torch.equal(one([SHORT]).hidden_states, other([SHORT]).hidden_states)
        for cached in (one, other):
            cached.embed_all([LONG, SHORT, "a ring"], batch_size=2)
        assert torch.equal(one([SHORT, LONG])[0], other([SHORT, LONG])[0])

    def test_forgets_the_oldest(self, counted):
        encoder, sizes = counted
        tokens = len(encoder.tokenize(["a red circle"])[0][0])
        cached = CachedTextEncoder(encoder, max_bytes=2 * tokens * 16 * 4)
        for prompt in ("a red circle", "a red star", "a red circle", "a red ring"):
            cached(prompt)
        before = len(sizes)
        cached("a red circle")
        assert len(sizes) == before
        cached("a red star")
        assert len(sizes) == before + 1
        with pytest.raises(ValueError, match="3 captions do not fit"):
            cached.embed_all(["a red star", "a red ring", "a red circle"])

    def test_half_precision(self, bert_encoder):
        cached = CachedTextEncoder(bert_encoder, dtype=torch.float16)
        first, again = cached([LONG]), cached([LONG])
        assert first.hidden_states.dtype == torch.float32
        assert torch.equal(first.hidden_states, again.hidden_states)
        torch.testing.assert_close(first[0], bert_encoder(LONG)[0], rtol=1e-2, atol=1e-2)
        with pytest.raises(ValueError, match="floating-point"):
            CachedTextEncoder(bert_encoder, dtype=torch.int8)
