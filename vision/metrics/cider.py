"""CIDEr-D (Vedantam et al. 2015, section 4 and the released code), over numbered n-grams.

A caption is a bag of its n-grams, n = 1 .. 4, each weighing tf · idf with
idf = ln N - ln max(df, 1), where df counts the *images* whose references hold the n-gram. For each
n and reference: the cosine of both bags with the candidate's weights clipped at the reference's
(the norms are not clipped), times exp(-d² / 2σ²) for a difference d of lengths in bigrams, as the
released code counts them. The score is the mean over n and references, times 10; papers report it
times 100 more. As a metric df and N come from the reference set; as a reward they are frozen from
the training set.

Captions are strings of words between spaces, normalised before (`vision.metrics.ptb`). N-grams are
nodes of a tree: its n-1 words' node and its last word name one, so equal numbers mean equal words
without any chance of collision. A corpus of one image has idf 0 throughout, and scores 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from vision.metrics.cider_kernels import (
    EMPTY,
    LOAD,
    MAX_N,
    UNKNOWN,
    count_documents,
    count_references,
    insert_all,
    move,
    score_candidates,
)

# Stands for the end of the sentence where it counts as a word: no word between spaces is empty.
END_WORD = ""

# Images counted at once: bounds the memory of their n-grams.
_BATCH = 4096


@dataclass(frozen=True)
class CookedReferences:
    """The references of images as counts of n-grams, for `Cider.score`.

    Attributes:
      images: [I + 1] int64, image i owns the references images[i]:images[i + 1].
      slots: [I + 1] int64, and the hash table slots[i]:slots[i + 1] of a power of two slots.
      grams: [S] int32, the n-gram in a slot, -1 where there is none.
      first_count: [I + 1] int64, where the counts of an image begin in `counts`.
      counts: uint16; for each slot of an image one number a reference.
      norms: [R, MAX_N] float64.
      lengths: [R] int32, in bigrams.
    """

    images: NDArray[np.int64]
    slots: NDArray[np.int64]
    grams: NDArray[np.int32]
    first_count: NDArray[np.int64]
    counts: NDArray[np.uint16]
    norms: NDArray[np.float64]
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images) - 1


class Cider:
    """CIDEr-D with the document frequencies of a corpus, frozen once counted.

    Args:
      corpus: for each image its references.
      end: count the end of a sentence as a word, in references, frequencies and candidates. As a
        reward CIDEr needs it, or models learn to end badly; the metric goes without.

    Raises:
      ValueError: no images, or one without references.
    """

    def __init__(self, corpus: Sequence[Sequence[str]], end: bool = False) -> None:
        self._end = end
        self._words: dict[str, int] = {}
        self._table = np.full((1024, 2), EMPTY)  # key and node: the two are read together
        self._size = 1  # with the root
        if not corpus:
            raise ValueError("CIDEr needs the references of at least one image")
        self.images = len(corpus)
        frequencies = np.zeros(0, np.int32)
        for first in range(0, len(corpus), _BATCH):
            captions, images = _flat(corpus[first : first + _BATCH], first)
            words, starts = self._numbered(captions, learn=True)
            grams = self._insert(words, starts)
            frequencies = np.concatenate(
                [frequencies, np.zeros(self._size - len(frequencies), np.int32)]
            )
            count_documents(grams, starts, images, frequencies)
        self._unknown_idf = float(np.log(self.images))
        self._idf = self._unknown_idf - np.log(np.maximum(frequencies, 1).astype(np.float64))

    def cook(self, references: Sequence[Sequence[str]]) -> CookedReferences:
        """Counts of the references of images, of the corpus or not.

        N-grams that the corpus lacks are added with document frequency 0, which every unknown one
        has: no score changes.

        Raises:
          ValueError: an image without references, or a reference with an n-gram 65,536 times.
        """
        captions, _ = _flat(references, 0)
        words, starts = self._numbered(captions, learn=True)
        grams = self._insert(words, starts)
        if len(captions) and np.diff(starts).max() > np.iinfo(np.uint16).max:
            raise ValueError("a reference has more than 65,535 words")
        images = np.zeros(len(references) + 1, np.int64)
        np.cumsum([len(captions) for captions in references], out=images[1:])
        cooked = count_references(grams, starts, images, self._idf, self._unknown_idf)
        return CookedReferences(images, *cooked)

    def score(
        self,
        cooked: CookedReferences,
        images: Sequence[int],
        candidates: Sequence[str],
        ended: Sequence[bool] | None = None,
    ) -> NDArray[np.float64]:
        """CIDEr-D of candidates, each against the references of an image.

        Args:
          cooked: by `cook` of this object.
          images: [M] for each candidate the position of its image in `cooked`.
          candidates: [M].
          ended: [M] which candidates have an end that counts, where ends count; None: all.

        Returns:
          [M] float64, 0 .. 10.
        """
        rows = np.asarray(images, np.int64)
        if rows.shape != (len(candidates),):
            raise ValueError(f"{len(candidates)} candidates, but images of shape {rows.shape}")
        if ended is not None and len(ended) != len(candidates):
            raise ValueError(f"{len(candidates)} candidates, but {len(ended)} values in ended")
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(cooked):
            raise ValueError(f"images {rows.min()} .. {rows.max()} of {len(cooked)} cooked ones")
        words, starts = self._numbered(candidates, learn=False, ended=ended)
        scores: NDArray[np.float64] = score_candidates(
            words,
            starts,
            rows,
            self._table,
            self._idf,
            self._unknown_idf,
            cooked.images,
            cooked.slots,
            cooked.grams,
            cooked.first_count,
            cooked.counts,
            cooked.norms,
            cooked.lengths,
        )
        return scores

    def _numbered(
        self, captions: Sequence[str], learn: bool, ended: Sequence[bool] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """All words as numbers, and where each caption starts: [W], [captions + 1].

        Words that are new are learned, or numbered for this call only, past the known ones.
        """
        known = self._words
        fresh: dict[str, int] = known if learn else {}
        split = [caption.split() for caption in captions]
        if self._end:
            ends = repeat(True, len(split)) if ended is None else ended
            for words, has_end in zip(split, ends, strict=True):
                if has_end:
                    words.append(END_WORD)
        starts = np.zeros(len(captions) + 1, np.int64)
        np.cumsum(list(map(len, split)), out=starts[1:])
        found = map(known.get, chain.from_iterable(split), repeat(UNKNOWN))
        numbers = np.fromiter(found, np.int32, int(starts[-1]))
        if (numbers == UNKNOWN).any():
            for place, word in enumerate(chain.from_iterable(split)):
                if numbers[place] == UNKNOWN:
                    past = len(known) + (0 if learn else len(fresh))
                    numbers[place] = fresh.setdefault(word, past)
        return numbers, starts

    def _insert(self, words: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """[MAX_N, W] nodes of the n-grams that start at each word; -1 where the caption ends."""
        grams = np.full((MAX_N, len(words)), UNKNOWN, np.int32)
        caption = 0
        while caption < len(starts) - 1:
            self._size, caption = insert_all(words, starts, caption, self._table, self._size, grams)
            if caption < len(starts) - 1:  # the table is full
                longest = int(np.diff(starts).max())
                room = int((self._size + MAX_N * longest) / LOAD) + 1
                self._table = _grown(self._table, room)
        return grams


def cider(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> NDArray[np.float64]:
    """The metric: [images] float64 CIDEr-D of one candidate an image.

    Frequencies are those of the references; a corpus's figure is the mean.
    """
    scorer = Cider(references)
    return scorer.score(scorer.cook(references), range(len(references)), candidates)


def _flat(references: Sequence[Sequence[str]], first: int) -> tuple[list[str], NDArray[np.int32]]:
    """All captions in order, and the image of each."""
    for image, captions in enumerate(references):
        if not captions or isinstance(captions, str):
            raise ValueError(
                f"image {first + image} has the references {captions!r}: expected a list of at "
                "least one caption"
            )
    images = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
    return [caption for captions in references for caption in captions], images.astype(np.int32)


def _grown(table: NDArray[np.int64], needed: int) -> NDArray[np.int64]:
    """The table with room for `needed` entries, a power of two."""
    larger = np.full((1 << (needed - 1).bit_length(), 2), EMPTY)
    move(table, larger)
    return larger
