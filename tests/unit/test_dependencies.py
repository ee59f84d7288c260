"""What is installed is pinned, so that a scan of the pinned versions says something."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POMS = ("connectors/bridge/pom.xml", "connectors/local/jars/pom.xml")
MAVEN = "{http://maven.apache.org/POM/4.0.0}"


def test_every_python_package_has_one_exact_version() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert len(pinned) > 100
    loose = [line for line in pinned if not re.fullmatch(r"[a-z0-9.\[\],_-]+==[\w.+!]+", line)]
    assert loose == []


def test_every_browser_package_has_a_checksum() -> None:
    lock = json.loads((ROOT / "dashboards/web/package-lock.json").read_text(encoding="utf-8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert len(packages) > 10
    assert [name for name, entry in packages.items() if "integrity" not in entry] == []


@pytest.mark.parametrize("pom", POMS)
def test_every_jar_has_one_exact_version(pom: str) -> None:
    root = ElementTree.parse(ROOT / pom).getroot()
    properties = {
        child.tag.removeprefix(MAVEN): child.text or ""
        for each in root.iter(f"{MAVEN}properties")
        for child in each
    }
    asked = [
        each.findtext(f"{MAVEN}version") or ""
        for tag in ("dependency", "plugin", "artifactItem")
        for each in root.iter(MAVEN + tag)
        if each.find(f"{MAVEN}artifactId") is not None
    ]
    versions = [
        re.sub(r"\$\{(.+?)\}", lambda m: properties[m.group(1)], version) for version in asked
    ]
    assert versions
    assert [v for v in versions if not re.fullmatch(r"\d[\w.-]*", v) or "SNAPSHOT" in v] == []
