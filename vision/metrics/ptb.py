"""Penn Treebank words of a caption, lower case and without punctuation, as CIDEr is computed on.

COCO's evaluation runs Stanford's PTBTokenizer (Java) with -lowerCase and removes punctuation. This
writes its rules down for captions; no Java is needed.

Covered: contractions ("don't" -> "do n't", "it's" -> "it 's", "cannot" -> "can not", "gonna" ->
"gon na"), possessives, straight and curly quotes, brackets, dashes, ellipses, hyphenated words
(one word), numbers with inner points, commas and colons, clock times, ordinals, abbreviations
with their points ("st.", "u.s.", "p.m."), currency and per cent signs apart, addresses of the web
and of mail (one word), letters of any script with their marks (a run of letters is one word: no
segmentation of Chinese or Thai), symbols and emoji apart.

Not covered: markup, foreign elisions ("l'eau"), fractions spelt in one sign, a few rare
assimilations ("whaddya"). Deviations on purpose: brackets and runs such as "?!" are punctuation and
are removed, where COCO's script leaves "-lrb-" and "?!" behind because its list lacks them.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

# Removed as by COCO's evaluation: quotes, brackets, sentence and clause marks, dashes.
_PUNCTUATION = re.compile(
    r"[.…?!,:;\-‐-―'\"`´‘-‟«»‹›()\[\]{}¡¿、。，．！？：；（）「」『』【】《》・]+"
)

# Their point belongs to them wherever they stand; letters with a point each ("u.s.") have theirs.
_ABBREVIATIONS = (
    "adm|apt|ave|bldg|blvd|bros|capt|cmdr|co|col|corp|cpl|dept|dr|esq|etc|ft|gen|gov|hon|hwy|inc|jr"
    "|lt|ltd|maj|messrs|mr|mrs|ms|mt|pres|prof|rd|rep|rev|sen|sgt|sr|st|ste|tel|univ|vs"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)


def _marks() -> str:
    """The inside of a character class: vowel signs, accents and joiners, which `\\w` leaves out."""
    joiners = "\u200c\u200d"
    return joiners + "".join(
        chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M"
    )


@cache
def _word() -> re.Pattern[str]:
    """A token; made when first used: 0.15 s that a process without captions need not wait for."""
    letters = rf"(?:\w[{_marks()}]*)+"
    return re.compile(
        rf"""
    (?:https?://|www\.)\S*[\w/]                      # addresses
    | [\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+
    | '(?:tis|twas)\b
    | '(?:s|re|ve|ll|d|m|t|em|cause|n)(?!\w)         # split off before, or cut short
    | '\d\ds?\b                                      # '90s
    | (?:\w\.){{2,}}                                 # u.s.
    | (?:{_ABBREVIATIONS})\.(?!\w)
    | \d+(?:[.,:/]\d+)+\w*                           # 1,000  3.5  8:30  1/2
    | n't(?!\w)
    | {letters}(?:[-'&/]{letters})*
    | {_PUNCTUATION.pattern}
    | \S
    """,
        re.VERBOSE,
    )


_CLITIC = re.compile(r"(.+?)('(?:s|re|ve|ll|d|m))$")
_NEGATION = re.compile(r"(.*[^'&/-])(n't)$")
_ASSIMILATED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "＇": "'", "“": '"', "”": '"'})

# A corpus of which this share stays as it is has been normalised before: see `normalise_all`.
TOKENISED_SHARE = 0.99


def normalise(caption: str) -> str:
    """The words of a caption, lower case, one space between them; "" when it has none.

    A caption with a letter or digit has a word. Words stay as they are when normalised again, as
    those of a decoded caption are.
    """
    text = unicodedata.normalize("NFC", caption).translate(_QUOTES).lower()
    words: list[str] = []
    for word in _word().findall(text):
        if not _PUNCTUATION.fullmatch(word):
            words += _split(word)
    return " ".join(words)


def is_tokenised(captions: Sequence[str]) -> bool:
    """Whether a corpus has been normalised before: nearly all of its captions stay as they are.

    A raw corpus has capitals, points and commas in most captions. One that has none of them stays
    the same either way.
    """
    same = sum(normalise(caption) == caption for caption in captions)
    return same >= TOKENISED_SHARE * len(captions)


def _split(word: str) -> tuple[str, ...]:
    """A word's parts: contractions and possessives, one after another ("she'd've")."""
    ends: list[str] = []
    while word not in _ASSIMILATED and not word.startswith(("http", "www")):
        parts = _NEGATION.match(word) or _CLITIC.match(word)
        if parts is None:
            break
        word = parts.group(1)
        ends.append(parts.group(2))
    return *_ASSIMILATED.get(word, (word,)), *reversed(ends)
