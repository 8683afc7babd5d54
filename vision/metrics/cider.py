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

import numba
import numpy as np
from numpy.typing import NDArray

MAX_N = 4
SIGMA = 6.0
# Stands for the end of the sentence where it counts as a word: no word between spaces is empty.
END_WORD = ""

_ROOT = 0
_UNKNOWN = -1
_EMPTY = np.int64(-1)
# The largest share of the table that is filled.
_LOAD = 0.5
# Captions counted at once: bounds what the table must have room for.
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
        self._table = np.full((1024, 2), _EMPTY)  # key and node: the two are read together
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
            _count_documents(grams, starts, images, frequencies)
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
        cooked = _cook(grams, starts, images, self._idf, self._unknown_idf)
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
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(cooked):
            raise ValueError(f"images {rows.min()} .. {rows.max()} of {len(cooked)} cooked ones")
        words, starts = self._numbered(candidates, learn=False, ended=ended)
        scores: NDArray[np.float64] = _score(
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
            for words, has_end in zip(split, ended or repeat(True), strict=False):
                if has_end:
                    words.append(END_WORD)
        starts = np.zeros(len(captions) + 1, np.int64)
        np.cumsum(list(map(len, split)), out=starts[1:])
        found = map(known.get, chain.from_iterable(split), repeat(_UNKNOWN))
        numbers = np.fromiter(found, np.int32, int(starts[-1]))
        if (numbers == _UNKNOWN).any():
            for place, word in enumerate(chain.from_iterable(split)):
                if numbers[place] == _UNKNOWN:
                    past = len(known) + (0 if learn else len(fresh))
                    numbers[place] = fresh.setdefault(word, past)
        return numbers, starts

    def _insert(self, words: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.int32]:
        """[MAX_N, W] nodes of the n-grams that start at each word; -1 where the caption ends."""
        grams = np.full((MAX_N, len(words)), _UNKNOWN, np.int32)
        caption = 0
        while caption < len(starts) - 1:
            self._size, caption = _insert_all(
                words, starts, caption, self._table, self._size, grams
            )
            if caption < len(starts) - 1:  # the table is full
                longest = int(np.diff(starts).max())
                room = int((self._size + MAX_N * longest) / _LOAD) + 1
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
    larger = np.full((1 << (needed - 1).bit_length(), 2), _EMPTY)
    _move(table, larger)
    return larger


@numba.njit(cache=True, inline="always")
def _place(table, key):  # type: ignore[no-untyped-def]
    """Where a key is, or would be: multiplicative hashing, linear probing."""
    mask = len(table) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    place = np.int64(mixed >> np.uint64(20)) & mask
    while table[place, 0] != key and table[place, 0] != -1:
        place = (place + 1) & mask
    return place


@numba.njit(cache=True, inline="always")
def _slot(grams, first, last, gram):  # type: ignore[no-untyped-def]
    """The slot of an n-gram among grams[first:last], or the empty one that would be its."""
    mask = last - first - 1
    mixed = np.uint64(gram) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(mixed >> np.uint64(40)) & mask
    while grams[first + slot] != gram and grams[first + slot] != _UNKNOWN:
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True)
def _move(table, larger):  # type: ignore[no-untyped-def]
    for entry in table:
        if entry[0] != -1:
            place = _place(larger, entry[0])
            larger[place, 0] = entry[0]
            larger[place, 1] = entry[1]


@numba.njit(cache=True)
def _insert_all(words, starts, caption, table, size, grams):  # type: ignore[no-untyped-def]
    """Fills `grams` with nodes, made where there were none, from a caption on.

    Returns the number of nodes, and the first caption that the table has no room for.
    """
    while caption < len(starts) - 1:
        end = starts[caption + 1]
        if size + MAX_N * (end - starts[caption]) > _LOAD * len(table):
            break
        for start in range(starts[caption], end):
            node = np.int64(_ROOT)
            for n in range(min(MAX_N, end - start)):
                key = (node << 32) | np.int64(words[start + n])
                place = _place(table, key)
                if table[place, 0] == -1:
                    table[place, 0] = key
                    table[place, 1] = size
                    size += 1
                node = table[place, 1]
                grams[n, start] = node
        caption += 1
    return size, caption


@numba.njit(cache=True)
def _count_documents(grams, starts, images, frequencies):  # type: ignore[no-untyped-def]
    """Adds 1 for each image that an n-gram occurs in; an image's captions stand together."""
    last = np.full(len(frequencies), -1, np.int32)
    for caption in range(len(images)):
        for start in range(starts[caption], starts[caption + 1]):
            for n in range(MAX_N):
                gram = grams[n, start]
                if gram >= 0 and last[gram] != images[caption]:
                    last[gram] = images[caption]
                    frequencies[gram] += 1


@numba.njit(cache=True)
def _cook(grams, starts, images, idf, unknown_idf):  # type: ignore[no-untyped-def]
    """Slots, n-grams, counts, norms and lengths as `CookedReferences` has them."""
    n_images, n_captions = len(images) - 1, len(starts) - 1
    slots = np.zeros(n_images + 1, np.int64)
    first_count = np.zeros(n_images + 1, np.int64)
    for image in range(n_images):
        some = MAX_N * (starts[images[image + 1]] - starts[images[image]])
        size = 1
        while size <= some:
            size *= 2
        slots[image + 1] = slots[image] + size
        captions = images[image + 1] - images[image]
        first_count[image + 1] = first_count[image] + size * captions
    all_grams = np.full(slots[n_images], np.int32(_UNKNOWN))
    order = np.zeros(slots[n_images], np.int8)  # n - 1 of each n-gram
    counts = np.zeros(first_count[n_images], np.uint16)
    norms = np.zeros((n_captions, MAX_N))
    lengths = np.zeros(n_captions, np.int32)
    for image in range(n_images):
        first, last = slots[image], slots[image + 1]
        captions = images[image + 1] - images[image]
        base = first_count[image]
        for column in range(captions):
            caption = images[image] + column
            lengths[caption] = max(0, starts[caption + 1] - starts[caption] - 1)
            for start in range(starts[caption], starts[caption + 1]):
                for n in range(MAX_N):
                    if grams[n, start] >= 0:
                        slot = _slot(all_grams, first, last, grams[n, start])
                        all_grams[first + slot] = grams[n, start]
                        order[first + slot] = n
                        counts[base + slot * captions + column] += 1
            for slot in range(last - first):
                gram = all_grams[first + slot]
                if gram >= 0:
                    weight = idf[gram] if gram < len(idf) else unknown_idf
                    weight *= counts[base + slot * captions + column]
                    norms[caption, order[first + slot]] += weight * weight
            for n in range(MAX_N):
                norms[caption, n] = np.sqrt(norms[caption, n])
    return slots, all_grams, first_count, counts, norms, lengths


@numba.njit(cache=True)
def _score(  # type: ignore[no-untyped-def]
    words,
    starts,
    rows,
    table,
    idf,
    unknown_idf,
    images,
    slots,
    all_grams,
    first_count,
    all_counts,
    norms,
    lengths,
):
    """[candidates] float64; an n-gram counts at its first place, which keeps sums exact."""
    scores = np.zeros(len(rows))
    longest, most = 0, 0
    for candidate in range(len(rows)):
        longest = max(longest, starts[candidate + 1] - starts[candidate])
        most = max(most, images[rows[candidate] + 1] - images[rows[candidate]])
    matched, penalties = np.zeros(most), np.zeros(most)
    same_as = np.zeros((2, longest), np.int32)  # first place with an equal n-gram, n - 1 and n
    found = np.zeros(longest, np.int64)  # node of the n-gram at each place
    times = np.zeros(longest, np.int32)
    for candidate in range(len(rows)):
        begin, length = starts[candidate], starts[candidate + 1] - starts[candidate]
        image = rows[candidate]
        first_reference = images[image]
        captions = images[image + 1] - first_reference
        first, last, base = slots[image], slots[image + 1], first_count[image]
        for column in range(captions):
            difference = float(max(0, length - 1) - lengths[first_reference + column])
            penalties[column] = np.exp(-(difference**2) / (2 * SIGMA**2))
        total = 0.0
        found[:length] = _ROOT
        same_as[0, :length] = 0
        for n in range(min(MAX_N, length)):
            before, now = same_as[n % 2], same_as[(n + 1) % 2]
            squares = 0.0
            matched[:] = 0.0
            places = length - n
            times[:places] = 0
            for place in range(places):
                word = words[begin + place + n]
                now[place] = place
                for other in range(place):
                    if (
                        now[other] == other
                        and before[other] == before[place]
                        and words[begin + other + n] == word
                    ):
                        now[place] = other
                        break
                times[now[place]] += 1
                if found[place] >= 0:
                    # An empty place holds node -1, too: an unknown n-gram.
                    found[place] = table[_place(table, (found[place] << 32) | np.int64(word)), 1]
            for place in range(places):
                if now[place] != place:
                    continue
                gram = found[place]
                weight_of_one = idf[gram] if 0 <= gram < len(idf) else unknown_idf
                weight = times[place] * weight_of_one
                squares += weight * weight
                if gram < 0:
                    continue
                slot = _slot(all_grams, first, last, gram)
                if all_grams[first + slot] != gram:
                    continue
                for column in range(captions):
                    theirs = all_counts[base + slot * captions + column] * weight_of_one
                    matched[column] += min(weight, theirs) * theirs
            norm = np.sqrt(squares)
            for column in range(captions):
                their_norm = norms[first_reference + column, n]
                if norm != 0 and their_norm != 0:
                    total += matched[column] / (norm * their_norm) * penalties[column]
        scores[candidate] = 10.0 * total / MAX_N / captions
    return scores
