import copy
import json
import pathlib
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.fakes import LAUNCH, Fakes, shellcheck

SCRIPT = LAUNCH / "gke" / "run.sh"
SCHEMA = json.loads(pathlib.Path(__file__).with_name("jobset.schema.json").read_text())
COMMON = ("--name=cc12m", "--image=region/project/cyclip:1", "--workdir=gs://bucket/cc12m")
GPU = ("gpu", *COMMON, "--nodes=4")
TPU = ("tpu", *COMMON, "--topology=4x4")
ODD_FLAGS = (
    "--config=configs/cc12m.py",
    '--config.data.train=/a b/{0..3}.tar,"c"\\d',
    "--x=${NAME}&",
)


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


def run(fakes, *options, flags=ODD_FLAGS):
    return fakes.run("bash", SCRIPT, *options, "--", *flags)


def rendered(fakes, *options):
    """The JobSet that is applied, as a dict."""
    fakes.answer({})
    result = run(fakes, *options)
    assert result.returncode == 0, result.stderr
    assert fakes.calls() == [["kubectl", "apply", "--filename=-"]]
    return yaml.safe_load(fakes.inputs()[0])


def job_of(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def pod_of(jobset):
    return job_of(jobset)["template"]["spec"]


def check_valid(jobset):
    """The JobSet by its schema, the job in it by Kubernetes' own, where no field is unknown."""
    jsonschema.validate(jobset, SCHEMA)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}
    job["spec"] = job_of(jobset)
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_shellcheck_has_no_complaint():
    assert shellcheck(SCRIPT) == ""


def test_help_names_both_kinds_and_xpk(fakes):
    result = fakes.run("bash", SCRIPT, "--help")
    assert result.returncode == 0
    assert all(
        text in result.stdout for text in ("run.sh gpu", "run.sh tpu", "xpk workload create")
    )


@pytest.mark.parametrize("options", [GPU, TPU, (*GPU, "--spot"), (*TPU, "--spot")])
def test_every_jobset_is_valid(fakes, options):
    check_valid(rendered(fakes, *options))


def test_an_invalid_jobset_is_noticed(fakes):
    jobset = rendered(fakes, *GPU)
    for place, field in (("spec", "failurPolicy"), ("job", "backofLimit"), ("pod", "restartPolcy")):
        broken = copy.deepcopy(jobset)
        {"spec": broken["spec"], "job": job_of(broken), "pod": pod_of(broken)}[place][field] = 1
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check_valid(broken)


@pytest.mark.parametrize("options", [GPU, TPU], ids=["gpu", "tpu"])
def test_flags_arrive_as_they_were_given(fakes, options):
    args = pod_of(rendered(fakes, *options))["containers"][0]["args"]
    assert args[-4:] == ["--workdir=gs://bucket/cc12m", *ODD_FLAGS]


@pytest.mark.parametrize("options", [GPU, TPU], ids=["gpu", "tpu"])
def test_the_flags_of_the_yaml_are_flags_of_main(fakes, options):
    args = pod_of(rendered(fakes, *options))["containers"][0]["args"]
    package = "".join(path.read_text() for path in (LAUNCH.parent / "cyclip_jax").rglob("*.py"))
    defined = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', package)
    names = [arg[2:].split("=")[0] for arg in args if arg not in ODD_FLAGS]
    assert set(names) <= set(defined), names


def test_gpu_processes_find_the_first_by_its_stable_name(fakes):
    jobset = rendered(fakes, *GPU)
    args = pod_of(jobset)["containers"][0]["args"]
    (job,) = jobset["spec"]["replicatedJobs"]
    # As JobSet names pods: JOBSET-JOB-INDEX-POD.SUBDOMAIN, with the set's name as the subdomain.
    host = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
    assert f"--coordinator_address={host}:8476" in args
    assert "--process_id=$(JOB_COMPLETION_INDEX)" in args and "--num_processes=4" in args
    assert job_of(jobset)["completionMode"] == "Indexed"
    assert job_of(jobset)["completions"] == job_of(jobset)["parallelism"] == 4


@pytest.mark.parametrize(
    ("topology", "chips", "nodes"),
    [("4x4", 4, 4), ("2x2x4", 4, 4), ("2x4", 8, 1), ("16x16", 4, 64)],
)
def test_a_slice_has_the_nodes_of_its_topology(fakes, topology, chips, nodes):
    jobset = rendered(fakes, "tpu", *COMMON, f"--topology={topology}", f"--chips={chips}")
    pod = pod_of(jobset)
    assert job_of(jobset)["parallelism"] == job_of(jobset)["completions"] == nodes
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


@pytest.mark.parametrize("options", [GPU, TPU], ids=["gpu", "tpu"])
def test_a_stopped_run_comes_back_without_being_counted(fakes, options):
    jobset = rendered(fakes, *options, "--restarts=5", "--grace=120")
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 5
    stopped, taken = job_of(jobset)["podFailurePolicy"]["rules"]
    container = pod_of(jobset)["containers"][0]
    assert stopped["action"] == taken["action"] == "FailJob"
    assert stopped["onExitCodes"]["containerName"] == container["name"]
    (code,) = stopped["onExitCodes"]["values"]
    assert f"--stopped_exit_code={code}" in container["args"]
    assert pod_of(jobset)["terminationGracePeriodSeconds"] == 120


@pytest.mark.parametrize("options", [GPU, TPU], ids=["gpu", "tpu"])
def test_spot_nodes_are_asked_for(fakes, options):
    spot = "cloud.google.com/gke-spot"
    assert pod_of(rendered(fakes, *options, "--spot"))["nodeSelector"][spot] == "true"
    assert spot not in pod_of(rendered(fakes, *options))["nodeSelector"]


@pytest.mark.parametrize("options", [GPU, TPU], ids=["gpu", "tpu"])
def test_what_a_dry_run_prints_is_what_a_run_calls(fakes, options):
    printed = run(fakes, *options, "--dry-run")
    assert printed.returncode == 0 and fakes.calls() == []
    run(fakes, *options)
    called = fakes.calls(), fakes.inputs()
    fakes.answer({})
    fakes.run("bash", stdin=printed.stdout)
    assert (fakes.calls(), fakes.inputs()) == called


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("cpu",), "cpu is neither gpu nor tpu"),
        ((*GPU, "--gpu=1"), "unknown option --gpu=1"),
        ((*GPU, "--name=CC12M"), "gpu needs --name=NAME"),
        ((*GPU, "--image="), "gpu needs --image"),
        ((*GPU, "--image=a\nb: c"), "gpu needs --image"),
        ((*GPU, "--workdir=/tmp/a"), "--workdir=gs://BUCKET/RUN"),
        (("gpu", *COMMON), "gpu needs --nodes"),
        ((*GPU, "--nodes=0"), "--nodes=0 is not a whole number"),
        ((*GPU, "--gpus=eight"), "--gpus=eight is not a whole number"),
        (("tpu", *COMMON), "tpu needs --topology"),
        ((*TPU, "--topology=16"), "tpu needs --topology=AxB or AxBxC, such as 4x4, not 16"),
        ((*TPU, "--chips=3"), "16 chips of --topology=4x4 do not divide into nodes of 3 chips"),
        ((*TPU, "--chips=0"), "--chips=0 is not a whole number"),
        ((*TPU, "--nodes=4"), "tpu takes no --nodes"),
    ],
)
def test_bad_input_is_told_before_kubectl(fakes, options, message):
    result = run(fakes, *options)
    assert result.returncode == 2 and message in result.stderr
    assert fakes.calls() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "-- --config=configs/cc12m.py"),
        (("--config=a.py", "--workdir=gs://b/c"), "--workdir stands before --"),
        (("--config=a.py", "--x=\n"), "a flag has a line break"),
    ],
)
def test_bad_flags_are_told_before_kubectl(fakes, flags, message):
    result = run(fakes, *GPU, flags=flags)
    assert result.returncode == 2 and message in result.stderr
    assert fakes.calls() == []


def test_the_image_installs_what_the_lock_names():
    dockerfile = (LAUNCH / "gke" / "Dockerfile").read_text()
    assert re.findall("^FROM (.*)$", dockerfile, re.MULTILINE) == ["python:3.11-slim"]
    for accelerator in re.findall("ACCELERATOR=(tpu|cuda)", dockerfile):
        assert (LAUNCH / f"requirements-{accelerator}.lock").exists()
    copied = re.findall(r"^COPY (?!launch)(.*) \S+$", dockerfile, re.MULTILINE)
    assert all((LAUNCH.parent / name).exists() for line in copied for name in line.split())
