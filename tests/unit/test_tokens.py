"""Tokens are found, compared and come to their end; none of them stands in a message."""

import os

import pytest

from protos.tokens import Token, TokenError, TokenSource, parse_tokens, refusal


def test_a_token_is_named_once_and_read_without_its_line_end(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", "one\n")
    assert TokenSource("TOKEN").tokens() == (Token("one"),)
    assert not TokenSource()
    assert TokenSource().metadata() is None
    with pytest.raises(TokenError, match="named twice"):
        TokenSource("TOKEN", tmp_path / "token")
    with pytest.raises(TokenError, match="cannot be read"):
        TokenSource(file=tmp_path / "token")
    with pytest.raises(TokenError, match="variable MISSING is not set"):
        TokenSource("MISSING")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not set, or empty"),
        ("# nobody\n\n", "not set, or empty"),
        ("s3cret for people", "line 1: not a token"),
        ("s3crét", "line 1: not a token"),
        ("good\ns3cret soon", "line 2: after the token stands no time"),
    ],
)
def test_what_is_no_token_is_refused_and_not_repeated(text, reason):
    with pytest.raises(TokenError, match=reason) as raised:
        parse_tokens(text, "the file t")
    assert "s3cr" not in str(raised.value)
    assert "soon" not in str(raised.value)


def test_a_token_is_refused_from_its_time_on():
    tokens = parse_tokens("old 2026-01-01T00:00:00Z\nnew 2026-01-02\nother", "t")
    midnight = 1767225600.0
    assert [token.expires for token in tokens] == [midnight, midnight + 86400, None]
    assert refusal("Bearer old", tokens, lambda: midnight - 1) is None
    assert "expired" in refusal("Bearer old", tokens, lambda: midnight)
    assert refusal("Bearer new", tokens, lambda: midnight) is None
    assert refusal(b"Bearer other", tokens, lambda: 1e12) is None


@pytest.mark.parametrize("given", ["", "other", "bearer other", "Bearer othe", "Bearer other "])
def test_nothing_but_a_token_is_a_token(given):
    assert "wants its bearer token" in refusal(given, parse_tokens("other", "t"))


def test_a_file_that_changes_is_read_again_and_one_that_breaks_is_not_believed(tmp_path, caplog):
    path = tmp_path / "token"
    path.write_text("first")
    source = TokenSource(file=path)
    path.write_text("second\nfirst 2020-01-01T00:00:00Z\n")
    os.utime(path, (1, 1))
    assert source.metadata() == (("authorization", "Bearer second"),)
    path.write_text("")
    os.utime(path, (2, 2))
    assert source.metadata() == (("authorization", "Bearer second"),)
    path.unlink()
    assert source.metadata() == (("authorization", "Bearer second"),)
    assert "stay as they were" in caplog.text
    assert "second" not in caplog.text + repr(source.tokens())


def test_a_file_of_the_same_time_is_another_by_its_size_or_its_inode(tmp_path):
    path, new = tmp_path / "token", tmp_path / "new"
    path.write_text("first")
    os.utime(path, (1, 1))
    source = TokenSource(file=path)
    path.write_text("second")
    os.utime(path, (1, 1))
    assert source.tokens() == (Token("second"),)
    new.write_text("third!")
    os.utime(new, (1, 1))
    new.rename(path)
    assert source.tokens() == (Token("third!"),)


def test_a_client_sends_the_first_token_that_has_not_ended():
    ended, later = "ended 2001-01-01T00:00:00Z", "later 9999-01-01T00:00:00Z"
    for text, sent in {
        f"{ended}\n{later}\nthird": "later",
        f"{ended}\nthird\n{later}": "third",
        f"{ended}\nalso 2002-01-01T00:00:00Z": "ended",
    }.items():
        assert TokenSource.of(text).metadata() == (("authorization", f"Bearer {sent}"),)
    assert TokenSource.of(None).metadata() is None
