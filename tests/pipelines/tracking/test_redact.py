from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tracking.redact import without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:pw@db/ml", "postgresql://db/ml"),
        ("http://me:p@ss@host/x", "http://host/x"),
        ("s3://AKIA:se/cr@bucket/x", "s3://bucket/x"),
        ("https://token@host/x", "https://host/x"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("http://host:5000/#/users/a@b", "http://host:5000/#/users/a@b"),
        (
            "s3://b/a?endpoint_override=h:1&scheme=http",
            "s3://b/a?endpoint_override=h:1&scheme=http",
        ),
        ("http://h/b?X-Amz-Signature=ff&y=2", "http://h/b?X-Amz-Signature=***&y=2"),
        ("http://h/b?access_token=a and http://u:p@h", "http://h/b?access_token=*** and http://h"),
        ("cannot reach http://me:pw@127.0.0.1:9: no", "cannot reach http://127.0.0.1:9: no"),
    ],
)
def test_only_the_secret_goes(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


SECRET = st.text(string.ascii_letters + string.digits + "!$%^*()_+-.~:@", min_size=1, max_size=12)


@given(SECRET, st.sampled_from(["http", "postgresql+psycopg", "s3"]), st.text(max_size=10))
def test_no_password_is_left(secret: str, scheme: str, before: str) -> None:
    text = f"{before} {scheme}://user:§{secret}§@host:5000/path"
    assert "§" not in without_secrets(text).removeprefix(without_secrets(before))
    assert without_secrets(text).endswith(f"{scheme}://host:5000/path")
