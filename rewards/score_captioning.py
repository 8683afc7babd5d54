"""Judges caption files without a model: CIDEr-D, of the corpus and of each image."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision.data.captions import has_words
from vision.metrics.cider import cider
from vision.metrics.ptb import is_tokenised, normalise

_log = logging.getLogger(__name__)


class CaptionFormatError(ValueError):
    """A file of captions that cannot be judged; names the file and the entry."""


def score_captions(
    references_path: str | Path, candidates_path: str | Path, tokenised: bool | None = None
) -> dict[str, Any]:
    """CIDEr-D of one candidate an image, its document frequencies those of the references.

    `CIDEr` is the mean over images as the reference code returns it (papers report it times 100),
    `by_image` has each image's, `images`, `references` and `words_per_caption` describe the files,
    and `tokenised` says which of them had been normalised before.

    Args:
      references_path: `{id: [sentence, ...]}`, or COCO's `captions_*.json`.
      candidates_path: `{id: [sentence]}`, or COCO's results, `[{image_id, caption}, ...]`.
      tokenised: whether the sentences are Penn Treebank words already; None: a file is when its
        sentences look so (`vision.metrics.ptb.is_tokenised`). Others are normalised.

    Raises:
      CaptionFormatError: a file is not JSON or not of its format, an image has no reference, no
        candidate or several, a candidate is of an unknown image, a reference has no words.
      OSError: a file cannot be read.
    """
    references = _read(Path(references_path))
    candidates = _read(Path(candidates_path))
    for name, sentences in references.items():
        if not sentences:
            raise CaptionFormatError(f"{references_path}: image {name} has no reference")
        for sentence in sentences:
            if not has_words(sentence):
                raise CaptionFormatError(
                    f"{references_path}: image {name}: reference {sentence!r} has no letter and no "
                    "digit"
                )
    if not references:
        raise CaptionFormatError(f"{references_path}: no image has references")
    for name, sentences in candidates.items():
        if name not in references:
            raise CaptionFormatError(
                f"{candidates_path}: image {name} is not in {references_path}, which has "
                f"{len(references)} images, first {next(iter(references))}"
            )
        if len(sentences) != 1:
            raise CaptionFormatError(
                f"{candidates_path}: image {name} has {len(sentences)} candidates; expected one"
            )
    missing = [name for name in references if name not in candidates]
    if missing:
        raise CaptionFormatError(
            f"{candidates_path}: no candidate for image {missing[0]} ({len(missing)} of "
            f"{len(references)} images have none)"
        )
    if len(references) == 1:
        _log.warning("%s: a corpus of one image: CIDEr is 0 by definition", references_path)
    true, they_were = _words(references, tokenised)
    said, it_was = _words({name: candidates[name] for name in references}, tokenised)
    scores = cider(list(true.values()), [sentences[0] for sentences in said.values()])
    lengths = [len(sentences[0].split()) for sentences in said.values()]
    return {
        "CIDEr": float(scores.mean()),
        "images": len(references),
        "references": sum(map(len, references.values())),
        "words_per_caption": sum(lengths) / len(lengths),
        "tokenised": {"references": they_were, "candidates": it_was},
        "by_image": dict(zip(references, scores.tolist(), strict=True)),
    }


def _words(
    corpus: Mapping[str, Sequence[str]], tokenised: bool | None
) -> tuple[dict[str, list[str]], bool]:
    """The corpus normalised, and whether it had been before."""
    sentences = [sentence for some in corpus.values() for sentence in some]
    before = is_tokenised(sentences) if tokenised is None else tokenised
    if before:
        return {name: list(some) for name, some in corpus.items()}, True
    return {name: list(map(normalise, some)) for name, some in corpus.items()}, False


def _read(path: Path) -> dict[str, list[str]]:
    """Sentences by image id, as text."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CaptionFormatError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        listed: dict[str, list[str]] = {
            str(image["id"]): []
            for image in content.get("images", [])
            if isinstance(image, dict) and "id" in image
        }
        return _listed(path, content["annotations"], listed)
    if isinstance(content, list):
        return _listed(path, content, {})
    if not isinstance(content, dict):
        raise CaptionFormatError(
            f"{path}: {type(content).__name__} found; expected {{id: [sentence, ...]}} or COCO's "
            "format"
        )
    result: dict[str, list[str]] = {}
    for name, sentences in content.items():
        some = [sentences] if isinstance(sentences, str) else sentences
        if not isinstance(some, list) or not all(isinstance(text, str) for text in some):
            raise CaptionFormatError(
                f"{path}: image {name} has {str(sentences)[:80]}; expected a list of sentences"
            )
        result[name] = some
    return result


def _listed(
    path: Path, entries: Sequence[Any], known: dict[str, list[str]]
) -> dict[str, list[str]]:
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or "image_id" not in entry:
            raise CaptionFormatError(f"{path}: entry {index} has no image_id: {str(entry)[:80]}")
        caption = entry.get("caption")
        if not isinstance(caption, str):
            raise CaptionFormatError(f"{path}: entry {index}: caption {caption!r} is no text")
        known.setdefault(str(entry["image_id"]), []).append(caption)
    return known
