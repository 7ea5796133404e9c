"""DICOM audit messages (PS3.15 A.5) as XML, from plain values: what happened to whose images, for a hospital's audit repository.

They name studies by UID. Names and IDs of patients are not known here, so that the participant object of the patient, which the
standard wants, says `unknown`.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

APPLICATION_ACTIVITY = ("110100", "Application Activity")
BEGIN_TRANSFERRING = ("110102", "Begin Transferring DICOM Instances")
TRANSFERRED = ("110104", "DICOM Instances Transferred")
QUERY = ("110112", "Query")
START, STOP = ("110120", "Application Start"), ("110121", "Application Stop")
APPLICATION, LAUNCHER = ("110150", "Application"), ("110151", "Application Launcher")
DESTINATION, SOURCE = ("110152", "Destination Role ID"), ("110153", "Source Role ID")
_STUDY, _SOP_CLASS = ("110180", "Study Instance UID"), ("110181", "SOP Class UID")
SUCCESS, MINOR_FAILURE, SERIOUS_FAILURE = 0, 4, 8
"""EventOutcomeIndicator (PS3.15 A.5.1)."""


@dataclass(frozen=True, slots=True)
class Participant:
    """Who took part. `user`: AE title, process, or person; `host`: name or address."""

    role: tuple[str, str]
    user: str
    requestor: bool
    host: str = ""
    also_known_as: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, when (an aware time), and how it ended. `action`: C create, R read, E execute."""

    what: tuple[str, str]
    action: str
    at: datetime.datetime
    outcome: int = SUCCESS
    outcome_in_words: str = ""
    kind: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """A study that images were moved of. `sop_classes`: how many by SOP Class UID, empty where that is not known yet."""

    uid: str
    sop_classes: Mapping[str, int]
    encrypted: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A C-FIND: its SOP class, and the identifier as it was sent, in that transfer syntax."""

    sop_class: str
    identifier: bytes
    transfer_syntax: str


def message(event: Event, participants: list[Participant], *, source_id: str, site: str = "", study: Study | None = None, query: Query | None = None) -> bytes:  # fmt: skip
    """One AuditMessage in UTF-8, without a line break."""
    root = ElementTree.Element("AuditMessage")
    identification = ElementTree.SubElement(
        root, "EventIdentification", EventActionCode=event.action, EventDateTime=event.at.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=str(event.outcome),
    )  # fmt: skip
    _coded(identification, "EventID", event.what)
    if event.kind is not None:
        _coded(identification, "EventTypeCode", event.kind)
    if event.outcome_in_words:
        ElementTree.SubElement(identification, "EventOutcomeDescription").text = event.outcome_in_words
    for each in participants:
        _participant(root, each)
    audited = ElementTree.SubElement(root, "AuditSourceIdentification", {"AuditSourceID": source_id} | ({"AuditEnterpriseSiteID": site} if site else {}))
    ElementTree.SubElement(audited, "AuditSourceTypeCode", {"csd-code": "4"})  # an application server's process
    if study is not None:
        _study(root, study)
    if query is not None:
        _query(root, query)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text.replace(b"\n", b"")


def _coded(parent: ElementTree.Element, name: str, code: tuple[str, str], system: str = "DCM") -> None:
    ElementTree.SubElement(parent, name, {"csd-code": code[0], "codeSystemName": system, "originalText": code[1]})


def _participant(root: ElementTree.Element, each: Participant) -> None:
    values = {"UserID": each.user, "UserIsRequestor": "true" if each.requestor else "false"}
    if each.also_known_as:
        values["AlternativeUserID"] = each.also_known_as
    if each.host:
        values |= {"NetworkAccessPointID": each.host, "NetworkAccessPointTypeCode": "2" if _is_address(each.host) else "1"}
    _coded(ElementTree.SubElement(root, "ActiveParticipant", values), "RoleIDCode", each.role)


def _study(root: ElementTree.Element, study: Study) -> None:
    part = _object(root, study.uid, "2", "3")  # a system object, a report
    _coded(part, "ParticipantObjectIDTypeCode", _STUDY)
    ElementTree.SubElement(part, "ParticipantObjectName").text = study.uid
    description = ElementTree.SubElement(part, "ParticipantObjectDescription")
    for uid, count in sorted(study.sop_classes.items()):
        ElementTree.SubElement(description, "SOPClass", UID=uid, NumberOfInstances=str(count))
    ElementTree.SubElement(description, "Encrypted").text = "true" if study.encrypted else "false"
    patient = _object(root, "unknown", "1", "1")  # a person, the patient
    _coded(patient, "ParticipantObjectIDTypeCode", ("2", "Patient Number"), "RFC-3881")
    ElementTree.SubElement(patient, "ParticipantObjectName").text = "unknown"


def _query(root: ElementTree.Element, query: Query) -> None:
    part = _object(root, query.sop_class, "2", "3")
    _coded(part, "ParticipantObjectIDTypeCode", _SOP_CLASS)
    ElementTree.SubElement(part, "ParticipantObjectQuery").text = base64.b64encode(query.identifier).decode()
    syntax = base64.b64encode(query.transfer_syntax.encode()).decode()
    ElementTree.SubElement(part, "ParticipantObjectDetail", type="TransferSyntax", value=syntax)


def _object(root: ElementTree.Element, uid: str, kind: str, role: str) -> ElementTree.Element:
    values = {"ParticipantObjectID": uid, "ParticipantObjectTypeCode": kind, "ParticipantObjectTypeCodeRole": role}
    return ElementTree.SubElement(root, "ParticipantObjectIdentification", values)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
