"""How users start several processes of a script on CPUs."""

from __future__ import annotations

from script_runs import ROOT, run_python

# Ends as the scripts do; what they do themselves is tested without the launcher, which takes long.
SCRIPT = """
import sys
from accelerate import Accelerator
from vidtwin_lab import runtime

def main():
    here = Accelerator()
    told = f"{here.process_index} of {here.num_processes} on {here.device.type}: {sys.argv[1:]}"
    sys.stdout.write(told + "\\n")  # at once: print's line and its end may be apart
    here.wait_for_everyone()
    here.end_training()

if __name__ == "__main__":
    runtime.run_main(main)
"""


def test_accelerate_launch_that_starts_one_of_several_is_refused(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = run_python(
        *("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
        *(tmp_path / "script.py", "--config", "some.yaml", "output=a folder"),
        environment={"PYTHONPATH": str(ROOT)},
    )
    assert ended.code != 0
    assert not ended.out
    (line,) = [line for line in ended.err.splitlines() if "error: accelerate launch" in line]
    assert "was asked for several processes and started one" in line
    assert "torchrun --nproc_per_node N" in line


def test_torchrun_starts_as_many_as_it_is_asked_for(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    told = run_python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *(tmp_path / "script.py", "--config", "some.yaml", "output=a folder"),
        environment={"PYTHONPATH": str(ROOT)},
    ).done()
    words = ["--config", "some.yaml", "output=a folder"]
    assert sorted(told.splitlines()) == [f"{rank} of 2 on cpu: {words}" for rank in (0, 1)]
