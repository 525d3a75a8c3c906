"""Where a reference leads, for any name at all: to its mount or nowhere."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from agentrt_vault.places import Credentials, Kv, Places
from agentrt_vault.wire import _quoted
from hypothesis import example, given
from hypothesis import strategies as st

from agentrt.errors import ConfigError
from agentrt.secrets import SecretInvalid, SecretRef

PLACES = Places("secret", ["kv", "kv/team"], ["database", "team/db"])


def find(name: str) -> Kv | Credentials:
    return PLACES.find(SecretRef(name, "vault"))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("app/db", Kv("secret", "app/db")),
        ("secret/app", Kv("secret", "secret/app")),
        ("kv", Kv("secret", "kv")),
        ("kvx/a", Kv("secret", "kvx/a")),
        ("kv/a", Kv("kv", "a")),
        ("kv/team", Kv("kv", "team")),
        ("kv/team/a/b", Kv("kv/team", "a/b")),
        ("database/creds/app", Credentials("database", "creds", "app")),
        ("database/static-creds/app", Credentials("database", "static-creds", "app")),
        ("team/db/creds/app", Credentials("team/db", "creds", "app")),
        ("database/creds", Kv("secret", "database/creds")),
        ("database/creds/a/b", Kv("secret", "database/creds/a/b")),
        ("database/config/pg", Kv("secret", "database/config/pg")),
    ],
)
def test_the_beginning_of_a_name_says_which_mount(name: str, place: Kv | Credentials) -> None:
    assert find(name) == place


def test_a_mount_has_one_engine() -> None:
    with pytest.raises(ConfigError, match=r"dynamic and the kv mounts share \['kv'\]"):
        Places("secret", ["kv"], ["kv"])


@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from(["..", ".", "", "a", "%2e%2e", "kv", "creds"])).map("/".join)
    )
)
@example("../sys/mounts")
@example("a/../../../sys/mounts")
@example("..%2f..%2fsys")
@example("a?list=true#x")
def test_no_name_leads_out_of_its_mount(name: str) -> None:
    try:
        place = find(name)
    except SecretInvalid:
        return
    path = f"{place.mount}/data/{place.path}" if isinstance(place, Kv) else place.path
    quoted = _quoted(path)
    url = urlsplit(f"http://vault/v1/{quoted}")
    assert (url.query, url.fragment) == ("", "")
    assert unquote(quoted) == path
    assert not {"", ".", ".."} & set(quoted.split("/"))
    assert place.mount in ("secret", "kv", "kv/team", "database", "team/db")
