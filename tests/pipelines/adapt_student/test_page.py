"""The morning page: what it says, and that a real browser shows it without a complaint."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from evaluation.gate.checks import PairedScore
from evaluation.gate.decisions import GateConfig, GateEvidence, decide
from evaluation.tasks import Question
from pipelines.adapt_student.evaluate import Contradiction
from pipelines.adapt_student.page import PAGE, GroupScore, NewDocument, NightResult, night_lines, page_of
from pipelines.adapt_student.plan import QUARANTINED, WITHOUT_QUESTIONS
from pipelines.process import preceptor
from pipelines.records import Candidate, Edit
from teacher.rewards import RewardFailure
from tests.extras import BROWSER

_QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
]  # fmt: skip


def scored(what: str, count: int, candidate: float, reference: float) -> tuple[PairedScore, ...]:
    return tuple(PairedScore(document=f"{what}/{i}", candidate=candidate, reference=reference) for i in range(count))


def a_night(outcome: str = "rejected", title: str = "A <script>alert(1)</script> title") -> NightResult:
    evidence = GateEvidence(
        new=scored("new", 40, 1.0, 0.0),
        earlier={"night-0001": scored("old", 40, 0.0, 1.0)},
        probes={"general": scored("probe", 99, 1.0, 1.0)},
        answered=179,
    )
    edits = [
        Edit(document_id="d1", index=i, text=f"- line {i} & more", token_ids=(), finish_reason="stop", edit=None)
        for i in range(2)
    ]
    return NightResult(
        night="night-0002",
        date="2026-11-30",
        student="own-model",
        outcome=outcome,
        parent=1,
        version=2,
        new=(
            NewDocument(
                id="d1", title=title, source="a.md", place="weights", because="no rule sends it to memory",
                questions=8, before=0.0, after=1.0, supersedes=("d0",),
                contradictions=(Contradiction(question="Who?", old="Ann", new="Bob"),),
                unknown=(Question(question="Where?", answer="Here"),),
            ),
            NewDocument(
                id="d2", title="", source="b.md", place="weights", because="as well", questions=8, before=None,
                after=None, not_learned="parse_failed",
            ),
        ),
        quarantined=("d1", "d2") if outcome == "rejected" else (),
        waiting={"d3": "a reason"},
        refused={"b.xlsx": "has <no> supported format"},
        conversations={"chat c1 of ann": "teaches nothing: message 0 speaks about training ('<b>')"},
        learned=("d1#0",),
        superseded={"d0": "d1"},
        groups=(GroupScore(night="night-0001", documents=5, then=0.9, before=1.0, after=0.0),),
        probes=99,
        probes_base=1.0,
        probes_before=1.0,
        probes_after=1.0,
        candidates=(Candidate(edit=edits[0], reward=0.25), Candidate(edit=edits[1], reason=RewardFailure.PARSE_FAILED)),
        replayed=5,
        gate=decide(evidence, GateConfig()),
        seconds={"learn": 30.0, "score": 12.0},
        teacher="version 3 of the teacher",
    )  # fmt: skip


def test_page_says_what_came_what_was_lost_and_what_to_do() -> None:
    night = a_night()
    assert night.gate is not None
    assert night.gate.decision == "reject"
    page = page_of(night)
    for part in (
        "rejected",
        "a.md",
        "replaces d0",
        "not learned: parse_failed",
        "night-0001",
        "version 3 of the teacher",
        "5 earlier documents",
        "preceptor inbox release d1 --work-dir",
        "d3: a reason",
        "b.xlsx: has &lt;no&gt; supported format",
        "chat c1 of ann: teaches nothing: message 0 speaks about training (&#39;&lt;b&gt;&#39;)",
        "d0 (now d1)",
        "2026-11-30",
        "own-model",
        "3 documents",
        "2 quarantined tonight, 1 waiting",
        "Who? Ann &rarr; Bob",
        "0.25 &#10003;",
        'Where? <span class="dim">Here',
    ):
        assert part in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    assert "preceptor rollback" in page_of(a_night("promoted"))
    assert "next night" in page_of(a_night("held"))


@pytest.mark.browser
def test_real_browser_shows_it_without_an_error(tmp_path: Path) -> None:
    assert BROWSER is not None
    page = tmp_path / PAGE
    page.write_text(page_of(a_night()), encoding="utf-8")
    command = [BROWSER, *_QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=380,900", "--dump-dom"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "night-0002" in shown.stdout
    assert "A &lt;script&gt;" in shown.stdout
    assert "CONSOLE" not in shown.stderr
    broken = tmp_path / "broken.html"  # what the check above would see of a page with a mistake in it
    broken.write_text("<script>console.error('a mistake')</script>")
    seen = subprocess.run([*command, broken.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" in seen.stderr


def test_terminal_lines_end_with_the_next_command() -> None:
    place = Path("work dir")
    promoted, rejected, held = (
        list(night_lines(a_night(outcome), place)) for outcome in ("promoted", "rejected", "held")
    )
    assert promoted[0] == "night-0002: promoted (version 2, trained from version 1)"
    assert "  0.0 -> 100.0 % correct  (2)" in promoted[1]
    assert promoted[-1].endswith(preceptor("rollback", "--because", "YOUR REASON", "--work-dir", place))
    assert "2 documents" in rejected[-1]
    assert "preceptor inbox release d1 --work-dir" in rejected[-1]
    assert any(line.startswith("  earlier documents: ") for line in rejected)
    assert "next night" in held[-1]
    assert any("b.xlsx: has <no> supported format" in line for line in held)
    nothing = NightResult(night="", outcome="nothing new")
    assert "othing new" in next(night_lines(nothing, place))
    reasons = {"d4": WITHOUT_QUESTIONS, "d5": WITHOUT_QUESTIONS, "d6": QUARANTINED}
    waiting = list(night_lines(nothing.model_copy(update={"waiting": reasons}), place))
    assert waiting[0].startswith("3 documents wait: 2 without questions")
    assert "preceptor inbox release d6 --work-dir 'work dir'" in waiting[1]
    assert not any("othing new" in line for line in waiting)
    for lines in (list(night_lines(nothing, place)), waiting):
        assert "preceptor inbox add" in lines[-1]


def test_result_that_an_earlier_release_wrote_is_read() -> None:
    written = a_night().model_dump(mode="json")
    written |= {"aside": written.pop("quarantined"), "waiting": ["d3"]}
    found = NightResult.model_validate(written)
    assert (found.quarantined, set(found.waiting)) == (a_night().quarantined, {"d3"})
