"""The tokeniser: shapes, text that is only ever text, the same ids from any thread."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import pmc_clip
from pmc_clip.tokenizer import VOCAB_FOLDER
from pmc_clip.vocab.train_vocab import train_vocab


def tokenizer_of(**changes: object) -> pmc_clip.Tokenizer:
    """The tiny model's tokeniser, with fields of its text config changed."""
    settings = pmc_clip.load_model_config("tiny").to_dict()
    settings["text_cfg"] |= changes
    return pmc_clip.get_tokenizer(pmc_clip.ModelConfig.from_dict(settings))


FIXED, LONGEST = tokenizer_of(mask_padding=False), tokenizer_of(mask_padding=True)
HOSTILE = [
    "",
    " \t\n ",
    "[CLS] a [MASK] b [SEP] [PAD] [UNK]",
    "chest " * 2000,
    "Größe µ-CT 東京 🩻 \u200b \u0000 ﬁgure",
    "x" * 5000,
]


@pytest.mark.parametrize("caption", HOSTILE)
def test_hostile_captions_give_one_row_with_one_start_and_one_end(caption):
    (row,) = FIXED(caption).tolist()
    end = row.index(FIXED.sep_id)
    assert len(row) == 77
    assert row[0] == FIXED.cls_id
    assert set(row[end + 1 :]) <= {FIXED.pad_id}
    assert not set(row[1:end]) & set(FIXED.special)


def test_special_names_in_text_become_their_letters(tiny_tokenizer):
    assert torch.equal(tiny_tokenizer("[MASK]"), tiny_tokenizer("[ mask ]"))
    assert tiny_tokenizer.pieces[tiny_tokenizer("[MASK]")[0, 1]] == "["


def test_special_names_in_text_become_letters_from_a_tokenizer_json(golden_config):
    tokenizer = pmc_clip.get_tokenizer(golden_config)
    assert tokenizer.mask_id not in tokenizer("a [MASK] b")[0].tolist()


def test_long_captions_are_cut_before_the_end_mark(tiny_tokenizer):
    row = tiny_tokenizer("chest " * 2000)[0]
    assert row[-1] == tiny_tokenizer.sep_id
    assert len(set(row[1:-1].tolist())) == 1


@pytest.mark.parametrize("other", [float("nan"), None, 3])
def test_what_is_no_text_is_named(tiny_tokenizer, other):
    with pytest.raises(pmc_clip.ModelError, match=f"caption 1 is {other}: expected text"):
        tiny_tokenizer(["x-ray", other])


def test_batch_is_its_captions():
    batch = FIXED(HOSTILE)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, torch.cat([FIXED(caption) for caption in HOSTILE]))
    assert FIXED([]).shape == (0, 77)


def test_threads_get_the_same_ids(tiny_tokenizer):
    alone = tiny_tokenizer(HOSTILE)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(tokens, alone) for tokens in pool.map(tiny_tokenizer, [HOSTILE] * 40))


def test_tables_describe_the_pieces(tiny_tokenizer):
    pieces = tiny_tokenizer.pieces
    assert tiny_tokenizer.vocab_size == len(pieces) == 8000
    assert (tiny_tokenizer.pad_id, tiny_tokenizer.cls_id, tiny_tokenizer.sep_id, tiny_tokenizer.mask_id) == (
        0,
        2,
        3,
        4,
    )
    assert [pieces[i].startswith("##") for i in range(8000)] == tiny_tokenizer.continuation.tolist()
    assert tiny_tokenizer.ordinary_ids.tolist() == list(range(5, 8000))


def test_real_captions_are_read_almost_without_unknown_words(shared, tiny_tokenizer):
    captions = (shared / "captions" / "captions.txt").read_text().splitlines()[:500]
    tokens = tiny_tokenizer(captions)
    unknown = tiny_tokenizer.pieces.index("[UNK]")
    assert (tokens == unknown).sum() / (tokens != 0).sum() < 0.002


def test_fingerprint_follows_the_vocabulary(tmp_path, tiny_tokenizer):
    def tokenizer_with(pieces: list[str]) -> pmc_clip.Tokenizer:
        (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
        return tokenizer_of(tokenizer=str(tmp_path))

    pieces = list(tiny_tokenizer.pieces)
    assert tokenizer_with(pieces).fingerprint() == tiny_tokenizer.fingerprint()
    pieces[-2:] = reversed(pieces[-2:])
    assert tokenizer_with(pieces).fingerprint() != tiny_tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda pieces: pieces.remove("[MASK]"), r"lacks \[MASK\]"),
        (lambda pieces: pieces.insert(0, "first"), r"\[PAD\] at 1"),
        (lambda pieces: pieces.append("more"), "8001 entries and text_cfg.vocab_size is 8000"),
    ],
)
def test_unfit_vocabularies_are_refused(tmp_path, change, told):
    shutil.copytree(VOCAB_FOLDER / "pmc_captions_8k", tmp_path / "changed")
    file = tmp_path / "changed" / "vocab.txt"
    pieces = file.read_text().split("\n")[:-1]
    change(pieces)
    file.write_text("\n".join(pieces) + "\n")
    with pytest.raises(pmc_clip.ModelError, match=told):
        tokenizer_of(tokenizer=str(tmp_path / "changed"))


def test_absent_vocabulary_names_the_shipped():
    with pytest.raises(pmc_clip.ModelError, match="shipped are pmc_captions_8k"):
        tokenizer_of(tokenizer="pmc_captions_9k")


def test_vocabulary_training_merges_by_count_then_spelling():
    captions = ["abab ab"] * 20 + ["cd"] * 40
    found = train_vocab(captions, size=100)
    assert found[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert found[5:12] == ["a", "b", "c", "d", "##a", "##b", "##d"]
    assert found[12:] == ["ab", "cd", "##ab", "abab"]
    assert train_vocab(captions, size=13) == found[:13]


def test_shipped_vocabulary_is_what_the_program_makes(shared, tiny_tokenizer):
    with (shared / "captions" / "captions.txt").open() as captions:
        assert train_vocab(captions, size=8000) == list(tiny_tokenizer.pieces)


@pytest.mark.parametrize(
    ("pieces", "length"),  # without [CLS] and [SEP]
    [(0, 8), (6, 8), (7, 16), (14, 16), (15, 24), (70, 72), (71, 77), (75, 77), (2000, 77)],
)
def test_a_model_that_keeps_padding_out_gets_the_longest_caption_rounded_up_to_8(pieces, length):
    found = LONGEST(["a", "chest " * pieces])
    assert found.shape == (2, max(8, length))
    assert (found != LONGEST.pad_id).sum(1).tolist() == [3, min(77, pieces + 2)]


def test_how_far_a_batch_is_padded_changes_no_id():
    for captions in (HOSTILE, HOSTILE[:2], ["one", "two words", "x-ray of the chest"]):
        short, full = LONGEST(captions), FIXED(captions)
        assert torch.equal(full[:, : short.shape[1]], short)
        assert not full[:, short.shape[1] :].any()
    assert LONGEST([]).shape == (0, 8)
    short = tokenizer_of(mask_padding=True, context_length=5)
    assert torch.equal(short("chest chest"), LONGEST("chest chest")[:, :5])


def test_threads_that_pad_to_different_lengths_do_not_disturb_one_another():
    batches = [["chest " * words] * 3 for words in range(60)]
    alone = [LONGEST(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(LONGEST, batches))
            assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))


def test_a_model_reads_what_its_tokenizer_gives_for_any_caption():
    for mask_padding in (True, False):
        settings = pmc_clip.load_model_config("tiny").to_dict()
        settings["text_cfg"]["mask_padding"] = mask_padding
        config = pmc_clip.ModelConfig.from_dict(settings)
        model, tokenizer = pmc_clip.create_model(config).eval(), pmc_clip.get_tokenizer(config)
        together = model.encode_text(tokenizer(HOSTILE))
        alone = torch.cat([model.encode_text(tokenizer(caption)) for caption in HOSTILE])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_either_name_of_the_published_bert_finds_its_vocabulary(golden, tmp_path):
    old, new = (f"BiomedNLP-{name}BERT-base-uncased-abstract-fulltext" for name in ("PubMed", "Biomed"))
    shutil.copytree(golden / "bert", tmp_path / old)

    def vocabulary_of(name: str) -> str:
        settings = {"tokenizer": None, "vocab_size": 30522, "bert_model_name": str(tmp_path / name)}
        return tokenizer_of(**settings).fingerprint()

    assert vocabulary_of(old) == vocabulary_of(new)
    with pytest.raises(pmc_clip.ModelError, match=r"vocabulary of '.*absent' cannot be loaded"):
        vocabulary_of("absent")
