"""Folders, certificates and keys of a deployment."""

from __future__ import annotations

import ipaddress
import re
import shutil
import socket
import ssl
import subprocess
import threading
import tomllib
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from fedvad.deploy.init import init
from fedvad.deploy.keys import check_certificate, check_site_key, public_pem
from fedvad.deploy.processes import run_server, run_site
from fedvad.deploy.server import site_keys
from fedvad.deploy.settings import (
    check_run_name,
    read_running,
    read_server,
    read_site,
    to_toml,
)
from fedvad.errors import ConfigError

SITES = ["alder", "birch"]


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def handshake(server: Path, authority: Path, name: str) -> None:
    """What a site's TLS does with the server's certificate; raises as TLS does."""
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(server / "server.crt", server / "server.key")
    there = ssl.create_default_context(cafile=str(authority))
    one, other = socket.socketpair()

    def accept() -> None:
        try:
            here.wrap_socket(one, server_side=True).close()
        except (ssl.SSLError, OSError):
            one.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        there.wrap_socket(other, server_hostname=name).close()
    finally:
        other.close()
        thread.join()


@pytest.mark.parametrize("damage", ["cut", "another", "no key"])
def test_a_site_with_a_wrong_key_ends_and_says_so(damage: str, tmp_path: Path) -> None:
    """Flower would end its node, and the site would try again for ever."""
    init(tmp_path, ["localhost"], SITES)
    alder, birch = tmp_path / "sites/alder", tmp_path / "sites/birch"
    check_site_key(alder)
    if damage == "another":
        shutil.copy(birch / "site.key", alder / "site.key")
    else:
        data = (alder / "site.key").read_bytes()
        (alder / "site.key").write_bytes(data[:200] if damage == "cut" else b"")
    with pytest.raises(ConfigError, match=r"alder/site\.key.*remove .*fedvad deploy init"):
        run_site(read_site(alder))


class TestTheCertificateOfAServer:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Path:
        init(tmp_path / "ours", ["localhost"], SITES)
        init(tmp_path / "foreign", ["localhost"], SITES)
        check_certificate(tmp_path / "ours/server")
        return tmp_path / "ours/server"

    @pytest.mark.parametrize(
        ("names", "reason"),
        [
            (["server.key"], "server.key is not the key of"),
            (["server.crt", "server.key"], "is not signed by the authority"),
            (["ca.crt"], "is not signed by the authority"),
        ],
    )
    def test_one_of_another_deployment_is_refused(
        self, names: list[str], reason: str, server: Path
    ) -> None:
        for name in names:
            shutil.copy(server.parents[1] / "foreign/server" / name, server / name)
        with pytest.raises(ConfigError, match=rf"{reason}.*fedvad deploy init"):
            check_certificate(server)
        with pytest.raises(ConfigError, match=reason):
            run_server(read_server(server))

    @pytest.mark.parametrize("days", [1000, 4000])
    def test_one_out_of_date_is_refused(
        self, days: int, server: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Later(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return datetime.now(tz) + timedelta(days=days)

        monkeypatch.setattr("fedvad.deploy.keys.datetime", Later)
        with pytest.raises(ConfigError, match=r"server\.crt has expired on 20.*clock"):
            check_certificate(server)

    @pytest.mark.parametrize("name", ["server.key", "server.crt", "ca.crt"])
    def test_a_damaged_file_is_named(self, name: str, server: Path) -> None:
        (server / name).write_bytes((server / name).read_bytes()[:60])
        with pytest.raises(ConfigError, match=name):
            check_certificate(server)


class TestInit:
    def test_private_keys_are_private(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        keys = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.key"))
        assert keys == [
            "authority/ca.key", "server/server.key", "sites/alder/site.key", "sites/birch/site.key"
        ]  # fmt: skip
        assert {(tmp_path / key).stat().st_mode & 0o777 for key in keys} == {0o600}
        for folder in ("sites/alder", "server"):  # what travels holds nobody else's secret
            assert len(list((tmp_path / folder).rglob("*.key"))) == 1

    def test_again_changes_nothing_and_more_sites_are_added(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        before = contents(tmp_path)
        assert init(tmp_path, ["localhost"], SITES)["made"] == []
        assert contents(tmp_path) == before
        path = tmp_path / "server" / "server.toml"
        path.write_text(path.read_text().replace("# quorum = 2", "quorum = 2"))
        assert init(tmp_path, ["localhost"], ["cedar"])["sites"] == ["alder", "birch", "cedar"]
        settings = read_server(tmp_path)
        assert (settings.sites, settings.quorum) == (("alder", "birch", "cedar"), 2)
        assert sorted(site_keys(settings).values()) == ["alder", "birch", "cedar"]
        kept = {name: data for name, data in before.items() if name != "server/server.toml"}
        assert contents(tmp_path).items() >= kept.items()

    def test_what_was_locked_away_is_not_made_again(self, tmp_path: Path) -> None:
        root = tmp_path / "dep"
        init(root, ["localhost"], SITES)
        certificate = (root / "server/ca.crt").read_bytes()
        (root / "authority").rename(tmp_path / "safe")
        shutil.rmtree(root / "sites/alder")
        made = init(root, ["localhost"], [*SITES, "cedar"])["made"]
        assert made == [str(root / "sites/cedar")]
        assert (root / "sites/cedar/ca.crt").read_bytes() == certificate
        assert not (root / "authority").exists()
        assert not (root / "sites/alder").exists()
        for name in ("server.crt", "server.key"):
            (root / "server" / name).unlink()
        with pytest.raises(ConfigError, match=r"bring .*authority back"):
            init(root, ["localhost"], SITES)
        (tmp_path / "safe").rename(root / "authority")
        init(root, ["localhost"], SITES)
        handshake(root / "server", root / "server/ca.crt", "localhost")

    def test_certificate_holds_for_its_names_only(self, tmp_path: Path) -> None:
        init(tmp_path, ["plant.example", "10.1.2.3"], SITES)
        server, authority = tmp_path / "server", tmp_path / "sites" / "alder" / "ca.crt"
        for name in ("plant.example", "10.1.2.3", "localhost", "127.0.0.1"):
            handshake(server, authority, name)
        with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
            handshake(server, authority, "other.example")
        init(tmp_path / "foreign", ["plant.example"], SITES)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(tmp_path / "foreign" / "server", authority, "plant.example")

    def test_certificate_suits_clocks_that_are_slow(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        made = x509.load_pem_x509_certificate((tmp_path / "server" / "server.crt").read_bytes())
        assert (datetime.now(UTC) - made.not_valid_before_utc).total_seconds() > 23 * 3600
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]

    def test_other_names_need_a_new_certificate(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        with pytest.raises(ConfigError, match=r"other names.*remove"):
            init(tmp_path, ["plant.example"], SITES)
        for name in ("server.crt", "server.key"):
            (tmp_path / "server" / name).unlink()
        init(tmp_path, ["plant.example"], SITES)
        handshake(tmp_path / "server", tmp_path / "sites" / "alder" / "ca.crt", "plant.example")

    @pytest.mark.parametrize(
        ("server", "sites", "reason"),
        [
            ([], SITES, "--server needs"),
            (["straße.example"], SITES, "neither a host name"),
            (["localhost"], [], "--site is missing"),
            (["localhost"], ["a/b"], "short and without"),
            (["localhost"], ["a", "a"], "named twice"),
            (["localhost"], ["a", "b", "A"], "named twice: A, a"),
        ],
    )
    def test_impossible_names(
        self, server: list[str], sites: list[str], reason: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=reason):
            init(tmp_path, server, sites)

    def test_half_a_key_pair(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        (tmp_path / "sites" / "alder" / "site.pub").unlink()
        with pytest.raises(ConfigError, match="restore it, or remove both"):
            init(tmp_path, ["localhost"], SITES)

    @pytest.mark.parametrize(
        "sites",
        ['sites = ["alder", "birch"]', 'sites=["alder","birch"] # two',
         "  sites   = ['alder', 'birch']",
         'sites = [\n  "alder",  # the first\n  "birch",\n]'],
    )  # fmt: skip
    def test_a_site_more_however_the_list_is_written(self, sites: str, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        path = tmp_path / "server/server.toml"
        rest = path.read_text().partition("\n")[2]
        path.write_text(f"# ours\n{sites}\n{rest}")
        assert init(tmp_path, ["localhost"], ["cedar"])["sites"] == [*SITES, "cedar"]
        assert read_server(tmp_path).sites == (*SITES, "cedar")
        assert path.read_text().startswith("# ours\n")
        assert path.read_text().endswith(rest)

    def test_a_list_that_cannot_be_changed_is_left_as_it_is(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        path = tmp_path / "server/server.toml"
        path.write_text(path.read_text().replace("sites =", '"sites" ='))
        before = contents(tmp_path)
        with pytest.raises(ConfigError, match=r"by hand.* alder, birch, cedar"):
            init(tmp_path, ["localhost"], ["cedar"])
        assert contents(tmp_path) == before

    def test_a_site_more_that_differs_in_capitals_only(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        before = contents(tmp_path)
        with pytest.raises(ConfigError, match="site Alder is alder already"):
            init(tmp_path, ["localhost"], ["Alder"])
        assert contents(tmp_path) == before

    def test_units_and_compose_name_what_exists(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES, port=9000)
        server, alder = tmp_path / "server", tmp_path / "sites" / "alder"
        assert f"FEDVAD_FOLDER={server}\n" in (server / "server.env").read_text()
        assert "FEDVAD_FOLDER=/etc/fedvad/alder\n" in (alder / "site.env").read_text()
        assert '"9000:9000"' in (server / "compose.yaml").read_text()
        assert "${IMAGES:?" in (alder / "compose.yaml").read_text()

    def test_a_unit_holds_nothing_to_edit(self, tmp_path: Path) -> None:
        init(tmp_path / "made", ["localhost"], SITES)
        server, alder = tmp_path / "made/server", tmp_path / "made/sites/alder"
        served = Path(__file__).parents[2] / "packaging"
        for folder, verb in ((server, "server"), (alder, "site"), (served, "serve")):
            unit = (folder / f"fedvad-{verb}.service").read_text()
            environment = "fedvad-serve.env" if verb == "serve" else f"{verb}.env"
            named = re.findall(r"^(\w+)=", (folder / environment).read_text(), re.MULTILINE)
            (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
            assert start.startswith(f"/usr/bin/env ${{FEDVAD}} {verb} ")
            assert set(re.findall(r"\$\{?(\w+)", start)) == set(named)
            assert str(tmp_path) not in unit
            if shutil.which("systemd-analyze"):
                unit = unit.replace("User=fedvad\n", "")  # this machine has no such user
                (tmp_path / f"{verb}.service").write_text(unit)
                checked = subprocess.run(
                    ["systemd-analyze", "verify", tmp_path / f"{verb}.service"],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert checked.returncode == 0, checked.stderr


class TestSettings:
    def test_removed_key_locks_its_site_out(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        (tmp_path / "server" / "sites" / "alder.pub").unlink()
        assert list(site_keys(read_server(tmp_path)).values()) == ["birch"]

    def test_one_key_for_two_sites_is_refused(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        keys = tmp_path / "server" / "sites"
        (keys / "alder.pub").write_bytes((keys / "birch.pub").read_bytes())
        with pytest.raises(ConfigError, match="the same key"):
            site_keys(read_server(tmp_path))
        (keys / "alder.pub").write_text("junk")
        with pytest.raises(ConfigError, match="not a public key"):
            public_pem(keys / "alder.pub")

    def test_relative_paths_are_those_of_the_folder(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        folder = tmp_path / "sites" / "alder"
        path = folder / "site.toml"
        path.write_text(path.read_text() + 'data = "images"\n')
        site = read_site(folder, cache=tmp_path / "c", port=None)
        assert (site.data, site.cache, site.port) == (folder / "images", tmp_path / "c", 9094)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("sites = []", "sites: "),
            ("sites = ['a']\nport = 0", "port: "),
            ("sites = ['a']\nnonsense = 1", "nonsense: "),
            ("sites = [", "not valid TOML"),
        ],
    )
    def test_wrong_settings(self, text: str, reason: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="deploy init"):
            read_server(tmp_path)
        (tmp_path / "server.toml").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            read_server(tmp_path)

    def test_flags_of_a_running_server_reach_those_who_talk_to_it(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], SITES)
        settings = read_server(tmp_path)
        settings.state.mkdir()
        (settings.state / "running.toml").write_text("port = 8123\ninsecure = true\n")
        assert (read_running(tmp_path).port, read_running(tmp_path).insecure) == (8123, True)
        assert (read_server(tmp_path).port, read_server(tmp_path).insecure) == (8000, False)

    def test_default_quorum_is_more_than_half(self, tmp_path: Path) -> None:
        init(tmp_path, ["localhost"], ["a", "b", "c", "d"])
        assert read_server(tmp_path).patience().quorum == 3

    @pytest.mark.parametrize("name", ["", "A", "a/b", "..", "-a", "a" * 65, "a b"])
    def test_names_of_runs_are_folders(self, name: str) -> None:
        with pytest.raises(ConfigError, match="small letters"):
            check_run_name(name)

    @given(
        st.dictionaries(
            st.from_regex(r"[a-z]{1,5}", fullmatch=True),
            st.one_of(
                st.booleans(),
                st.integers(-(2**60), 2**60),
                st.floats(allow_nan=False),
                st.text(st.characters(categories=("L", "N", "P", "S"))),
                st.lists(st.integers(0, 9), max_size=3),
            ),
        )
    )
    def test_toml_round_trip(self, values: dict[str, object]) -> None:
        assert tomllib.loads(to_toml(values)) == values


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("server", 'sites = ["alder", "Alder"]', "Alder and alder are one name"),
        ("server", 'sites = ["alder", "alder"]', "are one name"),
        ("server", 'sites = ["a/b"]', "short and without"),
        ("server", 'sites = ["alder", ""]', "printable"),
        ("site", 'name = "../alder"', "without spaces around it or a dot"),
    ],
)
def test_names_in_settings_are_checked(file: str, line: str, reason: str, tmp_path: Path) -> None:
    init(tmp_path, ["localhost"], SITES)
    folder = tmp_path / ("server" if file == "server" else "sites/alder")
    path = folder / f"{file}.toml"
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]))
    with pytest.raises(ConfigError, match=rf"{file}\.toml: .*{reason}"):
        (read_server if file == "server" else read_site)(folder)
