# Functions that all launchers share. Sourcing this file changes to the repository's root.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

fail() {
    echo "error: $1" >&2
    exit 2
}

# Prints words as a shell reads them back: in quotes unless that is unnecessary.
quote() {
    local word words=()
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
        words+=("$word")
    done
    echo "${words[*]}"
}

# need VARIABLE PATTERN EXAMPLE: fails unless the variable is set and matches as a whole.
need() {
    [[ ${!1:-} =~ ^($2)$ ]] || fail "set $1, as in $1=$3 (now: '${!1:-}'); see $0 --help"
}

# Patterns for `need`. a_name: a name in Kubernetes and Google Cloud.
# shellcheck disable=SC2034 # read by the launchers
a_word='[A-Za-z0-9][A-Za-z0-9_.:-]*' a_number='[1-9][0-9]*' a_name='[a-z]([a-z0-9-]*[a-z0-9])?'

dry_run=false
# Runs a command, or prints it under --dry_run. call_with TEXT COMMAND... passes the text as input.
call() {
    if $dry_run; then quote "$@"; else "$@"; fi
}
call_with() {
    if $dry_run; then printf "%s <<'END'\n%s\nEND\n" "$(quote "${@:2}")" "$1"; else "${@:2}" <<<"$1"; fi
}

# Fails unless the tool is installed or --dry_run is set.
tool() {
    $dry_run || command -v "$1" >/dev/null || fail "$1 not found: $2"
}

# Exit codes after which the same command resumes: preempted, a process lost or hung, killed from outside.
resumable() {
    case $1 in 75 | 76 | 137 | 143) ;; *) return 1 ;; esac
}
