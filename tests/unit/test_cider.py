"""CIDEr-D: the reference's figures, its definition, and what a reward needs beside."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vision.metrics.cider import Cider, cider
from vision.metrics.ptb import is_tokenised, normalise

FIRST = [0.97306387, 0.67896903, 0.04237347, 0.10529139, 0.07502124]


@pytest.fixture(scope="module")
def coco(shared_data):
    folder = shared_data / "coco_captions_1000"
    references = json.loads((folder / "gts.json").read_text())
    candidates = json.loads((folder / "res.json").read_text())
    return list(references.values()), [candidates[image][0] for image in references]


def by_definition(corpus, references, candidate, end=False):
    """Vedantam et al. 2015, section 4, with the released code's clipping and penalty."""

    def grams(caption):
        words = caption.split() + ([""] if end else [])
        return [
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, 5)
        ]

    def weight(bag):
        return {
            gram: count * (math.log(len(corpus)) - math.log(max(1, frequency[gram])))
            for gram, count in bag.items()
        }

    frequency = Counter(
        gram
        for captions in corpus
        for gram in {gram for caption in captions for bag in grams(caption) for gram in bag}
    )
    total, said = 0.0, grams(candidate)
    for reference in references:
        true = grams(reference)
        difference = sum(said[1].values()) - sum(true[1].values())
        for n in range(4):
            ours, theirs = weight(said[n]), weight(true[n])
            dot = sum(min(w, theirs.get(g, 0)) * theirs.get(g, 0) for g, w in ours.items())
            norms = math.sqrt(sum(w * w for w in ours.values()))
            norms *= math.sqrt(sum(w * w for w in theirs.values()))
            if norms:
                total += dot / norms * math.exp(-(difference**2) / 72)
    return 10 * total / 4 / len(references)


WORDS = ["a", "b", "c", "d", "ab", "é", "猫"]
sentences = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
corpora = st.lists(st.lists(sentences, min_size=1, max_size=3), min_size=1, max_size=4)


def test_coco_has_the_figure_of_the_reference_code(coco):
    scores = cider(*coco)
    assert scores.mean() == pytest.approx(0.5997905185184199, abs=1e-12)
    np.testing.assert_allclose(scores[:5], FIRST, atol=5e-9)


def test_ends_that_count_give_the_figure_of_an_end_token_everywhere(coco):
    references, candidates = coco
    scorer = Cider(references, end=True)
    scores = scorer.score(scorer.cook(references), range(1000), candidates)
    assert scores.mean() == pytest.approx(0.6074216396073792, abs=1e-12)
    marked = [[f"{text} <end>" for text in some] for some in references]
    np.testing.assert_allclose(scores, cider(marked, [f"{c} <end>" for c in candidates]))


@settings(max_examples=60, deadline=None)
@given(corpus=corpora, candidate=sentences, end=st.booleans())
def test_scores_follow_the_definition(corpus, candidate, end):
    scorer = Cider(corpus, end=end)
    scores = scorer.score(scorer.cook(corpus), range(len(corpus)), [candidate] * len(corpus))
    expected = [by_definition(corpus, references, candidate, end) for references in corpus]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(corpus=corpora, others=corpora, candidate=sentences)
def test_frequencies_stay_those_of_the_corpus_whatever_is_judged(corpus, others, candidate):
    scorer = Cider(corpus)
    before = scorer.cook(corpus)
    own = scorer.score(before, [0], [candidate])
    cooked = scorer.cook(others)
    scores = scorer.score(cooked, range(len(others)), [candidate] * len(others))
    expected = [by_definition(corpus, references, candidate) for references in others]
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    np.testing.assert_array_equal(scorer.score(before, [0], [candidate]), own)


@settings(max_examples=20, deadline=None)
@given(corpus=corpora, candidate=sentences)
def test_scores_equal_those_of_pycocoevalcap(corpus, candidate):
    assume(any(caption for references in corpus for caption in references))  # it fails on none
    scorer_module = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    scorer = scorer_module.CiderScorer(n=4, sigma=6.0)
    for references in corpus:
        scorer += (candidate, references)
    _, expected = scorer.compute_score()
    np.testing.assert_allclose(cider(corpus, [candidate] * len(corpus)), expected, atol=1e-12)


def test_a_corpus_of_one_image_scores_0():
    assert cider([["a cat on a mat", "a cat"]], ["a cat on a mat"]) == [0]


def test_long_captions_and_other_scripts_are_words_as_any():
    long = " ".join(f"w{i % 700}" for i in range(1000))
    corpus = [[long], ["собака бежит"], ["一只狗"]]
    scores = cider(corpus, [long, "собака бежит", "一只狗"])
    expected = [
        by_definition(corpus, references, candidate)
        for references, candidate in zip(corpus, [long, "собака бежит", "一只狗"], strict=True)
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert scores[0] == pytest.approx(10)


def test_an_empty_candidate_scores_0_and_an_end_not_said_counts_against_it():
    corpus = [["a cat sat", "a cat"], ["a dog"]]
    scorer = Cider(corpus, end=True)
    cooked = scorer.cook(corpus)
    said, cut, empty = scorer.score(cooked, [0, 0, 0], ["a cat", "a cat", ""], [True, False, True])
    assert said > cut > 0
    assert empty == 0
    assert scorer.score(cooked, [], []).shape == (0,)
    with pytest.raises(ValueError, match="2 candidates, but 1 values in ended"):
        scorer.score(cooked, [0, 0], ["a cat", ""], [True])


@pytest.mark.parametrize("references", [[], [["a"], []], [["a"], "ab"]])
def test_images_without_references_are_refused(references):
    with pytest.raises(ValueError, match="references"):
        Cider(references)


def test_an_image_that_was_not_cooked_is_refused():
    scorer = Cider([["a"], ["b"]])
    with pytest.raises(ValueError, match=r"0 \.\. 2 of 2"):
        scorer.score(scorer.cook([["a"], ["b"]]), [0, 2], ["a", "b"])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("A man's dog doesn't bark.", "a man 's dog does n't bark"),
        ("They're gonna eat; you cannot, can't, won't!",
         "they 're gon na eat you can not ca n't wo n't"),
        ('"Hello," she said (quietly) -- well...', "hello she said quietly well"),
        ("It’s a “big” one", "it 's a big one"),
        ("A close-up of a black-and-white T-shirt", "a close-up of a black-and-white t-shirt"),
        ("1,000 people at 8:30 p.m. in the U.S.", "1,000 people at 8:30 p.m. in the u.s."),
        ("Barry Bonds #25 on Morgan Rd.", "barry bonds # 25 on morgan rd."),
        ("50% of $3.50", "50 % of $ 3.50"),
        ("the dogs' toys", "the dogs toys"),
        ("'Tis what she'd've said, shouldn't've she?",
         "'t is what she 'd 've said should n't 've she"),
        ("a 7th refrigerator/freezer, etc.", "a 7th refrigerator/freezer etc."),
        ("Собака бежит!", "собака бежит"),
        ("一只狗在跑。", "一只狗在跑"),
        ("हिन्दी कुत्ता", "हिन्दी कुत्ता"),
        ("  a\ttab\nand a line ", "a tab and a line"),
        ("...", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_captions_become_penn_treebank_words(raw, words):
    assert normalise(raw) == words
    assert normalise(words) == words


# What the rules look at, in any order.
_PARTS = (
    "' n't 's 've 'll 'd t cannot gonna 'tis 'em '90s u. st. mr. p.m. - / & : , . @ $ 8 30 a İ 狗 "
    "é _ http:// www. ’"
)
PARTS = _PARTS.split()
texts = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from([*PARTS, " "]), max_size=8).map("".join)
)


@settings(max_examples=400, deadline=None)
@given(texts)
def test_words_stay_words_and_text_with_a_letter_has_one(text):
    words = normalise(text)
    assert words == " ".join(words.split())
    assert normalise(words) == words
    assert bool(words) or not any(c.isalnum() for c in text)


def test_any_number_of_contractions_is_split():
    assert normalise("a" + "'s" * 2000) == "a" + " 's" * 2000


def test_what_the_reference_tokenizer_wrote_stays_as_it_is(coco):
    references, candidates = coco
    sentences = [text for some in references for text in some] + candidates
    changed = [text for text in sentences if normalise(text) != text]
    assert changed == ["a young baseball player in uniform getting ready to bat."]
    assert is_tokenised(sentences)
    assert not is_tokenised([text.capitalize() + "." for text in sentences])
