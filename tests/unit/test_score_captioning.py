"""Scoring caption files without a model."""

import json

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from rewards.score_captioning import CaptionFormatError, score_captions

REFERENCES = {"1": ["A red cat.", "A cat!"], "2": ["A dog runs."], "3": ["Two birds, flying."]}
CANDIDATES = {"3": ["two birds flying"], "1": ["A red cat."], "2": ["a dog sits"]}


@pytest.fixture
def files(tmp_path):
    """Writes both files and returns their paths."""

    def write(references, candidates):
        paths = tmp_path / "R.json", tmp_path / "C.json"
        for path, content in zip(paths, (references, candidates), strict=True):
            path.write_text(json.dumps(content))
        return paths

    return write


def coco(by_image):
    listed = [
        {"image_id": int(image), "caption": caption}
        for image, captions in by_image.items()
        for caption in captions
    ]
    return listed, {"images": [{"id": int(image)} for image in by_image], "annotations": listed}


def test_coco_has_the_reference_codes_figure_by_the_command_line(shared_data):
    folder = shared_data / "coco_captions_1000"
    arguments = ["score", "captioning", "--references", str(folder / "gts.json")]
    arguments += ["--candidates", str(folder / "res.json")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["CIDEr"] == pytest.approx(0.5997905185184199, abs=1e-12)
    assert figures["by_image"]["184321"] == pytest.approx(0.97306387, abs=5e-9)
    assert (figures["images"], len(figures["by_image"])) == (1000, 1000)
    assert figures["tokenised"] == {"references": True, "candidates": True}
    plain = CliRunner().invoke(app, arguments)
    assert "0.5998" in plain.stdout
    assert "184321" not in plain.stdout


def test_raw_sentences_are_normalised_and_matched_by_image(files):
    figures = score_captions(*files(REFERENCES, CANDIDATES))
    words = {"1": ["a red cat", "a cat"], "2": ["a dog runs"], "3": ["two birds flying"]}
    said = {"1": ["a red cat"], "2": ["a dog sits"], "3": ["two birds flying"]}
    expected = score_captions(*files(words, said), tokenised=True)
    assert figures["by_image"] == expected["by_image"]
    assert figures["CIDEr"] == pytest.approx(sum(figures["by_image"].values()) / 3)
    assert figures["by_image"]["3"] == pytest.approx(7.5)  # three words have no 4-gram
    assert figures["tokenised"]["references"] is False
    assert (figures["references"], figures["words_per_caption"]) == (4, 3)
    as_they_are = score_captions(*files(REFERENCES, CANDIDATES), tokenised=True)
    assert as_they_are["by_image"]["3"] < figures["by_image"]["3"]


def test_cocos_formats_give_the_same(files):
    figures = score_captions(*files(REFERENCES, CANDIDATES))
    results, annotations = coco(CANDIDATES)[0], coco(REFERENCES)[1]
    assert score_captions(*files(annotations, results)) == figures
    assert score_captions(*files(REFERENCES, {k: v[0] for k, v in CANDIDATES.items()})) == figures


def test_one_image_scores_0_and_says_why(files, caplog):
    assert score_captions(*files({"1": ["a cat"]}, {"1": ["a cat"]}))["CIDEr"] == 0
    assert "a corpus of one image" in caplog.text


@pytest.mark.parametrize("candidate", ["", "word " * 1000, "собака бежит", "一只狗", "🙂"])
def test_odd_candidates_are_judged(files, candidate):
    figures = score_captions(*files(REFERENCES, CANDIDATES | {"2": [candidate]}))
    assert figures["by_image"]["2"] == 0
    other = score_captions(*files(REFERENCES | {"4": ["一只狗"]}, CANDIDATES | {"4": ["一只狗"]}))
    assert other["by_image"]["4"] > 0


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        (REFERENCES | {"2": []}, CANDIDATES, r"R\.json: image 2 has no reference"),
        (REFERENCES | {"2": ["!"]}, CANDIDATES, r"R\.json: image 2: reference '!' has no letter"),
        (REFERENCES | {"2": 3}, CANDIDATES, r"R\.json: image 2 has 3; expected a list"),
        (REFERENCES, {"1": ["a"]}, r"C\.json: no candidate for image 2 \(2 of 3"),
        (REFERENCES, CANDIDATES | {"1": ["a", "b"]}, r"C\.json: image 1 has 2 candidates"),
        (REFERENCES, CANDIDATES | {"9": ["a"]}, r"C\.json: image 9 is not in .*R\.json"),
        (REFERENCES, [{"caption": "a"}], r"C\.json: entry 0 has no image_id"),
        (REFERENCES, [{"image_id": 1}], r"C\.json: entry 0: caption None is no text"),
        ({"images": [{"id": 1}], "annotations": []}, {}, r"R\.json: image 1 has no reference"),
        ({}, {}, r"R\.json: no image has references"),
        (REFERENCES, "captions", r"C\.json: str found; expected"),
    ],
)
def test_bad_entries_name_file_and_entry(files, references, candidates, message):
    with pytest.raises(CaptionFormatError, match=message):
        score_captions(*files(references, candidates))


def test_files_that_cannot_be_read_are_named(files, tmp_path):
    references, candidates = files(REFERENCES, CANDIDATES)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        score_captions(references, tmp_path / "none.json")
    candidates.write_text("{")
    with pytest.raises(CaptionFormatError, match=r"C\.json is not JSON"):
        score_captions(references, candidates)
