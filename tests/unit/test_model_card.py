"""The model card that is saved and pushed with a pipeline; nothing here reaches the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers.pipelines import pipeline_utils
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard

from diffusion import VidTwinPipeline

CONFIG = """
output: /home/someone/outputs/run
steps: 300
batch_size: 8
data: {source: files, path: /home/someone/clips}
optimizer: {learning_rate: 0.0008}
"""


@pytest.fixture
def run(build_pipeline, tmp_path) -> Path:
    """A run folder with a pipeline."""
    folder = tmp_path / "run"
    build_pipeline().save_pretrained(folder / "pipeline")
    (folder / "config.yaml").write_text(CONFIG)
    logged = [{"step": 1, "loss/total": 2.0}, *({"step": n, "validation/structure": 1 / n}
              for n in (100, 300))]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in logged)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 301, "validation/struc')
    return folder


@pytest.fixture
def hub(monkeypatch):
    """What is uploaded: repository -> its card; a repository has the card that it has here."""
    found: dict[str, str] = {}

    def upload(repo_id: str, folder_path: str, **options: object) -> None:
        assert (Path(folder_path) / "transformer" / "config.json").is_file()
        found[repo_id] = (Path(folder_path) / "README.md").read_text(encoding="utf-8")

    def load(repo_id: str, **options: object) -> ModelCard:
        text = found.get(repo_id, "This model card has been automatically generated.")
        return ModelCard(text)

    for module in (hub_utils, pipeline_utils):
        created = type("Created", (), {"repo_id": "me/pipe"})
        monkeypatch.setattr(module, "create_repo", lambda *args, _=created, **options: _)
        monkeypatch.setattr(module, "load_or_create_model_card", load)
    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    return found


def test_it_says_what_a_pipeline_is(build_pipeline, tmp_path) -> None:
    pipeline = build_pipeline(classes=True)
    pipeline.save_pretrained(tmp_path)
    card = ModelCard((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert card.data.license == "mit" and card.data.library_name == "diffusers"
    assert "text-to-video" in card.data.tags
    count = sum(p.numel() for p in pipeline.transformer.parameters())
    for said in (
        "from prompts and 3 classes",
        f"| transformer parameters | {count:,} |",
        "8 frames of 16 x 24 pixels",
        "VidTwinPipeline.from_pretrained(",
        "The run is not known here.",
        "MIT",
    ):
        assert said in card.text
    assert "Validation" not in card.text
    assert VidTwinPipeline.from_pretrained(tmp_path).fps == 8.0


def test_it_says_what_the_run_knows_and_no_paths(run, tmp_path) -> None:
    VidTwinPipeline.from_pretrained(run / "pipeline").save_pretrained(tmp_path / "copy")
    text = (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")
    for said in ("| steps | 300 |", "| data.path | clips |", "| optimizer learning_rate | 0.0008 |",
                 "after step 300", "| structure | 0.003333 |"):  # fmt: skip
        assert said in text
    assert "someone" not in text and "not known" not in text


def test_a_run_on_a_cache_does_not_name_the_configs_clips(run, tmp_path) -> None:
    (run / "config.yaml").write_text("steps: 3\ncache: home/latents\ndata: {source: shapes}\n")
    VidTwinPipeline.from_pretrained(run / "pipeline").save_pretrained(tmp_path / "copy")
    text = (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")
    assert "| cache | latents |" in text and "shapes" not in text.replace("moving shapes", "")


def test_a_card_of_ones_own_stays(build_pipeline, tmp_path) -> None:
    build_pipeline().save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text().replace("VidTwin pipeline", "old"))
    build_pipeline().save_pretrained(tmp_path)
    assert "# VidTwin pipeline" in card.read_text()
    card.write_text("mine")
    build_pipeline().save_pretrained(tmp_path)
    assert card.read_text() == "mine"


def test_it_is_pushed(run, hub, tmp_path) -> None:
    pipeline = VidTwinPipeline.from_pretrained(run / "pipeline")
    pipeline.push_to_hub("me/pipe", variant="fp16")
    assert "after step 300" in hub["me/pipe"]
    hub.clear()
    pipeline.save_pretrained(tmp_path / "pipe", push_to_hub=True)
    assert "after step 300" in hub["me/pipe"]
    hub["me/pipe"] = "mine, on the hub"
    pipeline.push_to_hub("me/pipe")
    assert hub["me/pipe"].endswith("mine, on the hub")
