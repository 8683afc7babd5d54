"""Captioning: sentences to tokens and back, references, the reward, evaluation, drawing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protos.trajectory import Scored
from rewards.captioning import CiderReward
from rewards.combine import RewardLoadError, load_reward
from rewards.judge import judge
from vision.data.caption_scenes import CaptionScenes
from vision.data.captions import ScenesSource
from vision.tasks.captioning import Caption, CaptioningConfig, CaptioningTask, References
from vision.tasks.registry import UnknownTaskError, build_task
from vision.tasks.task import Example, token_names
from vision.tasks.tokenizer import (
    VocabularyError,
    WordPieceTokenizer,
    WordTokenizer,
    read_vocabulary,
    rejoin,
)

_LINES = (
    "[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] ! , . - ' : a cat man surf ##ing ##board rid ##es "
    "don t s close up 5 55 wave the"
)
PIECES = _LINES.split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def make(cache: Path, **options: Any) -> CaptioningTask:
    data = {"kind": "caption_scenes", "train": 20, "validation": 8, "test": 4, "cache_dir": cache}
    task = build_task({"kind": "captioning", "data": data} | options)
    assert isinstance(task, CaptioningTask)
    return task


@pytest.fixture(scope="module")
def task(cache: Path) -> CaptioningTask:
    return make(cache)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return path


def corpus_task(cache: Path, corpus: list[tuple[str, ...]]) -> CaptioningTask:
    """A task whose training set is a corpus."""
    task = make(cache)
    images = np.zeros((len(corpus), 48, 48, 3), np.uint8)
    task._sources["train"] = ScenesSource(CaptionScenes(images, corpus))
    return task


def said(words: str, ended: bool = True) -> Caption:
    return Caption(words, words, ended)


def test_every_reference_survives_the_way_through_tokens(task: CaptioningTask) -> None:
    for example_id in task.example_ids("train"):
        example = task.load("train", example_id, None)
        assert example.image.shape == (48, 48, 3)
        tokens = np.stack([task.target_tokens(example, seed) for seed in range(30)])
        captions = task.decode(example, tokens, np.zeros(tokens.shape, np.float32))
        assert {caption.words for caption in captions} == set(example.target.words)
        assert all(caption.ended for caption in captions)
        length = (tokens != 0).sum(1)
        assert (tokens[np.arange(30), length - 1] == task.end_token).all()


def test_targets_are_drawn_by_the_seed_and_allowed(task: CaptioningTask) -> None:
    allowed = task.allowed_tokens()
    assert allowed.shape == (task.max_length, task.vocabulary_size)
    assert not allowed[:, 0].any()
    assert task.reinforced_tokens().all()
    assert task.auxiliary_arrays == {}
    for example_id in task.example_ids("validation"):
        example = task.load("validation", example_id, None)
        tokens = task.target_tokens(example, 2**64 - 1)
        assert tokens.dtype == np.int32
        assert np.array_equal(tokens, task.target_tokens(example, 2**64 - 1))
        length = int((tokens != 0).sum())
        assert allowed[np.arange(length), tokens[:length]].all()


def test_what_follows_the_first_end_does_not_count(task: CaptioningTask) -> None:
    example = task.load("train", task.example_ids("train")[0], None)
    a, red = task.tokenizer.encode("a red")
    tokens = np.array([[a, red, task.end_token, a, task.end_token], [a] * 5, [task.end_token] * 5])
    captions = task.decode(example, tokens, np.zeros((3, 5), np.float32))
    assert [(c.words, c.ended) for c in captions] == [
        ("a red", True), ("a a a a a", False), ("", True)
    ]  # fmt: skip


def test_a_reference_that_is_too_long_is_cut_without_an_end(cache: Path) -> None:
    long = " ".join(["word"] * 1000)
    task = corpus_task(cache, [(long,), ("a word",)])
    task.tokenizer = WordTokenizer([long])
    example = task.load("train", "scene-000000", None)
    tokens = task.target_tokens(example, 0)
    assert tokens.tolist() == task.tokenizer.encode("word") * task.max_length
    assert len(example.target.words[0].split()) == 1000


def test_the_perfect_captioner_is_judged_by_the_metric(task: CaptioningTask) -> None:
    examples = [task.load("validation", i, None) for i in task.example_ids("validation")]
    figures = task.evaluate(examples, [said(e.target.words[0]) for e in examples])
    assert figures[task.headline] > 2
    assert figures["ended"] == 1
    assert figures["words_per_caption"] > 2
    silent = task.evaluate(examples, [said("", ended=False)] * len(examples))
    assert silent == {"CIDEr": 0, "words_per_caption": 0, "ended": 0}
    with pytest.raises(ValueError, match="8 examples but 1"):
        task.evaluate(examples, [said("")])


def test_the_reward_has_the_training_sets_frequencies_and_counts_ends(cache: Path) -> None:
    corpus = [("a red cat", "a cat"), ("a dog",), ("a red fish",)]
    task = corpus_task(cache, corpus)
    reward = load_reward("rewards.captioning:CiderReward", task, {})
    example = task.load("train", "scene-000000", None)
    other = Example("scene-000000", example.image, References(("a bird",), ("a bird",)))
    outcomes = judge(
        reward,
        [example, example, other, example],
        [said("a red cat"), said("a red cat", ended=False), said("a red cat"), said("")],
    )
    values = [outcome.reward for outcome in outcomes if isinstance(outcome, Scored)]
    assert len(values) == 4
    assert values[0] > values[1] > values[2] == values[3] == 0
    plain = judge(CiderReward(task, eos=False), [example] * 2,
                  [said("a red cat"), said("a red cat", ended=False)])  # fmt: skip
    assert plain[0] == plain[1]


def test_a_reward_of_one_training_image_is_refused_before_anything_starts(cache: Path) -> None:
    task = corpus_task(cache, [("a red cat", "a cat")])
    with pytest.raises(RewardLoadError, match=r"1 image.*all rewards would be 0"):
        load_reward("rewards.captioning:CiderReward", task, {})


def test_drawings_show_the_image_and_the_caption_under_it(task: CaptioningTask) -> None:
    example = task.load("test", task.example_ids("test")[0], None)
    for caption in (None, said("a red two " * 20), said(""), said("x" * 300, ended=False)):
        drawn = task.draw(example, caption)
        assert drawn.dtype == np.uint8
        assert drawn.shape[1:] == (288, 3)
        assert drawn.shape[0] > 288
        assert np.array_equal(drawn[3:288:6, 3::6], np.rint((example.image + 1) * 127.5))
        assert (drawn[288:] < 128).any()
    assert task.draw(example, None).shape[0] > task.draw(example, said("a")).shape[0]


def test_every_token_has_its_name(task: CaptioningTask) -> None:
    names = token_names(task)
    assert names is not None
    assert len(names) == task.vocabulary_size
    words = [name for name in names if name.isalpha()]
    assert [names[token] for token in task.tokenizer.encode(" ".join(words))] == words


def test_rare_words_are_unknown_and_the_frequent_come_first() -> None:
    tokenizer = WordTokenizer(["a cat", "a dog", "a cat's toy"], min_count=2)
    assert tokenizer.vocabulary_size == 3 + 2
    assert tokenizer.encode("A cat!") == [3, 4]
    assert tokenizer.decode([3, 2, 4, 1, 0]) == "a unk cat"
    with pytest.raises(ValueError, match="none of 5 words occurs 9 times"):
        WordTokenizer(["a cat", "a dog", "a cat's toy"], min_count=9)


def test_words_of_other_scripts_are_words() -> None:
    captions = ["Собака бежит", "一只狗", "हिन्दी कुत्ता"]
    tokenizer = WordTokenizer(captions)
    for caption in captions:
        assert tokenizer.decode(tokenizer.encode(caption)) == caption.lower()


@pytest.mark.parametrize(
    ("text", "tokens", "again"),
    [
        ("A man surfing", ["a", "man", "surf", "##ing"], "a man surfing"),
        ("the cat's surfboard!", ["the", "cat", "'", "s", "surf", "##board", "!"],
         "the cat's surfboard !"),
        ("don't", ["don", "'", "t"], "don't"),
        ("a close-up, 5:55", ["a", "close", "-", "up", ",", "5", ":", "55"], "a close-up , 5:55"),
        ("zebra", ["[UNK]"], "unk"),
        ("[MASK]", ["[UNK]"] * 3, "unk unk unk"),
    ],
)  # fmt: skip
def test_pieces_are_joined_to_the_words_that_they_were_cut_from(
    vocabulary: Path, text: str, tokens: list[str], again: str
) -> None:
    tokenizer = WordPieceTokenizer(vocabulary)
    found = tokenizer.encode(text)
    assert [PIECES[token] for token in found] == tokens
    assert tokenizer.decode(found) == again


def test_wordpiece_makes_a_task(cache: Path, vocabulary: Path) -> None:
    task = make(cache, tokenizer="wordpiece", vocabulary=str(vocabulary))
    assert (task.vocabulary_size, task.end_token) == (len(PIECES), 4)
    never = np.flatnonzero(~task.allowed_tokens().any(0))
    assert [PIECES[token] for token in never] == ["[PAD]", "[unused0]", "[CLS]", "[MASK]"]
    example = Example("x", np.zeros((48, 48, 3), np.float32), References(("Don't!",), ("do n't",)))
    tokens = task.target_tokens(example, 0)[None]
    (caption,) = task.decode(example, tokens, 0.0 * tokens)
    assert (caption.words, caption.ended) == ("do n't", True)


@given(st.text(max_size=30))
def test_any_text_can_be_rejoined(text: str) -> None:
    assert rejoin(text).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["[PAD]", "[UNK]", "[SEP]", "a", "b", "a"], r"vocab\.txt: lines 4 and 6 are both 'a'"),
        (["[PAD]", "[UNK]", "[SEP]", "", "x", ""], r"lines 4 and 6 are both ''"),
        (["[UNK]", "[PAD]", "[SEP]"], r"line 1 is '\[UNK\]'"),
        (["[PAD]", "[UNK]"], r"no line '\[SEP\]'"),
        ([""], r"line 1 is ''"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_names_its_lines(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(VocabularyError, match=message):
        read_vocabulary(path)
    path.write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(VocabularyError, match=r"vocab\.txt is not UTF-8"):
        read_vocabulary(path)
    with pytest.raises(VocabularyError, match=r"no vocabulary file .*gone\.txt"):
        read_vocabulary(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_length": 1}, "max_length"),
        ({"tokenizer": "letters"}, "tokenizer"),
        ({"tokenizer": "wordpiece"}, r"vocab\.txt"),
        ({"vocabulary": "v.txt"}, "words takes none"),
        ({"image_size": [4, 48]}, "image_size"),
        ({"augment": {}}, "left and right"),
        ({"data": {"kind": "scenes"}}, "data"),
        ({"data": {"kind": "karpathy"}}, "annotations"),
    ],
)
def test_a_config_that_cannot_be_names_the_key(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        CaptioningConfig.model_validate(options)


def test_an_unknown_kind_of_task_names_the_nearest() -> None:
    with pytest.raises(UnknownTaskError, match=r"'captoning'.*did you mean 'captioning'"):
        build_task({"kind": "captoning"})


def test_a_reward_worker_gets_task_and_reward_without_jax(cache: Path) -> None:
    """Runs in a process of its own: others may have imported jax into this one."""
    program = f"""
import sys
from rewards.captioning import CiderReward
from vision.tasks.registry import build_task
data = dict(kind="caption_scenes", train=20, validation=8, test=4, cache_dir={str(cache)!r})
task = build_task(dict(kind="captioning", data=data))
example = task.load("train", task.example_ids("train")[0], 0)
tokens = task.target_tokens(example, 0)[None]
captions = task.decode(example, tokens, 0.0 * tokens)
assert CiderReward(task).score([example], captions)[0].reward > 0
assert not {{"jax", "torch"}} & set(sys.modules)
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
