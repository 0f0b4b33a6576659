#!/usr/bin/env bash
# Runs one training on Google Kubernetes Engine as a JobSet: a pod per node, on GPU nodes or on a TPU slice.
set -euo pipefail
source "$(dirname "$0")/common.sh"

usage() {
    cat <<'TEXT'
usage: NAME=... IMAGE=... CLAIM=... NODES=... CHIPS=... ACCELERATOR=... [TOPOLOGY=...] launch/gke.sh --platform=gpu|tpu [OPTIONS] -- ARGUMENTS
       NAME=... launch/gke.sh [--dry_run] logs | delete

Applies a JobSet that runs `python -m ivt_jax.main ARGUMENTS` on NODES pods, which form one run. After exit codes 75 and 76
and after lost nodes all pods restart; codes 1 and 2 end the JobSet. The same command changes nothing while the run lives,
and resumes it after it ended. The cluster needs JobSet 0.6 or later.

  --platform=gpu|tpu   kind of the nodes
  --spot               on spot nodes
  --retries=N          how many times all pods may restart (100)
  --dry_run            print each command with the manifest, and run nothing

  NAME          the JobSet's name
  IMAGE         a container image, built with launch/Dockerfile: its working folder is this repository
  CLAIM         a PersistentVolumeClaim (ReadWriteMany), mounted at /mnt, where the workdir must be
  NODES, CHIPS  number of pods, and of GPUs or TPU chips in each
  ACCELERATOR   label of the nodes, as in nvidia-h100-80gb or tpu-v5-lite-podslice
  TOPOLOGY      topology of the TPU slice, as in 4x4
  NAMESPACE     namespace of the JobSet (default)
TEXT
}

platform="" spot=false retries=100 verb=run
while (($#)); do
    case $1 in
        --dry_run | --dry-run) dry_run=true ;;
        --platform=*) platform=${1#*=} ;;
        --spot) spot=true ;;
        --retries=*) retries=${1#*=} ;;
        --help) usage && exit ;;
        logs | delete) verb=$1 ;;
        --) shift && break ;;
        *) fail "unknown option $1; the arguments of ivt_jax.main follow after --" ;;
    esac
    shift
done
NAMESPACE=${NAMESPACE:-default}
need NAME "$a_name" cuhk
need NAMESPACE "$a_name" default
if [[ $verb == run ]]; then
    [[ $platform =~ ^(gpu|tpu)$ ]] || fail "--platform must be gpu or tpu, not '$platform'"
    need IMAGE '[a-z0-9][A-Za-z0-9_./:@-]*' us-docker.pkg.dev/my-project/ivt/ivt:1
    need CLAIM "$a_name" runs
    need NODES "$a_number" 2
    need CHIPS "$a_number" 8
    need ACCELERATOR "$a_word" nvidia-h100-80gb
    [[ $platform == gpu ]] || need TOPOLOGY '[0-9]+(x[0-9]+){1,2}' 4x4
    [[ $retries =~ ^[0-9]+$ ]] || fail "--retries must be a number, not $retries"
    [[ " $*" == *" --workdir=/mnt/"* ]] || fail "put the workdir on the claim: --workdir=/mnt/runs/$NAME, after --"
fi
for argument; do
    [[ $argument != *[$'\n\t\r']* ]] || fail "an argument has a line break or a tab: ${argument@Q}"
done
tool kubectl "install it, and connect it to the cluster"

jobset=(kubectl --namespace="$NAMESPACE")

# A list item of YAML; Kubernetes replaces $(NAME) in arguments, and reads $$ as $.
item() {
    local word=$1
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    echo "                - \"$word\""
}

# JAX finds the other pods of a TPU slice by itself. For GPUs it would need a package and a permission to ask Kubernetes,
# so the first pod's name is passed.
manifest() {
    local selector join argument user
    if [[ $platform == gpu ]]; then
        selector="cloud.google.com/gke-accelerator: $ACCELERATOR"
        user="fsGroup: 1000, fsGroupChangePolicy: OnRootMismatch" # the image's user may write on the claim
        join=("--coordinator=$NAME-workers-0-0.$NAME:8476" "--num_processes=$NODES" "--process_id=\$(PROCESS_ID)")
    else
        selector="cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY"
        user="runAsUser: 0" # the device files of a TPU node belong to root
        join=(--distributed)
    fi
    if $spot; then
        selector+="
                cloud.google.com/gke-spot: \"true\""
    fi
    cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
spec:
  failurePolicy:
    maxRestarts: $retries
    rules:
      - action: FailJobSet # exit codes 1 and 2, by the policy below; all other failures restart all pods
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: workers
      replicas: 1
      template:
        spec:
          parallelism: $NODES
          completions: $NODES
          completionMode: Indexed
          backoffLimit: 0 # a run continues with all its processes or none
          podFailurePolicy:
            rules:
              - action: FailJob # an error or a mistake, which would repeat
                onExitCodes: { containerName: train, operator: In, values: [1, 2] }
              - action: Count # preempted, or another process was lost
                onExitCodes: { containerName: train, operator: In, values: [75, 76] }
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120 # to save the step
              securityContext: { $user }
              nodeSelector:
                $selector
              tolerations:
                - { key: nvidia.com/gpu, operator: Exists }
                - { key: google.com/tpu, operator: Exists }
                - { key: cloud.google.com/gke-spot, operator: Exists }
              containers:
              - name: train
                image: $IMAGE
                env:
                - { name: PROCESS_ID, valueFrom: { fieldRef: { fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']" } } }
                command: [launch/environment.sh, $platform, python, -m, ivt_jax.main]
                args:
$(for argument; do item "${argument//\$/\$\$}"; done)
$(for argument in "${join[@]}"; do item "$argument"; done)
                resources:
                  limits: { $([[ $platform == gpu ]] && echo nvidia.com/gpu || echo google.com/tpu): $CHIPS }
                volumeMounts:
                - { name: runs, mountPath: /mnt }
                - { name: memory, mountPath: /dev/shm }
              volumes:
              - { name: runs, persistentVolumeClaim: { claimName: $CLAIM } }
              - { name: memory, emptyDir: { medium: Memory } } # NCCL's; a container has 64 MB by default
YAML
}

delete() {
    call "${jobset[@]}" delete jobset "$NAME" --ignore-not-found
}

# A JobSet that has ended stays in the cluster, and applying it again would do nothing: delete it first.
apply() {
    local text ended=("${jobset[@]}" get jobset "$NAME" --ignore-not-found "--output=jsonpath={.status.terminalState}")
    text=$(manifest "$@")
    if $dry_run; then
        call "${ended[@]}"
    elif [[ -n $("${ended[@]}") ]]; then
        delete
    fi
    call_with "$text" "${jobset[@]}" apply --filename=-
}

case $verb in
    logs) call "${jobset[@]}" logs --selector="jobset.sigs.k8s.io/jobset-name=$NAME" --prefix --tail=-1 --max-log-requests=1000 ;;
    delete) delete ;;
    run) apply "$@" ;;
esac
