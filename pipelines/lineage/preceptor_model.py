"""Opens a registered version as an MLflow model; stored with each version, and needs nothing of Preceptor's.

`mlflow.pyfunc.load_model("models:/preceptor-student@champion").predict(["Who ...?"])` returns the answers that the
version's weights write, greedily; its external memory is not read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FORMAT_FILE, _PLAIN = "answer_format.json", {"opening": "", "prompt": "{question}"}
_MOST_TOKENS = 32


class AdaptedModel:
    """A base model with a version's adapter."""

    def __init__(self, directory: Path, base: str) -> None:
        """Open the files of a version on a base: a directory or a hub id."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model: Any = PeftModel.from_pretrained(model, str(directory)).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        file = directory / _FORMAT_FILE
        asked = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._form = asked.get("answer_format") or _PLAIN

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Return the answers to questions, given as a table's first column, a list or one text."""
        del params  # MLflow passes it to every model
        column = model_input[model_input.columns[0]] if hasattr(model_input, "columns") else model_input
        questions: Iterable[str] = [column] if isinstance(column, str) else column
        return [self._answer(str(question)) for question in questions]

    def _answer(self, question: str) -> str:
        import torch

        prompt = self._form["opening"] + self._form["prompt"].replace("{question}", question)
        bos = self.tokenizer.bos_token
        ids = [] if bos is None or prompt.startswith(bos) else [self.tokenizer.bos_token_id]
        ids += self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        rows = torch.tensor([ids])
        greedy = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=_MOST_TOKENS,
                pad_token_id=self.tokenizer.eos_token_id,
                **greedy,
            )
        text = self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        return next((line.strip() for line in text.splitlines() if line.strip()), "")


def as_pyfunc(place: Path, base: str, run_id: str, model_id: str) -> Path:
    """Write to `place` what makes an adapter's directory a model that `mlflow.pyfunc` opens on its base."""
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import add_to_model
    from mlflow.types import ColSpec, Schema

    texts = Schema([ColSpec("string")])  # without a name, lists are taken as well as tables
    model = Model(run_id=run_id, model_id=model_id, signature=ModelSignature(texts, texts))
    add_to_model(model, loader_module=Path(__file__).stem, code="code", model_config={"base": base})
    model.save(str(place / "MLmodel"))
    (place / "code").mkdir()
    shutil.copy(__file__, place / "code")
    return place


def how_to_open(name: str, base: str) -> str:
    """Return what a version's description says about opening it, in Markdown."""
    return (
        f"Base model: `{base or 'unknown'}`. Open it with `AutoPeftModelForCausalLM.from_pretrained("
        "mlflow.artifacts.download_artifacts(uri))` or `mlflow.pyfunc.load_model(uri)`, where `uri` is "
        f"`models:/{name}/NUMBER`."
    )


def _load_pyfunc(path: str, model_config: dict[str, Any]) -> AdaptedModel:
    """Return the model in a directory; MLflow calls this, with `base` in `model_config`."""
    return AdaptedModel(Path(path), model_config["base"])
