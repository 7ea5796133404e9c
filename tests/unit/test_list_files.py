"""Lists of studies as vendors, RIS and spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate.errors import UsageError
from migrate.jobs.reconcile import FAILED, INVALID, NOT_FOUND, ONLY_MANIFEST, Comparison, Line
from migrate.lists.studies import Key, StudyList, read_list
from migrate.model import StudyState

A, B, C = "1.2.840.113619.2.1", "1.2.840.113619.2.2", "2.25.329800735698586629295641978511506172918"


def read(folder: Path, text: str | bytes) -> StudyList:
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_list(path)


@pytest.mark.parametrize(
    "text",
    [
        f"{A}\n{B}\n{C}\n",
        f"{A}\r\n\r\n  {B}  \r\n{C}",
        f"\ufeffStudyInstanceUID\n{A}\n{B}\n{C}\n",
        f'Study Instance UID;Datum\n"{A}";01.02.2020\n\n;;\n{B};\n{C};x\n',
        f"No\tStudy UID\n1\t{A}\n2\t{B}\n3\t{C}\n",
        f"date,study_iuid\n2020-01-01,{A}\n2020-01-02,{B}\n2020-01-02,{C}\n",
        f"01.02.2020;{A};x\n02.02.2020;{B};y\n;{C};\n",
        f'sep=;\nName;STUDYUID\n"A;B";{A}\n"C\nD";{B}\nE;{C}\n',
        f'(0020,000D)\n="{A}"\n{B}\n{C}\n',
        f"PatientID,AccessionNumber,StudyInstanceUID\nP,A,{A}\nP,A,{B}\nP,A,{C}\n",
        ("StudyInstanceUID\tx\r\n" + "".join(f"{uid}\ty\r\n" for uid in (A, B, C))).encode("utf-16"),
        ("StudyInstanceUID;Ärztin\n" + "".join(f"{uid};Müller\n" for uid in (A, B, C))).encode("latin-1"),
    ],
)
def test_uids_in_every_shape(tmp_path: Path, text: str | bytes) -> None:
    """Delimiters, headers, quotes, encodings, padding and empty lines make no difference."""
    listed = read(tmp_path, text)
    assert (listed.key, [entry.value for entry in listed.entries], listed.invalid) == (Key.STUDY, [A, B, C], ())


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """Header, empty lines and quoted line ends count; a repeated value has its first line; what is no UID is named."""
    listed = read(tmp_path, f'Note,StudyInstanceUID\n\n"a\nb",{A}\nc,{B}\nd,{A}\ne,\nf,1.2.x\ng\n')
    assert [(entry.line, entry.value) for entry in listed.entries] == [(3, A), (5, B)]
    assert [(line.line, line.reason) for line in listed.invalid] == [
        (7, "no StudyInstanceUID"), (8, "not a UID"), (9, "no StudyInstanceUID")
    ]  # fmt: skip
    assert listed.lines == 3


@pytest.mark.parametrize(("header", "key"), [("Accession Number", Key.ACCESSION), ("accession_no", Key.ACCESSION), ("ACC", Key.ACCESSION),
                                             ("Patient ID", Key.PATIENT), ("PatientenID", Key.PATIENT), ("MRN", Key.PATIENT)])  # fmt: skip
def test_numbers_need_a_header(tmp_path: Path, header: str, key: Key) -> None:
    """Zeros in front stay; values that no question can hold are named by line, and never shown."""
    listed = read(tmp_path, f"{header}\n000123\n A-7 \n\"0042\"\nM\u00fcller\n12*\nA\\B\n{'9' * 65}\n1?3\n")
    assert listed.key is key
    assert [entry.value for entry in listed.entries] == ["000123", "A-7", "0042"]
    assert [line.line for line in listed.invalid] == [5, 6, 7, 8, 9]
    assert not any("12*" in line.reason or "ller" in line.reason for line in listed.invalid)
    assert [listed.shown(entry) for entry in listed.entries] == [None, None, None]


@pytest.mark.parametrize("text", ["", "\n \n", "123456\n123457\n", "Exam;Billed\n1;yes\n", "12.11.2020\n", f"{A},{B}\n"])
def test_what_does_not_say_what_it_is_is_refused(tmp_path: Path, text: str) -> None:
    """Exit 2, with a hint that asks for a header, and nothing of the file in the sentence."""
    with pytest.raises(UsageError) as refused:
        read(tmp_path, text)
    assert refused.value.exit_code == 2
    assert "AccessionNumber" in refused.value.hint
    assert "123456" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """One sentence and a hint."""
    with pytest.raises(UsageError, match="cannot be read") as refused:
        read_list(tmp_path / "none.csv")
    assert refused.value.hint


@pytest.mark.parametrize("result", ["not in the manifest", ONLY_MANIFEST, NOT_FOUND, FAILED, INVALID])
def test_every_kind_of_difference_is_one(tmp_path: Path, result: str) -> None:
    """A list equals a manifest only if nothing differs in any way, a line that names no study included."""
    listed = read(tmp_path, f"{A}\n")
    same = Line(1, A, "both", A, "migrated")
    assert Comparison(listed, [same]).agrees
    assert not Comparison(listed, [same, Line(2, None, result)]).agrees


@pytest.mark.parametrize("state", [state.name.lower() for state in StudyState])
def test_only_what_is_settled_is_equal(tmp_path: Path, state: str) -> None:
    """A study on both sides counts where it is migrated, excluded or signed for."""
    assert Comparison(read(tmp_path, f"{A}\n"), [Line(1, A, "both", A, state)]).agrees == (state in ("migrated", "excluded", "accepted"))
