"""Ways of adapting as subjects: what is read, refused, pinned, paired and told of them. No model is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.errors import ConfigError, InputError
from evaluation.gate import PairedScore
from pipelines.config import to_yaml
from pipelines.regression.pins import check_pins, check_teacher, pins_of
from pipelines.regression.reports import EditsRecord, RegressionReport, SubjectRecord, junit_xml, regression_markdown
from pipelines.regression.subjects import parse_subject, parse_subjects
from pipelines.regression.suite import AdaptationConfig, SuiteContent, load_content, load_suite
from pipelines.regression.verdict import Compared, Unscored, VerdictConfig, check_unscored, find_verdict
from pipelines.regression.way_scores import WayScores, paired_ways, way_scores
from pipelines.regression.ways import way_of
from tests.pipelines.factories import make_candidate, make_failed_update, make_replicate, make_task, make_unparsable
from tests.pipelines.factories import make_variant as variant_of
from tests.pipelines.regression.parts import ADAPTATION, SHIPPED, run_config, small_suite, ways_suite
from tests.pipelines.small import DEMO, small_config

LIMITS = VerdictConfig(resamples=1000)


def test_teachers_and_configurations_are_read_as_they_are_written(tmp_path: Path) -> None:
    assert parse_subject("teacher:base")[:3] == ("teacher:base", "base", "teacher")
    assert parse_subject(f"teacher:{tmp_path}").directory == tmp_path
    assert parse_subject("version:teacher/3")[1:5] == ("version", "teacher", None, 3)
    assert parse_subject("version:teacher@champion").version == "champion"
    assert parse_subject(f"config:{DEMO}").config == DEMO
    assert all(parse_subject(text).adapts for text in ("teacher:base", "version:teacher/1", f"config:{DEMO}"))
    assert not any(parse_subject(text).adapts for text in ("base", "version:student/1", f"adapter:{tmp_path}"))
    for text in (f"config:{tmp_path}", f"config:{tmp_path}/none.yaml", f"teacher:{tmp_path}/nowhere"):
        with pytest.raises(ConfigError, match="there is no"):
            parse_subject(text)


@pytest.mark.parametrize("way", ["teacher:base", "version:teacher@champion", f"config:{DEMO}"])
@pytest.mark.parametrize("student", ["base", "version:student/1"])
def test_a_student_and_a_way_of_adapting_do_not_compare(way: str, student: str) -> None:
    for pair in ((way, student), (student, way)):
        with pytest.raises(ConfigError, match="is a way of adapting"):
            parse_subjects(*pair)
    assert [subject.text for subject in parse_subjects(way, "teacher:base")] == [way, "teacher:base"]


def test_a_way_takes_the_suites_student_seeds_and_documents_and_its_own_teacher_and_recipe(tmp_path: Path) -> None:
    suite = load_suite(ways_suite(tmp_path, pin=False, adaptation={**ADAPTATION, "edits": 3, "seed": 7}))
    teacher = way_of(suite, parse_subject("teacher:base")).run
    assert suite.adaptation is not None
    assert (teacher.teacher, teacher.student.update) == (suite.adaptation.teacher, suite.adaptation.update)
    file = run_config(
        tmp_path / "run.yaml", "seed=3", "teacher.prompt=micro-rewrite", "student.update.epochs=2", "comparison.edits=9"
    )
    said = way_of(suite, parse_subject(f"config:{file}")).run
    assert (said.teacher.prompt, said.student.update.epochs) == ("micro-rewrite", 2)
    for run in (teacher, said):
        assert (run.seed, run.comparison.edits, run.comparison.retention_probes) == (7, 3, suite.probes)
        assert (run.data, run.student.model, run.loop.rounds) == (suite.data, suite.student, 0)


def test_the_digest_of_a_way_is_of_what_decides_its_scores(tmp_path: Path) -> None:
    suite = load_suite(SHIPPED)
    base = way_of(suite, parse_subject("teacher:base"))
    demo = way_of(suite, parse_subject(f"config:{DEMO}"))
    assert base.digest("a" * 64) == demo.digest("a" * 64)  # the shipped suite has the demo's recipe
    others = [base.digest("b" * 64)] + [
        way_of(suite, parse_subject(f"config:{run_config(tmp_path / 'run.yaml', change)}")).digest("a" * 64)
        for change in ("teacher.prompt=micro-rewrite", "student.update.rank=4", "teacher.sampling.temperature=0.5")
    ]
    assert len({base.digest("a" * 64), *others}) == 5


def test_what_does_not_fit_a_suite_is_refused(tmp_path: Path) -> None:
    without = load_suite(small_suite(tmp_path, pin=False))
    for text in ("teacher:base", f"config:{DEMO}"):
        with pytest.raises(ConfigError, match="has no section 'adaptation'"):
            way_of(without, parse_subject(text))
    suite = load_suite(ways_suite(tmp_path, pin=False))
    for change, told in (
        ("student.model=elsewhere", r"student.model is 'elsewhere'"),
        ("student.answer_format.joiner=': '", r"student.answer_format is"),
    ):
        other = run_config(tmp_path / "other.yaml", change)
        with pytest.raises(ConfigError, match=told):
            way_of(suite, parse_subject(f"config:{other}"))
    broken = tmp_path / "broken.yaml"
    broken.write_text(to_yaml(small_config()).replace("algorithm: grpo", "algorithm: none"))
    with pytest.raises(ConfigError, match=r"teacher\.learning"):
        way_of(suite, parse_subject(f"config:{broken}"))
    endpoint = {"type": "openai", "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "served"}}
    remote = load_suite(ways_suite(tmp_path, pin=False, adaptation={"teacher": {"sampling": endpoint}}))
    assert not way_of(remote, parse_subject("teacher:base")).local
    with pytest.raises(ConfigError, match="behind an endpoint, which takes no adapter"):
        way_of(remote, parse_subject("version:teacher/1"))


def adaptation(**changes: Any) -> str:
    return AdaptationConfig.model_validate({**ADAPTATION, **changes}).digest


def test_pins_notice_how_teachers_write_and_students_learn_and_not_how_teachers_learn(tmp_path: Path) -> None:
    teacher = ADAPTATION["teacher"]
    changed = [
        adaptation(edits=2),
        adaptation(seed=1),
        adaptation(update={**ADAPTATION["update"], "rank": 4}),
        adaptation(teacher={**teacher, "prompt": "micro-rewrite"}),
        adaptation(teacher={**teacher, "sampling": {"temperature": 0.5}}),
    ]
    assert len({adaptation(), *changed}) == 6
    assert adaptation(teacher={**teacher, "samples": 3, "policy": {"rank": 2}}) == adaptation()
    suite = load_suite(ways_suite(tmp_path, pin=False))
    pins = pins_of(load_content(suite), "1" * 64, "2" * 64)
    pinned = suite.model_copy(update={"pins": pins})
    check_pins(pinned, pins)
    check_pins(pinned, pins.model_copy(update={"teacher": None}))  # it was not opened
    with pytest.raises(InputError, match="the section 'adaptation' is changed"):
        check_pins(pinned, pins.model_copy(update={"adaptation": changed[0]}))
    check_teacher(pinned, "2" * 64)
    with pytest.raises(InputError, match="the teacher 'micro-teacher' has the digest 333333333333, not 222222222222"):
        check_teacher(pinned, "3" * 64)
    with pytest.raises(InputError, match="none was pinned"):
        check_teacher(suite.model_copy(update={"pins": pins.model_copy(update={"teacher": None})}), "3" * 64)


def test_a_suite_that_got_its_section_after_it_was_pinned_is_refused(tmp_path: Path) -> None:
    suite = load_suite(SHIPPED)
    assert suite.pins is not None
    older = suite.model_copy(update={"pins": suite.pins.model_copy(update={"adaptation": None, "teacher": None})})
    with pytest.raises(InputError, match="the section 'adaptation' is changed"):
        check_pins(older, suite.pins)


# Scores


def scores(documents: dict[str, tuple[float, ...]], **changes: Any) -> WayScores:
    fields: dict[str, Any] = {
        "digest": "a" * 64,
        "adapter_digest": None,
        "documents": documents,
        "probability": dict.fromkeys(documents, 0.5),
        "probes": dict.fromkeys(documents, 0.75),
        "empty": 0,
        "answered": sum(map(len, documents.values())),
        "written": 4,
        "unscored": {},
    }
    return WayScores.model_validate(fields | changes)


CONTENT = SuiteContent((make_task("a"), make_task("b")), {}, ())


def test_self_edits_without_a_score_are_counted_and_give_none() -> None:
    update = {"retained": (True, False), "forgetting": 0.5}
    good = make_replicate("a", 0, exact=(True, True), empty=1, **update)
    other = make_replicate("a", 1, exact=(False, True), probability=(0.25, 0.25), **update)
    candidates = (
        make_candidate("a", 0, replicates=(good,)),
        make_candidate("a", 1, replicates=(other,)),
        make_unparsable("a", 2),
        make_failed_update("b", 0),
        make_unparsable("b", 1),
        make_unparsable("b", 2),
    )
    found = way_scores(variant_of(candidates=candidates), "a" * 64, None, 9)  # a third document had too long a prompt
    assert found.documents == {"a": (0.5, 1.0)}
    assert found.probability == {"a": pytest.approx(0.375)}
    assert found.probes == {"a": 0.5}
    assert found.unscored == {"parse_failed": 3, "prompt_too_long": 3, "update_failed": 1}
    assert (found.written, found.answered, found.empty) == (9, 4, 1)


def test_pairs_are_by_document_and_one_that_a_side_has_no_score_for_is_left_out() -> None:
    mine = scores({"a": (0.5, 1.0)}, unscored={"parse_failed": 2}, probes={"a": 0.25})
    theirs = scores({"a": (0.0, 1.0), "b": (1.0, 1.0)}, empty=1)
    found = paired_ways(CONTENT, mine, theirs)
    assert found.documents == (
        PairedScore(document="a", candidate=0.5, reference=0.0),
        PairedScore(document="a", candidate=1.0, reference=1.0),
    )
    assert found.probes == (PairedScore(document="a", candidate=0.25, reference=0.75),)
    assert found.unscored == Unscored(edits=(2, 0), written=4, left_out=("b",), documents=2)
    assert (found.collapsed, found.answered) == ((0, 1), (2, 4))
    assert theirs.on(["a"]) == (0.5, 0.5, 0.75)
    assert theirs.on([]) == (None, None, None)


def compared(change: float, documents: int, unscored: Unscored) -> Compared:
    pairs = tuple(
        PairedScore(document=f"d{i}", candidate=0.5 + change / 2, reference=0.5 - change / 2) for i in range(documents)
    )
    return Compared(pairs, (), (0, 0), (documents, documents), unscored)


def test_too_many_without_a_score_are_undecided_whatever_the_others_say_but_a_shown_loss_stays_one() -> None:
    few, many = Unscored((8, 40), 80, (), 40), Unscored((9, 0), 80, (), 40)
    left_out = Unscored((0, 40), 80, tuple("abcde"), 40)
    assert [check_unscored(case, 0.1).verdict for case in (few, many, left_out)] == ["pass", "undecided", "undecided"]
    assert find_verdict(compared(0.0, 80, few), {}, LIMITS).outcome == "passed"
    assert find_verdict(compared(0.3, 80, many), {}, LIMITS).outcome == "undecided"
    assert find_verdict(compared(-0.3, 80, many), {}, LIMITS).outcome == "regressed"
    nothing = Compared((), (), (0, 0), (0, 0), Unscored((80, 0), 80, tuple("abcd"), 4))
    assert find_verdict(nothing, {}, LIMITS).outcome == "undecided"


def test_reports_tell_of_self_edits_and_of_documents_left_out() -> None:
    edits = EditsRecord(digest="c" * 64, written=40, unscored={"parse_failed": 4, "update_failed": 2})
    way = SubjectRecord(
        subject="version:teacher/2",
        adapter_digest="a" * 64,
        version=2,
        accuracy=None,
        probability=None,
        probes=None,
        edits=edits,
    )
    unscored = Unscored((6, 0), 40, ("x", "y"), 20)
    report = RegressionReport(
        suite="small",
        suite_digest="d" * 64,
        outcome="undecided",
        candidate=way,
        baseline=way.model_copy(update={"edits": edits.model_copy(update={"unscored": {}})}),
        checks=(check_unscored(unscored, 0.1),),
        limits=LIMITS,
        documents=20,
        left_out=unscored.left_out,
    )
    page = regression_markdown(report)
    assert "| candidate `version:teacher/2` |  |  |  | 40 | 6 (parse_failed 4, update_failed 2) |" in page
    assert "| baseline `version:teacher/2` |  |  |  | 40 | 0 |" in page
    assert "6 of the candidate's 40 and 0 of the baseline's; 2 of 20 documents" in page
    assert "20 documents, 2 left out" in page
    assert 'errors="1"' in junit_xml(report)
    assert RegressionReport.model_validate_json(report.model_dump_json()) == report
