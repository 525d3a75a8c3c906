"""Secrets of the engine kv in a real OpenBao: versions, what is not there, mounts, names, namespaces, policies."""

from __future__ import annotations

import secrets

import pytest
from servers.openbao import OpenBao

from agentrt.secrets import SecretDenied, SecretError, SecretInvalid, SecretNotFound, SecretRef
from agentrt.secrets.json_key import inside
from plugins.vault import data_of, opened, ref

pytestmark = pytest.mark.asyncio


@pytest.fixture
def name(openbao: OpenBao) -> str:
    """A secret with one version, under a name of its own."""
    name = f"app/{secrets.token_hex(4)}"
    openbao.write(name, {"username": "app", "password": "the-first-password"})
    return name


# --- version 2 ---------------------------------------------------------------------------------------------


async def test_a_secret_is_its_data_as_json_with_the_number_of_its_version(
    openbao: OpenBao, name: str
) -> None:
    async with opened(openbao) as vault:
        found = await vault.get(ref(name))
    assert data_of(found) == {"username": "app", "password": "the-first-password"}
    assert (found.version, found.lease, found.ttl, found.renewable) == ("1", None, None, False)
    assert inside(found.value, ref(f"{name}#password")) == "the-first-password"


async def test_values_are_not_changed_on_their_way(openbao: OpenBao, name: str) -> None:
    data = {"n": 9007199254740991, "f": 1.10, "nested": {"list": [1, None, True]}, "text": '秘密 " \\ \n'}
    openbao.write(name, data)
    async with opened(openbao) as vault:
        assert data_of(await vault.get(ref(name))) == data


async def test_an_older_version_is_read_by_its_number(openbao: OpenBao, name: str) -> None:
    openbao.write(name, {"password": "the-second-password"})
    async with opened(openbao) as vault:
        assert data_of(await vault.get(ref(name)))["password"] == "the-second-password"
        old = await vault.get(ref(f"{name}?version=1"))
        assert data_of(old)["password"] == "the-first-password"
        assert old.version == "1"
        with pytest.raises(SecretNotFound, match=f"no version 9 of secret/{name}"):
            await vault.get(ref(f"{name}?version=9"))


@pytest.mark.parametrize("version", ["0", "-1", "latest", "1.0", "٣", "99999999999"])
async def test_a_version_that_is_no_number_is_invalid(openbao: OpenBao, name: str, version: str) -> None:
    async with opened(openbao) as vault:
        with pytest.raises(SecretInvalid, match="a version in Vault is a whole number from 1 on"):
            await vault.get(ref(f"{name}?version={version}"))


async def test_a_deleted_version_is_told_from_one_that_never_was(openbao: OpenBao, name: str) -> None:
    openbao.do("DELETE", f"secret/data/{name}")
    async with opened(openbao) as vault:
        with pytest.raises(SecretNotFound, match=rf"version 1 of secret/{name} was deleted at 20.*undelete"):
            await vault.get(ref(name))
        with pytest.raises(SecretNotFound, match=rf"has no secret/{name}-never$"):
            await vault.get(ref(f"{name}-never"))
        openbao.do("POST", f"secret/undelete/{name}", {"versions": [1]})
        assert data_of(await vault.get(ref(name)))["username"] == "app"


async def test_a_destroyed_version_is_gone_for_good_and_the_others_are_not(
    openbao: OpenBao, name: str
) -> None:
    openbao.write(name, {"password": "the-second-password"})
    openbao.do("PUT", f"secret/destroy/{name}", {"versions": [1]})
    async with opened(openbao) as vault:
        with pytest.raises(SecretNotFound, match=rf"version 1 of secret/{name} was destroyed, for good"):
            await vault.get(ref(f"{name}?version=1"))
        assert data_of(await vault.get(ref(name)))["password"] == "the-second-password"


async def test_a_name_that_repeats_the_mount_is_told_so(openbao: OpenBao, name: str) -> None:
    async with opened(openbao) as vault:
        with pytest.raises(SecretNotFound, match="secret is the mount already, leave it out of the name"):
            await vault.get(ref(f"secret/{name}"))


# --- version 1 and mounts ------------------------------------------------------------------------------------


async def test_version_1_is_found_out_and_has_no_versions(openbao: OpenBao) -> None:
    mount = openbao.mount("kv", options={"version": "1"})
    openbao.do("PUT", f"{mount}/app/db", {"password": "of-version-one"})
    async with opened(openbao, mount=mount) as vault:
        found = await vault.get(ref("app/db"))
        assert data_of(found) == {"password": "of-version-one"}
        assert (found.version, found.ttl) == (None, None)
        with pytest.raises(SecretInvalid, match="kv version 1, which keeps no versions"):
            await vault.get(ref("app/db?version=1"))
        with pytest.raises(SecretNotFound, match=f"has no {mount}/app/none"):
            await vault.get(ref("app/none"))
        assert await vault.list("app/") == ["app/db"]


async def test_more_mounts_are_named_by_the_beginning_of_the_name(openbao: OpenBao, name: str) -> None:
    one = openbao.mount("kv", options={"version": "1"})
    two = openbao.mount("kv", options={"version": "2"})
    openbao.do("PUT", f"{one}/db", {"password": "in-one"})
    openbao.write("db", {"password": "in-two"}, mount=two)
    async with opened(openbao, mounts=[one, two]) as vault:
        assert data_of(await vault.get(ref(f"{one}/db"))) == {"password": "in-one"}
        assert data_of(await vault.get(ref(f"{two}/db"))) == {"password": "in-two"}
        assert data_of(await vault.get(ref(name)))["username"] == "app"
        assert await vault.list(f"{one}/") == [f"{one}/db"]
        assert await vault.list(f"{two}/d") == [f"{two}/db"]


async def test_a_version_that_is_configured_is_not_asked_for(openbao: OpenBao, name: str) -> None:
    # It may read nothing else, not even what each token may by default.
    policy = openbao.policy({f"secret/data/{name}": ["read"]})
    made = openbao.do("POST", "auth/token/create", {"policies": [policy], "no_default_policy": True})
    async with opened(openbao, token=made["auth"]["client_token"], kv_version=2) as vault:
        assert data_of(await vault.get(ref(name)))["username"] == "app"
    mount = openbao.mount("kv", options={"version": "2"})
    async with opened(openbao, mount=mount, kv_version=1) as vault:
        with pytest.raises(SecretNotFound, match=f"{mount} is kv version 2: check `kv_version`"):
            await vault.get(ref("db"))


async def test_a_mount_that_is_not_there_is_told_from_a_secret_that_is_not(openbao: OpenBao) -> None:
    async with opened(openbao, mount="nowhere") as vault:
        with pytest.raises(SecretNotFound, match="has no mount nowhere/: check `mount` and `mounts`"):
            await vault.get(ref("app/db"))
        with pytest.raises(SecretNotFound, match="no handler for route"):
            await vault.list()


async def test_a_mount_of_another_engine_is_told(openbao: OpenBao) -> None:
    mount = openbao.mount("transit")
    async with opened(openbao, mount=mount) as vault:
        with pytest.raises(SecretInvalid, match=f"the mount {mount} is of the engine 'transit', not kv"):
            await vault.get(ref("app/db"))


async def test_a_mount_that_is_upgraded_meanwhile_is_asked_again(openbao: OpenBao) -> None:
    mount = openbao.mount("kv", options={"version": "1"})
    openbao.do("PUT", f"{mount}/db", {"password": "before-and-after"})
    async with opened(openbao, mount=mount) as vault:
        await vault.get(ref("db"))
        openbao.do("POST", f"sys/mounts/{mount}/tune", {"options": {"version": "2"}})
        while openbao.ask("GET", f"{mount}/data/db").status != 200:
            pass
        with pytest.raises(SecretNotFound, match="is kv version 2"):
            await vault.get(ref("db"))
        assert data_of(await vault.get(ref("db"))) == {"password": "before-and-after"}


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["../sys/mounts", "a/../../x", "./a", "a//b", "a/", "/a", "a\nb", "a\0b", "\u202ea"]
)
async def test_a_name_cannot_leave_its_mount(openbao: OpenBao, path: str) -> None:
    async with opened(openbao) as vault:
        with pytest.raises(SecretInvalid, match="a name in Vault is a path without empty parts"):
            await vault.get(SecretRef(path, "vault"))


@pytest.mark.parametrize(
    "path", ["with blank", "a%2Fb", "%2e%2e/x", "a+b&c=d", "q?x=1", "h#f", "ünïcödé-秘密", "*"]
)
async def test_what_means_something_in_a_url_is_a_name_like_any_other(openbao: OpenBao, path: str) -> None:
    from urllib.parse import quote

    folder = secrets.token_hex(4)
    openbao.write(f"{folder}/{quote(path, safe='/')}", {"value": path})
    async with opened(openbao) as vault:
        found = await vault.get(SecretRef(f"{folder}/{path}", "vault"))
        assert data_of(found) == {"value": path}
        assert await vault.list(f"{folder}/") == [f"{folder}/{path}"]


async def test_names_are_listed_through_folders_and_narrowed_by_a_prefix(openbao: OpenBao) -> None:
    folder = secrets.token_hex(4)
    for path in ("db", "deep/er/one", "deep/er/two", "deep", "other"):
        openbao.write(f"{folder}/{path}", {"value": "never-listed"})
    async with opened(openbao) as vault:
        everything = await vault.list(f"{folder}/")
        assert sorted(everything) == sorted(
            f"{folder}/{path}" for path in ("db", "deep", "deep/er/one", "deep/er/two", "other")
        )
        assert set(everything) <= set(await vault.list())
        assert set(await vault.list(f"{folder}/de")) == {
            f"{folder}/{p}" for p in ("deep", "deep/er/one", "deep/er/two")
        }
        assert await vault.list(f"{folder}/deep/er/t") == [f"{folder}/deep/er/two"]
        assert await vault.list(f"{folder}/none") == []
        for found in everything:
            await vault.get(ref(found))


async def test_a_list_that_would_never_end_is_refused(
    openbao: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrt_vault.provider.FOLDERS", 2)
    folder = secrets.token_hex(4)
    for path in ("a/1", "b/1"):
        openbao.write(f"{folder}/{path}", {"value": "x"})
    async with opened(openbao) as vault:
        assert await vault.list(f"{folder}/a/") == [f"{folder}/a/1"]
        with pytest.raises(SecretInvalid, match="more than 2 folders: give a longer prefix"):
            await vault.list(f"{folder}/")


# --- namespaces and policies -----------------------------------------------------------------------------------


async def test_a_namespace_has_secrets_of_its_own(openbao: OpenBao, name: str) -> None:
    space = f"team{secrets.token_hex(4)}"
    openbao.do("POST", f"sys/namespaces/{space}")
    inner = OpenBao()
    inner.ports, inner.namespace = openbao.ports, space
    inner.do("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
    inner.write("db", {"password": "of-the-team"})
    async with opened(openbao, namespace=space) as vault:
        assert data_of(await vault.get(ref("db"))) == {"password": "of-the-team"}
        assert await vault.list() == ["db"]
        with pytest.raises(SecretNotFound):
            await vault.get(ref(name))
    async with opened(openbao, namespace="nobodys", kv_version=2) as vault:
        with pytest.raises(SecretNotFound, match="no such namespace: check `namespace`"):
            await vault.get(ref("db"))


async def test_what_no_policy_allows_is_denied_and_says_what_to_allow(openbao: OpenBao, name: str) -> None:
    policy = openbao.policy({f"secret/data/{name}": ["read"]})
    made = openbao.do("POST", "auth/token/create", {"policies": [policy]})
    token = made["auth"]["client_token"]
    async with opened(openbao, token=token) as vault:
        assert data_of(await vault.get(ref(name)))["username"] == "app"
        with pytest.raises(
            SecretDenied, match=r"denies GET secret/data/app/other .* a policy of our token"
        ) as denied:
            await vault.get(ref("app/other"))
        with pytest.raises(SecretDenied, match="listing 'app/'"):
            await vault.list("app/")
    assert token not in str(denied.value)


async def test_a_mount_that_the_policies_do_not_show_is_read_all_the_same(openbao: OpenBao) -> None:
    """The mount's metadata are denied to who may read nothing there, and also where there is no such mount."""
    made = openbao.do("POST", "auth/token/create", {"policies": ["default"]})
    async with opened(openbao, token=made["auth"]["client_token"], mount="nowhere") as vault:
        with pytest.raises(SecretDenied, match=r"denies GET nowhere/data/db"):
            await vault.get(ref("db"))


async def test_no_error_shows_a_value(openbao: OpenBao, name: str) -> None:
    openbao.write(name, {"password": "the-second-password"})
    openbao.do("PUT", f"secret/destroy/{name}", {"versions": [1]})
    async with opened(openbao) as vault:
        for text in (f"{name}?version=1", f"{name}?version=8", f"{name}?version=x", f"{name}/below"):
            with pytest.raises(SecretError) as raised:
                await vault.get(ref(text))
            assert "password" not in str(raised.value)
