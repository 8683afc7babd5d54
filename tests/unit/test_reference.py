"""The configuration page says what the code says."""

from deploy.config import RunConfig
from deploy.config_file import dotted_keys
from docs.generate_reference import PAGE, reference


def test_the_page_is_fresh():
    assert PAGE.read_text() == reference(), "run python -m docs.generate_reference"


def test_every_key_is_on_the_page_in_its_section_or_in_the_one_that_it_refers_to():
    keys: dict[str, set[str]] = {}
    section = ""
    for line in reference().splitlines():
        if line.startswith("## "):
            section = "" if "top level" in line else line.split("`")[1].replace(".N", "")
            keys.setdefault(section, set())
        elif line.startswith("The keys of `"):
            keys[section] |= keys[line.split("`")[1]]
        elif line.startswith("| `"):
            keys[section].add(line.split("`")[1])
    found = {f"{section}.{key}".strip(".") for section in keys for key in keys[section]}
    assert found == set(dotted_keys(RunConfig))


def test_ranges_defaults_and_meanings_are_shown():
    page = reference()
    assert "| `learning_rate` | float > 0, ≤ 1 | `1e-05` | Peak learning rate" in page
    assert "| `use_samples` | `one` or `all` | `all` |" in page
    assert "| `name` | text matching" in page
    assert "| required |" in page
