"""Attacks: files that try to run code, to write or read elsewhere, or to take all memory.

Each gets an empty folder, prepares its files, and returns a call that a user might make with them.
It has held if the call is refused with a ValueError of one line, nothing has run (a program leaves
the file RAN), nothing beside the folder was touched, and memory has not grown.
"""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "checkpoints" / "shapes"
RAN = "ran"
MOST_SECONDS, MOST_BYTES = 30.0, 300e6

Call = Callable[[], object]
Attack = Callable[[Path], Call]  # of an empty folder


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.target = str(folder / RAN)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def in_config(text: str) -> Attack:
    """A config file of a measurement, in which FOLDER stands for the folder."""

    def attack(folder: Path) -> Call:
        from vidtwin_lab.evaluation.measurement_configs import GenerationConfig
        from vidtwin_lab.runtime import load_config

        file = folder / "config.yaml"
        file.write_text(text.replace("FOLDER", str(folder)))
        return lambda: load_config(GenerationConfig, file, ["generated.path=x"])

    return attack


def nested_aliases(levels: int = 30) -> str:
    """A text whose aliases stand for 2^levels values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines)


def in_pipeline(change: Callable[[Path, Path], object]) -> Attack:
    """A saved pipeline, changed by a function of its folder and the attack's."""

    def attack(folder: Path) -> Call:
        from diffusion import VidTwinPipeline

        saved = folder / "pipeline"
        shutil.copytree(SHIPPED, saved)
        change(saved, folder)
        return lambda: VidTwinPipeline.from_pretrained(saved)

    return attack


def with_keys(file: str, **keys: Any) -> Callable[[Path, Path], object]:
    """Sets keys of a JSON file in a folder."""

    def change(saved: Path, _: Path) -> None:
        path = saved / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(content | keys))

    return change


def foreign_model(saved: Path, folder: Path) -> None:
    """Gives a text encoder code of its own."""
    (saved / "code.py").write_text(f"import os\nos.mkdir({str(folder / RAN)!r})\n")
    names = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoTokenizer": ["code.T", None]}
    for file in ("config.json", "tokenizer_config.json"):
        with_keys(file, auto_map=names)(saved, folder)


def unknown_model(saved: Path, folder: Path) -> None:
    """The same for a kind of model that transformers does not know."""
    foreign_model(saved, folder)
    with_keys("config.json", model_type="mine")(saved, folder)


def pickled_weights(saved: Path, folder: Path) -> None:
    """Exchanges the weights of a model for a pickle."""
    for weights in saved.glob("*.safetensors"):
        weights.unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Malicious(folder)}))


def of_text_encoder(change: Callable[[Path, Path], object], what: str = "encoder") -> Attack:
    """A folder of a text encoder, changed."""

    def attack(folder: Path) -> Call:
        from diffusion.text_loading import load_text_model, load_tokenizer

        saved = folder / "encoder"
        shutil.copytree(SHIPPED / "text_encoder", saved)
        shutil.copytree(SHIPPED / "tokenizer", saved, dirs_exist_ok=True)
        change(saved, folder)
        if what == "tokenizer":
            return lambda: load_tokenizer(str(saved), local_files_only=True)
        return lambda: load_text_model(str(saved), True)

    return attack


def official_pickle(folder: Path) -> Call:
    """A released checkpoint that is a program."""
    import torch

    from vidtwin import VidTwinAutoencoder

    torch.save({"state_dict": Malicious(folder)}, folder / "released.ckpt")
    return lambda: VidTwinAutoencoder.from_official(folder / "released.ckpt")


def checkpoint_pickle(folder: Path) -> Call:
    """A checkpoint of a run, whose optimizer is a program, and which has no sums."""
    import torch
    from accelerate import Accelerator

    from vidtwin_lab.runtime import CheckpointFolder

    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    checkpoints = CheckpointFolder(folder / "checkpoints")
    path = checkpoints.save(accelerator, 1)
    torch.save({"state": Malicious(folder)}, path / "optimizer.bin")
    (path / "progress.json").write_text('{"step": 1, "num_processes": 1}')
    return lambda: checkpoints.load(accelerator, path)


def torchscript(folder: Path) -> Call:
    """Features that are a program, where only their file is named."""
    import torch

    from vidtwin_lab.evaluation.config import FeaturesConfig
    from vidtwin_lab.evaluation.features import load_features

    torch.jit.script(torch.nn.Identity()).save(str(folder / "i3d.pt"))
    return lambda: load_features(FeaturesConfig(path=str(folder / "i3d.pt")))


def video(content: bytes | str, name: str = "clip.mp4") -> Attack:
    """A file that is read as a video; beside it lies other.mp4."""

    def attack(folder: Path) -> Call:
        from vidtwin.data.readers import read_frames
        from vidtwin.media import write_gif

        write_gif(folder / "other.gif", _frames(), 8)
        (folder / "other.gif").rename(folder / "other.mp4")
        text = content.replace("FOLDER", str(folder)) if isinstance(content, str) else content
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return lambda: read_frames(folder / name)

    return attack


def _frames() -> Any:
    import numpy as np

    return np.arange(4 * 16 * 16 * 3, dtype=np.uint8).reshape(4, 16, 16, 3)


def large_gif(folder: Path) -> Call:
    """Three frames of a pixel each, on a screen of 16000 x 16000."""
    frame = b"\x21\xf9\x04\x04\x0a\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    screen = struct.pack("<HHBBB", 16000, 16000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    gif = b"GIF89a" + screen + 3 * (frame + b"\x02\x02\x44\x01\0") + b"\x3b"
    return video(gif, "clip.gif")(folder)


def shards(path: str, name: str = "shard.tar") -> Attack:
    """Tar shards under a path, in which FOLDER stands for the folder, by an index."""

    def attack(folder: Path) -> Call:
        from vidtwin.data import DataConfig, build_dataset

        place = folder / "shards"
        place.mkdir()
        (folder / "outside.tar").write_bytes(bytes(2048))
        (place / "shard.tar").write_bytes(bytes(2048))
        shard = {"name": name, "size": 2048, "clips": 1}
        header = {
            **{"format": "vidtwin-shards-1", "clips": 1, "shards": [shard]},
            **{"label_names": [], "factors": {}},
        }
        clip = {"shard": 0, "member": "../../a.mp4", "offset": 512, "size": 1024}
        lines = (json.dumps(header), json.dumps(clip))
        (place / "index.jsonl").write_text("".join(f"{line}\n" for line in lines))
        config = DataConfig(source="shards", path=path.replace("FOLDER", str(folder)))
        return lambda: build_dataset(config).get(0)

    return attack


def cache_pickle(folder: Path) -> Call:
    """An array of objects in a latent cache."""
    import numpy as np

    from diffusion.cache_format import Shard, read_shard
    from vidtwin.files import file_digest

    files = {}
    for name in ("structure", "dynamics_x", "dynamics_y"):
        path = folder / f"{name}.npy"
        np.save(path, np.array([Malicious(folder)], dtype=object), allow_pickle=True)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    record = {"first_clip": 0, "end_clip": 1, "clips": [], "files": files}
    (folder / "shard.json").write_text(json.dumps(record))
    return lambda: read_shard(Shard(folder, 0, 1), verify=True)


FEATURES = "features:\n  name: {}\n  path: {}\n"
PLACES = ("autoencoder", "transformer", "latent_stats", "scheduler", "text_encoder", "tokenizer")
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
CODE, LIST = "which is never run", "a list of other files, which is never followed"
CONTAINER = "its container is none of those that are read"
# Name -> the attack, and what its refusal says.
ATTACKS: dict[str, tuple[Attack, str]] = {
    "config: a module as features": (
        in_config(FEATURES.format("subprocess:getoutput", "mkdir FOLDER/ran")),
        "`features.name` of a config file may be i3d",
    ),
    "config: a module as classifier": (
        in_config(FEATURES.format("os:mkdir", "FOLDER/ran").replace("features", "classifier")),
        "`classifier.name` of a config file may be i3d",
    ),
    "config: a flag to run programs": (
        in_config("features: {run_program: true}\n"),
        "`features.run_program` of a config file may be False",
    ),
    "config: a tag of Python": (
        in_config("seed: !!python/object/apply:os.mkdir [FOLDER/ran]\n"),
        "could not determine a constructor for the tag",
    ),
    "config: nested aliases": (in_config(nested_aliases()), "more than 100,000 values"),
    "config: an alias of itself": (in_config("data: &a {shapes: *a}\n"), "stands for itself"),
    "config: deep nesting": (
        in_config("data: " + "[" * 5000 + "]" * 5000),
        "nested deeper than 32 levels",
    ),
    "config: a large file": (in_config("x" * 5_000_000), "expected at most 1,000,000"),
    "config: a base without end": (in_config("base: /dev/zero\n"), "/dev/zero does not exist"),
    "config: a base of itself": (in_config("base: config.yaml\n"), "`base` goes in a circle"),
    "config: a huge number": (in_config("seed: " + "9" * 100_000), "no such number"),
    "config: a huge size": (in_config("batch_size: 1000000000000\n"), "must be at most 1,048,576"),
    "config: a clip that fits nowhere": (
        in_config("data: {num_frames: 60000, height: 30000, width: 30000}\n"),
        "GiB, expected at most 64",
    ),
    **{
        f"pipeline: os.system as {place}": (
            in_pipeline(with_keys(INDEX, **{place: ["os", "system"]})),
            f"{place} must be",
        )
        for place in PLACES
    },
    "pipeline: another class": (
        in_pipeline(with_keys(INDEX, _class_name="DiffusionPipeline")),
        "holds another pipeline",
    ),
    "pipeline: a scheduler that is none": (
        in_pipeline(with_keys(INDEX, scheduler=["diffusers", "DiffusionPipeline"])),
        "model_index.json: the scheduler must be one of",
    ),
    "pipeline: a scheduler's config of another": (
        in_pipeline(with_keys(SCHEDULER, _class_name="DiffusionPipeline")),
        "scheduler_config.json: the scheduler must be one of",
    ),
    "pipeline: a tokenizer that loads code": (
        in_pipeline(with_keys(INDEX, tokenizer=["transformers", "AutoTokenizer"])),
        "tokenizer must be a tokenizer's class",
    ),
    "pipeline: code of its text encoder": (
        in_pipeline(lambda saved, folder: foreign_model(saved / "text_encoder", folder)),
        "has code in its folder",
    ),
    "pipeline: code of its text encoder on the hub": (
        in_pipeline(
            lambda saved, _: with_keys("config.json", auto_map={"AutoModel": "a/b--c.M"})(
                saved / "text_encoder", saved
            )
        ),
        CODE,
    ),
    "pipeline: code of its tokenizer": (
        in_pipeline(
            lambda saved, _: with_keys("tokenizer_config.json", auto_map={"AutoTokenizer": "a.B"})(
                saved / "tokenizer", saved
            )
        ),
        CODE,
    ),
    "pipeline: a module beside its parts": (
        in_pipeline(
            lambda saved, folder: (saved / "scheduler" / "diffusers.py").write_text(
                f"import os\nos.mkdir({str(folder / RAN)!r})\n"
            )
        ),
        "has code in its folder",
    ),
    "text encoder: code of its own": (of_text_encoder(foreign_model), CODE),
    "text encoder: code of an unknown kind": (of_text_encoder(unknown_model), CODE),
    "text encoder: pickled weights": (of_text_encoder(pickled_weights), "Weights only load failed"),
    "tokenizer: code of its own": (of_text_encoder(foreign_model, "tokenizer"), CODE),
    "tokenizer: code of an unknown kind": (of_text_encoder(unknown_model, "tokenizer"), CODE),
    "weights: a released file that is a pickle": (official_pickle, "as weights alone"),
    "weights: a checkpoint that is a pickle": (checkpoint_pickle, "can't be read"),
    "weights: a cache that is a pickle": (cache_pickle, "structure.npy"),
    "weights: TorchScript": (torchscript, "a program as well as weights"),
    "video: a list of a neighbour": (video("ffconcat version 1.0\nfile other.mp4\n"), LIST),
    "video: a list of any file": (video("ffconcat version 1.0\nfile FOLDER/other.mp4\n"), LIST),
    "video: a playlist": (
        video(
            "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n", "clip.ts"
        ),
        LIST,
    ),
    "video: a playlist of an address": (
        video("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"),
        LIST,
    ),
    "video: a session description": (
        video(
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP "
            "96\na=rtpmap:96 H264/90000\n",
            "clip.sdp",
        ),
        CONTAINER,
    ),
    "video: text that is drawn": (video("\x1b[31mhello\x1b[0m\n" * 50, "clip.ans"), CONTAINER),
    "video: frames of 16000 x 16000": (large_gif, "at most data.max_pixels"),
    "shards: an index of files elsewhere": (
        shards("FOLDER/shards", "../outside.tar"),
        "lies elsewhere than the index",
    ),
    "shards: an absolute file": (
        shards("FOLDER/shards", "/etc/outside.tar"),
        "lies elsewhere than the index",
    ),
    "shards: a member that is none": (shards("FOLDER/shards"), "../../a.mp4 isn't there"),
    "shards: a protocol that fills templates": (
        shards("reference://FOLDER/shards/index.jsonl"),
        "reference is none of the protocols",
    ),
    "shards: a protocol behind a protocol": (
        shards("simplecache::reference://FOLDER/shards"),
        "reference is none of the protocols",
    ),
}


@contextmanager
def _unasked() -> Iterator[list[str]]:
    """Notes every question that is asked of the user meanwhile; the answer is yes."""
    asked: list[str] = []
    before = builtins.input

    def answer(prompt: object = "", /) -> str:
        asked.append(str(prompt))
        return "y"

    builtins.input = answer
    try:
        yield asked
    finally:
        builtins.input = before


def _memory() -> int:
    """Bytes that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def broken_by(name: str, folder: Path) -> str | None:
    """What an attack of `ATTACKS` reached, in words; None if it has held.

    Args:
        folder: an empty folder in an empty folder.
    """
    attack, words = ATTACKS[name]
    call = attack(folder)
    before = sorted(folder.parent.iterdir())
    measurable = Path("/proc/self/statm").exists()
    memory, began = _memory() if measurable else 0, time.monotonic()
    refusal: Exception | None = None
    with _unasked() as asked:
        try:
            call()
        except Exception as error:
            refusal = error
    if (folder / RAN).exists():
        return "a program ran"
    if sorted(folder.parent.iterdir()) != before:
        return "something was written beside the folder"
    if asked:
        return f"it asked: {asked[0]}"
    if not isinstance(refusal, ValueError):
        return f"it was not refused by a ValueError, but {refusal!r}"
    if words not in str(refusal):
        return f"it was refused for another reason: {refusal}"
    if "\n" in str(refusal).strip() or len(str(refusal)) > 1000:
        return f"the refusal is no line: {refusal}"
    if measurable and (grown := _memory() - memory) > MOST_BYTES:
        return f"memory grew by {grown / 1e6:,.0f} MB"
    if (spent := time.monotonic() - began) > MOST_SECONDS:
        return f"it took {spent:.0f} s"
    return None


def attacks_held() -> dict[str, Any]:
    """Makes every attack; see tools/reliability.py for the result."""
    broken = {}
    for name in ATTACKS:
        with tempfile.TemporaryDirectory() as outer:
            folder = Path(outer) / "folder"
            folder.mkdir()
            if (why := broken_by(name, folder)) is not None:
                broken[name] = why
    held = len(ATTACKS) - len(broken)
    return {
        "figure": f"{len(ATTACKS)} attacks, {held} held",
        "passed": not broken,
        "attacks": list(ATTACKS),
        "broken": broken,
    }


def measure(_: Any) -> dict[str, Any]:
    """All attacks, in every form: they take a minute."""
    return attacks_held()
