"""launch/gke.sh: the JobSet that it renders, and what it does with kubectl, against a stand-in."""

import pytest
import yaml

JOB = {
    "NAME": "cuhk",
    "IMAGE": "host/ivt:1",
    "CLAIM": "runs",
    "NODES": "3",
    "CHIPS": "8",
    "ACCELERATOR": "nvidia-h100-80gb",
}
ARGUMENTS = [
    "--config=configs/cuhk.py", "--workdir=/mnt/my runs/cuhk", "--config.mla.levels=('sentence','word')",
    r'--config.data.root=a "b" \c $(PROCESS_ID) $$ $d: # e',
]  # fmt: skip
KUBECTL = ["kubectl", "--namespace=default"]
GET = [*KUBECTL, "get", "jobset", "cuhk", "--ignore-not-found", "--output=jsonpath={.status.terminalState}"]
APPLY = [*KUBECTL, "apply", "--filename=-"]
DELETE = [*KUBECTL, "delete", "jobset", "cuhk", "--ignore-not-found"]


@pytest.fixture
def gke(bench):
    """gke(*options, platform=): launch/gke.sh; its kubectl says $STATE when asked, and keeps the manifest."""
    bench.stub(
        "kubectl",
        'case " $* " in',
        '*" get "*) printf "%s" "${STATE:-}" ;;',
        '*" apply "*) cat >manifest; exit "${APPLY_CODE:-0}" ;;',
        "esac",
    )

    def run(*options, platform="gpu", **environment):
        command = ["launch/gke.sh", f"--platform={platform}", *options, "--", *ARGUMENTS]
        return bench.run(command, **{**JOB, **environment})

    return run


def manifest(bench):
    return yaml.safe_load((bench.folder / "manifest").read_text())


def parts(jobset):
    """The job, the pod and its container."""
    [workers] = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    return job, pod, container


def as_started(container, index):
    """The command line of pod `index`: Kubernetes replaces $(NAME), and $$ by $."""
    words = [*container["command"], *container["args"]]
    return [word.replace("$$", "\0").replace("$(PROCESS_ID)", str(index)).replace("\0", "$") for word in words]


def test_gpu_pods_are_told_where_the_first_is(gke, bench):
    assert gke().returncode == 0
    jobset = manifest(bench)
    job, pod, container = parts(jobset)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert (jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"][0]["name"]) == ("cuhk", "workers")
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (3, 3, "Indexed")
    train = ["launch/environment.sh", "gpu", "python", "-m", "ivt_jax.main", *ARGUMENTS]
    # JobSet names a pod JOBSET-JOB-INDEX-POD, below a service that is named like the JobSet.
    together = ["--coordinator=cuhk-workers-0-0.cuhk:8476", "--num_processes=3", "--process_id=2"]
    assert as_started(container, 2) == [*train, *together]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["env"] == [{"name": "PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}}]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    # The image's user is 1000, and the claim's root folder belongs to root.
    assert pod["securityContext"] == {"fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch"}


def test_tpu_pods_find_each_other(gke, bench):
    assert gke("--spot", platform="tpu", ACCELERATOR="tpu-v5-lite-podslice", TOPOLOGY="4x4").returncode == 0
    _, pod, container = parts(manifest(bench))
    assert as_started(container, 0) == [
        "launch/environment.sh", "tpu", "python", "-m", "ivt_jax.main", *ARGUMENTS, "--distributed",
    ]  # fmt: skip
    assert container["resources"] == {"limits": {"google.com/tpu": 8}}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["securityContext"] == {"runAsUser": 0}  # root owns the device files


def test_all_pods_begin_anew_unless_it_would_fail_again(gke, bench):
    assert gke("--retries=5").returncode == 0
    jobset = manifest(bench)
    job, pod, _ = parts(jobset)
    # One failed pod fails the job, and a failed job starts the JobSet anew ...
    assert (jobset["spec"]["failurePolicy"]["maxRestarts"], job["backoffLimit"], pod["restartPolicy"]) == (
        5,
        0,
        "Never",
    )
    # ... but codes 1 and 2 fail it for another reason, at which the JobSet ends.
    rules = job["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"] for rule in rules}
    assert [(action, on["operator"], on["values"], on["containerName"]) for action, on in codes.items()] == [
        ("FailJob", "In", [1, 2], "train"),
        ("Count", "In", [75, 76], "train"),
    ]
    assert jobset["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]


def test_the_workdir_is_on_the_claim(gke, bench):
    assert gke().returncode == 0
    _, pod, container = parts(manifest(bench))
    assert {"name": "runs", "mountPath": "/mnt"} in container["volumeMounts"]
    assert {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}} in pod["volumes"]


@pytest.mark.parametrize("state, calls", [("", [GET, APPLY]), ("Completed", [GET, DELETE, APPLY])])
def test_the_same_command_resumes_what_ended_and_leaves_what_runs(state, calls, gke, bench):
    assert gke(STATE=state).returncode == 0
    assert bench.calls() == calls


def test_dry_run_prints_what_would_run_and_runs_nothing(gke, bench):
    printed = gke("--dry_run").stdout
    assert gke("--dry-run").stdout == printed  # the former spelling
    assert not bench.calls()
    gke()
    expected = bench.calls(), manifest(bench)
    assert len(expected[0]) == 2
    (bench.folder / "manifest").unlink()
    bench.run(["bash", "-c", printed])
    assert (bench.calls(), manifest(bench)) == expected


def test_its_exit_code_is_that_of_kubectl(gke):
    assert gke(APPLY_CODE="3").returncode == 3


def test_logs_and_delete(gke, bench):
    for verb in "logs", "delete":
        assert bench.run(["launch/gke.sh", verb], NAME="cuhk", NAMESPACE="vision").returncode == 0
    logs, delete = bench.calls()
    assert logs[:3] == ["kubectl", "--namespace=vision", "logs"]
    assert "--selector=jobset.sigs.k8s.io/jobset-name=cuhk" in logs
    assert delete == ["kubectl", "--namespace=vision", *DELETE[2:]]


@pytest.mark.parametrize(
    "options, environment, message",
    [
        ([], {"NAME": "Cuhk"}, "set NAME, as in NAME=cuhk (now: 'Cuhk')"),
        ([], {"IMAGE": ""}, "set IMAGE, as in "),
        ([], {"CLAIM": "a b"}, "set CLAIM, as in CLAIM=runs (now: 'a b')"),
        ([], {"NODES": "two"}, "set NODES, as in NODES=2 (now: 'two')"),
        ([], {"CHIPS": ""}, "set CHIPS, as in CHIPS=8 (now: '')"),
        ([], {"ACCELERATOR": "a: b"}, "set ACCELERATOR, as in "),
        ([], {"NAMESPACE": "a/b"}, "set NAMESPACE, as in "),
        (["--platform=tpu"], {}, "set TOPOLOGY, as in TOPOLOGY=4x4 (now: '')"),
        (["--platform=cpu"], {}, "--platform must be gpu or tpu, not 'cpu'"),
        (["--retries=-1"], {}, "--retries must be a number, not -1"),
        (["--nodes=2"], {}, "unknown option --nodes=2; "),
        (["--", "--config=c.py"], {}, "put the workdir on the claim: --workdir=/mnt/runs/cuhk, after --"),
        (["--", "--workdir=/mnt/runs", "a\nb"], {}, "an argument has a line break or a tab: "),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(options, environment, message, bench, gke):
    rest = [] if "--" in options else ["--", *ARGUMENTS]
    result = bench.run(["launch/gke.sh", "--platform=gpu", *options, *rest], **{**JOB, **environment})
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1
    assert not bench.calls()
