"""Text models: numbers equal to transformers' own explicit attention, words, order, pictures, hostile sentences."""

import csv
import json
import shutil
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saccade.attention.text import attend_text
from saccade.attention.text_lessons import LECTURE, look_up, order_test
from saccade.cli import app
from saccade.errors import MissingDependency, ModelError, UsageError
from saccade.models.text_tokens import TextOptions, Word, columns, find_word, merge, printable, words_of

HOSTILE = (
    "<script>alert(1)</script> & \"quotes\" 'single' ]]> --",
    "\u202eright to left\u202c שלום עולם مرحبا بالعالم",
    "emoji 😀👩‍🔬🇩🇪 and e\u0301 and 日本語",
    "=cmd|' /C calc'!A0 control \x07\x1b[31m red \x00 end",
)
TINY = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
KINDS = {
    "bert": ("BertConfig", TINY),
    "roberta": ("RobertaConfig", TINY | {"max_position_embeddings": 80, "pad_token_id": 0}),
    "distilbert": ("DistilBertConfig", {"n_layers": 2, "n_heads": 4, "dim": 32, "hidden_dim": 64}),
    "modernbert": ("ModernBertConfig", TINY | {"local_attention": 8, "pad_token_id": 0}),
    "t5": ("T5Config", {"num_layers": 2, "num_heads": 4, "d_model": 32, "d_kv": 8, "d_ff": 64}),
    "gpt2": ("GPT2Config", {"n_layer": 2, "n_head": 4, "n_embd": 32}),
    "llama": ("LlamaConfig", TINY | {"num_key_value_heads": 2}),
}


@pytest.fixture(scope="session")
def text_model():
    pytest.importorskip("transformers", reason='sentences need pip install "saccade[text]"')
    from saccade.models.backbones.text import load_text_model

    try:
        return load_text_model()
    except MissingDependency as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def reading(text_model):
    return text_model.read(LECTURE)


@pytest.fixture(scope="session")
def local_models(text_model, tmp_path_factory):
    """Small models of other families with random weights, as save_pretrained writes them."""
    import transformers

    from saccade.models.backbones.text import built_in_folder

    made = {}
    for name, (config, settings) in KINDS.items():
        folder = made[name] = tmp_path_factory.mktemp("text") / name
        torch.manual_seed(0)
        config = getattr(transformers, config)(vocab_size=30522, **settings)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(built_in_folder() / file, folder)
    return made


# --- numbers ---------------------------------------------------------------------------------------


def explicit(model, reading):
    """What transformers says itself when it is made to write the weights down."""
    network = model.network
    network.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            found = network(input_ids=torch.tensor([[t.id for t in reading.tokens]]), output_attentions=True)
    finally:
        network.set_attn_implementation("sdpa")
    return [layer[0] for layer in found.attentions]


def test_every_layer_equals_the_explicit_path(text_model, reading):
    theirs = explicit(text_model, reading)
    assert len(theirs) == text_model.depth == len(reading.layers)
    for layer, known in enumerate(theirs):
        ours = reading.attention(layer=layer)
        assert ours.shape == known.shape
        assert (ours - known).abs().max() < 1e-5
        assert (ours.sum(dim=-1) - 1).abs().max() < 1e-5


def test_asking_for_rows_gives_those_rows(reading):
    rows = torch.tensor([14, 2])
    asked, whole = reading.attention(layer=3, rows=rows), reading.attention(layer=3)
    assert torch.allclose(asked, whole[:, rows], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_other_families_equal_their_explicit_path(kind, local_models):
    from saccade.models.backbones.text import load_text_model

    model = load_text_model(local_models[kind])
    reading = model.read(LECTURE)
    for layer, known in enumerate(explicit(model, reading)):
        assert (reading.attention(layer=layer) - known).abs().max() < 1e-5
    assert reading.causal == (kind in ("gpt2", "llama"))
    if reading.causal:
        above = torch.ones(len(reading.tokens), len(reading.tokens)).triu(1).bool()
        assert reading.attention(layer=0)[:, above].max() == 0


def test_the_numbers_of_a_pair_make_its_weight(reading):
    found = reading.pair(14, 16, layer=2, head=5)
    assert found.score == pytest.approx(float(found.products.sum()) * found.scale)
    assert found.scale == pytest.approx(1 / np.sqrt(len(found.query)))
    assert np.exp(found.score - found.log_sum) == pytest.approx(found.weight, rel=1e-4)
    assert found.weight == pytest.approx(float(reading.attention(layer=2)[5, 14, 16]))


def test_a_hidden_pair_says_so(local_models):
    from saccade.models.backbones.text import load_text_model

    reading = load_text_model(local_models["gpt2"]).read(LECTURE)
    hidden, seen = reading.pair(2, 9, layer=0, head=0), reading.pair(9, 2, layer=0, head=0)
    assert not hidden.visible and hidden.weight == 0
    assert seen.visible and seen.weight > 0


def test_nothing_is_fetched(text_model, monkeypatch):
    from saccade.models.backbones.text import load_text_model

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_text_model().read("offline")


# --- words -----------------------------------------------------------------------------------------


def test_tokens_become_words(reading):
    words = [w.text for w in reading.words]
    assert words[:4] == ["[CLS]", "This", "GitHub", "page"] and words[-2:] == [".", "[SEP]"]
    assert [t.piece for t in reading.tokens[2:5]] == ["gi", "##th", "##ub"]
    weights = reading.attention(layer=1).numpy()
    merged = merge(weights, reading.words)
    assert np.allclose(merged.sum(axis=-1), 1, atol=1e-5)
    # To "GitHub": the sum of its three tokens; from it: their mean.
    assert np.allclose(merged[:, 1, 2], weights[:, 1, 2:5].sum(axis=-1), atol=1e-6)
    assert np.allclose(merged[:, 2, 3], weights[:, 2:5, 5].mean(axis=-1), atol=1e-6)


@pytest.mark.parametrize("space", ["bytes", "marks"])
def test_words_of_other_tokenizers(space):
    """Byte-level tokens, of which an emoji takes four, and tokens that begin with the mark of a space."""
    transformers = pytest.importorskip("transformers", reason='sentences need pip install "saccade[text]"')
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    from saccade.models.backbones.text import _tokens

    text = "The general information 😀 about 日本語 studies."
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    letters = pre_tokenizers.ByteLevel.alphabet() if space == "bytes" else []
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "<unk>"], initial_alphabet=letters, show_progress=False
    )
    if space == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator([text], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")
    coded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    found = [word.text for word in words_of(text, _tokens(text, coded, tokenizer))]
    assert "".join(found) == text.replace(" ", "")
    assert found[:6] == ["The", "general", "information", "😀", "about", "日本語"]


def test_a_word_is_found_by_letters_or_number():
    words = [Word(text, i, i, False) for i, text in enumerate(("The", "cat", "the", "7"))]
    assert find_word("THE", words) == 0 and find_word("2", words) == 2 and find_word("-1", words) == 3
    with pytest.raises(UsageError, match="did you mean 'cat'"):
        find_word("cta", words)
    with pytest.raises(UsageError, match="0 to 3"):
        find_word("4", words)


def test_a_long_text_is_cut_and_says_so(text_model):
    found = attend_text(text_model, "word study " * 300, TextOptions())
    assert len(found.reading.tokens) == text_model.limit == 512
    assert found.reading.tokens[-1].piece == "[SEP]"
    assert found.reading.left_out == 90
    assert "the last 90 words were left out, after “study”" in found.text()


def test_terminal_letters():
    assert columns("日本") == 4 and columns("e\u0301") == 1
    assert printable("a\x1b[31m\u202e") == "a<U+001B>[31m<U+202E>"


# --- order, look-up --------------------------------------------------------------------------------


def test_without_positions_order_does_not_matter(text_model):
    found = order_test(text_model, LECTURE)
    assert found.without < 1e-4 < 0.1 < found.with_positions
    assert sorted(found.shuffled.split()) == sorted(LECTURE.replace("materials.", "materials .").split())


def test_a_causal_mask_is_an_order(local_models):
    from saccade.models.backbones.text import load_text_model

    found = order_test(load_text_model(local_models["gpt2"]), LECTURE)
    assert found.causal and found.without > 1e-2


def test_positions_that_cannot_be_taken_away_are_refused(local_models):
    from saccade.models.backbones.text import load_text_model

    with pytest.raises(ModelError, match="positions"):
        order_test(load_text_model(local_models["t5"]), LECTURE)


def test_look_up_against_projection(text_model):
    found = look_up(text_model, 2607)
    assert (found["vocabulary"], found["width"]) == (30522, 384)
    assert found["row"] == text_model.network.embeddings.word_embeddings.weight[2607].tolist()
    assert 256 ** found["patch_numbers"] == 2 ** found["patch_values_log2"]
    assert found["projection_numbers"] == sum(p.numel() for p in torch.nn.Conv2d(3, 384, 16).parameters())


# --- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"query": "course", "head": "3"}, {"tokens": True, "special": True}])
def test_every_form(text_model, tmp_path, options):
    found = attend_text(text_model, LECTURE, TextOptions(**options))
    root = ET.parse(found.save(tmp_path / "a.svg")).getroot()
    assert (root.tag.endswith("svg") and "GitHub" in "".join(root.itertext())) or options.get("tokens")
    assert found.save(tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader(found.save(tmp_path / "a.csv").open(encoding="utf-8")))
    shares = {}
    for row in rows:
        shares.setdefault((row["head"], row["query"]), []).append(float(row["weight"]))
    assert all(sum(values) == pytest.approx(1, abs=1e-4) for values in shares.values())
    assert len(shares) == (1 if "query" in options else 12 * len(found.sentence.names))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_sentences_stay_text(text_model, tmp_path, text):
    found = attend_text(text_model, text, TextOptions(query="2", head="mean"))
    picture = found.save(tmp_path / "a.svg").read_text(encoding="utf-8")
    ET.fromstring(picture)
    assert "<script" not in picture
    found.save(tmp_path / "a.png")
    said = found.text()
    assert "\x1b" not in said and "\u202e" not in said
    with found.save(tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert not any(cell[:1] in "=+@" for row in csv.reader(file) for cell in row if cell)


def test_the_command_prints_bars_that_need_no_colour(text_model, tmp_path):
    words = ["attend", "--text", LECTURE, "--query", "course", "--layer", "1", "--out", str(tmp_path / "a.svg")]
    result = CliRunner().invoke(app.app, words, catch_exceptions=False)
    assert "> " in result.output and "materials" in result.output and "#" in result.output
    assert "goes to [CLS] and [SEP], not drawn" in result.output
    assert result.output.endswith("a.svg\n")


def test_the_command_speaks_json(text_model):
    result = CliRunner().invoke(app.app, ["attend", "--text", LECTURE, "--query", "0", "--json"])
    found = json.loads(result.output)
    assert found["words"][0] == "[CLS]" and sum(found["weights"][0]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attend"], "MODEL and IMAGE are missing"),
        (["attend", "--text", ""], "the text is empty"),
        (["attend", "--text", "a word", "--size", "64"], "--size has no effect with --text"),
        (["attend", "--text", "a word", "--query", "wrod"], "did you mean 'word'"),
        (["attend", "--text", "a word", "--layer", "9"], "-6 to 5"),
        (["attend", "--text", "a word", "--head", "12"], "0 to 11"),
        (["attend", "--text", "a word", "--out", "a.pdf"], "picture format"),
        (["attend", "no-such-model", "--text", "a word"], "no text model in no-such-model"),
        (["attend", "random:vit_micro_patch8", "a.png", "--tokens"], "--tokens has no effect on images"),
    ],
)
def test_mistakes(text_model, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(app.app, words).exception
    assert isinstance(error, UsageError) and said in str(error)


def test_an_image_model_is_no_text_model(text_model, tmp_path):
    from saccade.models.backbones.text import load_text_model

    (tmp_path / "config.json").write_text('{"name": "vit_tiny_patch8"}')
    with pytest.raises(ModelError, match="cannot be read as a text model"):
        load_text_model(tmp_path)


def test_without_the_extra_the_command_to_install_it_is_said():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from saccade.models.backbones.text import load_text_model\n"
        "from saccade.errors import MissingDependency\n"
        "try: load_text_model()\n"
        "except MissingDependency as error: assert 'saccade[text]' in str(error), error\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
