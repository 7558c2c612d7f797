from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spec_samples import small_spec
from sqlalchemy import URL, make_url

from sweeps.database_url import driver_url, has_password, is_masked, masked, shown_url, wrong_url
from sweeps.section import SpecError
from sweeps.spec import load_copy

WITH = "postgresql+psycopg://me:secret@db.example:5432/sweeps"
HIDDEN = "postgresql+psycopg://me:***@db.example:5432/sweeps"


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        (WITH, WITH),
        ("postgresql://me:secret@db.example/s", "postgresql+psycopg://me:secret@db.example/s"),
        ("postgres://db.example/s", "postgresql+psycopg://db.example/s"),
        ("sqlite:////shared/study.db", "sqlite:////shared/study.db"),
    ],
)
def test_plain_urls_get_the_driver_that_is_installed(url: str, driver: str) -> None:
    assert wrong_url(url) is None
    assert driver_url(url) == driver


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://me:secret@db.example/s", "but got 'mysql', for which no driver is installed"),
        ("postgresql+psycopg2://db.example/s", "but got 'postgresql+psycopg2', for which no"),
        ("postgresql://me:secret@db.example", "'postgresql://me:***@db.example', which names no"),
        ("postgresql://me:secret@db:port/s", "but got 'postgresql://***', which is no URL"),
        ("study.db", "but got 'study.db', which is no URL"),
        ("postgresql://me:se@cret@db/s", "whose password has an @, which a URL writes as %40"),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    said = wrong_url(url)
    assert said is not None
    assert said.startswith("must be postgresql+psycopg://USER@HOST/DATABASE or sqlite:///FILE")
    assert message in said
    assert "secret" not in said
    assert "cret" not in said


# A space is no part of a URL, and ends one in a text.
@given(
    st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1),
    st.sampled_from(["password", "sslpassword"]),
)
def test_no_password_is_ever_shown(secret: str, name: str) -> None:
    url = URL.create("postgresql", "me", secret, "db.example", 5432, "sweeps")
    written = url.render_as_string(hide_password=False)
    assert shown_url(written) == "postgresql://me:***@db.example:5432/sweeps"
    assert masked(f"at {written}!") == "at postgresql://me:***@db.example:5432/sweeps!"
    queried = make_url("postgresql://db.example/sweeps").update_query_dict({name: secret})
    shown = shown_url(queried.render_as_string(hide_password=False))
    assert shown == f"postgresql://db.example/sweeps?{name}=***"
    assert is_masked(shown)
    assert not has_password(shown)


def test_urls_without_a_password_stay() -> None:
    for url in ("postgresql://db.example/s", "sqlite:////a/b:c@d.db"):
        assert (shown_url(url), masked(url), has_password(url)) == (url, url, False)
    assert masked("http://me@host:1/x@y") == "http://me@host:1/x@y"


def test_the_copy_of_a_spec_has_no_password_and_still_leads_to_the_study(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, storage=f"{{path: {tmp_path}, study: '{WITH}'}}")
    assert "secret" not in repr(spec)
    assert spec.dump()["storage"]["study"] == HIDDEN
    spec.directory.mkdir()
    spec.write_copy(spec.directory)
    copy = load_copy(spec.directory)
    assert copy.storage.study == HIDDEN
    assert copy.storage_url == spec.storage_url == WITH
    files = {path.name: path for path in spec.directory.iterdir()}
    assert set(files) == {"spec.yaml", "study.url"}
    assert "secret" not in files["spec.yaml"].read_text()
    assert files["study.url"].stat().st_mode & 0o777 == 0o600


def test_a_url_without_a_password_needs_no_file_of_its_own(tmp_path: Path) -> None:
    url = "postgresql://me@db.example/sweeps"
    spec = small_spec(tmp_path, storage=f"{{path: {tmp_path}, study: '{url}'}}")
    spec.directory.mkdir()
    spec.write_copy(spec.directory)
    assert [path.name for path in spec.directory.iterdir()] == ["spec.yaml"]
    assert load_copy(spec.directory).storage_url == url


def test_a_spec_says_what_is_wrong_with_its_url_and_no_password(tmp_path: Path) -> None:
    for text in (f"{{path: {tmp_path}, study: 'mysql://me:secret@db/s'}}", f"'{WITH}'"):
        with pytest.raises(SpecError) as caught:
            small_spec(tmp_path, storage=text)
        assert "secret" not in str(caught.value)
        assert "storage" in str(caught.value)
