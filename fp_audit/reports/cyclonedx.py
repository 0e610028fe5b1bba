"""The report for supply chains: a bill of materials."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from fp_audit import __version__
from fp_audit.reports._base import Format, Report
from fp_audit.reports._text import grounds, p_text, printable
from fp_audit.types import Finding, Verdict

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"

INHERITS = (Verdict.IDENTICAL, Verdict.DERIVED)
"""Verdicts that make the victim an ancestor."""


class CycloneDx(Format):
    """CycloneDX 1.6 ML-BOM (JSON): a machine-learning model for each target; found victims are its ancestors.

    Verdicts are properties ``fp-audit:verdict:VICTIM``; ``pedigree.notes`` says what they rest on. Each model that was
    examined has a model card, with the inheritance as a risk.

    The components are the library's; model cards, which it cannot hold yet, are added to its JSON. Its ``Json`` writer
    is passed by: that registers an empty dependency for each component, in time quadratic in their number.
    """

    name: ClassVar[str] = "cyclonedx"
    summary: ClassVar[str] = "CycloneDX 1.6 ML-BOM with the pedigree of each model"

    def render(self, report: Report, *, width: int | None = None, colour: bool = False) -> str:
        """See ``Format.render``."""
        del width, colour
        from cyclonedx.model import Property
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.schema.schema import SchemaVersion1Dot6

        found: dict[tuple[str, str | None], list[Finding]] = {}
        for finding in report.findings:
            found.setdefault((finding.target, finding.revision), []).append(finding)
        examined = {f"model-{place}": findings for place, findings in enumerate(found.values(), 1)}
        components = [_component(findings, ref) for ref, findings in examined.items()]
        for place, item in enumerate(report.skipped, 1):
            about = [Property(name="fp-audit:skipped", value=printable(item.reason))]
            kind, name = ComponentType.MACHINE_LEARNING_MODEL, printable(item.target)
            components.append(Component(name=name, type=kind, bom_ref=f"skipped-{place}", properties=about))
        bom = Bom(components=components)
        bom.metadata.tools.components.add(
            Component(name="fp-audit", version=__version__, type=ComponentType.APPLICATION)
        )
        content = json.loads(bom.as_json(view_=SchemaVersion1Dot6))  # type: ignore[attr-defined]
        for component in content.get("components", ()):
            if component["bom-ref"] in examined:
                component["modelCard"] = _card(examined[component["bom-ref"]])
        return (
            json.dumps({"$schema": SCHEMA, "bomFormat": "CycloneDX", "specVersion": "1.6", **content}, indent=1) + "\n"
        )


def _component(findings: list[Finding], ref: str) -> Component:
    """Describe one target by all that was found about it."""
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    kind = ComponentType.MACHINE_LEARNING_MODEL
    inherited = [finding for finding in findings if finding.verdict in INHERITS]
    properties = [Property(name="fp-audit:adapter", value=findings[0].adapter)]
    for finding in findings:
        victim = printable(finding.victim)
        properties.append(Property(name=f"fp-audit:verdict:{victim}", value=str(finding.verdict)))
        properties.append(Property(name=f"fp-audit:p:{victim}", value=p_text(finding.p_value)))
        if finding.ignored is not None:
            properties.append(Property(name=f"fp-audit:ignored:{victim}", value=printable(finding.ignored)))
    return Component(
        name=printable(findings[0].target),
        version=None if findings[0].revision is None else printable(findings[0].revision),
        purl=_address(findings[0]),
        type=kind,
        bom_ref=ref,
        properties=properties,
        pedigree=Pedigree(
            ancestors=[Component(name=printable(finding.victim), type=kind) for finding in inherited],
            notes="\n".join(f"{printable(finding.victim)}: {printable(grounds(finding))}" for finding in inherited),
        )
        if inherited
        else None,
    )


def _card(findings: list[Finding]) -> dict[str, Any]:
    """Return the model card of one target: what every model here does, and whom it goes back to."""
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "image-classification",
            "inputs": [{"format": "image"}],
            "outputs": [{"format": "class scores"}],
        }
    }
    risks = [
        {
            "name": f"provenance: {finding.verdict}, registered model {printable(finding.victim)}",
            "mitigationStrategy": "use and publish only as the owner of the registered model allows",
        }
        for finding in findings
        if finding.verdict in INHERITS
    ]
    return {**card, "considerations": {"ethicalConsiderations": risks}} if risks else card


def _address(finding: Finding) -> PackageURL | None:
    """Address a model of a hub, ``org/model[/file]`` at a commit; a local one has no address."""
    from packageurl import PackageURL

    owner, _, rest = finding.target.partition("/")
    name, _, inside = rest.partition("/")
    if finding.revision is None or not name:
        return None
    return PackageURL("huggingface", printable(owner), printable(name), finding.revision, subpath=printable(inside))
