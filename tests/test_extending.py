"""The examples of docs/extending.md, each installed in a copy of the source tree and used there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_SECTION = re.compile(r"^## A(?:n)? (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, dict[str, str]] = {title: dict(_BLOCK.findall(body)) for title, body in _SECTION.findall(TEXT)}
"""Code blocks of each section by their language."""

_SETTINGS = """
import sys, yaml
from pathlib import Path
from pipelines.train_teacher.config import TrainTeacherConfig
own, config = yaml.safe_load(sys.argv[1]), yaml.safe_load(Path("configs/squad-smoke.yaml").read_text())
config["loop"] = {"rounds": 1, "documents": 1}
config["data"] = own.pop("data", config["data"])
for name, section in own.items():
    config[name] = {**config.get(name, {}), **section}
config = TrainTeacherConfig.model_validate(config)
"""
_POLICY = """
from teacher.policy import PolicyConfig, TeacherPolicy
from tests.teacher.factories import group, log_likelihoods, tiny_base
policy = TeacherPolicy(tiny_base(), PolicyConfig(), seed=0)
"""
CHECKS = {
    "learning algorithm": _SETTINGS
    + _POLICY
    + """
from teacher.algorithms.algorithm import learn
good, bad = group("g", 0.0, None, 1.0), group("h", 0.5)
selection = config.teacher.learning.select([good, bad])
assert [round(e.weight, 1) for e in selection.examples] == [-0.5, 0.5]
assert selection.left_out == {"h": "too_few_rewards"}
before = log_likelihoods(policy, selection.examples)
report = learn(policy, selection.examples, config.teacher.learning, seed=0)
after = log_likelihoods(policy, selection.examples)
assert report.examples == 2 and report.clip_fraction == 0.0
assert after[1] - before[1] > 0.001 > after[0] - before[0]
""",
    "sampler engine": _SETTINGS
    + _POLICY
    + """
sampler = config.teacher.sampling.build(policy, "toy", "float32")
both = sampler.sample(["w1 w2", "w3"], n=3, seed=0)
assert all(0 < len(c.token_ids) <= 8 and c.text for row in both for c in row) and len(both) == 2
assert sampler.sample(["w3"], n=3, seed=0)[0] == both[1] != sampler.sample(["w3"], n=3, seed=1)[0]
""",
    "document reader": """
import sys
from pathlib import Path
from pipelines.cli import main
from pipelines.inbox.store import INBOX_FILE, InboxStore
entry = "SUMMARY:Refunds\\nDTSTART;VALUE=DATE:20261130\\nDESCRIPTION:Paid within ten days.\\\\n\\\\nNever\\n  in cash."
Path("note.ics").write_text(entry)
sys.argv = ["preceptor", "inbox", "add", "note.ics", "--work-dir", "work"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
with InboxStore(Path("work") / INBOX_FILE) as store:
    (found,) = store.documents()
assert (found.title, found.text) == ("Refunds", "Paid within ten days.\\n\\nNever in cash.")
assert str(found.effective) == "2026-11-30" and found.source == "note.ics"
""",
    "gate check": """
from evaluation.gate.checks import PairedScore
from evaluation.gate.decisions import GateConfig, GateEvidence, decide, report_markdown
def decided(lost):
    same = [PairedScore(document=f"d{i}", candidate=float(i >= lost), reference=1.0) for i in range(100)]
    new = [PairedScore(document=f"n{i}", candidate=1.0, reference=0.0) for i in range(20)]
    earlier, probes = {"n1": tuple(same)}, {"general": tuple(same[lost:])}
    found = GateEvidence(new=tuple(new), earlier=earlier, probes=probes, answered=120, canaries={"a": None})
    report = decide(found, GateConfig(earlier_margin=1.0, group_margin=1.0))
    assert "overwritten answers" in report_markdown(report)
    (check,) = (check for check in report.checks if check.name == "overwritten answers")
    return report.decision, check.verdict, check.documents
assert decided(20) == ("promote", "pass", 100)
assert decided(21) == ("reject", "fail", 100)
""",
    "domain": """
from pathlib import Path
Path("rivers.csv").write_text("river,length_km\\nNile,6650\\nRhine,1230\\nLoire,1006\\nThames,346")
"""
    + _SETTINGS
    + """
from evaluation.domains import domain_of
from teacher.prompts import prompt_template
from teacher.self_edit import Implication, SelfEdit
split, domain = config.load_documents(), domain_of(config.data)
assert [len(side) for side in split] == [1, 1, 2]
task = split.test[0]
assert domain_of(task) is domain
assert domain.render(task).text in prompt_template(config.teacher.prompt).render(domain.render(task), None)
expansion = domain.expand(task, SelfEdit(implications=(Implication(text="A river."),)), 0)
assert [line.text for line in expansion.lines] == ["A river.", *task.document.text.splitlines()]
assert domain.grade(task.questions, [f" {int(task.questions[0].answer):,} "]) == (True,)
assert domain.grade(task.questions, ["7"]) == (False,)
""",
}


def installed(example: dict[str, str], place: Path) -> Path:
    """Copy the source tree, apply an example to it and return the file with its code."""
    for folder in ("evaluation", "teacher", "student", "pipelines", "configs", "tests/teacher"):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__", "models", "test_*"))
    heading, _, code = example["python"].partition("\n")
    where, _, anchor = heading.removeprefix("# ").partition(", above ")
    target = place / where
    assert target.exists() is bool(anchor)
    if anchor:
        code = replaced(target.read_text(), f"\n{anchor}:", f"\n{code}\n\n{anchor}:")
    target.write_text(code)
    header, *lines = example["diff"].splitlines()
    assert sum(line.startswith("+") for line in lines) == 1
    before, after = (line[1:] for line in lines if not line.startswith("+")), (line[1:] for line in lines)
    listed = place / header.removeprefix("--- ")
    listed.write_text(replaced(listed.read_text(), "\n".join(before), "\n".join(after)))
    return target


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize("title", CHECKS)
def test_example_works_as_it_stands_in_the_document(title: str, tmp_path: Path) -> None:
    assert EXAMPLES.keys() == CHECKS.keys()
    module = installed(EXAMPLES[title], tmp_path)
    ruff, rules = str(Path(sys.executable).with_name("ruff")), ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        subprocess.run([ruff, *command, *rules, str(module)], check=True)
    here = f"import teacher; assert teacher.__file__.startswith({str(tmp_path)!r})\n"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", here + CHECKS[title], EXAMPLES[title].get("yaml", "")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
