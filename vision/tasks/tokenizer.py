"""Sentences as tokens and back: a small word vocabulary, or BERT's WordPiece.

Token 0 pads. Encoding is of raw sentences; what is decoded is read as a raw sentence again, to be
normalised (`vision.metrics.ptb`) before it is scored.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from vision.metrics.ptb import normalise

# What an unknown word is read back as: a word that references do not have.
UNKNOWN_WORD = "unk"


class VocabularyError(ValueError):
    """A vocabulary file that cannot be used; names the file and the lines."""


class Tokenizer(Protocol):
    """Sentences to tokens and back.

    Attributes:
      vocabulary_size: tokens are 0 .. vocabulary_size - 1; 0 pads.
      end: the token that ends a sentence.
      never: tokens that no sentence is written with, beside 0 and the end.
      names: what each token stands for.
    """

    vocabulary_size: int
    end: int
    never: Sequence[int]
    names: Sequence[str]

    def encode(self, text: str) -> list[int]:
        """The tokens of a sentence, without the end."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The sentence of tokens, without the end and padding."""
        ...


class WordTokenizer:
    """One token a Penn Treebank word: 0 pads, 1 ends, 2 is any unknown word.

    Args:
      captions: raw sentences; their words in alphabetical order are the vocabulary, so that it
        does not depend on how often they are said.
      min_count: words that occur less often are unknown.

    Raises:
      ValueError: no word occurs often enough.
    """

    end = 1
    never: Sequence[int] = ()
    _UNKNOWN = 2

    def __init__(self, captions: Iterable[str], min_count: int = 1) -> None:
        counts = Counter(word for caption in captions for word in normalise(caption).split())
        frequent = [word for word, count in counts.items() if count >= min_count]
        if not frequent:
            raise ValueError(
                f"none of {len(counts)} words occurs {min_count} times; lower the min_count"
            )
        self.names: Sequence[str] = ["", "", UNKNOWN_WORD, *sorted(frequent)]
        self._number = {word: token for token, word in enumerate(self.names) if token > 1}
        self.vocabulary_size = len(self.names)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return [self._number.get(word, self._UNKNOWN) for word in normalise(text).split()]

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return " ".join(self.names[token] for token in tokens if token > 1)


class WordPieceTokenizer:
    """BERT's uncased WordPiece, from its vocabulary file (`vocab.txt`, one piece a line).

    `[PAD]` must be its first line; `[SEP]` ends a sentence.

    Raises:
      VocabularyError: the file is missing, not text, has a piece twice or lacks one it needs.
      ImportError: the library `tokenizers` is missing.
    """

    def __init__(self, path: Path | str) -> None:
        pieces = read_vocabulary(path)
        try:
            from tokenizers import Tokenizer as Pipeline
            from tokenizers.models import WordPiece
            from tokenizers.normalizers import BertNormalizer
            from tokenizers.pre_tokenizers import BertPreTokenizer
        except ImportError as error:
            raise ImportError(
                "WordPiece needs the library tokenizers: pip install 'rewardtune[wordpiece]'"
            ) from error
        self.names: Sequence[str] = list(pieces)
        self._pipeline = Pipeline(WordPiece(dict(pieces), unk_token="[UNK]"))
        self._pipeline.normalizer = BertNormalizer(lowercase=True)
        self._pipeline.pre_tokenizer = BertPreTokenizer()
        self.vocabulary_size = len(pieces)
        self.end = pieces["[SEP]"]
        self.never: Sequence[int] = [
            token
            for piece, token in pieces.items()
            if piece in ("[CLS]", "[MASK]") or re.fullmatch(r"\[unused\d+\]", piece)
        ]

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(self._pipeline.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer`: pieces are joined to words, and words to what they were cut from.

        BERT cuts at every apostrophe and hyphen: "don ' t" is "don't" again, "close - up" is
        "close-up", "5 : 55" is "5:55".
        """
        words: list[str] = []
        for token in tokens:
            piece = self.names[token]
            if piece.startswith("##") and words:
                words[-1] += piece[2:]
            elif piece == "[UNK]":
                words.append(UNKNOWN_WORD)
            elif token:
                words.append(piece.removeprefix("##"))
        return rejoin(" ".join(words))


def rejoin(text: str) -> str:
    """Undoes BERT's cuts inside words."""
    text = re.sub(r"(?<=\w) ' (?=(?:s|t|re|ve|ll|d|m)\b)", "'", text)
    text = re.sub(r"(?<=\d) ([.,:/]) (?=\d)", r"\1", text)
    text = re.sub(r"(?<=\w) ([-/]) (?=\w)", r"\1", text)
    return re.sub(r"\b(\w) \. (?=\w \.)", r"\1.", text)


def read_vocabulary(path: Path | str) -> dict[str, int]:
    """The pieces of a vocabulary file and their tokens, the line numbers from 0.

    Raises:
      VocabularyError: the file is missing, not text, has a piece twice or lacks one it needs.
    """
    path = Path(path)
    if not path.is_file():
        raise VocabularyError(f"no vocabulary file {path}; BERT's is called vocab.txt")
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path} is not UTF-8 text: {error}") from error
    pieces: dict[str, int] = {}
    for number, line in enumerate(lines):
        piece = line.removesuffix("\r")
        if piece in pieces:
            raise VocabularyError(
                f"{path}: lines {pieces[piece] + 1} and {number + 1} are both {piece!r}; a piece "
                "must have one line, its token"
            )
        pieces[piece] = number
    if lines[0].strip() != "[PAD]":
        raise VocabularyError(f"{path}: line 1 is {lines[0]!r}; expected '[PAD]', as in BERT's")
    for needed in ("[SEP]", "[UNK]"):
        if needed not in pieces:
            raise VocabularyError(f"{path} has no line {needed!r}: it is no vocabulary of BERT's")
    return pieces
