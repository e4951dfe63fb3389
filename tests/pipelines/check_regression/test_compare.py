"""Scores side by side: pure, of real students of the micro-world, and of real teachers that write for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation.common.checkpoints import load_checkpoint
from evaluation.common.errors import ConfigError, InputError, ModelError, ScoringError
from pipelines.check_regression.compare import compare_subjects, variant_scores
from pipelines.check_regression.suite import RegressionSuite
from pipelines.check_regression.verdict import EditsRecord, RegressionReport
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.settings import TrackingConfig, load
from student.adapters import Adapter, save_adapter
from teacher.policy import PolicyConfig, TeacherPolicy
from tests.pipelines.check_regression.factories import (
    adaptation_suite,
    made_adapter,
    run_config,
    saved_adapter,
    small_suite,
)
from tests.pipelines.factories import (
    make_candidate,
    make_failed_update,
    make_replicate,
    make_unparsable,
    save_tiny_model,
)
from tests.pipelines.lineage.test_registry import Open

UNGRADED = make_replicate("a", 0, exact=(False, False)).model_copy(
    update={"answers": ("x", "y"), "correct": (True, None)}
)
EDITS = EditsRecord(digest="a" * 64, written=4, unscored={})


def test_scores_of_a_variant_are_means_over_the_updates_of_a_document() -> None:
    good = make_replicate("a", 0, exact=(True, True), empty=1, retained=(True, False))
    other = make_replicate("a", 1, exact=(False, True), probability=(0.25, 0.25), retained=(True, False))
    candidates = (
        make_candidate("a", 0, replicates=(good,)),
        make_candidate("a", 1, replicates=(other,)),
        make_unparsable("a", 2),
        make_failed_update("b", 0),
    )
    found = variant_scores(candidates, EDITS)
    assert found.documents == {"a": (0.5, 1.0)}
    assert found.probability == {"a": pytest.approx(0.375)}
    assert found.probes == {"a": 0.5}
    assert (found.answered, found.empty) == (4, 1)


def verdicts(report: RegressionReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


# Students


def test_a_grader_decides_where_the_suite_names_one(tmp_path: Path) -> None:
    grader = {"grader": {"type": "gold-token-recall"}, "max_new_tokens": 4}
    suite = load(small_suite(tmp_path, grading=grader, probes=6), RegressionSuite)
    with pytest.raises(ConfigError, match="type domain"):
        load(small_suite(tmp_path, pin=False, grading={"grader": {"type": "domain"}}), RegressionSuite)
    graded = compare_subjects(suite, "base", "base", tmp_path)
    exact = compare_subjects(suite.model_copy(update={"grading": None}), "base", "base", tmp_path)
    mine, theirs = graded.subjects["baseline"], exact.subjects["baseline"]
    assert (mine.accuracy or 0.0) >= (theirs.accuracy or 0.0)  # every exact answer has all the words
    assert (mine.probability, mine.probes) == (theirs.probability, theirs.probes)
    found = variant_scores([make_candidate("a", 0, replicates=(UNGRADED,))], EDITS)
    assert found.documents == {"a": (1.0, None)}


def test_a_changed_suite_and_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    suite = load(small_suite(tmp_path), RegressionSuite)
    other = saved_adapter(tmp_path / "other", 0.0)
    (other / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="Allowed: plain LoRA"):
        compare_subjects(suite, f"adapter:{other}", "base", tmp_path)
    with pytest.raises(InputError, match="is not what was pinned: 60 documents"):
        compare_subjects(suite.model_copy(update={"questions_per_document": 2}), "base", "base", tmp_path)
    fit = made_adapter(0.0)
    foreign = save_adapter(Adapter(fit.factors, fit.rank, fit.alpha, "f" * 64), tmp_path / "foreign")
    with pytest.raises(ScoringError, match=r"subject 'adapter:.*foreign' cannot be scored"):
        compare_subjects(suite, f"adapter:{foreign}", "base", tmp_path)


# Variants

REWRITE = "teacher.prompt=micro-rewrite"
"""The micro teacher, untrained, writes more that is worth learning with it than with the suite's own prompt."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a pinned suite and a work directory, so that a variant is scored once for all tests."""
    place = tmp_path_factory.mktemp("variants")
    adaptation_suite(place)
    (place / "work").mkdir()
    run_config(place / "good.yaml", REWRITE)
    return place


def compare(place: Path, candidate: str, baseline: str = "") -> RegressionReport:
    suite = load(place / "suite.yaml", RegressionSuite)
    return compare_subjects(suite, candidate, baseline or f"config:{place}/good.yaml", place / "work")


def test_a_variant_compared_with_itself_passes_without_any_change(place: Path, prefect_server: None) -> None:
    report = compare(place, f"config:{place}/good.yaml")
    assert report.outcome == "passed"
    assert set(verdicts(report).values()) == {"pass"}
    assert report.candidate is not None
    assert report.candidate == report.baseline
    assert report.candidate.edits is not None
    assert report.candidate.edits.written == report.documents == 20
    assert (report.candidate.accuracy or 0.0) > 0.2
    assert (report.candidate.probes or 0.0) > 0.7  # what the base was pretrained on
    assert [check.estimate for check in report.checks if check.name in ("documents", "retention probes")] == [0.0, 0.0]


def test_a_regression_planted_in_a_configuration_is_found(place: Path, tmp_path: Path, prefect_server: None) -> None:
    report = compare(place, f"config:{run_config(tmp_path / 'worse.yaml', 'teacher.prompt=implications')}")
    assert report.outcome == "regressed"
    assert verdicts(report)["documents"] == "fail"


def test_a_variant_whose_self_edits_fail_has_no_score_and_is_undecided(
    place: Path, tmp_path: Path, prefect_server: None
) -> None:
    silent = save_tiny_model(tmp_path / "silent", silent=True)
    refused = (f"teacher.model={silent}", "teacher.sampling.temperature=0")
    for changes, reason in ((refused, "parse_failed"), (("student.update.learning_rate=1e-9",), "canary_failed")):
        report = compare(place, f"config:{run_config(tmp_path / 'none.yaml', REWRITE, *changes)}")
        assert (report.outcome, report.exit_code) == ("undecided", 3)
        assert report.candidate is not None
        assert report.candidate.edits is not None
        assert report.candidate.edits.unscored == {reason: 20}
        assert report.candidate.accuracy is None
        assert (len(report.left_out), report.questions) == (20, 0)


def test_teachers_are_opened_from_a_directory_and_from_the_registry(
    place: Path, open_run: Open, work_dir: Path, prefect_server: None
) -> None:
    policy = TeacherPolicy(load_checkpoint("micro-teacher"), PolicyConfig(rank=2, alpha=4.0), 5)
    with torch.no_grad():
        for i, weight in enumerate(policy.adapter_parameters()):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    policy.save(place / "teacher")
    own = compare(place, f"teacher:{place}/teacher", "teacher:base").subjects
    assert (own["candidate"].adapter_digest, own["baseline"].adapter_digest) == (policy.digest, None)
    assert own["candidate"].accuracy != own["baseline"].accuracy  # the adapter writes, at another rank than the suite's
    lineage: Lineage = open_run()
    version = lineage.registry.register(
        "teacher", place / "teacher", digest=policy.digest, tags={}, run_id=lineage.run_id
    )
    Registry.open(TrackingConfig(), work_dir).promote("teacher", version)
    suite = load(place / "suite.yaml", RegressionSuite)
    found = compare_subjects(suite, "version:teacher@champion", f"teacher:{place}/teacher", work_dir).subjects
    assert (found["candidate"].version, found["baseline"].version) == (version, None)
    assert found["candidate"].edits == found["baseline"].edits
    assert found["candidate"].accuracy == own["candidate"].accuracy


def test_another_teacher_than_the_pinned_one_is_refused(place: Path, prefect_server: None) -> None:
    suite = load(place / "suite.yaml", RegressionSuite)
    assert suite.pins is not None
    other = suite.model_copy(update={"pins": suite.pins.model_copy(update={"teacher": "3" * 64})})
    with pytest.raises(InputError, match="the teacher has the digest"):
        compare_subjects(other, "teacher:base", f"config:{place}/good.yaml", place / "work")
