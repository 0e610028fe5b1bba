"""Findings and names for the tests of reports."""

from fp_audit.reports._base import Report
from fp_audit.types import Access, Cost, Evidence, Finding, Skipped, Verdict

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(1)",
    " -2",
    "a|b",
    "a\\|b`c`",
    "two\nlines",
    "carriage\rreturn",
    "tab\tstop",
    "\x1b[31mred\x1b[0m",
    "]]>",
    "{{ 7 * 7 }}",
    "nul\x00",
    "non\ufffecharacter\uffff",
    "surrogate\udc80",
    "\u202eright to left",
    "::error::x",
    "%0A::add-mask::x",
    "@octocat #1 www.evil.example https://evil.example **bold** [a](b) $x$",
    "../../etc/passwd",
    "//evil.example/x",
    "a&b;c&lt;",
    "quote\"d, 'twice'",
    "猫" * 10,
    "x" * 5000,
    "",
)

EVIDENCE = (
    Evidence("weights", Access.WEIGHTS, 0.25, 0.5, None, 0, "shares none of the victim's 10 weight matrices"),
    Evidence(
        "negatives",
        Access.QUERIES,
        0.93,
        1e-300,
        {"n": 14, "mean": 0.4, "max": 0.52, "conformal_p": 1 / 15},
        100,
        "says the same on 93%",
        {"files": [1, None]},
    ),
)


def finding(target="thief/ftal", verdict=Verdict.DERIVED, victim="digits", p=0.004, **more):
    known = {"reason": "says the same", "adapter": "onnx", "revision": None, "q_value": p, "evidence": EVIDENCE}
    return Finding(target, victim, verdict, p_value=p, cost=Cost(432000, 200, 1234.5678), **{**known, **more})


def report(*findings, skipped=(), victims=("digits",)):
    return Report(victims, findings, tuple(skipped), 0.01, Access.QUERIES)


def everything():
    """A report with all verdicts, an ignored finding, a skipped target and a finding without p."""
    findings = [finding(f"t-{verdict}", verdict) for verdict in Verdict]
    findings += [finding("let/go", ignored="licensed until 2027"), finding("no/p", Verdict.INCONCLUSIVE, p=None)]
    findings += [finding("t-derived", Verdict.SUSPECTED, victim="faces"), finding("hub/model", revision="ab" * 20)]
    return report(*findings, skipped=[Skipped("broken", "truncated")], victims=("digits", "faces"))


def hostile(name):
    """A report in which everything that a model may bring is ``name``."""
    evidence = tuple(Evidence(e.method, e.access, e.score, e.p_value, e.null, 0, name, {"x": name}) for e in EVIDENCE)
    judged = finding(name, victim=name, reason=name, evidence=evidence, revision=name, ignored=name)
    return report(judged, finding(name, reason=name), skipped=[Skipped(name, name)], victims=(name, "digits"))
