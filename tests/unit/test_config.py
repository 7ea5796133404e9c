"""migrate.toml: everything that is wrong is said at once, with its line; secrets have no place in it."""

from __future__ import annotations

import getpass
import re
from pathlib import Path

import pytest

from migrate.config import EXAMPLE, FolderSettings, S3Settings, load
from migrate.errors import ConfigError

GOOD = """[migration]
name = "m"
[source]
host = "127.0.0.1"
port = 104
ae_title = "PACS"
[destination]
kind = "folder"
path = "bucket"
"""


def mistakes(folder: Path, text: str) -> tuple[str, ...]:
    (folder / "migrate.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(folder / "migrate.toml")
    assert refused.value.exit_code == 2
    assert refused.value.hint
    return refused.value.mistakes


def test_the_example_loads_as_it_is(tmp_path: Path) -> None:
    """What `init` writes is a valid configuration."""
    (tmp_path / "migrate.toml").write_text(EXAMPLE)
    config = load(tmp_path / "migrate.toml")
    assert isinstance(config.destination, S3Settings)
    assert config.source_identity == "OLDPACS@10.0.0.5:104"


def test_every_key_that_the_example_shows_is_known(tmp_path: Path) -> None:
    """The commented keys can be uncommented as they stand."""
    lines = [line[2:] if line.startswith("# ") and "=" in line.split("#")[1] else line for line in EXAMPLE.splitlines()]
    (tmp_path / "migrate.toml").write_text("\n".join(lines).replace('"https://..."', '"https://s3.example.org"'))
    config = load(tmp_path / "migrate.toml")
    assert (config.source.date_from, config.source.date_to, config.retry.attempts) == ("19950101", "20261231", 5)


def test_a_secret_before_the_first_table_is_called_one(tmp_path: Path) -> None:
    """It is no table, and its value is not repeated."""
    (said,) = mistakes(tmp_path, 'aws_secret_access_key = "x1y2"\n' + GOOD)
    assert said.startswith("aws_secret_access_key looks like a secret") and "x1y2" not in said


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    """Paths are relative to the file, and only the PACS itself may connect."""
    (tmp_path / "migrate.toml").write_text(GOOD)
    config = load(tmp_path / "migrate.toml")
    assert (config.manifest, config.staging) == (tmp_path / "manifests/m.db", tmp_path / "staging")
    assert config.destination == FolderSettings(tmp_path / "bucket")
    assert config.receiver.allow == ("127.0.0.1",)
    assert config.operator == getpass.getuser()
    assert len(config.sha256) == 64


def test_all_mistakes_come_in_one_go_with_their_lines(tmp_path: Path) -> None:
    """Seven mistakes in five tables, each with the number of its line where it has one."""
    text = """[migration]
name = ""
[source]
host = "127.0.0.1"
prot = 104
ae_title = "A TITLE THAT IS FAR TOO LONG"
[receiver]
max_pdu = 12
[destination]
kind = "s3"
[retry]
attempts = true
"""
    found = mistakes(tmp_path, text)
    starts = ("line 2: [migration] name", "line 5: [source] prot", "line 6: [source] ae_title", "line 8: [receiver] max_pdu",
              "line 12: [retry] attempts")  # fmt: skip
    for start in starts:
        assert [line for line in found if line.startswith(start)], (start, found)
    assert [line for line in found if "[source] port is missing" in line]
    assert [line for line in found if "[destination] bucket is missing" in line]
    assert len(found) == 7
    numbers = [int(line.partition(":")[0].removeprefix("line ")) for line in found]
    assert numbers == sorted(numbers)  # what is missing stands where its table begins


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ae_title", "ae_titel", "did you mean ae_title?"),
        ("[source]", "[sources]", "did you mean [source]?"),
        ('path = "bucket"', 'path = "bucket"\nprefix = "../up"', "prefix must be"),
        ("port = 104", "port = 70000", "port must be a port from 1 to 65535"),
        ("port = 104", "port = 104\nfrom = 2020-01-02\nto = 2020-01-01", "from is later than to"),
        ("port = 104", 'port = "104"', "port must be a whole number"),
        ("port = 104", "port = 104\nstall_s = nan", "stall_s must be greater than 0"),
        ("port = 104", "port = 104\nstall_s = inf", "stall_s must be"),
        ("port = 104", "port = 104\nsettle_s = inf", "settle_s must be"),
        ("port = 104", "port = 104\nstall_s = 1e300", "stall_s must be greater than 0 and at most 1000000"),
        ("[source]", "staging_max_gib = 1e300\n[source]", "staging_max_gib must be"),
        ("[source]", 'staging_max_gib = "much"\n[source]', "staging_max_gib must be a number"),
        ("port = 104", "port = 104\nfrom = 2020-01-02T10:00:00\nto = 2021-01-01", "from must be a date"),
        ("[source]", "staging_max_gib = inf\n[source]", "staging_max_gib must be"),
        ('kind = "folder"\npath = "bucket"', 'kind = "s3"\nbucket = "images"\npart_mib = 4', "part_mib must be from 5"),
        ("[destination]", '[receiver]\nallow = ["pacs.example.org"]\n[destination]', "allow must be"),
        ("[destination]", '[receiver]\nallow = [7]\n[destination]', "allow must be"),
        ("[destination]", "[retry]\nfirst_wait_s = nan\n[destination]", "first_wait_s must be"),
        ("[destination]", '[receiver]\ntransfer_syntaxes = ["JPEG 2000"]\n[destination]', "transfer_syntaxes must be a list of transfer syntax UIDs"),
        *((old, old[:-1] + '\\u0000"', "control character") for old in ('name = "m"', 'host = "127.0.0.1"', 'path = "bucket"')),
        ('name = "m"', 'name = "m\\nx"', "[migration] name holds a control character"),
        ("[source]", 'staging = "st\\u0000aging"\n[source]', "[migration] staging holds a control character"),
        ("[source]", 'operator = "J.\\u007fDoe"\n[source]', "[migration] operator holds a control character"),
    ],
)
def test_one_mistake(tmp_path: Path, old: str, new: str, said: str) -> None:
    """What a person is likely to get wrong is said in words, with what was probably meant."""
    found = mistakes(tmp_path, GOOD.replace(old, new, 1))
    assert any(said in line for line in found), found


@pytest.mark.parametrize("key", ["aws_secret_access_key", "access_key_id", "password", "session_token"])
def test_secrets_are_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    """A credential in the file is a mistake, and its value is nowhere in the message."""
    with pytest.raises(ConfigError) as refused:
        (tmp_path / "migrate.toml").write_text(GOOD + f'{key} = "hunter2"\n')
        load(tmp_path / "migrate.toml")
    assert "AWS chain" in str(refused.value)
    assert "hunter2" not in str(refused.value) + refused.value.hint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('netrc = "~/.netrc"', ".*password.*AWS chain"),
        ('kms_key_id = "/home/me/.netrc"', "names a .netrc"),
        ('kms_key_id = "AKIA2345678901234567"', "holds an AWS access key"),
        ('endpoint_url = "https://me:hunter2@s3.example.org"', "a user and a password"),
        ('region = """-----BEGIN PRIVATE KEY-----\nhunter2"""', "name its file"),
        ('more = ["AKIA2345678901234567"]', "holds an AWS access key"),
        ("api_key = 7", "looks like a secret"),
    ],
)  # fmt: skip
def test_secrets_under_any_name_are_refused(tmp_path: Path, line: str, said: str) -> None:
    """A .netrc, a key or a password is refused with the reason wherever it stands, and not repeated."""
    text = GOOD.replace('kind = "folder"\npath = "bucket"', f'kind = "s3"\nbucket = "b"\n{line}')
    found = mistakes(tmp_path, text)
    assert re.search(said, "\n".join(found)), found
    assert "hunter2" not in str(found) and "AKIA2" not in str(found)


@pytest.mark.parametrize("text", ['[migration]\nname = "m', "\xff\xfe", "a = 1\na = 2\n"])
def test_what_is_no_toml_is_a_configuration_mistake(tmp_path: Path, text: str) -> None:
    """A file that cannot be parsed ends with exit 2 and one sentence."""
    (tmp_path / "migrate.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"migrate\.toml") as refused:
        load(tmp_path / "migrate.toml")
    assert refused.value.exit_code == 2


def test_no_file_says_how_to_make_one(tmp_path: Path) -> None:
    """The hint names `init`."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "migrate.toml")
    assert "init" in refused.value.hint


@pytest.mark.parametrize(("endpoint", "fine"), [("http://127.0.0.1:9000", True), ("http://localhost:9000", True), ("http://10.0.0.9", False), ("http://store.example.org", False)])
def test_plain_http_is_for_loopback(tmp_path: Path, endpoint: str, fine: bool) -> None:
    """Elsewhere it needs allow_http."""
    text = GOOD.replace('kind = "folder"\npath = "bucket"', f'kind = "s3"\nbucket = "b"\nendpoint_url = "{endpoint}"')
    if not fine:
        assert any("not encrypted" in line for line in mistakes(tmp_path, text))
        text += "allow_http = true\n"
    (tmp_path / "migrate.toml").write_text(text)
    assert load(tmp_path / "migrate.toml").destination == S3Settings("b", endpoint_url=endpoint, allow_http=not fine)
