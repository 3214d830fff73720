"""How stages are started on clusters: what make would run, and the SLURM script with a cluster of stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stages.train import cli, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_outer_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` runs these tests, and variables of its make would make theirs print folders entered and left."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ([], ".venv/bin/python -m stages.train"),
        (["NPROC=8"], "torch.distributed.run --standalone --nproc_per_node 8 "),
        (
            ["NNODES=12", "NODE_RANK=3", "MASTER_ADDR=10.0.0.1"],
            "--nnodes 12 --node_rank 3 --master_addr 10.0.0.1 --master_port 29500 --nproc_per_node gpu ",
        ),
        (["HOSTFILE=hosts"], "deepspeed --hostfile hosts --no_local_rank --module stages.train"),
    ],
)
def test_make_starts_a_stage_by_its_launcher_variables(variables: list[str], expected: str) -> None:
    command = ["make", "-n", "stage1", "PRESET=7b", "RUN=runs/never", *variables]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in printed.splitlines() if "stages.train" in line]
    assert expected in line and line.endswith("stages.train stages/configs/7b/stage1.yaml --run runs/never")
    printed = subprocess.run(
        [*command, "ARGS=--training.optim x"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "stage1.yaml --run runs/never --training.optim x\n" in printed.stdout


def test_the_toys_two_processes_leave_the_gpu_alone_and_one_takes_it(tmp_path: Path) -> None:
    command = ["make", "-n", "stage1", f"RUN={tmp_path}"]
    for variables, hidden, count in (([], True, 2), (["NPROC=1"], False, 1)):
        printed = subprocess.run([*command, *variables], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        (line,) = [line for line in printed.splitlines() if "toy/stage1.yaml" in line]
        assert line.startswith("CUDA_VISIBLE_DEVICES= ") == hidden and f"--nproc_per_node {count} " in line


@pytest.mark.parametrize("preset", ["7b", "toy"])
def test_every_preset_ends_in_a_model_to_talk_to(preset: str, tmp_path: Path) -> None:
    for folder, file in (("stage3", "speechgpt.json"), ("vocoder", "config.json"), ("results", "resynthesis.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    command = ["make", "-n", "chat", f"PRESET={preset}", f"RUN={tmp_path}"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"speechgpt.bundle --stage {tmp_path}/stage3 --encoder {tmp_path}/unit_encoder" in printed
    assert printed.rstrip().endswith(f"speechgpt.cli --model {tmp_path}/model --folder {tmp_path}/answers")


def test_targets_of_the_toy_alone_are_refused_for_other_presets(tmp_path: Path) -> None:
    for target in ("data", "vocoder", "eval", "model"):
        printed = subprocess.run(
            ["make", target, "PRESET=7b", f"RUN={tmp_path}", "-o", f"{tmp_path}/stage3/speechgpt.json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert printed.returncode == 2 and "only the toy preset makes it by itself" in printed.stdout, printed


def test_make_deletes_one_run_folder_and_no_other() -> None:
    printed = subprocess.run(
        ["make", "-n", "clean", "RUN=runs/never"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "rm -rf -- 'runs/never'\n"
    for wrong in ("RUN=my runs/a", "RUN=", "PRESET=", "PRESET=a b"):
        printed = subprocess.run(["make", "-n", "clean", wrong], cwd=ROOT, capture_output=True, text=True)
        assert printed.returncode == 2 and "rm" not in printed.stdout and "each is one word" in printed.stderr, printed


@pytest.mark.parametrize("begun", ["started", "corpus/corpus.json"])
def test_make_goes_on_with_the_world_that_was_begun(begun: str, tmp_path: Path) -> None:
    (tmp_path / begun).parent.mkdir(exist_ok=True)
    (tmp_path / begun).write_text("1700000000 3\n" if begun == "started" else '{\n "words": 167,\n "seed": 3\n}')

    def make(*arguments: str) -> subprocess.CompletedProcess:
        command = ["make", "-n", f"RUN={tmp_path}", f"{tmp_path}/corpus/corpus.json", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    printed = make("data", "SEED=1")
    assert printed.returncode == 2 and f"{tmp_path} holds the world of SEED=3" in printed.stderr
    assert f"RUN={tmp_path}-1" in printed.stderr
    for arguments in (["data"], ["data", "SEED=3"], ["check", "SEED=1"]):
        printed = make(*arguments)
        assert printed.returncode == 0, printed
        assert begun != "started" or arguments[0] == "check" or "--toy.seed 3" in printed.stdout


def finished_run(run: Path) -> Path:
    """The completed of a whole toy run, each newer than the one before it."""
    completed = (
        "corpus/corpus.json",
        "unit_encoder/codebook.json",
        "units/train/unit_set.json",
        "vocoder/config.json",
        "results/resynthesis.json",
        "data/build.json",
        "text_llm_untrained/config.json",
        "text_llm/config.json",
        "stage1/speechgpt.json",
        "stage2/speechgpt.json",
        "stage3/speechgpt.json",
        "model/speechgpt.json",
        "results/done",
        "report/summary.txt",
    )
    for age, completion_file in enumerate(reversed(completed)):
        (run / completion_file).parent.mkdir(parents=True, exist_ok=True)
        (run / completion_file).touch()
        os.utime(run / completion_file, (1_700_000_000 - 60 * age,) * 2)
    return run


def steps(run: Path, *options: str) -> list[str]:
    """Modules that make would run for the report."""
    printed = subprocess.run(
        ["make", "-n", "eval", f"RUN={run}", *options], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r"-m ((?:units|eval|stages|speechgpt|instruct_data)\.[\w.]+)", printed)


def test_another_vocoder_is_evaluated_again_and_no_stage_trains_again(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert steps(run) == []
    (run / "vocoder/config.json").touch()
    assert sorted(steps(run)) == ["eval.report.card", "eval.resynthesis", "eval.run", "speechgpt.bundle"]
    (run / "vocoder/config.json").unlink()
    assert sorted(steps(run)) == ["eval.report.card", "eval.resynthesis", "eval.run", "speechgpt.bundle"]
    assert sorted(steps(run, "FROM_SCRATCH=1")) == [
        "eval.report.card",
        "eval.resynthesis",
        "eval.run",
        "speechgpt.bundle",
        "units.vocoder.train_vocoder",
    ]


def test_units_and_vocoder_are_those_that_ship_unless_all_is_made_from_scratch(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/corpus.json").touch()
    assert not {"units.encoder.fit", "units.vocoder.train_vocoder"} & set(steps(tmp_path))
    assert {"units.encoder.fit", "units.vocoder.train_vocoder"} <= set(steps(tmp_path, "FROM_SCRATCH=1"))


def test_a_finished_run_is_not_begun_again_when_its_neighbours_are_touched(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    for neighbour in ("corpus/corpus.json", "units/train/unit_set.json", "data/build.json", "stage1/speechgpt.json"):
        (run / neighbour).touch()
    assert steps(run) == []


def test_every_preset_is_measured_on_what_it_is_given(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    command = ["make", "eval", "PRESET=mine", f"RUN={run}"]
    printed = subprocess.run([*command, "CORPUS=never.jsonl"], cwd=ROOT, capture_output=True, text=True)
    assert printed.returncode == 2 and "there is no never.jsonl; say what to ask" in printed.stdout
    (run / "test.jsonl").touch()
    for target, module in (("eval", "eval.run"), ("bench", "bench.speed")):
        line = ["make", "-n", target, *command[2:], f"CORPUS={run}/test.jsonl"]
        printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"-m {module} --model {run}/model --corpus {run}/test.jsonl" in printed.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> dict[str, str]:
    """A folder to install in, with a python that makes environments of stand-ins and records its arguments."""
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    inside = 'echo "$*" >>printed; [[ "$*" == *pip*install* && -n "${FAILS:-}" ]] && exit 1; exit 0'
    stand_in(tmp_path, "inside", inside)
    stand_in(tmp_path, "python3", 'echo "$*" >>printed; rm -rf .venv; mkdir -p .venv/bin; cp inside .venv/bin/python')
    return {**os.environ, "PYTHON3": str(tmp_path / "python3")}


def install(checkout: dict[str, str], *arguments: str) -> tuple[int, list[str]]:
    home = Path(checkout["PYTHON3"]).parent
    (home / "printed").unlink(missing_ok=True)
    done = subprocess.run(
        ["make", ".venv/.installed", *arguments], cwd=home, env=checkout, capture_output=True, text=True
    )
    return done.returncode, (home / "printed").read_text().splitlines()


def test_a_half_made_environment_is_made_again(checkout: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stand_in(tmp_path / ".venv/bin", "python", "exit 1")  # as venv leaves it that was stopped, or had no pip to put in
    code, printed = install(checkout)
    assert code == 0 and printed[0] == "-m venv --clear .venv"
    (tmp_path / ".venv/.installed").unlink()
    code, printed = install(checkout)
    assert code == 0 and printed[0] == "-m pip --version" and not any("venv" in line for line in printed)


def test_pip_that_fails_is_no_installation(checkout: dict[str, str], tmp_path: Path) -> None:
    for flags in ([], [".SHELLFLAGS=-c"]):  # the make 3.81 of macOS passes nothing else
        code, _ = install({**checkout, "FAILS": "1"}, *flags)
        assert code == 2 and not (tmp_path / ".venv/.installed").exists()


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# Runs the tasks one after the other, and ends with the highest of their statuses
SRUN = """echo "$SRUN_CPUS_PER_TASK $1 $2 $3 $4 $5" >>{printed}
while [[ $1 == --* ]]; do case $1 in --ntasks=*) tasks=${{1#*=}};; esac; shift; done
code=0
for ((i = 0; i < tasks; i++)); do
  ended=0; SLURM_PROCID=$i SLURM_LOCALID=$i "$@" || ended=$?
  [ $ended -gt $code ] && code=$ended
done
exit $code"""

PYTHON = """[[ " $* " == *" --share "* ]] && {{ echo loading; echo "${{SHARE:-${{@: -1}}}}"; exit ${{REFUSED:-0}}; }}
echo "$RANK/$WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*" >>{printed}
[ $RANK = 0 ] && exit ${{ENDS:-0}}
exit ${{OTHERS:-${{ENDS:-0}}}}"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Two nodes of a task each; scontrol and python only write down how they were called, srun its options."""
    printed = tmp_path / "printed"
    stand_in(tmp_path, "scontrol", f'[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "scontrol $*" >>{printed}')
    stand_in(tmp_path, "squeue", 'echo "${STATE:-RUNNING}"')
    stand_in(tmp_path, "srun", SRUN.format(printed=tmp_path / "srun_told"))
    stand_in(tmp_path, "python", PYTHON.format(printed=printed))
    programs = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"), "TOLD": str(printed)}
    job = {
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    return {**os.environ, **programs, **job}


def submitted(cluster: dict[str, str], *arguments: str, **changes: str) -> tuple[int, str, list[str]]:
    done = subprocess.run(
        ["bash", str(ROOT / "stages/slurm.sh"), *arguments], env={**cluster, **changes}, capture_output=True, text=True
    )
    printed = Path(cluster["TOLD"])
    return done.returncode, done.stdout + done.stderr, printed.read_text().splitlines() if printed.exists() else []


def test_slurm_runs_the_stages_one_after_the_other(cluster) -> None:
    code, _, printed = submitted(cluster, "7b")
    stages = [
        f"{rank}/2 node7:20041 -m stages.train stages/configs/7b/stage{n}.yaml --run runs/7b"
        for n in (1, 2, 3)
        for rank in (0, 1)
    ]
    assert code == 0 and printed == stages
    Path(cluster["TOLD"]).unlink()
    _, _, printed = submitted(cluster, "7b", "stage3", RUN="runs/other", ARGS="--training.optim adafactor --seed 3")
    assert printed[0].endswith("stage3.yaml --run runs/other --training.optim adafactor --seed 3")
    steps = (Path(cluster["TOLD"]).parent / "srun_told").read_text().splitlines()
    assert len(steps) == 4 and all(step.startswith("6 --kill-on-bad-exit=1 ") for step in steps)


def test_slurm_checks_all_stages_before_the_first(cluster) -> None:
    code, _, printed = submitted(cluster, "7b", REFUSED="2")
    assert (code, printed) == (2, [])
    machines = {"SLURM_JOB_NUM_NODES": "12", "SLURM_NTASKS_PER_NODE": "8"}
    code, said, printed = submitted(cluster, "7b", "stage3", SHARE="32", **machines)
    assert code == 0 and "stage3 runs on 32 of the 96 tasks" in said
    assert len(printed) == 32 and printed[-1].startswith("31/32 node7:20041 ")
    options = (Path(cluster["TOLD"]).parent / "srun_told").read_text()
    assert "--relative=0 --nodes=4 --ntasks=32 --ntasks-per-node=8\n" in options


def test_share_prints_how_many_processes_can_share_a_batch(capsys) -> None:
    stage3 = str(ROOT / "stages/configs/7b/stage3.yaml")
    for processes, share in ((96, "32"), (8, "8")):
        main([stage3, "--share", str(processes)])
        assert capsys.readouterr().out.splitlines()[-1] == share
    with pytest.raises(SystemExit):
        cli([stage3, "--share", "128"])  # with 1 block a pass they can; the user has to set that
    assert "set training.per_device_train_batch_size to 1" in capsys.readouterr().err


def test_slurm_queues_a_stopped_job_again_and_no_failed_one(cluster) -> None:
    code, said, printed = submitted(cluster, "7b", "stage2", ENDS="143")
    assert code == 0 and printed[-1] == "scontrol requeue 41" and "queued again" in said
    Path(cluster["TOLD"]).unlink()
    code, _, printed = submitted(cluster, "7b", "stage2", "stage3", ENDS="1")
    assert code == 255 and len(printed) == 2  # stage 3 is not begun
    Path(cluster["TOLD"]).unlink()
    code, _, printed = submitted(cluster, "7b", "stage2", ENDS="1", OTHERS="143")  # as srun ends the others
    assert code == 255 and len(printed) == 2
    Path(cluster["TOLD"]).unlink()
    code, _, printed = submitted(cluster, "7b", "stage2", ENDS="143", STATE="COMPLETING")  # scancel
    assert code == 143 and len(printed) == 2
    assert submitted(cluster, "8b")[:2] == (2, "there is no preset stages/configs/8b\n")


def test_torchrun_leaves_the_stage_its_options(tmp_path: Path) -> None:
    """torchrun abbreviates its own options, and would take --run for one of them."""
    line = ["make", "-n", "stage1", "PRESET=7b", f"RUN={tmp_path}", "NPROC=1"]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in printed.splitlines() if "stages.train" in line]
    command = [sys.executable, *line.split()[2:], "--help"]  # without OMP_NUM_THREADS=... .venv/bin/python
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert "--block_size" in printed.stdout
