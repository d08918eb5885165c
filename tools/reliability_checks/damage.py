"""Damaged files are read or refused in one line; many opens leave no memory and no file behind.

`mutations`, `opens` and `command_lines` are checks of tools/reliability.py. The first two read in a
process of their own, so that one which dies of a file is seen, and named by the file's number.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SECONDS = 60  # for a file
CONFIGS = ("ae/shapes_debug.yaml", "diffusion/shapes_debug.yaml", "encode/shapes_debug.yaml")
MAX_GROWTH = 24 * 2**20


def mutations(options: Any) -> dict[str, Any]:
    """Damages media, lists, configs, models and checkpoints, and reads them.

    Args:
        options: `reliability_checks.options.Options`.
    """
    total = 120 if options.quick else max(1, round(1200 * options.share))
    make_sources(options.folder)
    found: dict[int, dict[str, str]] = {}
    while len(found) < total:
        log = options.folder / "outcomes.jsonl"
        first = len(found)
        words = ("mutate", options.folder, options.seed, first, total, log)
        ended = run_worker(*words)
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            case = json.loads(line)
            found[case.pop("number")] = case
        if len(found) < total:  # died of the next one
            tail = ended.stderr[-2000:]
            found[len(found)] = {"kind": "?", "outcome": f"died with {ended.returncode}: {tail}"}
    wrong = {n: c for n, c in found.items() if c["outcome"] not in ("read", "refused")}
    kinds = Counter(f"{case['kind']} {case['outcome']}" for case in found.values())
    refused = sum(case["outcome"] == "refused" for case in found.values())
    return {
        "figure": f"{total:,} damaged files, {refused:,} refused, {total - refused - len(wrong):,} "
        f"read, {len(wrong)} crashed",
        "passed": not wrong,
        "kinds": dict(sorted(kinds.items())) if not wrong else {},
        "wrong": dict(list(wrong.items())[:20]),
    }


def opens(options: Any) -> dict[str, Any]:
    """Opens whole and damaged clips again and again, with both decoders."""
    total = 600 if options.quick else max(600, round(5000 * options.share))
    make_sources(options.folder)
    log = options.folder / "opens.json"
    ended = run_worker("open", options.folder, options.seed, 0, total, log)
    if ended.returncode:
        return {"figure": f"died with {ended.returncode}", "passed": False,
                "error": ended.stderr[-2000:]}  # fmt: skip
    found = json.loads(log.read_text(encoding="utf-8"))
    grown = found["memory_after"] - found["memory_before"]
    left = found["files_after"] - found["files_before"]
    return {
        "figure": f"{total:,} opens: {grown / 2**20:+.1f} MiB, {left:+d} open files, "
        f"{found['threads_after'] - found['threads_before']:+d} threads",
        "passed": grown < MAX_GROWTH and left <= 0 and found["refused"] > 0,
        **found,
    }


def command_lines(options: Any) -> dict[str, Any]:
    """The property tests of all scripts, with more examples."""
    times = 1 if options.quick else max(1, round(10 * options.share))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/property",
               "--timeout", "3600", "-o", "addopts=-ra --import-mode=importlib"]  # fmt: skip
    environment = os.environ | {"VIDTWIN_EXAMPLES": str(times)}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    numbers = re.search(r"(?:(\d+) failed, )?(\d+) passed", ended.stdout)
    return {
        "figure": f"{numbers[2] if numbers else 0} properties of command lines and configs, each "
        f"with {20 * times} examples, {(numbers and numbers[1]) or 0} broken",
        "passed": ended.returncode == 0,
        "told": "" if ended.returncode == 0 else ended.stdout[-4000:],
    }


def run_worker(*words: object) -> subprocess.CompletedProcess[str]:
    """This file as a program."""
    command = [sys.executable, __file__, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def make_sources(folder: Path) -> None:
    """Whole files of every kind, below `whole`."""
    from vidtwin.data.synthetic.shapes import unseen_clip
    from vidtwin.media import write_gif, write_video

    whole = folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    frames = unseen_clip(16, 48, 64).video
    media, lists = whole / "media", whole / "list"
    for path in (media, lists, whole / "config"):
        path.mkdir(parents=True)
    for name in ("clip.mp4", "clip.mkv"):
        write_video(media / name, frames, fps=8)
    write_gif(media / "clip.gif", frames, fps=8)
    shutil.copy(media / "clip.mp4", lists / "a.mp4")
    shutil.copy(media / "clip.mp4", lists / "b.mp4")
    rows = [{"path": f"{n}.mp4", "caption": f"a dog, {n}", "label": n} for n in "ab"]
    (lists / "l.csv").write_text(
        "path,caption,label\n" + "".join(f'{n}.mp4,"a dog, {n}",{n}\n' for n in "ab")
    )
    (lists / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (lists / "l.json").write_text(json.dumps(rows, indent=1))
    (lists / "videos.txt").write_text("a.mp4\nb.mp4\n")
    for name in CONFIGS:
        text = (ROOT / "configs" / name).read_text(encoding="utf-8")
        base = str(ROOT / "configs" / name.partition("/")[0]) + "/"
        target = whole / "config" / name.replace("/", "_")
        target.write_text(text.replace("base: ", f"base: {base}"), encoding="utf-8")
    shutil.copytree(ROOT / "checkpoints" / "shapes", whole / "pipeline")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content, damaged in one to four places."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((1, 1, 4, 64, 4096)))
        how = rng.randrange(6)
        if how == 0:
            content = content[:start]
        elif how == 1:
            content = content[:start] + bytes(end - start) + content[end:]
        elif how == 2:
            content = content[:start] + rng.randbytes(end - start) + content[end:]
        elif how == 3:
            content = content[:start] + content[end:]
        elif how == 4:
            content = content[:start] + content[start:end] * 2 + content[end:]
        elif content:
            place = rng.randrange(len(content))
            flipped = bytes([content[place] ^ (1 << rng.randrange(8))])
            content = content[:place] + flipped + content[place + 1 :]
    return content


def read_media(path: Path, rng: random.Random) -> None:
    """Reads every frame of a clip."""
    from vidtwin.data.readers import read_frames

    read_frames(path, backend=rng.choice(("auto", "pyav")), timeout=20)


def read_list(path: Path, rng: random.Random) -> None:
    """Reads a list of clips, and one of them."""
    from vidtwin.data import DataConfig, build_dataset

    if path.suffix != ".mp4":
        data = DataConfig(source="list", path=str(path), num_frames=4, height=16, width=16)
        build_dataset(data).get(0)


def read_config(path: Path, rng: random.Random) -> None:
    """Reads a config of some script."""
    from vidtwin_lab.doctor.rehearsal import find_config

    names = {"ae": "train_ae", "diffusion": "train_diffusion", "encode": "encode"}
    find_config(str(path), [], names[path.name.partition("_")[0]])


def read_pipeline(path: Path, rng: random.Random) -> None:
    """Looks at a pipeline's folder, and loads its autoencoder."""
    from diffusion.pipeline_files import check_asked, check_pipeline_folder
    from vidtwin import load_autoencoder

    folder = next(each for each in path.parents if each.name == "pipeline")
    check_pipeline_folder(folder)
    check_asked(folder, "euler", ["a red circle"], None)
    if path.parent.name == "autoencoder":
        load_autoencoder(folder / "autoencoder")


READERS: dict[str, Callable[[Path, random.Random], None]] = {
    "media": read_media,
    "list": read_list,
    "config": read_config,
    "pipeline": read_pipeline,
}


def damage_one(folder: Path, kind: str, rng: random.Random) -> str:
    """Damages one file of a kind and reads it; what came of it."""
    from vidtwin.files import damaged_file, folder_sums

    copy = folder / "case" / kind
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(folder / "whole" / kind, copy)
    path = rng.choice(sorted(each for each in copy.rglob("*") if each.is_file()))
    sums, before = folder_sums(path.parent), path.read_bytes()
    path.write_bytes(after := mutated(before, rng))
    if (damaged_file(path.parent, sums) is None) != (before == after):
        return f"the sums of {path.name} did not tell of the damage"
    signal.alarm(SECONDS)
    try:
        READERS[kind](path, rng)
    except (ValueError, OSError) as error:
        return "refused" if str(error) else f"refused without a word: {type(error).__name__}"
    except BaseException:  # told as a failure, whatever it is
        return traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
    return "read"


def mutate(folder: Path, seed: int, first: int, total: int, log: Path) -> None:
    """The cases from `first` on, with a line of the log for each."""
    signal.signal(signal.SIGALRM, _hangs)
    log.unlink(missing_ok=True)
    kinds = ("media", "media", "list", "config", "pipeline")
    for number in range(first, total):
        kind = kinds[number % len(kinds)]
        outcome = damage_one(folder, kind, random.Random(repr((seed, number))))
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"number": number, "kind": kind, "outcome": outcome}) + "\n")


def _hangs(*_: Any) -> None:
    raise RuntimeError(f"not read in {SECONDS} s")


def open_many(folder: Path, seed: int, first: int, total: int, log: Path) -> None:
    """Opens clips; memory and files are counted after a tenth of them and in the end."""
    import psutil

    from vidtwin.data.readers import read_frames

    rng, process = random.Random(seed), psutil.Process()
    clips = sorted((folder / "whole" / "media").iterdir())
    for clip in clips[:]:
        broken = folder / f"broken_{clip.name}"
        broken.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
        clips.append(broken)
    found: dict[str, int] = {"refused": 0, "read": 0}
    for number in range(first, total):
        try:
            read_frames(rng.choice(clips), [0], backend=rng.choice(("auto", "pyav")))
            found["read"] += 1
        except ValueError:
            found["refused"] += 1
        if number in (max(300, total // 10), total - 1):
            name = "after" if number == total - 1 else "before"
            found[f"memory_{name}"] = process.memory_info().rss
            found[f"files_{name}"] = process.num_fds()
            found[f"threads_{name}"] = process.num_threads()
    log.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    what, *paths_and_numbers = sys.argv[1:]
    target, number, begin, end, record = paths_and_numbers
    work = {"mutate": mutate, "open": open_many}[what]
    work(Path(target), int(number), int(begin), int(end), Path(record))
